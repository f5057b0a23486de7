"""`serve()`: a component server on stdin and stdout (over HTTP: `http_server`; as a worker: `pull`).

Owns the process while it serves:
- The protocol moves to private copies of descriptors 0 and 1; 0 becomes /dev/null and 1 becomes stderr, so neither
  `print` nor a child process of a component can touch the protocol.
- One reader of large chunks; what has been answered in one turn of the loop leaves with one write. Writing never
  blocks: while the host does not read and more than `UNSENT_BYTES_MAX` wait, nothing more is read either.
- It ends when the host closes stdin (exit code 0), or with SIGTERM or SIGINT (128 + signal). Calls in flight are
  dropped, since nobody is left to take their results; async ones are cancelled first.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine, Sequence

    from stepflow.component.server import Server
    from stepflow.component.threads import Threads

READ_BYTES = 64 * 1024
"""A pipe's usual capacity: more would allocate without ever being filled."""

UNSENT_BYTES_MAX = 4 * 1024 * 1024
"""Above this the server stops reading until the host has taken some."""

ENDING_S = 1.0
"""How long async components may clean up at the end."""

assert READ_BYTES <= UNSENT_BYTES_MAX


def serve(
    *,
    http: bool | int | str | None = None,
    pull: str | None = None,
    queue: str | None = None,
    concurrency: int | None = None,
    threads: int | None = None,
    argv: Sequence[str] | None = None,
) -> None:
    """Serve all `@component` functions on stdin and stdout until the host closes stdin.

    With `http` they are served over HTTP until a signal comes: `True` takes any free port of loopback, a number that
    port, `"HOST:PORT"` that address; the port is announced on stdout. There is no authentication: whoever reaches the
    address can call the components.

    With `pull`, HOST:PORT, their calls are fetched from there over gRPC, out of `queue`, at most `concurrency` at a
    time, until a signal comes. So they are also where a runtime has set STEPFLOW_TRANSPORT=grpc; what is not given
    comes from STEPFLOW_TASKS_URL, STEPFLOW_QUEUE_NAME and STEPFLOW_MAX_CONCURRENT.

    `threads` bounds how many sync components run at a time (cores + 4, at most 32, by default). `argv` stands for the
    process's own arguments: `--list` prints the components as JSON, `--call NAME` runs one on JSON from stdin; other
    arguments are the author's business.

    Raises:
        SystemExit: 2 if a component or an option is wrong (told on stderr), 128 + signal after one (0 with `pull`); and
            with `--list` and `--call`.
    """
    from stepflow.component import tryout
    from stepflow.component.registry import REGISTRY
    from stepflow.errors import Invalid

    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        if not REGISTRY.components():
            raise Invalid("COMPONENT_INVALID", "there is nothing to serve: put @component on a function before serve()")
        if threads is not None and threads < 1:
            raise Invalid("COMPONENT_INVALID", f"serve(threads={threads}): at least one thread is needed")
        address = None if http is None or http is False else _address_of(http)
        pulls = pull is not None or (address is None and os.environ.get("STEPFLOW_TRANSPORT") == "grpc")
        if pulls and address is not None:
            raise Invalid("COMPONENT_INVALID", "serve(http=…, pull=…): one of the two")
        for component in REGISTRY.components():
            component.prepare()
    except Invalid as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    if arguments[:1] == ["--list"]:
        raise SystemExit(tryout.list_components(REGISTRY))
    if arguments[:1] == ["--call"]:
        raise SystemExit(tryout.call_component(REGISTRY, arguments[1:]))
    configure_log()
    if address is not None:
        _serve_http(*address, threads)
        return
    if pulls:
        _serve_pull(threads, pull, queue, concurrency)
        return
    if sys.stdin is not None and sys.stdin.isatty():
        print(tryout.hint(REGISTRY), file=sys.stderr)
    _serve_stdio(threads)


def _address_of(http: bool | int | str) -> tuple[str, int]:
    """Raises: Invalid COMPONENT_INVALID."""
    from stepflow.errors import Invalid

    host, _, port = ("", "", "0") if http is True else str(http).rpartition(":")
    if not (port.isascii() and port.isdigit() and int(port) < 65_536):
        raise Invalid("COMPONENT_INVALID", f"serve(http={http!r}): True, a port, or 'HOST:PORT' is needed")
    return host.strip("[]") or "127.0.0.1", int(port)


def _serve_http(host: str, port: int, threads: int | None) -> None:
    from stepflow.component.http import serve as serve_http

    fd_in, fd_out = _take_descriptors()
    os.close(fd_in)  # nobody speaks there: its end means nothing
    _leave(*_run(serve_http(host, port, fd_out, threads)))


def _serve_pull(threads: int | None, pull: str | None, queue: str | None, concurrency: int | None) -> None:
    from stepflow.component.pull import pull_options
    from stepflow.component.pull import serve as serve_pull
    from stepflow.errors import Invalid

    try:
        options = pull_options(os.environ, pull=pull, queue=queue, concurrency=concurrency)
    except Invalid as problem:
        print(f"error: {problem}", file=sys.stderr)
        raise SystemExit(2) from None
    _leave(*_run(serve_pull(options, threads)))


def _serve_stdio(threads: int | None) -> None:
    fd_in, fd_out = _take_descriptors()
    blocking = os.get_blocking(fd_out)
    os.set_blocking(fd_out, False)
    try:
        ended = _run(_serve(fd_in, fd_out, threads))
    finally:
        os.set_blocking(fd_out, blocking)  # it may be a terminal that others use
    _leave(*ended)


