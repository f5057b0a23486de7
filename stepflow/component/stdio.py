"""The stdio transport: protocol lines on the descriptors that were stdin and stdout.

- The protocol moves to private copies of descriptors 0 and 1; 0 becomes /dev/null and 1 becomes stderr, so neither
  `print` nor a child process of a component can touch the protocol.
- One reader of large chunks; all answers of one turn of the loop leave with one write. Writes never block: while the
  host does not read and more than `UNSENT_BYTES_MAX` wait, reading pauses too.
- The server ends when the host closes stdin (exit code 0), or with SIGTERM or SIGINT (128 + signal). Calls in flight
  are dropped, since their host is gone; async ones are cancelled first.
"""

from __future__ import annotations

import asyncio
import os
import stat
from typing import TYPE_CHECKING

from stepflow.component.process import (
    cancel_calls,
    debugging,
    exit_code_on_signal,
    leave,
    run_server,
    set_exit_code,
    take_descriptors,
)
from stepflow.component.registry import REGISTRY
from stepflow.component.server import ComponentServer
from stepflow.component.threads import Threads
from stepflow.component.wire import LINE_BYTES_MAX

if TYPE_CHECKING:
    from collections.abc import Callable

READ_BYTES = 64 * 1024
"""A pipe's usual capacity: a larger buffer would never fill."""

UNSENT_BYTES_MAX = 4 * 1024 * 1024
"""Unsent output at which the server stops reading; reading resumes at half."""

assert READ_BYTES <= UNSENT_BYTES_MAX


def run_stdio(threads: int | None) -> None:
    """Serve until the end of stdin or a signal, with at most `threads` threads. Raises: SystemExit."""
    fd_in, fd_out = take_descriptors()

    blocking = os.get_blocking(fd_out)
    os.set_blocking(fd_out, False)
    try:
        ended = run_server(_serve(fd_in, fd_out, threads))
    finally:
        os.set_blocking(fd_out, blocking)  # the description may be a terminal shared with other processes

    leave(*ended)


async def _serve(fd_in: int, fd_out: int, threads: int | None) -> tuple[int, bool]:
    """Return the exit code, and True if threads are stuck in components."""
    loop = asyncio.get_running_loop()
    with exit_code_on_signal() as ended:

        def end() -> None:
            set_exit_code(ended, 0)

        writer = StdoutWriter(loop, fd_out, end)
        pool = Threads(threads)
        server = ComponentServer(REGISTRY, writer.send, threads=pool, show_tracebacks=debugging())
        reader = StdinReader(loop, fd_in, server, end)
        writer.on_full = reader.pause
        writer.on_drained = reader.resume

        reader.resume()
        code = await ended
        reader.pause()
        writer.flush()
        return code, await cancel_calls(server.tasks(), pool)


class StdinReader:
    """Splits the input into lines. A line over the limit is dropped chunk by chunk, and refused at the newline."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, fd: int, server: ComponentServer, on_end: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._fd = fd
        self._server = server
        self._on_end = on_end
        self._parts: list[bytes] = []
        """Chunks of an unfinished line."""
        self._size = 0
        self._active = False
        mode = os.fstat(fd).st_mode
        self._is_file = stat.S_ISREG(mode) or (stat.S_ISCHR(mode) and not os.isatty(fd))
        """A regular file or the null device: never blocks, and no loop can watch it."""

    def resume(self) -> None:
        if not self._active:
            self._active = True
            if self._is_file:
                self._loop.call_soon(self._read_file)
            else:
                self._loop.add_reader(self._fd, self._readable)

    def pause(self) -> None:
        if self._active:
            self._active = False
            if not self._is_file:
                self._loop.remove_reader(self._fd)

    def _read_file(self) -> None:
        if self._active:
            self._readable()
            self._loop.call_soon(self._read_file)

    def _readable(self) -> None:
        try:
            chunk = os.read(self._fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            chunk = b""

        if not chunk:
            self.pause()
            self._on_end()
            return

        lines = chunk.split(b"\n")
        rest = lines.pop()
        if lines:
            if self._parts:
                self._end_long_line(lines.pop(0))
            receive = self._server.receive
            for line in lines:
                receive(line)
        if rest:
            self._keep(rest)

    def _keep(self, part: bytes) -> None:
        self._size += len(part)
        if self._size <= LINE_BYTES_MAX:
            self._parts.append(part)
        else:
            del self._parts[1:]

    def _end_long_line(self, end: bytes) -> None:
        """Pass on a line that spans chunks, or refuse a line over the limit."""
        self._keep(end)
        parts, size = self._parts, self._size
        self._parts, self._size = [], 0

        if size <= LINE_BYTES_MAX:
            self._server.receive(b"".join(parts))
        else:
            self._server.refuse_line(parts[0], size)


class StdoutWriter:
    """Collects lines and writes them together, once per turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_end = on_end
        self._lines: list[bytes] = []
        self._rest = memoryview(b"")
        """The unwritten part of the latest write."""
        self._scheduled = False
        self._size = 0
        self._full = False
        self.on_full: Callable[[], None] = lambda: None
        self.on_drained: Callable[[], None] = lambda: None

    def send(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)

        if not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self.flush)
        if self._size > UNSENT_BYTES_MAX and not self._full:
            self._full = True
            self.on_full()

    def flush(self) -> None:
        """Write the collected lines, as far as the pipe has room; the loop writes the rest later."""
        self._scheduled = False
        if self._rest or not self._lines:
            return

        data = self._lines[0] if len(self._lines) == 1 else b"".join(self._lines)
        self._lines.clear()
        written = self._write(data)
        if written < len(data):
            self._rest = memoryview(data)[written:]
            self._scheduled = True  # until the rest is written
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._rest = self._rest[self._write(self._rest) :]
        if not self._rest:
            self._loop.remove_writer(self._fd)
            self.flush()

    def _write(self, data: bytes | memoryview) -> int:
        """Return the number of bytes written; a dead host counts as having read all."""
        try:
            written = os.write(self._fd, data)
        except (BlockingIOError, InterruptedError):
            written = 0
        except OSError:
            self._on_end()
            written = len(data)

        self._size -= written
        if self._full and self._size <= UNSENT_BYTES_MAX // 2:
            self._full = False
            self.on_drained()
        return written
