"""Deadlines of calls: an absolute timeout and an idle timeout.

- Both run from the moment a backend gets the call. The steps before (fetching the input, starting the plugin) have
  separate limits; a slow start must not look like a timeout of the flow.
- Progress restarts the idle timeout. While the owner reports an item as waiting for the mesh, no idle time passes.
- One heap (`stepflow.timer_heap`) and one timer for all items. A cancelled clock frees the item at once.

Generic over the item: the module knows no calls. The owner ends expired items.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Generic, TypeVar

from stepflow.telemetry import get_logger
from stepflow.timer_heap import TimerHeap
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger(__name__)

T = TypeVar("T")


class DeadlineClock(Generic[T]):
    """The timeouts of an item, in seconds of the monotonic clock; None = no such timeout."""

    __slots__ = ("active_at", "idle_timeout_s", "item", "started_at", "timeout_s")

    def __init__(self, item: T, timeout_s: float | None, idle_timeout_s: float | None) -> None:
        self.item: T | None = item
        """None once cancelled or expired."""
        self.timeout_s = timeout_s
        self.idle_timeout_s = idle_timeout_s
        self.started_at = self.active_at = time.monotonic()

    def due_at(self) -> float:
        """Return when the item expires without further progress."""
        total = self.started_at + self.timeout_s if self.timeout_s is not None else float("inf")
        idle = self.active_at + self.idle_timeout_s if self.idle_timeout_s is not None else float("inf")
        return min(total, idle)

    def overrun(self, now: float) -> str:
        """Describe the exceeded timeout, for the failure's message."""
        if self.timeout_s is not None and now >= self.started_at + self.timeout_s:
            return f"the component did not answer within its timeout of {self.timeout_s * 1000:.0f} ms"
        assert self.idle_timeout_s is not None
        return f"the component showed no sign of life for its idle timeout of {self.idle_timeout_s * 1000:.0f} ms"


class Deadlines(Generic[T]):
    """All items with a clock.

    `expire` receives each overdue item and a description of the exceeded timeout. `is_waiting` returns True while
    an item waits for the mesh: the idle timeout is suspended.
    """

    def __init__(self, expire: Callable[[T, str], None], is_waiting: Callable[[T], bool]) -> None:
        self._expire = expire
        self._is_waiting = is_waiting
        self._heap: TimerHeap[DeadlineClock[T]] = TimerHeap()
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        """Return the number of heap entries, empty ones included."""
        return len(self._heap)

    def start_clock(self, item: T, timeout_ms: int, idle_timeout_ms: int) -> DeadlineClock[T]:
        """Start the clock of an item; 0 = no such timeout. The caller keeps the clock for `cancel`."""
        clock = DeadlineClock(
            item,
            timeout_ms / 1000 if timeout_ms else None,
            idle_timeout_ms / 1000 if idle_timeout_ms else None,
        )

        if self._heap.set(clock, clock.due_at()):
            self._arm()
        return clock

    def cancel(self, clock: DeadlineClock[T]) -> None:
        """Stop the clock of an item. Idempotent, also after the expiry."""
        clock.item = None
        self._heap.drop(clock)

    def close(self) -> None:
        """Stop all clocks; nothing expires from now on."""
        self._closed = True
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

        next_at = self._heap.next_at()
        if next_at is not None and not self._closed:
            delay_s = max(0.0, next_at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._check)

    def _check(self) -> None:
        self._timer = None
        now = time.monotonic()
        overdue: list[DeadlineClock[T]] = []

        # 1. Take the due clocks; put back those that progress has postponed.
        for clock in self._heap.pop_due(now):
            assert clock.item is not None, "a cancelled clock is out of the heap"
            if self._is_waiting(clock.item):
                clock.active_at = now
            due_at = clock.due_at()
            if due_at > now:
                self._heap.set(clock, due_at)
            else:
                overdue.append(clock)
        self._arm()

        # 2. Expire, with the heap in order: an expiry may start and cancel other deadlines, these ones included.
        for clock in overdue:
            item, clock.item = clock.item, None
            if item is not None:
                guarded(log, "a deadline", self._expire, item, clock.overrun(now))


__all__ = ["DeadlineClock", "Deadlines"]
