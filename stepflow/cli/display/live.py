"""Showing how a run goes, on stderr: a live table on a terminal, lines elsewhere, or nothing.

The three views take the same calls, all from the event loop. Rich is imported when a live view begins. No view prints
a component's input or output; texts of failures and progress come from components, so they are redacted, cut, and
freed of control characters.
"""

from __future__ import annotations

import re
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from stepflow.cli import console
from stepflow.codec import decode
from stepflow.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepflow.run.views import StepEvent

LINE_ITEMS_MAX = 100
"""In a larger batch, lines tell of failures and retries only."""

ROWS_MAX = 20
"""Steps in the live table; fewer on a low terminal."""

ROWS_KEPT_MAX = 1_000
"""Steps remembered for it. What has ended longest is forgotten first."""

TEXT_CHARS_MAX = 300
BAR_CHARS = 40
FRAME_INTERVAL_S = 0.125
BATCH_FRAME_INTERVAL_S = 0.5
"""Slower, because counting the items of a batch reads the store."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


class View(Protocol):
    """What the run is told to. `interval_s` says how often `tick` wants to be called; None: never."""

    interval_s: float | None

    def begin(self, items_total: int) -> None: ...
    def on_event(self, event: StepEvent) -> None: ...
    def tick(self, items_ended: int) -> None: ...
    def end(self) -> None:
        """Leave the terminal as it was. Safe to repeat."""


def choose_view(redact: Callable[[str], str], *, quiet: bool) -> View:
    """Return the view that suits stderr."""
    if quiet:
        return QuietView()
    if console.colours_on():
        return LiveView(redact)
    return LineView(redact)


class QuietView:
    """Shows nothing."""

    interval_s: float | None = None

    def begin(self, items_total: int) -> None: ...
    def on_event(self, event: StepEvent) -> None: ...
    def tick(self, items_ended: int) -> None: ...
    def end(self) -> None: ...


class LineView:
    """A line for each step that ends, is tried again, or sleeps."""

    interval_s: float | None = None

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._batch = False
        self._all = True

    def begin(self, items_total: int) -> None:
        self._batch = items_total > 1
        self._all = items_total <= LINE_ITEMS_MAX

    def on_event(self, event: StepEvent) -> None:
        if self._all or event.kind in ("failed", "retrying"):
            line = self._line(event)
            if line is not None:
                console.say(f"{'  ' * event.depth}{line}")

    def tick(self, items_ended: int) -> None: ...
    def end(self) -> None: ...

    def _line(self, event: StepEvent) -> str | None:
        label = step_label(event, batch=self._batch)
        took = "" if event.duration_ms is None else f" in {duration(event.duration_ms)}"
        match event.kind:
            case "completed":
                return f"done    {label}{took}"
            case "failed":
                return f"failed  {label}{took}: {failure_text(event, self._redact)}"
            case "retrying":
                wait = f"; again in {duration(max(0, (event.until_ms or event.at_ms) - event.at_ms))}"
                return f"retry   {label} (attempt {event.attempt}): {failure_text(event, self._redact)}{wait}"
            case "sleeping":
                return f"sleep   {label} until {clock(event.until_ms or event.at_ms)}"
            case "waiting":
                return f"wait    {label} for {signal_text(event)}"
        return None


_Key: TypeAlias = tuple[str, int, int]
"""Of a step: run id, item, index."""


@dataclass(slots=True)
class _Row:
    parent: _Key | None
    depth: int
    label: str
    state: str = "running"
    attempt: int = 0
    started_at_ms: int | None = None
    ended_at_ms: int | None = None
    until_ms: int | None = None
    note: str = ""


_STATES = {
    "completed": ("done", "green"),
    "failed": ("failed", "red"),
    "retrying": ("retry", "yellow"),
    "sleeping": ("sleep", "cyan"),
    "waiting": ("wait", "cyan"),
}


class LiveView:
    """A table of steps that is drawn anew several times a second, and a progress bar for a batch."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self.interval_s: float | None = FRAME_INTERVAL_S
        self._redact = redact
        self._rows: dict[_Key, _Row] = {}
        self._counts: Counter[str] = Counter()
        self._items_total = 1
        self._items_ended = 0
        self._begun_at = time.monotonic()
        self._live: Any = None

    def begin(self, items_total: int) -> None:
        from rich.console import Console
        from rich.live import Live

        self._items_total = items_total
        if items_total > 1:
            self.interval_s = BATCH_FRAME_INTERVAL_S
        self._live = Live(console=Console(file=sys.stderr), auto_refresh=False, redirect_stdout=False)
        self._live.start()

    def on_event(self, event: StepEvent) -> None:
        key = (event.run_id, event.item, event.step_index)
        row = self._rows.get(key)
        if row is None:
            label = step_label(event, batch=self._items_total > 1)
            row = self._rows[key] = _Row(event.parent, event.depth, label)
            self._forget_old()
        row.attempt = max(row.attempt, event.attempt)
        match event.kind:
            case "started":
                row.state, row.note, row.until_ms = "running", "", None
                row.started_at_ms = row.started_at_ms or event.at_ms
            case "progress":
                row.note = plain(event.message, self._redact)
            case "completed" | "failed" | "retrying" | "sleeping" | "waiting":
                row.state, row.until_ms = event.kind, event.until_ms
                row.note = failure_text(event, self._redact) if event.failure is not None else ""
                if event.kind == "waiting":
                    row.note = f"for {signal_text(event)}"
                if event.kind in ("completed", "failed"):
                    self._counts[event.kind] += 1
                    row.ended_at_ms = event.at_ms
                    row.started_at_ms = row.started_at_ms or event.at_ms - (event.duration_ms or 0)

    def tick(self, items_ended: int) -> None:
        self._items_ended = items_ended
        if self._live is not None:
            self._live.update(self._frame(self._live.console.height), refresh=True)

    def end(self) -> None:
        live, self._live = self._live, None
        if live is not None:
            if self._items_total > 1:  # what is left on the screen: what needs somebody's eye
                self._rows = {key: row for key, row in self._rows.items() if row.state != "completed"}
            live.update(self._frame(live.console.height))
            live.stop()

    def _forget_old(self) -> None:
        if len(self._rows) > ROWS_KEPT_MAX:
            ended = next((key for key, row in self._rows.items() if row.ended_at_ms is not None), None)
            if ended is not None:
                del self._rows[ended]

    def _frame(self, height: int) -> Any:
        from rich.console import Group
        from rich.text import Text

        rows = self._visible(max(3, min(ROWS_MAX, height - 4)))
        width = max((len(_indented(row)) for row in rows), default=0)
        now_ms = time.time_ns() // 1_000_000
        lines = [Text(no_wrap=True, overflow="ellipsis").append_tokens(_cells(row, width, now_ms)) for row in rows]
        if self._items_total > 1:
            lines.append(Text(_bar(self._items_ended / self._items_total), "cyan"))
        lines.append(Text(self._summary(len(rows)), "dim", no_wrap=True, overflow="ellipsis"))
        return Group(*lines)

    def _visible(self, room: int) -> list[_Row]:
        """Choose what fits: what is under way, then what failed, then what ended last; sub-runs below their step."""
        rows = self._in_order()
        if len(rows) <= room:
            return rows
        by_need = sorted(range(len(rows)), key=lambda place: (_NEED[rows[place].state], -place))
        return [rows[place] for place in sorted(by_need[:room])]

    def _in_order(self) -> list[_Row]:
        """Return the rows in the order of their start, those of a sub-run below the step that has opened it."""
        below: dict[_Key | None, list[_Key]] = {}
        for key, row in self._rows.items():
            below.setdefault(row.parent if row.parent in self._rows else None, []).append(key)
        order: list[_Row] = []
        todo = below.get(None, [])[::-1]
        while todo:
            key = todo.pop()
            order.append(self._rows[key])
            todo += below.get(key, [])[::-1]
        return order

    def _summary(self, shown: int) -> str:
        counts = Counter(row.state for row in self._rows.values())
        parts = []
        if self._items_total > 1:
            parts.append(f"{self._items_ended:,}/{self._items_total:,} items")
        parts.append(f"{self._counts['completed']:,} steps done")
        running = counts["running"] + counts["retrying"] + counts["sleeping"] + counts["waiting"]
        parts += [f"{running:,} under way"] if running else []
        parts += [f"{self._counts['failed']:,} failed"] if self._counts["failed"] else []
        parts += [f"{len(self._rows) - shown:,} not shown"] if len(self._rows) > shown else []
        parts.append(duration(int((time.monotonic() - self._begun_at) * 1000)))
        return " · ".join(parts)


