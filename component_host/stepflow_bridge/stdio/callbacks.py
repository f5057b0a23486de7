"""Call-backs of one stdio server: the execute behind each, the limit, and the answer.

Each call-back is answered exactly once, also after the end of its call: components wait without a time limit.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.callbacks import answer

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from component_host.backend import HostCall
    from component_host.stepflow_bridge.stdio.executes import StdioExecutes
    from component_host.supervision.process import ServerProcess

CALLBACKS_MAX = 1_000
"""Requests of one process served at a time."""

FLOOD_BYTES_MAX = 128 * 1024 * 1024
"""Sent and not yet read by the server. A server that asks for more is killed."""


class StdioCallbacks:
    """A task for each call-back. `on_begun` is called after the begin of each, `kill` for a flooding server."""

    def __init__(
        self, executes: StdioExecutes, on_begun: Callable[[], None], kill: Callable[[ServerProcess], None]
    ) -> None:
        self.line_bytes_max = 0
        """Longest line the server reads."""
        self._executes = executes
        self._on_begun = on_begun
        self._kill = kill
        self._tasks: dict[asyncio.Task[None], int] = {}
        """With the request id of the execute behind each."""

    @property
    def asking(self) -> Collection[int]:
        """Request ids of the executes with open call-backs."""
        return self._tasks.values()

    def serve_callback(self, process: ServerProcess, request_id: int | str, method: str, line: protocol.Line) -> None:
        if process.stdin.outgoing_bytes > FLOOD_BYTES_MAX:
            self._kill(process)  # floods us with requests and never reads a reply

        owner = self._executes.owner_of(line)
        call = None if owner is None else self._executes.call_of(owner)
        if owner is None:
            text = "several executes are in flight and the request does not name its own (set `concurrency: 1`)"
            process.write(protocol.error_line(request_id, protocol.GENERAL, text))
        elif call is None:
            process.write(protocol.error_line(request_id, protocol.GENERAL, "the execute that asks has ended"))
        elif len(self._tasks) >= CALLBACKS_MAX:
            text = f"{CALLBACKS_MAX} requests of this server are being served already"
            process.write(protocol.error_line(request_id, protocol.GENERAL, text))
        else:
            task = asyncio.create_task(self._answer(process, call, request_id, method, line))
            self._tasks[task] = owner
            task.add_done_callback(partial(self._handle_end, process, request_id))
            self._on_begun()  # calls of a flow begun earlier may come now

    def _handle_end(self, process: ServerProcess, request_id: int | str, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if task.cancelled():  # before its first step: without this answer the component waits without end
            process.write(_cancelled(request_id))

    async def _answer(
        self, process: ServerProcess, call: HostCall, request_id: int | str, method: str, line: protocol.Line
    ) -> None:
        try:
            reply = await answer(call, request_id, method, line.params, self.line_bytes_max)
            await process.stdin.wait_for_room()
        except asyncio.CancelledError:
            reply = _cancelled(request_id)
        process.write(reply)

    def cancel_callbacks_of(self, request_id: int) -> None:
        """Cancel the call-backs of one execute; each is answered with an error."""
        for task, owner in list(self._tasks.items()):
            if owner == request_id:
                task.cancel()

    def cancel_callbacks(self) -> None:
        for task in list(self._tasks):
            task.cancel()

    async def stop(self) -> None:
        """Cancel all call-backs and wait for their end."""
        self.cancel_callbacks()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _cancelled(request_id: int | str) -> bytes:
    return protocol.error_line(request_id, protocol.GENERAL, "the execute that asks was cancelled")
