"""Log lines with their origin, the bounds on their number, and their texts without secrets."""

from __future__ import annotations

import re
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.log_lines import LINE_CHARS_MAX, TAIL_BYTES_MAX, LogLine
from stepflow.printable import printable
from stepflow.telemetry import redact, without_hidden

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepflow.mesh.v1 import host_pb2
    from stepflow.redaction import KnownSecrets

PERIOD_S = 0.25

CALL_LINES_MAX = 100
"""Lines of a call that pass in a period."""

RAW_CHARS_MAX = 2 * LINE_CHARS_MAX
"""A longer line is cut before its secrets are searched."""

SECRET_CHARS = 1_000
"""Left out at the end of a line that was cut: the beginning of a secret might stand there."""

_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")


@dataclass(frozen=True, slots=True)
class LineOrigin:
    """The origin of lines. `run_id` is empty for lines of a plugin without a call."""

    plugin: str
    root_run_id: str = ""
    run_id: str = ""
    item: int = 0
    step_id: str = ""
    step_index: int = 0
    component: str = ""
    depth: int = 0
    attempt: int = 0
    executing: bool = False
    """The plugin was executing calls."""


@dataclass(frozen=True, slots=True)
class LoggedLines:
    """Lines of one origin, in order, without secrets. `dropped`: number of those left out before."""

    origin: LineOrigin
    lines: tuple[LogLine, ...]
    dropped: int = 0


class LineGate:
    """Passes `lines_max` lines in a period."""

    __slots__ = ("_ends_at", "_left", "_lines_max", "dropped")

    def __init__(self, lines_max: int) -> None:
        self.dropped = 0
        """Lines refused since lines passed last."""
        self._lines_max = lines_max
        self._left = 0
        self._ends_at = 0.0

    def take(self, wanted: int, now_s: float) -> int:
        """Return how many of `wanted` lines pass."""
        if now_s >= self._ends_at:
            self._left, self._ends_at = self._lines_max, now_s + PERIOD_S
        passed = min(wanted, self._left)
        self._left -= passed
        return passed

    def take_dropped(self) -> int:
        dropped, self.dropped = self.dropped, 0
        return dropped


class CallLines:
    """The log of one call: its gate, and its last lines."""

    __slots__ = ("gate", "origin", "refused_last", "tail", "tail_chars")

    def __init__(self, request: host_pb2.Call) -> None:
        self.gate = LineGate(CALL_LINES_MAX)
        self.origin = LineOrigin(
            request.plugin,
            request.root_run_id,
            request.run_id,
            request.item,
            request.step_id,
            request.step_index,
            request.path or request.component,
            request.depth,
            request.attempt,
            executing=True,
        )
        self.tail: deque[LogLine] = deque()
        """The last lines, as the server wrote them: with secrets."""
        self.tail_chars = 0
        self.refused_last = 0
        """Lines refused since lines passed last, of which the last ones are in the tail."""

    def keep_tail(self, lines: Iterable[LogLine]) -> None:
        for line in lines:
            self.tail.append(line)
            self.tail_chars += len(line.text) + 1
            while self.tail_chars > TAIL_BYTES_MAX and len(self.tail) > 1:
                self.tail_chars -= len(self.tail.popleft().text) + 1


def cut(line: LogLine) -> LogLine:
    return line if len(line.text) <= RAW_CHARS_MAX else LogLine(line.at_ms, line.level, line.text[:RAW_CHARS_MAX])


def shown(line: LogLine, secrets: KnownSecrets) -> LogLine:
    """Return a line as people may see it."""
    text = without_hidden(secrets.text(without_escapes(line.text)))
    if len(line.text) >= RAW_CHARS_MAX:  # cut: its end may be the beginning of a secret
        text = text[: max(0, len(text) - max(secrets.chars_max, SECRET_CHARS))]
    text = redact(text[:LINE_CHARS_MAX]).replace("\t", "    ")
    return LogLine(line.at_ms, line.level, printable(text, one_line=True))


def without_escapes(text: str) -> str:
    """Return a text without colours and other escape sequences of terminals."""
    return _ESCAPES.sub("", text) if "\x1b" in text else text


__all__ = ["PERIOD_S", "CallLines", "LineGate", "LineOrigin", "LoggedLines", "cut", "shown", "without_escapes"]