def _indented(row: _Row) -> str:
    return "  " * row.depth + row.label


def _cells(row: _Row, width: int, now_ms: int) -> list[tuple[str, str]]:
    """Return a row's texts with their styles."""
    word, style = _STATES.get(row.state, ("run", "blue"))
    elapsed = "" if row.started_at_ms is None else duration((row.ended_at_ms or now_ms) - row.started_at_ms)
    attempt = f"attempt {row.attempt}" if row.attempt > 1 else ""
    note = row.note
    if row.until_ms is not None and row.ended_at_ms is None:
        what = "again in" if row.state == "retrying" else "for another"
        note = f"{what} {duration(max(0, row.until_ms - now_ms))}{'  ' if note else ''}{note}"
    return [
        (f"{word:<6}  ", style),
        (f"{_indented(row):<{width}}  {elapsed:>8}  ", ""),
        (f"{attempt}  {note}".strip(), "dim"),
    ]


def _bar(share: float) -> str:
    full = int(BAR_CHARS * min(1.0, share))
    return "━" * full + "╌" * (BAR_CHARS - full)


_NEED = {"running": 0, "retrying": 0, "sleeping": 0, "waiting": 0, "failed": 1, "completed": 2}


def step_label(event: StepEvent, *, batch: bool) -> str:
    """Name a step; with its item where there may be several."""
    return f"{event.step_id}[{event.item}]" if batch or event.depth else event.step_id


