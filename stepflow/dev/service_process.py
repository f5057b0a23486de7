"""One service process of `stepflow dev`: started, found ready, started again, ended.

- The service runs in a session of its own, so that a Ctrl-C at the terminal reaches its supervisor alone, which ends
  the services in their order. Ending one ends its whole process group.
- Nothing outlives the supervisor, not even when it is SIGKILLed: a small shell beside each service reads from a pipe
  whose other end only the supervisor holds, and ends the group when that pipe closes.
- Both outputs go straight to a log file: a service never waits for its supervisor to read, and its last words are
  there for an error.

Not here: what is started, in which order, and when again (`stepflow.dev.mesh`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import threading
from typing import TYPE_CHECKING

from stepflow.errors import Unavailable
from stepflow.process_guard import ProcessGuard
from stepflow.telemetry import redact

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from pathlib import Path

POLL_S = 0.02
"""How often a service that is starting is looked at."""

KILL_WAIT_S = 5.0
"""Even a killed process can be stuck in the kernel; nobody waits for it longer."""

TAIL_BYTES = 16 * 1024
TAIL_LINES = 15
TAIL_LINE_CHARS_MAX = 500


class Service:
    """One service and its runs, one after the other. Belongs to the event loop that it is started on.

    `probe` says where a running service listens, or None as long as it does not; without one, the service tells by a
    line of JSON on stdout, `{"service": …, "address": …}`.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        log: Path,
        probe: Callable[[], Awaitable[str | None]] | None = None,
        *,
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        self.name = name
        self.command = command
        self.log = log
        self.address = ""
        """Where it listens; empty until it is ready."""
        self.returncode: int | None = None
        """Of the run that has ended; negative: the signal that ended it."""
        self._environ = environ
        self._probe = probe or self._announced
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: ProcessGuard | None = None
        self._exited = asyncio.Event()
        self._group_lives = False
        self._log_from = 0
        """Where the log of the present run begins."""

    @property
    def pid(self) -> int:
        """The process, which leads a group of the same number; 0 when there is none."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process. Raises: Unavailable `SERVICE_START_FAILED`, the system refused."""
        loop = asyncio.get_running_loop()
        self.address, self.returncode = "", None
        exited = self._exited = asyncio.Event()
        try:
            with self.log.open("ab") as log:
                self._log_from = log.tell()
                process = subprocess.Popen(
                    self.command,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=dict(self._environ),
                    start_new_session=True,
                )
        except OSError as error:
            raise Unavailable("SERVICE_START_FAILED", f"cannot start {self.name}: {error.strerror}") from None
        self._process = process
        self._group_lives = True
        # Without a guard the service outlives a SIGKILLed supervisor, and nothing else changes.
        with contextlib.suppress(OSError):
            self._guard = ProcessGuard(process.pid)

        def ended(returncode: int) -> None:
            if self._process is process:
                self.returncode = returncode
                self._end_group()
            exited.set()

        def wait() -> None:
            returncode = process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody wants to know
                loop.call_soon_threadsafe(ended, returncode)

        threading.Thread(target=wait, name=f"wait-{self.name}", daemon=True).start()

    async def ready(self, timeout_s: float) -> None:
        """Return when the service listens; `address` says where.

        Raises: Unavailable `SERVICE_START_FAILED` with the last words of a service that ended or took too long.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not self._exited.is_set():
                    found = await self._probe()
                    if found:
                        self.address = found
                        return
                    await asyncio.sleep(POLL_S)
        how = self.exit_text() if self._exited.is_set() else f"was not ready after {timeout_s:g} s"
        raise Unavailable(
            "SERVICE_START_FAILED",
            f"{self.name} {how}; its last words (all of them: {self.log}):\n{self.tail() or '  (none)'}",
            service=self.name,
        )

    async def exited(self) -> int:
        """Return the exit code when the present run has ended."""
        await self._exited.wait()
        return self.returncode or 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, if it is still there."""
        if self._group_lives:  # afterwards the number may be somebody else's
            assert self.pid > 1
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def stop(self, grace_s: float) -> bool:
        """End the process group: SIGTERM, and SIGKILL after `grace_s`; False when that was needed. Safe to repeat."""
        if self._process is None or self._exited.is_set():
            return True
        in_time = True
        # Only the service itself: it ends those it has started, in the way that suits them.
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._process.pid, signal.SIGTERM)
        try:
            async with asyncio.timeout(grace_s):
                await self._exited.wait()
        except TimeoutError:
            in_time = False
            self.signal(signal.SIGKILL)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(KILL_WAIT_S):
                    await self._exited.wait()
        return in_time

    def exit_text(self) -> str:
        """Say how it ended: `ended with code 1`, `was killed by SIGKILL`."""
        code = self.returncode or 0
        if code >= 0:
            return f"ended with code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def tail(self) -> str:
        """Return the last lines that the present run has written, indented, without secrets."""
        lines = self._written(TAIL_BYTES).decode("utf-8", "replace").splitlines()
        shown = ("".join(c for c in line if c.isprintable())[:TAIL_LINE_CHARS_MAX] for line in lines[-TAIL_LINES:])
        return "\n".join(f"  {redact(line)}" for line in shown if line.strip())

    async def _announced(self) -> str | None:
        for line in self._written(TAIL_BYTES).splitlines():
            if line.startswith(b'{"service"'):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # not all of the line is there yet
                    return str(json.loads(line)["address"])
        return None

    def _written(self, bytes_max: int) -> bytes:
        try:
            with self.log.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self._log_from, size - bytes_max))
                return log.read()
        except OSError:
            return b""

    def _end_group(self) -> None:
        """After the process has ended: end what it left behind, and let the guard go."""
        self.signal(signal.SIGKILL)
        self._group_lives = False
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.release()
            guard.wait()
