"""The time limits of calls: an absolute one, and one without a sign of life.

- Both run from the moment a backend gets the call; what comes before (its input is fetched, its plugin starts) has
  limits of its own, and must not turn a slow start into a default of the flow.
- Progress is a sign of life. While a call-back of the component is open, it is the mesh that is slow: no idle time.
- One heap and one timer for all calls. A call that ends leaves the heap at once in memory (its entry is emptied),
  and as an entry when half of the heap is empty.

Does not end anything itself: it tells whoever made it.
"""

from __future__ import annotations

import asyncio
import time
from heapq import heapify, heappop, heappush
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.call import Call

ENDED_MIN = 64
"""Entries of ended calls that are not worth a clean-up."""


class Limit:
    """The limits of one call; `None` where there is no such limit. Times are of the monotonic clock."""

    __slots__ = ("active_at", "at", "call", "idle_timeout_s", "started_at", "timeout_s")

    def __init__(self, call: Call) -> None:
        request = call.request
        self.call: Call | None = call
        """None once the call has ended."""
        self.timeout_s = request.timeout_ms / 1000 if request.timeout_ms else None
        self.idle_timeout_s = request.idle_timeout_ms / 1000 if request.idle_timeout_ms else None
        self.started_at = self.active_at = time.monotonic()
        self.at = self.deadline()
        """When to look again; progress moves the deadline, not this."""

    def __lt__(self, other: Limit) -> bool:
        return self.at < other.at

    def deadline(self) -> float:
        """Return when the call is overdue if nothing happens."""
        total = self.started_at + self.timeout_s if self.timeout_s is not None else float("inf")
        idle = self.active_at + self.idle_timeout_s if self.idle_timeout_s is not None else float("inf")
        return min(total, idle)

    def overdue(self, now: float) -> str:
        """Say which limit is exceeded."""
        if self.timeout_s is not None and now >= self.started_at + self.timeout_s:
            return f"the component did not answer within its timeout of {self.timeout_s * 1000:.0f} ms"
        assert self.idle_timeout_s is not None
        return f"the component showed no sign of life for its idle timeout of {self.idle_timeout_s * 1000:.0f} ms"


class TimeLimits:
    """All calls with a limit. `expire` gets a call that is overdue, and the message of its failure."""

    def __init__(self, expire: Callable[[Call, str], None]) -> None:
        self._expire = expire
        self._heap: list[Limit] = []
        self._ended = 0
        """Entries in the heap whose call has ended."""
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = float("inf")
        self._closed = False

    def __len__(self) -> int:
        """Return how many entries there are, ended ones included."""
        return len(self._heap)

    def watch(self, call: Call) -> None:
        """Start the clock of a call that has a limit."""
        limit = call.limit = Limit(call)
        heappush(self._heap, limit)
        if limit.at < self._timer_at:
            self._arm()

    def drop(self, call: Call) -> None:
        """The call has ended. Safe to repeat, and for calls without limits."""
        limit = call.limit
        if limit is None:
            return
        call.limit = limit.call = None
        self._ended += 1
        if self._ended > ENDED_MIN and self._ended * 2 > len(self._heap):
            self._heap = [each for each in self._heap if each.call is not None]
            heapify(self._heap)
            self._ended = 0

    def close(self) -> None:
        """Stop the clock; nothing expires any more."""
        self._closed = True
        self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer, self._timer_at = None, float("inf")
        if self._heap and not self._closed:
            self._timer_at = self._heap[0].at
            delay_s = max(0.0, self._timer_at - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay_s, self._check)

    def _check(self) -> None:
        now = time.monotonic()
        overdue: list[Limit] = []
        while self._heap and self._heap[0].at <= now:
            limit = heappop(self._heap)
            if limit.call is None:
                self._ended -= 1
                continue
            if limit.call.callbacks:
                limit.active_at = now
            limit.at = limit.deadline()
            if limit.at > now:  # something has moved the idle limit
                heappush(self._heap, limit)
            else:
                limit.call.limit = None  # it is out of the heap: nothing to drop
                overdue.append(limit)
        self._arm()
        for limit in overdue:  # last: what expires may start and end other calls
            if limit.call is not None:
                self._expire(limit.call, limit.overdue(now))


__all__ = ["Limit", "TimeLimits"]
