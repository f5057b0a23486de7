"""The threads in which sync components run; those that wait for the host do not count."""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepflow.component.server import Call

THREADS_MAX = 2_000
"""Of all sync calls, those that wait for the host included: as many as a host has in flight, and one below each."""


class Threads:
    """Threads for sync components, started as calls come; of those that work there are at most `threads_max`.

    One that waits for the host lends its place: a flow that it waits for may call this server again, and would wait
    for ever behind those who wait for it. More calls queue.

    Not a ThreadPoolExecutor: the interpreter's exit waits for its threads, and a server whose host is gone must not.
    All methods but `lent` are called on the loop's thread.
    """

    def __init__(self, threads_max: int | None = None) -> None:
        self._threads_max = threads_max or min(32, (os.cpu_count() or 1) + 4)
        self._queue: SimpleQueue[Call | None] = SimpleQueue()
        """None ends the thread that takes it."""
        self._started = 0
        self._waiting = 0
        """Threads that wait for the host."""
        self._calls = 0
        self._here = threading.local()

    def submit(self, call: Call) -> None:
        self._calls += 1
        self._grow()
        self._queue.put(call)

    def finished(self) -> None:
        self._calls -= 1
        if self._started - self._waiting > self._threads_max and self._calls < self._started:
            self._started -= 1
            self._queue.put(None)

    def busy(self) -> bool:
        return self._calls > 0

    @contextmanager
    def lent(self, post: Callable[[Callable[[], None]], None]) -> Iterator[None]:
        """From any thread. Within, a thread of the pool counts as waiting; others have no place to lend."""
        if not hasattr(self._here, "belongs"):
            yield
            return
        post(lambda: self._lend(1))
        try:
            yield
        finally:
            post(lambda: self._lend(-1))

    def _lend(self, count: int) -> None:
        self._waiting += count
        self._grow()

    def _grow(self) -> None:
        working = self._started - self._waiting
        if self._calls > self._started and working < self._threads_max and self._started < THREADS_MAX:
            self._started += 1
            threading.Thread(target=self._work, name=f"component-{self._started}", daemon=True).start()

    def _work(self) -> None:
        self._here.belongs = True
        while (call := self._queue.get()) is not None:
            call.server.run_sync(call)


__all__ = ["Threads"]
