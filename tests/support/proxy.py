"""A TCP proxy that injects network faults on command.

Runs in the event loop of the test. A fault takes effect at the call and applies to open connections; where its
docstring says so, to new ones as well.
"""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING

from . import free_port

if TYPE_CHECKING:
    from types import TracebackType

CHUNK_BYTES = 16 * 1024


class _Flow:
    """One direction of one connection."""

    def __init__(self) -> None:
        self.open = asyncio.Event()
        self.open.set()
        self.delay_s = 0.0
        self.bytes_left: int | None = None
        self.holds_back = False


class _Connection:
    def __init__(self) -> None:
        self.up = _Flow()
        self.down = _Flow()
        self.writers: list[asyncio.StreamWriter] = []

    def cut(self) -> None:
        for writer in self.writers:
            sock = writer.get_extra_info("socket")
            if sock is not None and sock.fileno() >= 0:
                # Linger 0 sends a reset; a plain close would end the stream gracefully.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()


class TcpProxy:
    """Listens on `endpoint` and forwards to a loopback port; an async context manager."""

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._port = free_port()
        self._server: asyncio.Server | None = None
        self._connections: set[_Connection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._refusing = False
        self._silent = False
        self._delay_s = 0.0
        self._cut_after: int | None = None
        self.accepted = 0
        """Connections accepted so far."""

    async def __aenter__(self) -> TcpProxy:
        await self.listen()
        return self

    async def listen(self) -> None:
        """Accept connections; after `stop_listening`, at the same port again."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    def stop_listening(self) -> None:
        """Reset all connections and refuse new ones, as the kernel does when a server dies."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._refusing = True  # also resets a connection whose accept is in progress
        self.stop_listening()
        await asyncio.sleep(0)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def endpoint(self) -> str:
        return f"127.0.0.1:{self._port}"

    @property
    def open_connections(self) -> int:
        return len(self._connections)

    @property
    def holds_back(self) -> bool:
        """True while a fault or a delay holds back received bytes."""
        return any(flow.holds_back for each in self._connections for flow in (each.up, each.down))

    def cut(self) -> None:
        """Reset all open connections."""
        for connection in tuple(self._connections):
            connection.cut()

    def cut_replies_after(self, size_bytes: int) -> None:
        """Reset each connection, open or new, after `size_bytes` more towards the client."""
        self._cut_after = size_bytes
        for connection in self._connections:
            connection.down.bytes_left = size_bytes

    def cut_no_more(self) -> None:
        self._cut_after = None
        for connection in self._connections:
            connection.down.bytes_left = None

    def freeze(self) -> None:
        """Keep the open connections open, but forward nothing in either direction from now on."""
        for connection in self._connections:
            connection.up.open.clear()
            connection.down.open.clear()

    def freeze_replies(self) -> None:
        """On the open connections, forward nothing towards the client from now on; the client's bytes still pass."""
        for connection in self._connections:
            connection.down.open.clear()

    def silence(self) -> None:
        """Forward nothing on open and new connections until `speak`, as in a network outage."""
        self._silent = True
        self.freeze()

    def speak(self) -> None:
        """End `silence`: forward the bytes held back, and all later ones."""
        self._silent = False
        for connection in self._connections:
            connection.up.open.set()
            connection.down.open.set()

    def delay(self, delay_s: float) -> None:
        """Delay all bytes on open and new connections by `delay_s`."""
        self._delay_s = delay_s
        for connection in self._connections:
            connection.up.delay_s = connection.down.delay_s = delay_s

    def refuse(self, *, refusing: bool = True) -> None:
        """Reset all open connections and every new one, until `refuse(refusing=False)`."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def vanish(self) -> None:
        """Reset all open connections and close the listener, so that new connections are refused."""
        assert self._server is not None
        self._server.close()
        self.cut()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.accepted += 1
        connection = _Connection()
        connection.writers.append(writer)
        if self._refusing:
            connection.cut()
            return
        self._connections.add(connection)
        connection.up.delay_s = connection.down.delay_s = self._delay_s
        connection.down.bytes_left = self._cut_after
        if self._silent:
            connection.up.open.clear()
            connection.down.open.clear()
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
            connection.writers.append(far_writer)
            up = asyncio.ensure_future(_carry(reader, far_writer, connection.up))
            down = asyncio.ensure_future(_carry(far_reader, writer, connection.down))
            try:
                # When one direction ends, both end.
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # no listener at the target; or the test ends, and asyncio's streams log cancelled tasks as errors
        finally:
            self._connections.discard(connection)
            connection.cut()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, flow: _Flow) -> None:
    while data := await reader.read(CHUNK_BYTES):
        flow.holds_back = True
        await flow.open.wait()
        if flow.delay_s:
            await asyncio.sleep(flow.delay_s)
        if flow.bytes_left is not None:
            data, whole = data[: flow.bytes_left], data
            flow.bytes_left -= len(data)
            if len(data) < len(whole):
                writer.write(data)
                await writer.drain()
                return
        writer.write(data)
        await writer.drain()
        flow.holds_back = False
