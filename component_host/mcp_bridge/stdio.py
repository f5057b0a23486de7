"""The stdio transport: one launch of a server's process, as a transport of the `mcp` SDK.

Connects a `ServerProcess` with the SDK's streams: one JSON-RPC message per line. The SDK's own stdio transport extends
the environment, hides the exit status, leaks the server's children, and lets a call hang on an unreadable reply.

- `lost` is set before the session sees the closed connection, so a failed call can tell a dead server from an error
  reply. The exit status and the tail of stderr are known by then.
- Leaving the context ends the server as MCP prescribes: close stdin, wait, SIGTERM, wait, SIGKILL.

Not here: what the server prints (`stdout`), the process (`supervision.process`), restarts (`supervisor`), results
(`results`). Imports the SDK: import it late.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
from typing import TYPE_CHECKING

import anyio
import mcp_types
from mcp.shared.message import SessionMessage

from component_host.mcp_bridge.link import SIGTERM_GRACE_S, Loss
from component_host.mcp_bridge.stdout import McpStdoutReader
from component_host.supervision.process import ServerProcess
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from component_host.mcp_bridge.link import CallTrace
    from component_host.supervision.spec import ProcessSpec

STDIN_GRACE_S = 1.0
"""From closed stdin to SIGTERM. Well-behaved servers need a tenth of it; every run waits for the others."""

log = get_logger("component_host.mcp")


class McpStdioServer:
    """One launch of a server. See `link.McpLink`."""

    drains = False
    lose_session = None

    def __init__(self, spec: ProcessSpec, on_loss: Callable[[], None]) -> None:
        self.lost = False
        """The server exited by itself."""
        self._plugin = spec.plugin
        self._reader = McpStdoutReader(spec.plugin, self._send)
        self.process = ServerProcess(spec, on_output=self._reader.feed, on_exit=self._handle_exit)
        self.kill = self.process.kill
        self._on_loss = on_loss
        self._ending = False

    async def __aenter__(
        self,
    ) -> tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]:
        """Start the process. Raises: StepflowError."""
        # Unbounded on purpose: one turn of the loop fills it with one read, and the session empties it in the next.
        self._to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](math.inf)
        to_server, self._from_session = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            self.process.start()
        except BaseException:
            for stream in (self._to_session, from_server, to_server, self._from_session):
                stream.close()
            raise
        self._writer = asyncio.create_task(self._write(), name=f"mcp {self._plugin} stdin")
        return from_server, to_server

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._ending = True
        ending = asyncio.create_task(self._end(), name=f"mcp {self._plugin} end")
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending  # else a cancelled owner would leak the process
            raise

    async def _end(self) -> None:
        try:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._to_session.close()
            self._from_session.close()
            self.process.end_input()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STDIN_GRACE_S):
                    await self.process.ended()
            await self.process.stop(SIGTERM_GRACE_S)
        except asyncio.CancelledError:
            self.process.kill()  # the event loop is closing: no time for graces
            raise

    async def loss(self, trace: CallTrace) -> Loss | None:  # noqa: ARG002  # a pipe loses all calls or none
        return Loss(f"{self.describe_end()} during the call", executed=True) if self.lost else None

    def describe_end(self) -> str:
        return self.process.exit_text()

    def describe_stray_output(self) -> str:
        return self._reader.describe_stray_output()

    def stderr_tail(self) -> str:
        return self.process.stderr_tail()

    def stderr_of_run(self) -> str:
        return self.process.stderr_of_run()

    def serve_run(self, run_id: str, *, idle: bool) -> None:
        self.process.serve_run(run_id, idle=idle)

    def _send(self, message: mcp_types.JSONRPCMessage) -> None:
        with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # already closing
            self._to_session.send_nowait(SessionMessage(message))

    def _handle_exit(self) -> None:
        self._reader.close()
        if not self._ending:
            self.lost = True
            self._to_session.close()
            self._on_loss()

    async def _write(self) -> None:
        async for item in self._from_session:
            await self.process.stdin.wait_for_room()  # further calls wait in their tasks
            try:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            except ValueError as error:  # uncaught, it would end this task and hang every later call
                self._refuse(item.message, str(error))
            else:
                self.process.write(text.encode() + b"\n")

    def _refuse(self, message: mcp_types.JSONRPCMessage, problem: str) -> None:
        """Answer a request that cannot be encoded."""
        if isinstance(message, mcp_types.JSONRPCRequest):
            error = mcp_types.ErrorData(code=mcp_types.INVALID_PARAMS, message=f"the request cannot be sent: {problem}")
            reply = mcp_types.JSONRPCError(jsonrpc="2.0", id=message.id, error=error)
            self._send(reply)
