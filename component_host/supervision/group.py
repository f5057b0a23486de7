"""The process group of a server, signalled as a whole and guarded against the death of the host."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from stepflow.process_guard import ProcessGuard
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    import signal

log = get_logger("component_host.process")


class ProcessGroup:
    """The group of a server, from the start to `release`.

    A group outlives the leader while members remain, and keeps the number so long. After `release` the number may
    belong to a stranger, so no signal is sent any more.
    """

    def __init__(self, pid: int) -> None:
        assert pid > 1  # killpg(0) would be the host's own group
        self._pid = pid
        self._released = False
        self._guard = _start_guard(pid)

    def send_signal(self, number: signal.Signals) -> None:
        """Signal all members. No-op once released."""
        if self._released:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._pid, number)

    def lives(self) -> bool:
        """Return True while the group has members."""
        if self._released:
            return False
        try:
            os.killpg(self._pid, 0)
        except (ProcessLookupError, PermissionError):
            return False
        return True

    def release(self) -> None:
        """Send no signals from now on, and let the guard exit. Idempotent."""
        self._released = True
        if self._guard is not None:
            self._guard.release()

    def wait_for_guard(self) -> None:
        """Reap the guard. Blocks until `release`."""
        if self._guard is not None:
            self._guard.wait()


def _start_guard(group: int) -> ProcessGuard | None:
    try:
        return ProcessGuard(group)
    except OSError as error:
        log.warning("no guard: should this process be killed, a server may outlive it", error=error.strerror)
        return None


__all__ = ["ProcessGroup"]
