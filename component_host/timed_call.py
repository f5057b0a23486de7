"""The time of one execution: when it began, how long it took, and the timeouts.

The time begins with the hand-over to the backend. A backend that cannot execute the call at once notes it as queued;
the time then begins with the execution, however long the call waits.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from component_host.deadlines import DeadlineClock, Deadlines
    from stepflow.mesh.v1 import host_pb2


class TimedCall:
    """The base of `Call`."""

    __slots__ = ("_deadlines", "clock", "duration_ms", "queued", "request", "settled", "started_at_ms", "started_ns")

    def __init__(self, request: host_pb2.Call, deadlines: Deadlines[Any]) -> None:
        self._deadlines = deadlines
        self.request = request
        self.settled = False
        """True once the outcome is decided or no longer wanted."""
        self.queued = False
        """The call waits for a server or a thread of the backend."""
        self.clock: DeadlineClock[Any] | None = None
        """None without timeouts, and while the call is queued."""

        self.started_at_ms = 0
        """When the execution began, by the wall clock; 0 = no backend has received the call."""
        self.started_ns = 0
        """The same moment by the monotonic clock, from which the duration is computed."""
        self.duration_ms = 0
        """Duration until the outcome, rounded up; 0 = no outcome yet, or no backend received the call."""

    def start_clock(self) -> None:
        """Begin the time of the execution."""
        self.started_at_ms, self.started_ns = time.time_ns() // 1_000_000, time.monotonic_ns()
        request = self.request
        if request.timeout_ms or request.idle_timeout_ms:
            self.clock = self._deadlines.start_clock(self, request.timeout_ms, request.idle_timeout_ms)

    def note_queued(self) -> None:
        """Stop the clock: the call waits for a server or a thread. Idempotent."""
        if not self.settled:
            self.queued = True
            self._stop_clock()

    def note_begun(self) -> None:
        """Begin the time of a queued call. Ignored for any other call."""
        if self.queued and not self.settled:
            self.queued = False
            self.start_clock()

    def note_sign_of_life(self) -> None:
        """Restart the idle timeout."""
        if self.clock is not None:
            self.clock.active_at = time.monotonic()

    def end_time(self) -> None:
        """Stop the clock and compute the duration."""
        if self.started_ns:
            self.duration_ms = 1 + (time.monotonic_ns() - self.started_ns) // 1_000_000
        self._stop_clock()

    def _stop_clock(self) -> None:
        if self.clock is not None:
            self._deadlines.cancel(self.clock)
            self.clock = None


__all__ = ["TimedCall"]
