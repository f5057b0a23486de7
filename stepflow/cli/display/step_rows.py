"""Rows of the live table: selection, order and texts. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stepflow.cli.display.texts import duration, elapsed_ms
from stepflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Mapping

StepKey: TypeAlias = tuple[str, int, int]
"""A step: run id, item, step index."""

_WORDS = {
    "completed": ("done", "green"),
    "failed": ("failed", "red"),
    "skipped": ("skip", "dim"),
    "retrying": ("retry", "yellow"),
    "sleeping": ("sleep", "cyan"),
    "waiting": ("wait", "cyan"),
}
"""Word and style of a state; every other state is `run`."""

_PRIORITY = {"running": 0, "retrying": 0, "sleeping": 0, "waiting": 0, "failed": 1, "skipped": 2, "completed": 3}
"""Rows with a low number are shown first when there is no room for all."""


@dataclass(slots=True)
class StepRow:
    """The last known state of a step. `parent` is the step that opened the sub-run."""

    parent: StepKey | None
    depth: int
    label: str
    state: str = "running"
    attempt: int = 0
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    until_ms: int | None = None
    note: str = ""


def visible_rows(rows: Mapping[StepKey, StepRow], room: int) -> list[StepRow]:
    """Return at most `room` rows: active steps, then failed steps, then the latest of the completed steps.

    The rows keep the order of `_in_order`.
    """
    ordered = _in_order(rows)
    if len(ordered) <= room:
        return ordered
    by_priority = sorted(range(len(ordered)), key=lambda index: (_PRIORITY[ordered[index].state], -index))
    return [ordered[index] for index in sorted(by_priority[:room])]


def _in_order(rows: Mapping[StepKey, StepRow]) -> list[StepRow]:
    """Return the rows in the order of the flow and of the items, sub-runs below their parent step, as they began."""
    runs: dict[str, int] = {}
    below: dict[StepKey | None, list[StepKey]] = {}
    for key, row in rows.items():
        runs.setdefault(key[0], len(runs))
        below.setdefault(row.parent if row.parent in rows else None, []).append(key)
    for keys in below.values():
        keys.sort(key=lambda key: (runs[key[0]], *key[1:]), reverse=True)

    ordered: list[StepRow] = []
    todo = below.get(None, [])
    while todo:
        key = todo.pop()
        ordered.append(rows[key])
        todo += below.get(key, [])
    return ordered


def indented(row: StepRow) -> str:
    """Return the label of a row, indented by its depth."""
    return "  " * row.depth + printable(row.label, one_line=True)


def _cut(label: str, width: int) -> str:
    """Cut a label in its middle: names of steps differ at both ends."""
    if len(label) <= width:
        return label
    tail = (width - 1) // 2
    return f"{label[: width - 1 - tail]}…{label[len(label) - tail :]}"


def format_row(row: StepRow, width: int, now_ms: int) -> list[tuple[str, str]]:
    """Return the texts of a row with their styles; `width`: width of the widest label."""
    word, style = _WORDS.get(row.state, ("run", "blue"))
    elapsed = "" if row.started_at_ms is None else duration(elapsed_ms(row.started_at_ms, row.ended_at_ms or now_ms))
    attempt = f"attempt {row.attempt}" if row.attempt > 1 else ""

    note = row.note
    if row.until_ms is not None and row.ended_at_ms is None:
        left = duration(elapsed_ms(now_ms, row.until_ms))
        due = f"again in {left}" if row.state == "retrying" else f"{left} left"
        note = f"{due}{'  ' if note else ''}{note}"

    return [
        (f"{word:<6}  ", style),
        (f"{_cut(indented(row), width):<{width}}  {elapsed:>8}  ", ""),
        (f"{attempt}  {note}".strip(), "dim"),
    ]
