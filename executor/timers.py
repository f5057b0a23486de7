"""Wake-ups of partitions: one heap and one timer for all partitions.

A partition has at most one wake-up, from its earliest durable timer. A wake-up is never early. Instants are readings of
`stepflow.clock.elapsed_ns`: setting the wall clock moves no wake-up.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Generic, TypeVar

from stepflow.clock import elapsed_ns
from stepflow.telemetry import get_logger
from stepflow.timer_heap import TimerHeap
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger(__name__)

K = TypeVar("K")

WAKE_S_MAX = 10.0
"""The longest sleep of the timer. The clock of the event loop stands still while the machine is suspended, so this is
also the delay of a wake-up that came due meanwhile."""


class WakeTimers(Generic[K]):
    """Instants by key, in nanoseconds of `elapsed_ns`. `wake` is called with each due key."""

    def __init__(self, wake: Callable[[K], None]) -> None:
        self._wake = wake
        self._heap: TimerHeap[K] = TimerHeap()
        self._timer: asyncio.TimerHandle | None = None

    def __len__(self) -> int:
        """Return the number of heap entries, empty ones included."""
        return len(self._heap)

    def wake_at(self, key: K, at_ns: int) -> None:
        """Set or replace the instant of a key."""
        if self._heap.set(key, at_ns):
            self._arm()

    def next_ns(self) -> float | None:
        return self._heap.next_at()

    def drop_key(self, key: K) -> None:
        """Remove the wake-up of a key. Idempotent."""
        self._heap.drop(key)

    def clear(self) -> None:
        """Remove all wake-ups and stop the timer."""
        self._heap.clear()
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

        next_ns = self._heap.next_at()
        if next_ns is not None:
            delay_s = min(max(0.0, (next_ns - elapsed_ns()) / 1e9), WAKE_S_MAX)
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._fire)

    def _fire(self) -> None:
        self._timer = None
        for key in self._heap.pop_due(elapsed_ns()):
            guarded(log, "a wake-up", self._wake, key)
        self._arm()


__all__ = ["WakeTimers"]
