"""Notices to the host about calls that wait for a thread: the host counts no time until such a call begins.

A call that waits longer than `NOTICE_AFTER_S` is told as queued once, and as begun when a thread has taken it. A call
that finds a free thread, or soon gets one, costs no notice.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.component.shapes import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.component.call import ComponentCall
    from stepflow.component.loop_inbox import LoopInbox
    from stepflow.component.threads import Threads
    from stepflow.component.wire import Id

NOTICE_AFTER_S = 0.05

QUEUED, BEGUN = "components/queued", "components/begun"
"""Methods of the notices; the params are `{"ids": […]}`."""


class QueueNotices:
    """The notices of one server's calls. `wanted` is the host's choice."""

    def __init__(self, inbox: LoopInbox, threads: Threads, send: Callable[[bytes], None], *, wanted: bool) -> None:
        self.wanted = wanted
        self._inbox = inbox
        self._threads = threads
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._new: list[ComponentCall] = []
        """Calls without a free thread since the last look."""
        self._begun: list[Id] = []

    def note_queued(self, call: ComponentCall) -> None:
        """Watch a call without a free thread. On the loop's thread."""
        if not self.wanted:
            return
        if not self._new:
            self._loop.call_later(NOTICE_AFTER_S, self._tell_queued)
        self._new.append(call)

    def note_taken(self, call: ComponentCall) -> None:
        """Tell the begin of a call told as queued. On the call's thread, after it was taken from the queue."""
        if call.queue_told:
            self._inbox.post(lambda: self._note_begun(call))

    def _tell_queued(self) -> None:
        calls, self._new = self._new, []
        waiting: list[Id] = []
        for call in calls:
            if self._threads.is_queued(call):
                call.queue_told = True
                # The second look after the mark: a thread that has taken the call since then has seen the mark.
                if self._threads.is_queued(call):
                    waiting.append(call.id)
        if waiting:
            self._tell(QUEUED, waiting)

    def _note_begun(self, call: ComponentCall) -> None:
        if call.ended:
            return
        if not self._begun:
            self._loop.call_soon(self._tell_begun)
        self._begun.append(call.id)

    def _tell_begun(self) -> None:
        begun, self._begun = self._begun, []
        self._tell(BEGUN, begun)

    def _tell(self, method: str, ids: list[Id]) -> None:
        self._send(encode({"jsonrpc": "2.0", "method": method, "params": {"ids": ids}}) + b"\n")
