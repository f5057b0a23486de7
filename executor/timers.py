"""When each drive wants to be looked at again: one heap for all of them, whose memory follows the drives alive.

A drive has at most one instant. What it named before stays in the heap as a stale entry until it comes up, or until
stale entries outnumber the others: then the heap is built anew. A drive that is dropped is held by nothing here.
"""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Generic, TypeVar

D = TypeVar("D")

STALE_MIN = 64
"""Entries that may be stale before anything is done about it."""


class Wakes(Generic[D]):
    """Instants by drive, in milliseconds since 1970."""

    def __init__(self) -> None:
        self._at: dict[D, int] = {}
        self._heap: list[tuple[int, int, D]] = []
        self._serial = 0

    def __len__(self) -> int:
        """Return the entries that are kept, stale ones included."""
        return len(self._heap)

    def set(self, drive: D, at_ms: int) -> bool:
        """Wake the drive at that instant and not at the one before; return whether that is now the earliest of all."""
        if self._at.get(drive) == at_ms:
            return False
        self._at[drive] = at_ms
        self._serial += 1
        heappush(self._heap, (at_ms, self._serial, drive))
        if len(self._heap) > 2 * len(self._at) + STALE_MIN:
            self._rebuild()
        return self._heap[0][2] is drive

    def drop(self, drive: D) -> None:
        """Forget a drive. Safe to repeat."""
        if self._at.pop(drive, None) is not None and len(self._heap) > 2 * len(self._at) + STALE_MIN:
            self._rebuild()

    def clear(self) -> None:
        self._at.clear()
        self._heap.clear()

    def due(self, now_ms: int) -> list[D]:
        """Take out those whose instant has come, in its order."""
        due: list[D] = []
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, _, drive = heappop(self._heap)
            if self._at.get(drive) == at_ms:
                del self._at[drive]
                due.append(drive)
        return due

    def next_ms(self) -> int | None:
        """Return the earliest instant."""
        heap = self._heap
        while heap and self._at.get(heap[0][2]) != heap[0][0]:
            heappop(heap)
        return heap[0][0] if heap else None

    def _rebuild(self) -> None:
        self._heap = [(at_ms, serial, drive) for at_ms, serial, drive in self._heap if self._at.get(drive) == at_ms]
        heapify(self._heap)
