"""A server process: start, input and output, stop; independent of the protocol.

Promises:
- The server runs in a separate session. `stop` ends the whole process group: SIGTERM, a grace, SIGKILL. After a crash
  of the server the rest of the group is killed.
- No server outlives the host, even if the host is SIGKILLed: each server has a `ProcessGuard`.
- The host also keeps the write end of stdout. Some servers set stdout to non-blocking mode, write as in blocking mode,
  and lose output beyond the 64 KiB of a full pipe; `make_output_blocking` corrects the mode from outside, because the
  mode belongs to the shared end. The price: no end of file at the death of the server, so the exit is watched.
- stderr is always read (a full pipe would stop the server).
- Writing never blocks.

Not here: when to start a server again (`restarts`), and the meaning of the bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, TypeAlias

from component_host.supervision.group import ProcessGroup
from component_host.supervision.pipes import StdinWriter, read_available
from component_host.supervision.report import ProcessReport
from component_host.supervision.spec import limited_command, resolve_command, server_environment, shown_command
from stepflow.errors import Unavailable
from stepflow.telemetry import get_logger
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.supervision.spec import ProcessSpec

DRAIN_READS_MAX = 64
"""Reads of the rest of a pipe in a row; bounded because the writer may be as fast as the reader."""

GROUP_POLL_S = 0.02

KILL_WAIT_S = 5.0
"""Limit for a killed process to go away: it can be stuck in the kernel (a dead network disk)."""

log = get_logger("component_host.process")


class ServerProcess(ProcessReport):
    """One run of a server, from `start` to `ended`. Bound to the event loop of `start`; not reusable.

    `on_output` gets chunks of stdout on arrival. `on_exit` is called once, after the last chunk. `on_room` is called
    when stdin was full and is so no more.
    """

    def __init__(
        self,
        spec: ProcessSpec,
        *,
        on_output: Callable[[bytes], None],
        on_exit: Callable[[], None],
        on_room: Callable[[], None] = lambda: None,
    ) -> None:
        self._log = log.bind(plugin=spec.plugin)
        super().__init__(spec)
        self.pid = 0
        """0 until started."""
        self._on_output = on_output
        self._on_exit = on_exit
        self._on_room = on_room
        self._stdin: StdinWriter | None = None
        self._stdout = self._stdout_kept = self._stderr = -1
        self._group: ProcessGroup | None = None
        self._stderr_ended = False
        self._stopping = False

    @property
    def stdin(self) -> StdinWriter:
        """The pipe to the server, after the start: callers wait with large lines while it is full."""
        assert self._stdin is not None
        return self._stdin

    def start(self) -> None:
        """Start the process and begin to read the outputs.

        Raises:
            Invalid: COMMAND_NOT_FOUND.
            Unavailable: SERVER_START_FAILED, the system refused.
        """
        # 1. Start.
        command = resolve_command(self._spec)
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._reaped = asyncio.Event()
        started = _start_waiter(self._spec, self._wait)
        try:
            process, pipes = _spawn(self._spec, command)
        except BaseException:
            started.put(None)
            raise
        self._stdout, self._stdout_kept, self._stderr = pipes.stdout, pipes.child_stdout, pipes.stderr

        # 2. Guard the group and watch for the exit, before anything that can fail.
        self.pid = process.pid
        self._group = ProcessGroup(process.pid)
        started.put(process)

        # 3. Read and write without blocking.
        try:
            for fd in (pipes.stdin, self._stdout, self._stderr):
                os.set_blocking(fd, False)
            # A server that reads no more is killed: its calls would otherwise wait for their timeouts.
            self._stdin = StdinWriter(pipes.stdin, self.kill, self._log, self._on_room)
            self._loop.add_reader(self._stdout, self._read_stdout)
            self._loop.add_reader(self._stderr, self._read_stderr)
        except BaseException:
            self.kill()  # its caller takes it for not started
            raise
        self._log.debug("server started", pid=self.pid)

    def make_output_blocking(self) -> None:
        """Make the server's writes to stdout block while the pipe is full. Call after the server's own set-up."""
        if self._stdout_kept >= 0:
            os.set_blocking(self._stdout_kept, True)

    def write(self, line: bytes) -> None:
        """Send one line (with newline). No-op after the exit. Callers ask `stdin` for room."""
        if self._stdin is not None:
            self._stdin.write(line)

    def end_input(self) -> None:
        """Close stdin, a request to end for most servers; unsent lines are dropped. Idempotent."""
        if self._stdin is not None:
            self._stdin.close()

    def kill(self) -> None:
        """End the group at once; `on_exit` follows."""
        if self._group is not None:
            self._group.send_signal(signal.SIGKILL)

    async def stop(self, grace_s: float) -> None:
        """End the process group; return once process and guard are reaped. Idempotent."""
        group = self._group
        if group is None:
            return
        self._stopping = True

        # 1. Ask: end of input, SIGTERM.
        self.end_input()
        if self.returncode is None:
            group.send_signal(signal.SIGTERM)

        # 2. Wait for the whole group, at most `grace_s`.
        try:
            async with asyncio.timeout(grace_s):
                await self._exited.wait()
                while group.lives():  # noqa: ASYNC110  # the system has no event for an empty group
                    await asyncio.sleep(GROUP_POLL_S)
        except TimeoutError:
            self._log.debug("server did not end in time", pid=self.pid, grace_s=grace_s)

        # 3. Kill the rest.
        group.send_signal(signal.SIGKILL)
        try:
            async with asyncio.timeout(KILL_WAIT_S):
                await self._exited.wait()
                group.release()
                await self._reaped.wait()
        except TimeoutError:
            self._log.warning("killed server does not go away", pid=self.pid)

    async def ended(self) -> None:
        """Wait until the process has ended and `on_exit` was called."""
        await self._exited.wait()

    def read_stderr(self) -> None:
        """Read what waits in the pipe."""
        for _ in range(DRAIN_READS_MAX):
            if not self._read_stderr():
                break

    def _read_stdout(self) -> bool:
        self._read_stderr()  # first: what a server wrote there before its reply belongs to the call of the reply
        chunk = read_available(self._stdout)
        if chunk:
            guarded(self._log, "output of a server", self._on_output, chunk)
        return bool(chunk)

    def _read_stderr(self) -> bool:
        if self._stderr_ended:
            return False
        chunk = read_available(self._stderr)
        if chunk is None:
            return False
        if not chunk:
            self._stderr_ended = True
            self._loop.remove_reader(self._stderr)
            return False
        self._stderr_tail.feed(chunk)
        return True

    def _wait(self, started: Started) -> None:
        """Reap the server, then the guard. Runs in a thread: works on every POSIX system and event loop."""
        process = started.get()
        if process is None:
            return
        assert self._group is not None

        returncode = process.wait()
        with contextlib.suppress(RuntimeError):  # the loop was closed without `stop`
            self._loop.call_soon_threadsafe(self._handle_exit, returncode)

        self._group.wait_for_guard()
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._reaped.set)

    def _handle_exit(self, returncode: int) -> None:
        assert self._group is not None
        self.returncode = returncode

        # 1. Read the rest of the outputs, before `on_exit`.
        for read in (self._read_stdout, self._read_stderr):
            for _ in range(DRAIN_READS_MAX):
                if not read():
                    break
        self._stderr_tail.finish()

        # 2. Close the pipes.
        self._close_pipes()

        # 3. After a crash, kill the rest of the group; `stop` does so itself, after the grace.
        if not self._stopping:
            self._group.send_signal(signal.SIGKILL)
            self._group.release()

        # 4. Tell.
        self._log.debug("server ended", pid=self.pid, returncode=returncode)
        self._exited.set()
        self._on_exit()

    def _close_pipes(self) -> None:
        self.end_input()
        self._loop.remove_reader(self._stdout)
        self._loop.remove_reader(self._stderr)
        _close(self._stdout, self._stdout_kept, self._stderr)
        self._stdout = self._stdout_kept = self._stderr = -1


Started: TypeAlias = "SimpleQueue[subprocess.Popen[bytes] | None]"
"""Gets the process once it runs, or None if it could not be started."""


def _start_waiter(spec: ProcessSpec, wait: Callable[[Started], None]) -> Started:
    """Start the thread that waits for a process, before the process: without it, the exit would be missed.

    Raises: Unavailable SERVER_START_FAILED, no thread is left.
    """
    started: Started = SimpleQueue()
    try:
        threading.Thread(target=wait, args=(started,), name=f"wait for {spec.plugin}", daemon=True).start()
    except RuntimeError as error:
        raise Unavailable("SERVER_START_FAILED", f"plugin {spec.plugin!r}: {error}", plugin=spec.plugin) from None
    return started


class _Pipes:
    """The pipes of a server. The host keeps `child_stdout`; see the head of this module."""

    def __init__(self) -> None:
        self.stdin = self.stdout = self.stderr = -1
        self.child_stdin = self.child_stdout = self.child_stderr = -1

    def open(self) -> None:
        """Raises: OSError, the process has no more descriptors."""
        self.child_stdin, self.stdin = os.pipe()
        self.stdout, self.child_stdout = os.pipe()
        self.stderr, self.child_stderr = os.pipe()


def _spawn(spec: ProcessSpec, command: str) -> tuple[subprocess.Popen[bytes], _Pipes]:
    pipes = _Pipes()

    try:
        pipes.open()
        process = subprocess.Popen(  # vfork and exec: a millisecond, and safe with threads
            limited_command([command, *spec.args], spec.limits),
            stdin=pipes.child_stdin,
            stdout=pipes.child_stdout,
            stderr=pipes.child_stderr,
            cwd=spec.working_directory,
            env=server_environment(spec),
            start_new_session=True,
        )
    except OSError as error:
        _close(pipes.stdin, pipes.stdout, pipes.child_stdout, pipes.stderr)
        raise Unavailable(
            "SERVER_START_FAILED",
            f"plugin {spec.plugin!r}: cannot start {shown_command(spec)} in {spec.working_directory}: {error.strerror}",
            plugin=spec.plugin,
        ) from None
    finally:
        _close(pipes.child_stdin, pipes.child_stderr)

    return process, pipes


def _close(*descriptors: int) -> None:
    for fd in descriptors:
        if fd >= 0:
            os.close(fd)


__all__ = ["ServerProcess"]