def signal_text(event: StepEvent) -> str:
    """Say which signal is waited for, and how long."""
    until = "" if event.until_ms is None else f" until {clock(event.until_ms)}"
    return f"the signal {plain(event.message, str)}{until}"


def failure_text(event: StepEvent, redact: Callable[[str], str]) -> str:
    """Return an event's failure in one line."""
    failure = event.failure
    if failure is None:
        return ""
    return f"{failure.code.name}: {plain(explained(failure.code.name, failure.message, failure.data), redact)}"


def explained(code: str, message: str, data: bytes | Mapping[str, Any] | None) -> str:
    """Return a failure's message, with the reason behind it where the message alone has no way out.

    Only the engine's own routing failures carry such a reason; notes of components may quote payloads.
    """
    if code != Code.ORCHESTRATOR_ERROR.name or not data:
        return message
    facts = decode(data) if isinstance(data, bytes) else data
    notes = facts["stack"][0]["attachments"] if "reason" in facts and facts.get("stack") else []
    return f"{message}: {notes[0]}" if notes else message


def plain(text: str, redact: Callable[[str], str]) -> str:
    """Return a text of a component as it can be shown: redacted, in one line, not too long."""
    shown = _CONTROL.sub(" ", redact(text)).strip()
    return shown if len(shown) <= TEXT_CHARS_MAX else f"{shown[:TEXT_CHARS_MAX]}…"


def duration(milliseconds: int) -> str:
    """Write a duration for people: `12 ms`, `1.2 s`, `3 min 2 s`, `1 h 5 min`."""
    if milliseconds < 1_000:
        return f"{milliseconds} ms"
    seconds = milliseconds / 1_000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    return f"{minutes} min {int(seconds) % 60} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def clock(at_ms: int) -> str:
    """Write an instant in local time, with the date unless it is today's."""
    at = time.localtime(at_ms / 1_000)
    today = time.localtime()
    same_day = at[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", at)
