"""The budget of a service for large values in memory, and its default: a share of the memory that the process may use.

- Values that do not fit wait, FIFO. A value larger than the whole budget is admitted alone.
- A holder that needs more to go on (`add`) does not wait: it would wait for others that wait for it.

The budget counts values in the blob store while they are in memory. Small values are bounded by the limits of journals
and frames.
"""

from __future__ import annotations

import asyncio
import os
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SHARE = 4
"""The default is one part of so many of the memory; the rest is for journals, connections and trees of values."""

BYTES_MIN = 64 * 1024 * 1024
"""The smallest default."""

REPORT_PAUSE_S = 1.0
"""A wait that is shorter than this is not worth a report."""

CGROUPS = Path("/sys/fs/cgroup")


class ValueBudget:
    """Bytes in use, and the queue of holders that wait for more. All methods run on one event loop."""

    def __init__(self, bytes_max: int = 0, *, changed: Callable[[], None] = lambda: None) -> None:
        """`bytes_max`: 0 for the default. `changed` is called when the number of waiting values changes."""
        self.bytes_max = bytes_max or default_bytes()
        self.bytes_used = 0
        self.changed = changed
        self._queue: deque[tuple[int, asyncio.Future[None]]] = deque()

    @property
    def waiting(self) -> int:
        """Number of takers in the queue."""
        return len(self._queue)

    async def take(self, size: int) -> None:
        """Wait until `size` bytes are free, and use them."""
        if not size or (not self._queue and self._fits(size)):
            self.bytes_used += size
            return

        admitted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        taker = (size, admitted)
        self._queue.append(taker)
        self.changed()
        try:
            await admitted
        except asyncio.CancelledError:
            if taker in self._queue:
                self._queue.remove(taker)
                self.changed()
                self._admit()
            elif not admitted.cancelled():
                self.release(size)  # admitted in the same turn of the loop
            raise

    def add(self, size: int) -> None:
        """Use more bytes without waiting, even if they are not free."""
        self.bytes_used += size

    def release(self, size: int) -> None:
        """Free bytes, and admit the holders that wait."""
        self.bytes_used -= size
        if self._queue:
            self._admit()

    def _admit(self) -> None:
        admitted = False
        while self._queue and self._fits(self._queue[0][0]):
            size, future = self._queue.popleft()
            self.bytes_used += size
            future.set_result(None)
            admitted = True
        if admitted:
            self.changed()

    def _fits(self, size: int) -> bool:
        return self.bytes_used <= 0 or self.bytes_used + size <= self.bytes_max


class Reports:
    """Calls `report` some time after a change; changes meanwhile are reported together."""

    def __init__(self, report: Callable[[], object], pause_s: float = REPORT_PAUSE_S) -> None:
        self._report = report
        self._pause_s = pause_s
        self._timer: asyncio.TimerHandle | None = None

    def changed(self) -> None:
        """Report soon."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(self._pause_s, self._fire)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _fire(self) -> None:
        self._timer = None
        self._report()


def default_bytes() -> int:
    """Return the default budget of a service that has the process for itself."""
    return max(BYTES_MIN, memory_bytes() // SHARE)


def memory_bytes(cgroups: Path = CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return the memory that this process may use: the lowest limit of its cgroups, at most that of the machine."""
    physical = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([physical, *_limits(cgroups, own)])


def _limits(cgroups: Path, own: Path) -> Iterator[int]:
    """Yield the limits of the process's cgroup and of those above it (version 2), and of version 1."""
    folders = [cgroups]
    with suppress(OSError):
        for line in own.read_text("utf-8").splitlines():
            number, _, path = line.split(":", 2)
            if number == "0":
                group = cgroups / path.lstrip("/")
                folders += [folder for folder in (group, *group.parents) if folder.is_relative_to(cgroups)]

    for file in (*(folder / "memory.max" for folder in folders), cgroups / "memory" / "memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # absent, or "max"
            yield int(file.read_text("utf-8"))


__all__ = ["Reports", "ValueBudget", "default_bytes", "memory_bytes"]
