"""A TCP proxy of the tests: what a network does to a connection, on command.

Lives in the event loop of the test. Every fault counts from the moment of the call, for the connections there are or,
where it says so, for those to come.
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
                # A reset, as a killed machine's router sends; a plain close would end the stream in good order.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
            writer.transport.abort()


class TcpProxy:
    """Listens on `endpoint` and hands on to a port of this machine; use as `async with`."""

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
        """Connections so far."""

    async def __aenter__(self) -> TcpProxy:
        await self.listen()
        return self

    async def listen(self) -> None:
        """Take connections; again, at the same port, after `stop_listening`."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self._port)

    def stop_listening(self) -> None:
        """Do what the system does when the process behind dies: reset all connections, and refuse new ones."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        self._refusing = True  # what is just being accepted, too
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
        """Whether something waits here to be carried on."""
        return any(flow.holds_back for each in self._connections for flow in (each.up, each.down))

    def cut(self) -> None:
        """Reset all connections there are."""
        for connection in tuple(self._connections):
            connection.cut()

    def cut_replies_after(self, size_bytes: int) -> None:
        """Reset each connection, also those to come, when it has carried that much more towards the client."""
        self._cut_after = size_bytes
        for connection in self._connections:
            connection.down.bytes_left = size_bytes

    def cut_no_more(self) -> None:
        self._cut_after = None
        for connection in self._connections:
            connection.down.bytes_left = None

    def freeze(self) -> None:
        """Let the connections there are stand open and carry nothing, in neither direction, for ever."""
        for connection in self._connections:
            connection.up.open.clear()
            connection.down.open.clear()

    def freeze_replies(self) -> None:
        """Of the connections there are, carry on what the client sends and nothing back, for ever."""
        for connection in self._connections:
            connection.down.open.clear()

    def silence(self) -> None:
        """Carry nothing any more, over connections to come either, until `speak`: the network is there no more."""
        self._silent = True
        self.freeze()

    def speak(self) -> None:
        """Carry on, and with it what was held back."""
        self._silent = False
        for connection in self._connections:
            connection.up.open.set()
            connection.down.open.set()

    def delay(self, delay_s: float) -> None:
        """Carry everything that much later, also over connections to come."""
        self._delay_s = delay_s
        for connection in self._connections:
            connection.up.delay_s = connection.down.delay_s = delay_s

    def refuse(self, *, refusing: bool = True) -> None:
        """Cut what there is and reset every new connection at once, until told otherwise."""
        self._refusing = refusing
        if refusing:
            self.cut()

    def vanish(self) -> None:
        """Cut what there is, and refuse every new connection as an address does where nobody listens."""
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
                # The end of either is the end of both.
                await asyncio.wait((up, down), return_when=asyncio.FIRST_COMPLETED)
            finally:
                up.cancel()
                down.cancel()
                await asyncio.gather(up, down, return_exceptions=True)
        except (OSError, asyncio.CancelledError):
            pass  # nobody listens; or the test ends, and asyncio's streams complain of tasks that were cancelled
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
