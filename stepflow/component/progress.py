"""Progress reports to the host: the latest of each call, at most one per `PROGRESS_INTERVAL_S`.

The last report of a call precedes the answer.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from stepflow.component.shapes import encode

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.component.call import ComponentCall, Progress
    from stepflow.component.loop_inbox import LoopInbox
    from stepflow.component.wire import Id

PROGRESS_INTERVAL_S = 0.05
"""Shortest time between two reports of a call: a loop over a million rows must not flood the host."""


class ProgressReports:
    """Throttles the progress of all calls of a server with one timer. `wanted` is the host's choice."""

    def __init__(self, inbox: LoopInbox, send: Callable[[bytes], None], *, wanted: bool) -> None:
        self.wanted = wanted
        self._inbox = inbox
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._due: dict[Id, ComponentCall] = {}
        self._timer: asyncio.TimerHandle | None = None

    def report(self, call: ComponentCall, progress: Progress) -> None:
        """Replace the call's unsent report. From any thread."""
        if not self.wanted:
            return

        if call.progress is None:
            call.progress = deque(maxlen=1)
        call.progress.append(progress)

        # After the append: the loop clears the flag before it pops, and in the reverse order a report stays behind.
        if not call.progress_noted:
            call.progress_noted = True
            self._inbox.run(lambda: self._note(call))

    def flush(self, call: ComponentCall) -> None:
        """Send the last report of a call about to be answered."""
        if call.progress:
            self._send_latest(call)
        self._due.pop(call.id, None)

    def _note(self, call: ComponentCall) -> None:
        """Send the report now, or with the timer."""
        if call.ended:
            return
        if self._loop.time() - call.progress_sent_at >= PROGRESS_INTERVAL_S:
            self._send_latest(call)
            return

        self._due[call.id] = call
        if self._timer is None:
            self._timer = self._loop.call_later(PROGRESS_INTERVAL_S, self._send_due)

    def _send_due(self) -> None:
        self._timer = None
        due = list(self._due.values())
        self._due.clear()
        for call in due:
            self._send_latest(call)

    def _send_latest(self, call: ComponentCall) -> None:
        call.progress_noted = False
        if not call.progress:
            return

        done, total, message = call.progress.pop()
        call.progress_sent_at = self._loop.time()
        params = {"id": call.id, "done": done, "total": total, "message": message}
        self._send(encode({"jsonrpc": "2.0", "method": "components/progress", "params": params}) + b"\n")
