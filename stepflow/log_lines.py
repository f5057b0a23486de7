"""Log lines of components, as every part of the mesh knows them. Pure.

A line is shown to people: it has lost its secrets and is cut where it enters, in the component host.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, cast

import msgspec

from stepflow.mesh.v1 import journal_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LINE_CHARS_MAX = 2_000
"""A longer line is cut."""

TAIL_BYTES_MAX = 4 * 1024
"""Log lines that are kept with a failure."""

LINE_OVERHEAD_BYTES = 16
"""Counted for each line of a tail, in addition to its text."""

LogLevel = Literal["", "debug", "info", "warning", "error"]

_LEVELS: tuple[LogLevel, ...] = ("", "debug", "info", "warning", "error")
"""In the order of the protobuf's numbers."""


class LogLine(msgspec.Struct, frozen=True, gc=False):
    """A line that a component has logged or printed."""

    at_ms: int
    """Milliseconds since 1970."""
    level: LogLevel
    """Empty for printed text, and for stderr."""
    text: str


class StepLog(msgspec.Struct, frozen=True, gc=False):
    """Log lines of a step, in order."""

    run_id: str
    """Run or sub-run of the step; empty for lines of a plugin that belong to no single step."""
    item: int
    """0-based index in that run."""
    step_id: str
    """Or the name of the plugin."""
    step_index: int
    component: str
    depth: int
    attempt: int
    lines: tuple[LogLine, ...]
    dropped: int = 0
    """Number of lines left out before these."""


def level_of(name: str) -> LogLevel:
    """Return a level by its name; empty for an unknown one."""
    return name if name in _LEVELS else ""


def lines_to_pb(lines: Iterable[LogLine]) -> list[pb.LogLine]:
    return [
        pb.LogLine(at_ms=line.at_ms, level=cast("Any", _LEVELS.index(line.level)), text=line.text) for line in lines
    ]


def lines_from_pb(lines: Iterable[pb.LogLine]) -> tuple[LogLine, ...]:
    """Decode lines. Levels of a later version are left out."""
    return tuple(
        LogLine(line.at_ms, _LEVELS[line.level] if line.level < len(_LEVELS) else "", line.text) for line in lines
    )


def tail_of(lines: Sequence[LogLine], bytes_max: int = TAIL_BYTES_MAX) -> list[LogLine]:
    """Return the last lines that fit; of the earliest of them, perhaps only the end."""
    kept: list[LogLine] = []
    room = bytes_max
    for line in reversed(lines):
        room -= LINE_OVERHEAD_BYTES
        if room <= 0:
            break
        text = line.text.encode("utf-8", "replace")
        if len(text) > room:
            text = text[-room:]
            kept.append(LogLine(line.at_ms, line.level, text.decode("utf-8", "ignore")))
            break
        kept.append(line)
        room -= len(text)
    return kept[::-1]


def tail_bytes(lines: Iterable[pb.LogLine]) -> int:
    """Return the size of a tail, as `tail_of` counts it."""
    return sum(LINE_OVERHEAD_BYTES + len(line.text.encode("utf-8", "replace")) for line in lines)


__all__ = [
    "LINE_CHARS_MAX",
    "TAIL_BYTES_MAX",
    "LogLevel",
    "LogLine",
    "StepLog",
    "level_of",
    "lines_from_pb",
    "lines_to_pb",
    "tail_bytes",
    "tail_of",
]
