"""The log lines of one call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from component_host.timed_call import TimedCall
from stepflow.log_lines import lines_to_pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from component_host.deadlines import Deadlines
    from component_host.logged_lines import CallLines
    from component_host.logs import PluginLog
    from stepflow.log_lines import LogLine
    from stepflow.mesh.v1 import host_pb2, journal_pb2


class LoggedCall(TimedCall):
    """A base of `Call`. Implements `logs.LoggingCall`."""

    __slots__ = ("_log", "logged")

    def __init__(self, request: host_pb2.Call, deadlines: Deadlines[Any]) -> None:
        super().__init__(request, deadlines)
        self._log: PluginLog | None = None
        """None until the call is executed."""
        self.logged: CallLines | None = None
        """None until the component logs or prints."""

    def begin_log(self, log: PluginLog) -> None:
        """Note that the plugin with this log executes the call."""
        self._log = log
        log.begin_call(self)

    def log(self, lines: Sequence[LogLine], dropped: int = 0) -> None:
        if self._log is not None:
            self._log.add_lines(self, lines, dropped)

    def end_log(self) -> None:
        """Note that the call is not executed any more. Idempotent."""
        if self._log is not None:
            self._log.end_call(self)

    def log_tail(self) -> list[journal_pb2.LogLine]:
        """Return the last lines, for the failure of the call."""
        if self._log is None or self.logged is None:
            return []
        return lines_to_pb(self._log.tail_of(self))


__all__ = ["LoggedCall"]
