"""What comes to the store and what leaves it, counted by each replica from what it sees anyway.

- A run *comes* with the first status of its first partition, and *leaves* with the deletion of that status: packed,
  expired, or deleted by a client. Changes during a gap of the watch are not counted.
- Rates are means over a window of at most a minute. Totals only grow, as metrics need them.
"""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.store import StoreEvent

WINDOW_S = 60

_FIRST_PARTITION = keys.status("_", 0).removeprefix(keys.status_of_run("_"))


class RateCounter:
    """A total, and its growth over the last minute. `clock` gives seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = 0
        self._clock = clock
        self._begun_at_s = clock()
        self._seconds: deque[list[int]] = deque(maxlen=WINDOW_S + 1)
        """Second and growth within it, oldest first."""

    def add(self, count: int) -> None:
        self.total += count
        second = int(self._clock())
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1][1] += count
        else:
            self._seconds.append([second, count])

    def set_total(self, total: int) -> None:
        """Take over the total of another counter; less than before, after its restart, adds nothing."""
        self.add(max(0, total - self.total))
        self.total = total

    def per_s(self, window_s: float = WINDOW_S) -> float:
        """Return the mean over the last `window_s` seconds, or over the time since the start if that is shorter."""
        now_s = self._clock()
        span_s = min(window_s, max(1.0, now_s - self._begun_at_s))
        return sum(count for second, count in self._seconds if second > now_s - span_s - 1) / span_s


class Activity:
    """The counters of one replica."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.runs_in = RateCounter(clock)
        self.runs_out = RateCounter(clock)
        self.bytes_out = RateCounter(clock)
        """Counted while this replica leads."""
        self._clock = clock
        self._sizes: deque[tuple[float, int]] = deque()
        """Instants with the store's bytes in use, over the last minute."""

    def note_statuses(self, events: Sequence[StoreEvent]) -> None:
        """Count the runs among changed statuses."""
        for event in events:
            if event.kv.key.endswith(_FIRST_PARTITION):
                if event.kind == "delete":
                    self.runs_out.add(1)
                elif event.kv.version == 1:
                    self.runs_in.add(1)

    def note_size(self, bytes_in_use: int) -> None:
        now_s = self._clock()
        self._sizes.append((now_s, bytes_in_use))
        while self._sizes[0][0] < now_s - WINDOW_S:
            self._sizes.popleft()

    def growth_per_s(self) -> float:
        """Return the growth of the bytes in use over the last minute; negative if they fell."""
        if len(self._sizes) < 2:
            return 0.0
        (first_s, first), (last_s, last) = self._sizes[0], self._sizes[-1]
        return (last - first) / max(1.0, last_s - first_s)


__all__ = ["Activity", "RateCounter"]
