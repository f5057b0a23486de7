"""Owners with clocks that differ: no wait gets longer than it is, and no call took the difference of two clocks."""

from __future__ import annotations

import pytest
from support.corpus import ref, step
from support.engine import World

from stepflow.errors import Code, Failure
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.views import list_steps, step_event

HOUR_MS = 3_600_000
WAIT_MS = 60_000

NAP = step("w", "/builtin/sleep", {"duration_ms": WAIT_MS})
SIGNAL = step("w", "/builtin/wait_for_signal", {"name": "go", "timeout_ms": WAIT_MS})
RETRY = {
    **step("w", "/c/once", 1),
    "onError": {"action": "retry", "backoff": {"type": "constant", "delayMs": WAIT_MS}},
}
OTHER = step("o", "/c/id", 2)


def fails_once(value: object, attempt: int) -> object:
    return value if attempt > 1 else Failure(Code.COMPONENT_FAILED, "not yet")


def waiting(tree: dict[str, object]) -> World:
    """Return a run with one step that waits for `WAIT_MS` and, at most, another step in flight."""
    world = World({"steps": [tree, OTHER], "output": [ref("w"), ref("o")]})
    world.components["once"] = fails_once
    world.turn()
    for call in [each for each in world.flight if each.step.id == "w"]:
        world.flight.remove(call)
        world.answer(call)
        world.turn()
    assert world.state.next_wake_ms() is not None
    return world


def without_durations(world: World) -> None:
    """Make the journal one of a version that stored instants only."""
    entries = list(world.entries())
    for entry in entries:
        entry.timer_set.ClearField("duration_ms") if entry.HasField("timer_set") else None
        entry.signal_awaited.ClearField("timeout_ms") if entry.HasField("signal_awaited") else None
        entry.attempt_failed.ClearField("delay_ms") if entry.HasField("attempt_failed") else None
    world.journal = [entry.SerializeToString() for entry in entries]


def left_ms(world: World) -> int:
    wake_ms = world.state.next_wake_ms()
    assert wake_ms is not None
    return wake_ms - world.now_ms


@pytest.mark.parametrize("kind", [NAP, SIGNAL, RETRY])
@pytest.mark.parametrize("old_journal", [False, True])
def test_a_wait_gets_no_longer_when_the_next_owner_lags_an_hour_behind(
    kind: dict[str, object], old_journal: bool
) -> None:
    world = waiting(kind)
    if old_journal:
        without_durations(world)
    world.now_ms -= HOUR_MS
    world.crash()
    assert 0 < left_ms(world) <= WAIT_MS * 1.2, "a back-off has a jitter of a fifth"


@pytest.mark.parametrize("kind", [NAP, SIGNAL, RETRY])
def test_a_lagging_owner_goes_on_from_the_last_entry_of_the_previous_owner(kind: dict[str, object]) -> None:
    world = waiting(kind)
    whole_ms = left_ms(world)
    world.now_ms += WAIT_MS // 2
    world.answer(world.flight.pop())
    world.now_ms -= HOUR_MS
    world.crash()
    assert left_ms(world) == whole_ms - WAIT_MS // 2


def test_a_wait_gets_no_longer_however_many_owners_with_clocks_that_differ_follow_each_other() -> None:
    world = waiting(NAP)
    began_ms, skew_ms = world.now_ms, 0
    for step_ms in (-HOUR_MS, HOUR_MS, -2 * HOUR_MS, -HOUR_MS):
        world.now_ms += step_ms
        skew_ms += step_ms
        world.crash()
        if world.state.next_wake_ms() is None:
            break
        assert left_ms(world) <= WAIT_MS
    world.run()
    assert world.now_ms - skew_ms - began_ms <= WAIT_MS


def test_an_owner_that_is_ahead_ends_a_wait_early_by_no_more_than_the_difference() -> None:
    world = waiting(NAP)
    world.now_ms += WAIT_MS // 3
    world.crash()
    assert left_ms(world) == WAIT_MS - WAIT_MS // 3


