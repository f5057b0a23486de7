"""The failures of a partition's items within the room that results have."""

from __future__ import annotations

from executor.outcome import MESSAGE_CHARS_MAX, _shortened
from stepflow.codec import decode, encode
from stepflow.errors import Code, Failure
from stepflow.failure_data import FailedStep, failed_step, with_step

STEP = FailedStep("7/ask", "/mine/ask", 2, "h1")


def located(**data: object) -> Failure:
    return Failure(Code.COMPONENT_FAILED, "no", with_step(encode(data), STEP))


def test_a_failure_with_room_is_kept_whole():
    failure = located(details=1, frames=[1, 2])
    assert _shortened(failure, 4_096) is failure


def test_the_trace_goes_first_and_the_details_of_the_component_stay():
    data = decode(_shortened(located(details=1, frames=["x" * 5_000]), 4_096).data)
    assert data == {"details": 1, "step": "7/ask", "component": "/mine/ask", "attempt": 2, "host": "h1"}


def test_the_step_stays_when_the_details_go():
    failure = _shortened(located(details="x" * 5_000, frames=["x" * 5_000]), 4_096)
    assert failed_step(failure.data) == STEP
    assert decode(failure.data)["reason"] == "DETAILS_TOO_LARGE"


def test_a_failure_without_a_step_gets_none():
    failure = _shortened(Failure(Code.TIMEOUT, "y" * 5_000, encode({"own": "x" * 5_000})), 4_096)
    assert set(decode(failure.data)) == {"reason", "bytes"}
    assert len(failure.message) == MESSAGE_CHARS_MAX
