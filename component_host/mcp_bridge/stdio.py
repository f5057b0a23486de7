"""A stdio MCP server: one launch of its process, in the shape of a transport of the `mcp` SDK.

Owns the framing (one JSON-RPC message a line) between a `ServerProcess` and the SDK's streams. The SDK's own stdio
transport is not used, because it adds to the environment, keeps the exit to itself, leaves the server's children
behind, and lets a call wait for ever on a reply that it cannot read.

- `lost` is set before the session learns that the connection is closed, so whoever sees a call fail can tell a dead
  server from one that answers with an error; the exit status and the last of its stderr are known by then.
- Every reply ends its request: one that is not JSON, too deep or too large becomes an error with its id.
- Lines on stdout that are no JSON-RPC messages are skipped; the first one is kept for the error text.
- Leaving the context ends the server as MCP asks: the end of its input, a grace, SIGTERM, a grace, SIGKILL.

Not here: the process itself (`process`), the protocol's eras, restarts, results (`mcp_bridge`). Imports the SDK: import
it late.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from typing import TYPE_CHECKING

import anyio
import mcp_types
from mcp.shared.message import SessionMessage
from pydantic import ValidationError

from component_host.mcp_bridge.link import MESSAGE_BYTES_MAX, SIGTERM_GRACE_S, Loss
from component_host.supervision.process import ServerProcess
from stepflow import codec
from stepflow.errors import Invalid
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import TracebackType

    from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream

    from component_host.mcp_bridge.link import Trace
    from component_host.supervision.spec import ProcessSpec

OUTGOING_BYTES_MAX = 4 * codec.PAYLOAD_BYTES_MAX
"""What may wait for a server that does not read; above it, further calls wait in their tasks."""

OUTGOING_POLL_S = 0.01

STDIN_GRACE_S = 1.0
"""From the end of its input to SIGTERM. Servers that heed it need a tenth of that; for the others every run waits."""

log = get_logger("component_host.mcp")


class StdioServer:
    """One launch of a server. See `mcp_link.Link`."""

    drains = False

    def __init__(self, spec: ProcessSpec, on_loss: Callable[[], None]) -> None:
        self.lost = False
        """The server ended by itself."""
        self._plugin = spec.plugin
        self._process = ServerProcess(spec, on_output=self._take, on_exit=self._handle_exit)
        self._on_loss = on_loss
        self._lines = LineSplitter()
        self._stray_lines = 0
        self._stray_line = ""
        self._ending = False

    async def __aenter__(
        self,
    ) -> tuple[MemoryObjectReceiveStream[SessionMessage | Exception], MemoryObjectSendStream[SessionMessage]]:
        """Start the process. Raises: StepflowError."""
        # Not bounded: a read fills it with at most what came in one turn of the loop, and the session, which never
        # waits for anything to take a message, empties it in the next.
        self._to_session, from_server = anyio.create_memory_object_stream[SessionMessage | Exception](math.inf)
        to_server, self._from_session = anyio.create_memory_object_stream[SessionMessage](0)
        try:
            self._process.start()
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
            await ending  # a cancelled owner must not leave the process behind
            raise

    async def _end(self) -> None:
        try:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._to_session.close()
            self._from_session.close()
            self._process.end_input()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(STDIN_GRACE_S):
                    await self._process.ended()
            await self._process.stop(SIGTERM_GRACE_S)
        except asyncio.CancelledError:
            self._process.kill()  # the event loop is being closed: no time for graces
            raise

    async def loss(self, trace: Trace) -> Loss | None:  # noqa: ARG002  # pipes leave no trace: all or nothing is lost
        return Loss(f"{self.describe_end()} during the call", executed=True) if self.lost else None

    def describe_end(self) -> str:
        return self._process.exit_text()

    def describe_stray_output(self) -> str:
        if not self._stray_lines:
            return ""
        return f"{self._stray_lines} lines on its stdout were no JSON-RPC messages, the first: {self._stray_line!r}"

    def stderr_tail(self) -> str:
        return self._process.stderr_tail()

    def _take(self, chunk: bytes) -> None:
        for line, complete in self._lines.split(chunk):
            message = _parse(line) if complete else bad_reply(line, _TOO_LARGE)
            if message is None:
                self._note_stray(line)
            else:
                with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # closing already
                    self._to_session.send_nowait(SessionMessage(message))

    def _handle_exit(self) -> None:
        if not self._ending:
            self.lost = True
            self._to_session.close()
            self._on_loss()

    def _note_stray(self, line: bytes) -> None:
        if not line.strip():
            return
        if not self._stray_lines:
            self._stray_line = line[:100].decode(errors="replace")
            log.warning("the MCP server prints on its stdout, which is for messages", plugin=self._plugin)
        self._stray_lines += 1

    async def _write(self) -> None:
        async for item in self._from_session:
            while self._process.outgoing_bytes > OUTGOING_BYTES_MAX:  # noqa: ASYNC110  # rare; nothing signals room
                await asyncio.sleep(OUTGOING_POLL_S)
            try:
                text = item.message.model_dump_json(by_alias=True, exclude_unset=True)
            except ValueError as error:  # else this task would end, and every later call wait for ever
                self._refuse(item.message, str(error))
            else:
                self._process.write(text.encode() + b"\n")

    def _refuse(self, message: mcp_types.JSONRPCMessage, problem: str) -> None:
        """Answer a request that cannot be sent."""
        if isinstance(message, mcp_types.JSONRPCRequest):
            error = mcp_types.ErrorData(code=mcp_types.INVALID_PARAMS, message=f"the request cannot be sent: {problem}")
            reply = mcp_types.JSONRPCError(jsonrpc="2.0", id=message.id, error=error)
            with contextlib.suppress(anyio.BrokenResourceError, anyio.ClosedResourceError):  # closing already
                self._to_session.send_nowait(SessionMessage(reply))


class LineSplitter:
    """Cuts a stream of chunks into lines; of a line above the limit only the two ends are kept."""

    def __init__(self, bytes_max: int = MESSAGE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._pending = bytearray()
        self._head = b""

    def split(self, chunk: bytes) -> Iterator[tuple[bytes, bool]]:
        """Yield the lines that end in `chunk`, without their newline, and whether they are complete."""
        first, *others = chunk.split(b"\n")
        self._pending += first
        for other in others:
            yield self._head + bytes(self._pending), not self._head
            self._head = b""
            self._pending = bytearray(other)
        if len(self._pending) > self._bytes_max:
            self._head = self._head or bytes(self._pending[:_ENDS_BYTES])
            del self._pending[:-_ENDS_BYTES]


def _parse(line: bytes) -> mcp_types.JSONRPCMessage | None:
    """Read one line; None for what is no message."""
    try:
        tree = codec.parse(line, what="the server's reply", bytes_max=MESSAGE_BYTES_MAX)
    except Invalid as error:
        return bad_reply(line, error.message)
    try:
        return mcp_types.jsonrpc_message_adapter.validate_python(tree, by_name=False)
    except ValidationError:
        return None


_TOO_LARGE = f"the server's reply is larger than {MESSAGE_BYTES_MAX:,} bytes"
_ENDS_BYTES = 64
_ID_FIRST = re.compile(rb'\A\s*\{\s*"jsonrpc"\s*:\s*"2\.0"\s*,\s*"id"\s*:\s*(\d{1,15})\s*,')
_ID_LAST = re.compile(rb'"id"\s*:\s*(\d{1,15})\s*\}\s*\Z')


def bad_reply(line: bytes, problem: str) -> mcp_types.JSONRPCError | None:
    """Make an error of a reply that cannot be read; None where neither end of the line has an id.

    Without it the call would wait for ever. The id stands where the SDKs put it: first (Python) or last (TypeScript).
    """
    found = _ID_FIRST.search(line[:_ENDS_BYTES]) or _ID_LAST.search(line[-_ENDS_BYTES:])
    if found is None:
        return None
    error = mcp_types.ErrorData(code=mcp_types.INTERNAL_ERROR, message=problem)
    return mcp_types.JSONRPCError(jsonrpc="2.0", id=int(found[1]), error=error)