def test_a_journal_whose_clock_was_set_back_bounds_a_wait_by_its_duration() -> None:
    """A version whose owners followed the wall clock wrote such journals."""
    world = waiting(NAP)
    world.now_ms -= HOUR_MS
    world.answer(world.flight.pop())
    world.crash()
    assert left_ms(world) == WAIT_MS


@pytest.mark.parametrize("kind", [NAP, SIGNAL, RETRY])
def test_every_replay_finds_the_same_wake_up(kind: dict[str, object]) -> None:
    world = waiting(kind)
    for step_ms in (-HOUR_MS, 5, -HOUR_MS):
        world.now_ms += step_ms
        world.crash()
        assert world.replayed().next_wake_ms() == world.state.next_wake_ms()


def ended(duration_ms: int) -> pb.Entry:
    """Return the end of a step whose host's clock is an hour ahead of its executor's."""
    fact = pb.StepCompleted(attempt=1, started_at_ms=HOUR_MS, host="h", duration_ms=duration_ms)
    fact.result.json = b"1"
    return pb.Entry(step=1, at_ms=500, step_completed=fact)


@pytest.mark.parametrize(("recorded_ms", "shown_ms"), [(7, 7), (0, 0)])
def test_a_duration_is_what_one_clock_measured_and_never_negative(recorded_ms: int, shown_ms: int) -> None:
    world = waiting(NAP)
    entry = ended(recorded_ms)
    event = step_event(world.state, entry)
    assert event is not None
    assert event.duration_ms == shown_ms
    world._feed(entry)
    assert [view.duration_ms for view in list_steps(world.state, world.entries())] == [None, shown_ms]


def test_a_sleep_reports_how_long_it_took() -> None:
    world = waiting(NAP)
    world.run()
    assert [view.duration_ms for view in list_steps(world.state, world.entries())] == [WAIT_MS, 1]


ONE_NAP = {"$literal": {"steps": [NAP], "output": {"result": ref("w")}}}
SUB_RUNS = [
    step("m", "/builtin/map", {"workflow": ONE_NAP, "items": [1]}),
    step("m", "/builtin/iterate", {"flow": ONE_NAP, "initial_input": 1}),
]


@pytest.mark.parametrize("kind", [NAP, SIGNAL, *SUB_RUNS])
@pytest.mark.parametrize("ahead_ms", [0, -HOUR_MS])
def test_a_step_of_the_engine_reports_the_time_under_all_its_owners(kind: dict[str, object], ahead_ms: int) -> None:
    world = World({"steps": [kind], "output": ref(str(kind["id"]))})
    began_ms = world.now_ms
    for _ in range(2):
        world.now_ms += WAIT_MS // 3
        world.crash()
    world.now_ms += ahead_ms
    world.crash()
    world.run()

    [shown, *_] = list_steps(world.state, world.entries())
    assert (shown.status, shown.started_at_ms) == ("completed", began_ms)
    assert shown.duration_ms == max(0, world.now_ms - began_ms), "never negative"


def test_a_retried_step_of_the_engine_reports_its_last_attempt() -> None:
    last = {"result": {"$step": "f"}}
    failing = {"$literal": {"steps": [NAP, step("f", "/c/once", ref("w"))], "output": last}}
    twice = {
        **step("e", "/builtin/iterate", {"flow": failing, "initial_input": 1}),
        "onError": {"action": "retry", "backoff": {"type": "constant", "delayMs": HOUR_MS}},
    }
    world = World({"steps": [twice], "output": ref("e")})
    calls: list[object] = []

    def once(value: object, _attempt: int) -> object:
        calls.append(value)
        return value if len(calls) > 1 else Failure(Code.COMPONENT_FAILED, "not yet")

    world.components["once"] = once
    assert not isinstance(world.run()[0], tuple)
    [shown, *_] = list_steps(world.state, world.entries())
    assert (shown.attempt, shown.duration_ms) == (2, WAIT_MS)