def _run(serving: Coroutine[Any, Any, tuple[int, bool]]) -> tuple[asyncio.AbstractEventLoop, int, bool]:
    """Run a server to its end; return its loop, the exit code, and whether threads are stuck in components."""
    import gc

    loop = new_loop()
    gc.freeze()  # what was imported lives as long as the process: collections need not look at it
    return loop, *loop.run_until_complete(serving)


def _leave(loop: asyncio.AbstractEventLoop, code: int, stuck: bool) -> None:
    """Raises: SystemExit."""
    if stuck:
        # at a normal exit the interpreter waits for such threads, or crashes when one prints meanwhile
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    loop.close()
    if code:
        raise SystemExit(code)


def new_loop() -> asyncio.AbstractEventLoop:
    """Return an event loop, uvloop's where it is installed."""
    import asyncio

    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


def configure_log() -> None:
    """Send log lines to stderr at the level of STEPFLOW_LOG_LEVEL, unless the author has set up logging."""
    import logging

    logging.basicConfig(level=log_level(), format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)


def log_level() -> int:
    """Return the level that STEPFLOW_LOG_LEVEL names; INFO for none and for an unknown one."""
    import logging

    level = logging.getLevelNamesMapping().get(os.environ.get("STEPFLOW_LOG_LEVEL", "info").upper())
    return logging.INFO if level is None else level


def _take_descriptors() -> tuple[int, int]:
    """Return private copies of stdin and stdout, and put harmless ones in their places."""
    import io

    fd_in, fd_out = os.dup(0), os.dup(1)  # not inherited by child processes, which would hold the pipe open
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout.flush()  # only now: what the module printed while it loaded is not protocol either
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)
    return fd_in, fd_out


async def _serve(fd_in: int, fd_out: int, threads: int | None) -> tuple[int, bool]:
    """Return the exit code, and whether threads are stuck in components."""
    import asyncio
    import logging
    import signal

    from stepflow.component.registry import REGISTRY
    from stepflow.component.server import Server
    from stepflow.component.threads import Threads

    loop = asyncio.get_running_loop()
    ended: asyncio.Future[int] = loop.create_future()

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    writer = _Writer(loop, fd_out, lambda: end(0))
    pool = Threads(threads)
    server = Server(REGISTRY, writer.send, threads=pool, show_tracebacks=log_level() <= logging.DEBUG)
    reader = _Reader(loop, fd_in, server, lambda: end(0))
    writer.on_full = reader.pause
    writer.on_drained = reader.resume
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 128 + number)
    reader.resume()
    code = await ended
    reader.pause()
    writer.flush()
    return code, await wind_up(list(server.tasks()), pool)


async def wind_up(tasks: Sequence[asyncio.Task[None]], threads: Threads) -> bool:
    """Cancel what runs; return whether threads are stuck."""
    import asyncio

    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks, timeout=ENDING_S)
    # as a task of its own, since cancelling it would wait for the very threads that may be stuck
    executor_ended = asyncio.ensure_future(asyncio.get_running_loop().shutdown_default_executor())
    await asyncio.wait([executor_ended], timeout=ENDING_S)
    return threads.busy() or not all(task.done() for task in (executor_ended, *tasks))


class _Reader:
    """Splits what arrives into lines. A line above the limit is dropped as it comes, and refused at its end."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, server: Server, on_end: Callable[[], None]) -> None:
        import stat

        from stepflow.component.wire import LINE_BYTES_MAX

        self._loop = loop
        self._fd = fd
        self._server = server
        self._on_end = on_end
        self._read = os.read
        self._line_bytes_max = LINE_BYTES_MAX
        self._parts: list[bytes] = []
        self._size = 0
        self._active = False
        self._is_file = stat.S_ISREG(os.fstat(fd).st_mode)

    def resume(self) -> None:
        if not self._active:
            self._active = True
            if self._is_file:  # never blocks, and no loop can watch it
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
            chunk = self._read(self._fd, READ_BYTES)
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
        if self._size <= self._line_bytes_max:
            self._parts.append(part)
        else:
            del self._parts[1:]

    def _end_long_line(self, end: bytes) -> None:
        self._keep(end)
        parts, size = self._parts, self._size
        self._parts, self._size = [], 0
        if size <= self._line_bytes_max:
            self._server.receive(b"".join(parts))
        else:
            self._server.refuse_line(parts[0], size)


class _Writer:
    """Gathers lines and writes them together, once a turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fd: int, on_end: Callable[[], None]) -> None:
        self._loop = loop
        self._fd = fd
        self._on_end = on_end
        self._write = os.write
        self._lines: list[bytes] = []
        self._rest = memoryview(b"")
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
        """Write what has gathered, as far as the pipe takes it; the rest follows when it takes more."""
        self._scheduled = False
        if self._rest or not self._lines:
            return
        data = self._lines[0] if len(self._lines) == 1 else b"".join(self._lines)
        self._lines.clear()
        written = self._try(data)
        if written < len(data):
            self._rest = memoryview(data)[written:]
            self._scheduled = True  # until the rest is gone
            self._loop.add_writer(self._fd, self._writable)

    def _writable(self) -> None:
        self._rest = self._rest[self._try(self._rest) :]
        if not self._rest:
            self._loop.remove_writer(self._fd)
            self.flush()

    def _try(self, data: bytes | memoryview) -> int:
        """Return how many bytes are gone; all of them when the host is gone."""
        try:
            written = self._write(self._fd, data)
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
