"""The thread pool of sync components. A thread that waits for the host lends its slot to another call.

Without the lending, a flow run by a component could call the same server again, and queue behind the very calls that
wait for the flow: a deadlock.

A thread cannot be interrupted. One whose call was cancelled is *abandoned*: the pool starts a replacement, for up to
`REPLACED_MAX` threads. The host replaces a server with many abandoned threads.

Not a ThreadPoolExecutor: the interpreter's exit joins the threads of executors, and a server without a host must end
although a component is stuck.
"""

from __future__ import annotations

import os
import threading
from contextlib import contextmanager
from queue import SimpleQueue
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

THREADS_MAX = 2_000
"""Cap on all threads, waiting threads included: the calls that a host keeps in flight, with one nested in each."""

REPLACED_MAX = 64
"""Abandoned threads that are replaced. Beyond, abandoned calls take up slots of the pool."""


class ThreadCall(Protocol):
    """A call for a thread of the pool."""

    def run_in_thread(self) -> None: ...


class Threads:
    """Daemon threads for sync components, started on demand; at most `threads_max` run at a time, more calls queue.

    All methods except `slot_released` belong to the event loop's thread.
    """

    def __init__(self, threads_max: int | None = None) -> None:
        self._threads_max = threads_max or min(32, (os.cpu_count() or 1) + 4)
        self._queue: SimpleQueue[ThreadCall | None] = SimpleQueue()
        """Calls, withdrawn ones included. None ends the receiving thread."""
        self._queued: dict[ThreadCall, ThreadCall] = {}
        """Calls that no thread has taken yet. The removal of a call, by a thread or by `withdraw`, is atomic."""

        self._started = 0
        self._waiting = 0
        """Threads that wait for the host."""
        self._abandoned = 0
        """Threads that run abandoned calls."""
        self._calls = 0
        """Calls queued or running."""
        self._local = threading.local()

    def submit(self, call: ThreadCall) -> bool:
        """Queue a call; return True if a thread is free for it.

        The loop must call `note_finished` after the call has run.
        """
        self._calls += 1
        self._start_thread_if_needed()
        self._queued[call] = call
        self._queue.put(call)
        return self._calls <= self._started

    def is_queued(self, call: ThreadCall) -> bool:
        return call in self._queued

    def withdraw(self, call: ThreadCall) -> bool:
        """Remove a queued call, which then never runs; return False if a thread has taken the call."""
        if self._queued.pop(call, None) is None:
            return False
        self._calls -= 1
        return True

    def note_abandoned(self) -> None:
        """Count a running call whose result is no longer wanted, and replace the thread. `note_finished` follows."""
        self._abandoned += 1
        self._start_thread_if_needed()

    def note_finished(self, *, abandoned: bool = False) -> None:
        """Count a finished call, and end a surplus thread, started while others waited for the host or were stuck."""
        self._calls -= 1
        if abandoned:
            self._abandoned -= 1
        if self._working > self._threads_max and self._calls < self._started:
            self._started -= 1
            self._queue.put(None)

    def busy(self) -> bool:
        return self._calls > 0

    @contextmanager
    def slot_released(self, post: Callable[[Callable[[], None]], None]) -> Iterator[None]:
        """Count the calling thread as waiting inside the `with` block; threads outside of the pool hold no slot.

        `post` hands an action to the loop's thread.
        """
        if not hasattr(self._local, "in_pool"):
            yield
            return

        post(lambda: self._add_waiting(1))
        try:
            yield
        finally:
            post(lambda: self._add_waiting(-1))

    def _add_waiting(self, count: int) -> None:
        self._waiting += count
        self._start_thread_if_needed()

    @property
    def _working(self) -> int:
        """Number of threads that hold a slot."""
        return self._started - self._waiting - min(self._abandoned, REPLACED_MAX)

    def _start_thread_if_needed(self) -> None:
        if self._calls > self._started and self._working < self._threads_max and self._started < THREADS_MAX:
            self._started += 1
            threading.Thread(target=self._work, name=f"component-{self._started}", daemon=True).start()

    def _work(self) -> None:
        self._local.in_pool = True
        while (call := self._queue.get()) is not None:
            if self._queued.pop(call, None) is not None:  # else withdrawn
                call.run_in_thread()
