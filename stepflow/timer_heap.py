"""Instants by key: one heap for many timers, with memory in proportion to the live keys.

- A key has at most one instant; a new instant replaces the former.
- A replaced or dropped instant leaves an empty entry in the heap and releases its key at once. Empty entries are popped
  when they come up; the heap is rebuilt once they outnumber the others.
- Instants are numbers of any single clock: milliseconds since 1970, seconds of a monotonic clock.

Pure. The owner keeps one timer, armed at `next_at()`, and calls `pop_due` when the timer fires.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeAlias, TypeVar

K = TypeVar("K")

EMPTY_MIN = 64
"""Empty entries that are not worth a rebuild."""

_Entry: TypeAlias = list[Any]
"""Instant, serial number (breaks ties, first set first), key; the key is None in an empty entry."""


class TimerHeap(Generic[K]):
    """At most one instant for each key. Keys are hashable and never None."""

    __slots__ = ("_entries", "_heap", "_serial")

    def __init__(self) -> None:
        self._entries: dict[K, _Entry] = {}
        self._heap: list[_Entry] = []
        self._serial = 0

    def __len__(self) -> int:
        """Return the number of heap entries, empty ones included."""
        return len(self._heap)

    def set(self, key: K, at: float) -> bool:
        """Set or replace the instant of a key; return True if the owner's timer must be armed earlier."""
        former = self._entries.get(key)
        if former is not None:
            if former[0] == at:
                return False
            former[2] = None

        self._serial += 1
        entry: _Entry = [at, self._serial, key]
        self._entries[key] = entry
        heappush(self._heap, entry)
        self._shrink()
        return self._heap[0] is entry

    def drop(self, key: K) -> None:
        """Remove a key. Idempotent."""
        entry = self._entries.pop(key, None)
        if entry is not None:
            entry[2] = None
            self._shrink()

    def clear(self) -> None:
        self._entries.clear()
        self._heap.clear()

    def pop_due(self, now: float) -> list[K]:
        """Remove and return the due keys, earliest first."""
        due: list[K] = []
        while self._heap and self._heap[0][0] <= now:
            key = heappop(self._heap)[2]
            if key is not None:
                del self._entries[key]
                due.append(key)
        return due

    def next_at(self) -> float | None:
        """Return the earliest instant, None without any."""
        heap = self._heap
        while heap and heap[0][2] is None:
            heappop(heap)
        return heap[0][0] if heap else None

    def _shrink(self) -> None:
        empty = len(self._heap) - len(self._entries)
        if empty > EMPTY_MIN and empty > len(self._entries):
            self._heap = list(self._entries.values())
            heapify(self._heap)


__all__ = ["TimerHeap"]
