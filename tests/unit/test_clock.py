"""`SteadyClock`: a wall clock that is set changes nothing."""

from __future__ import annotations

import time

import pytest

from stepflow.clock import SteadyClock, elapsed_ns

HOUR_NS = 3_600_000_000_000


@pytest.mark.parametrize("step_ns", [-HOUR_NS, HOUR_NS])
def test_a_wall_clock_that_is_set_moves_no_clock_that_has_begun(monkeypatch: pytest.MonkeyPatch, step_ns: int) -> None:
    clock = SteadyClock()
    before_ms = clock.now_ms()
    real = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: real() + step_ns)
    assert before_ms <= clock.now_ms() < before_ms + 60_000
    assert abs(SteadyClock().now_ms() - before_ms - step_ns // 1_000_000) < 60_000, "a new one reads the wall clock"


def test_an_instant_is_due_when_its_elapsed_time_has_come() -> None:
    clock = SteadyClock()
    at_ms = clock.now_ms() + 2
    while elapsed_ns() < clock.elapsed_at_ns(at_ms):
        assert clock.now_ms() < at_ms or elapsed_ns() >= clock.elapsed_at_ns(at_ms)
    assert clock.now_ms() >= at_ms


def test_a_process_stopped_while_it_reads_the_clocks_has_the_right_time(monkeypatch: pytest.MonkeyPatch) -> None:
    real, readings = time.time_ns, iter([0.05, 0.05])

    def slow() -> int:
        at = real()
        time.sleep(next(readings, 0))
        return at

    monkeypatch.setattr(time, "time_ns", slow)
    clock = SteadyClock()
    assert abs(clock.now_ms() - real() // 1_000_000) < 20
