"""Time that never jumps: the wall clock read once, plus the time elapsed since then.

- Setting the wall clock changes no `SteadyClock`. A new one reads the wall clock again.
- Elapsed time includes the suspension of the machine.
"""

from __future__ import annotations

import time

_ELAPSED = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Linux stops CLOCK_MONOTONIC during a suspension; systems without CLOCK_BOOTTIME do not."""


def elapsed_ns() -> int:
    """Return the nanoseconds since a fixed moment in the past; never goes back."""
    return time.clock_gettime_ns(_ELAPSED)


class SteadyClock:
    """Milliseconds since 1970, from the wall clock at the construction on."""

    __slots__ = ("_ahead_ns",)

    def __init__(self) -> None:
        self._ahead_ns = _ahead_ns()
        """Wall clock minus elapsed time."""

    def now_ms(self) -> int:
        return (time.clock_gettime_ns(_ELAPSED) + self._ahead_ns) // 1_000_000

    def elapsed_at_ns(self, at_ms: int) -> int:
        """Return the reading of `elapsed_ns` at an instant of this clock."""
        return at_ms * 1_000_000 - self._ahead_ns


_READING_NS = 20_000
_READINGS = 8


def _ahead_ns() -> int:
    """Return the wall clock minus the elapsed time.

    A process that is stopped between the two readings would have a clock that is wrong by the pause for good: the
    quickest of several readings counts.
    """
    best_ns = ahead_ns = 0
    for number in range(_READINGS):
        before = time.clock_gettime_ns(_ELAPSED)
        wall = time.time_ns()
        took_ns = time.clock_gettime_ns(_ELAPSED) - before
        if not number or took_ns < best_ns:
            best_ns, ahead_ns = took_ns, wall - before
        if best_ns <= _READING_NS:
            break
    return ahead_ns


__all__ = ["SteadyClock", "elapsed_ns"]
