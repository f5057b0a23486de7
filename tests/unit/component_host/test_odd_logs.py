"""Logs of servers that misbehave: lines without an end, and numbers that no message holds."""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.log_stream import LogStream
from component_host.logged_lines import LineOrigin, LoggedLines
from component_host.logs import HostLogs
from component_host.stepflow_bridge.log_notices import pass_log, pass_task_log
from component_host.stepflow_bridge.protocol import LogParams
from component_host.supervision.pipes import STDERR_PARTIAL_BYTES_MAX, StderrTail
from component_host.supervision.spec import ProcessSpec
from stepflow.pull.v1 import pull_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.log_lines import LogLine

SECRET = "correct-horse-battery"  # noqa: S105  # a made-up value


class Call:
    """A call whose lines are read at once."""

    def __init__(self) -> None:
        self.lines: list[LogLine] = []
        self.dropped = 0

    def log(self, lines: Sequence[LogLine], dropped: int = 0) -> None:
        self.lines += lines
        self.dropped += dropped


def fed(*chunks: bytes) -> tuple[list[str], StderrTail]:
    """Return the log lines that chunks of stderr give."""
    told: list[str] = []
    logs = HostLogs(sink=lambda logged: told.extend(line.text for line in logged.lines))
    spec = ProcessSpec(
        plugin="p",
        command="x",
        args=(),
        env={"API_KEY": SECRET},
        inherit_env=False,
        working_directory="/",
        environ={},
        log=logs.of("p"),
    )
    tail = StderrTail(spec)
    for chunk in chunks:
        tail.feed(chunk)
    return told, tail


def test_a_secret_across_the_cut_of_an_endless_line_is_not_shown_in_halves() -> None:
    for half in range(1, len(SECRET)):
        before = b"-" * (STDERR_PARTIAL_BYTES_MAX + 1 - half) + SECRET[:half].encode()
        told, tail = fed(before, SECRET[half:].encode() + b" and more\nnext line\n")
        assert told[-1] == "next line"
        shown = "\n".join(told) + tail.text_of_run()
        assert "and more" not in shown
        assert SECRET[-3:] not in shown


def test_what_is_far_behind_the_cut_of_an_endless_line_is_shown() -> None:
    told, _ = fed(b"-" * (STDERR_PARTIAL_BYTES_MAX + 1), b"x" * 10_000, b" the end\n", b"next\n")
    assert told[-2].startswith("xxx")
    assert told[-1] == "next"


def test_a_server_cannot_break_the_log_by_its_count_of_dropped_lines() -> None:
    call = Call()
    for dropped in (2**64 - 1, 2**200, -5):
        pass_log(call, LogParams(id=1, lines=[[1, "info", "a"]], dropped=dropped))  # type: ignore[arg-type]  # logs only
    pass_task_log(call, pull_pb2.TaskLog(dropped=2**64 - 1))  # type: ignore[arg-type]  # likewise
    assert len(call.lines) == 3
    stream = LogStream(HostLogs())
    stream._flush_due = True  # without an event loop
    stream.send_log(LoggedLines(LineOrigin("p"), tuple(call.lines), call.dropped))
    assert stream._message.logs[0].dropped == call.dropped > 0
