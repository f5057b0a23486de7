"""One service process of `stepflow dev`: start, readiness, exit, stop.

- The service runs in a session of its own: a Ctrl-C at the terminal reaches only the supervisor, which stops the
  services in order. When a service has ended, the rest of its process group is killed.
- The service does not outlive the supervisor, even when the supervisor is SIGKILLed (`stepflow.process_guard`).
- stdout and stderr go to a log file: a service never blocks on a full pipe, and errors quote the end of the log.

Not here: which services there are (`stepflow.dev.services`), their order and restarts (`stepflow.dev.mesh`).
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
"""Interval at which a starting service is probed."""

KILL_WAIT_S = 5.0
"""Limit of the wait for a SIGKILLed process, which can be stuck in the kernel."""

TAIL_BYTES = 16 * 1024
TAIL_LINES = 15
TAIL_LINE_CHARS_MAX = 500


class Service:
    """One service, whose process may be started again after it has ended. Bound to the event loop of `start`.

    `probe` returns the address of a service that is ready, else None. Without a `probe`, the service announces itself
    with a line of JSON on stdout, `{"service": …, "address": …}`.
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
        """Empty until the service is ready."""
        self.returncode: int | None = None
        """Exit code of the last process; -N after a death by signal N; None while a process runs."""

        self._environ = environ
        self._probe = probe or self._announced
        self._process: subprocess.Popen[bytes] | None = None
        self._guard: ProcessGuard | None = None

        self._exited = asyncio.Event()
        self._group_lives = False
        self._log_from = 0
        """Offset in the log file at which the output of the present process begins."""

    @property
    def pid(self) -> int:
        """Id of the process and of its group; 0 before the first start."""
        return 0 if self._process is None else self._process.pid

    def start(self) -> None:
        """Start the process. Raises: Unavailable `SERVICE_START_FAILED`, the process cannot be spawned."""
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
            if self._process is process:  # else `start` was called again, and the state is that of a newer process
                self.returncode = returncode
                self._end_group()
            exited.set()

        def wait() -> None:
            returncode = process.wait()
            with contextlib.suppress(RuntimeError):  # the loop is closed, and with it the mesh
                loop.call_soon_threadsafe(ended, returncode)

        threading.Thread(target=wait, name=f"wait-{self.name}", daemon=True).start()

    async def ready(self, timeout_s: float) -> None:
        """Return when the service is ready; `address` is set.

        Raises: Unavailable `SERVICE_START_FAILED` with the end of the log: the service ended or took too long.
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
            f"{self.name} {how}; the end of its log {self.log}:\n{self.tail() or '  (none)'}",
            service=self.name,
        )

    async def exited(self) -> int:
        """Wait until the process has ended, and return its exit code."""
        await self._exited.wait()
        return self.returncode or 0

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the process group, if it still exists."""
        if self._group_lives:  # after the end the number may belong to another group
            assert self.pid > 1
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, number)

    async def stop(self, grace_s: float) -> bool:
        """Stop the service: SIGTERM, then SIGKILL after `grace_s`. Return False if SIGKILL was needed. Idempotent."""
        if self._process is None or self._exited.is_set():
            return True

        in_time = True
        # Only to the service itself: the service stops its own children in its own way.
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
        """Return how the process ended: `ended with code 1`, `was killed by SIGKILL`."""
        code = self.returncode or 0
        if code >= 0:
            return f"ended with code {code}"
        with contextlib.suppress(ValueError):
            return f"was killed by {signal.Signals(-code).name}"
        return f"was killed by signal {-code}"

    def tail(self) -> str:
        """Return the last lines in the log of the present process, indented, with secrets removed."""
        lines = self._written(TAIL_BYTES).decode("utf-8", "replace").splitlines()
        shown = ("".join(c for c in line if c.isprintable())[:TAIL_LINE_CHARS_MAX] for line in lines[-TAIL_LINES:])
        return "\n".join(f"  {redact(line)}" for line in shown if line.strip())

    async def _announced(self) -> str | None:
        for line in self._written(TAIL_BYTES).splitlines():
            if line.startswith(b'{"service"'):
                with contextlib.suppress(ValueError, KeyError, TypeError):  # the line is not complete yet
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
        """Kill the rest of the group after the process has ended, and release the guard."""
        self.signal(signal.SIGKILL)
        self._group_lives = False
        guard, self._guard = self._guard, None
        if guard is not None:
            guard.release()
            guard.wait()
