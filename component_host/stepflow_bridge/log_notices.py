"""Log notifications of StepFlow servers. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.log_lines import LogLine, level_of

if TYPE_CHECKING:
    from component_host.backend import HostCall
    from component_host.stepflow_bridge.protocol import LogParams
    from stepflow.pull.v1 import pull_pb2

NOTICE_LINES_MAX = 200
"""Lines of one notification that are read; of more, the last ones."""

_AT_MS_MAX = 2**53
_DROPPED_MAX = 2**31
"""Sums of these fit into messages."""


def pass_log(call: HostCall, notice: LogParams) -> None:
    """Hand the lines of a notification to their call. Lines of another shape are left out."""
    received = notice.lines[-NOTICE_LINES_MAX:]
    lines: list[LogLine] = []
    for entry in received:
        match entry:
            case [int() as at_ms, str() as level, str() as text, *_]:
                lines.append(LogLine(min(max(0, at_ms), _AT_MS_MAX), level_of(level), text))

    call.log(lines, _dropped(notice.dropped) + len(notice.lines) - len(received))


def _dropped(told: int) -> int:
    return min(max(0, told), _DROPPED_MAX)


def pass_task_log(call: HostCall, log: pull_pb2.TaskLog) -> None:
    """Hand the log lines of a pull worker to their call."""
    received = log.lines[-NOTICE_LINES_MAX:]
    lines = [LogLine(min(max(0, line.at_ms), _AT_MS_MAX), level_of(line.level), line.text) for line in received]
    call.log(lines, _dropped(log.dropped) + len(log.lines) - len(received))


__all__ = ["pass_log", "pass_task_log"]
