"""A scripted HTTP server for faults: the test's handler reads each request and writes the response."""

from __future__ import annotations

import asyncio
import contextlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


@dataclass
class Exchange:
    """One request, with methods to answer it."""

    method: str
    path: str
    headers: dict[str, str]
    message: Any
    reader: asyncio.StreamReader = field(repr=False)
    writer: asyncio.StreamWriter = field(repr=False)

    async def send(
        self, status: int, body: bytes = b"", content_type: str = "application/json", **headers: str
    ) -> None:
        lines = [f"HTTP/1.1 {status} Status", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
        lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        self.writer.write("\r\n".join([*lines, "", ""]).encode() + body)
        await self.writer.drain()

    async def result(self, result: Any, **headers: str) -> None:
        body = json.dumps({"jsonrpc": "2.0", "id": self.message["id"], "result": result}).encode()
        await self.send(200, body, **headers)

    async def error(self, status: int, code: int, message: str) -> None:
        error = {"code": code, "message": message}
        body = {"jsonrpc": "2.0", "id": self.message.get("id"), "error": error}
        await self.send(status, json.dumps(body).encode())

    async def begin_stream(self) -> None:
        self.writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        await self.writer.drain()

    async def event(self, message: Any, **fields: str) -> None:
        lines = [f"{name}: {value}" for name, value in fields.items()]
        self.writer.write("\n".join([*lines, "data: " + json.dumps(message), "", ""]).encode())
        await self.writer.drain()

    async def wait_for_hang_up(self) -> None:
        """Wait until the client has closed the connection."""
        await self.reader.read(1)
        self.writer.close()

    def hang_up(self) -> None:
        self.writer.transport.abort()


@contextlib.asynccontextmanager
async def http_server(handle: Callable[[Exchange], Awaitable[None]], port: int = 0) -> AsyncIterator[int]:
    """Serve until the block ends; yield the port. A connection stays open until the handler hangs up."""
    connections: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while not writer.is_closing():
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                headers = dict(_header(line) for line in head[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, path, _ = head[0].split()
                await handle(Exchange(method, path, headers, json.loads(body) if body else None, reader, writer))
        connections.discard(task)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", port)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in list(connections):
            task.cancel()
        await asyncio.gather(*connections, return_exceptions=True)


def _header(line: str) -> tuple[str, str]:
    name, _, value = line.partition(": ")
    return name.lower(), value
