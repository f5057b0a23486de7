"""The view for a terminal: a table of steps, redrawn several times a second, and a progress bar for a batch.

`LiveView` collects the state of the steps; `stepflow.cli.display.step_rows` chooses and formats the rows. Rich is
imported when the view begins.
"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from stepflow.cli.display.step_rows import StepRow, format_row, indented, visible_rows
from stepflow.cli.display.texts import (
    coarse_duration,
    duration,
    failure_text,
    log_texts,
    progress_text,
    signal_text,
    step_label,
)
from stepflow.clock import SteadyClock
from stepflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from stepflow.cli.display.step_rows import StepKey
    from stepflow.log_lines import StepLog
    from stepflow.run.views import StepEvent

ROWS_MAX = 20
"""Rows of the table; fewer on a low terminal."""

ROWS_KEPT_MAX = 1_000
"""Steps remembered for the table. The oldest step that has ended is dropped first."""

LOG_ITEMS_MAX = 100
"""The logs of a larger batch are not shown; `stepflow runs logs` has them."""

BAR_CHARS = 40

LABEL_CHARS_MIN = 16
"""Width that the names of steps have at least; a longer name takes at most two fifths of the terminal."""

ECHO_CHARS = 3
"""Room at the end of the last line for the `^C` that a terminal echoes: on a line of its own it would move the rows."""

PACE_MS = 2_000
"""The time left is estimated after this time."""

FRAME_INTERVAL_S = 0.125
BATCH_FRAME_INTERVAL_S = 0.5
"""Longer than `FRAME_INTERVAL_S`, because counting the items of a batch reads the store."""


class LiveView:
    """Draws the table and the progress bar. Texts of components are redacted."""

    def __init__(self, redact: Callable[[str], str]) -> None:
        self.interval_s: float | None = FRAME_INTERVAL_S
        self._redact = redact
        self._rows: dict[StepKey, StepRow] = {}
        self._counts: Counter[str] = Counter()
        self._items_total = 1
        self._items_ended = 0
        self._items_before: int | None = None
        """Items that had ended when this command began."""
        self._clock = SteadyClock()
        self._begun_at_ms = self._clock.now_ms()
        self._live: Any = None

    def begin(self, items_total: int) -> None:
        self._items_total = items_total
        if items_total > 1:
            self.interval_s = BATCH_FRAME_INTERVAL_S
        self._live = _start_live()

    def on_event(self, event: StepEvent) -> None:
        row = self._row_of(event)
        row.attempt = max(row.attempt, event.attempt)

        match event.kind:
            case "started":
                row.state, row.note, row.until_ms = "running", "", None
                row.started_at_ms = row.started_at_ms or event.at_ms
            case "progress":
                row.note = progress_text(event, self._redact)
            case "waiting":
                row.state, row.until_ms, row.note = event.kind, event.until_ms, f"for {signal_text(event)}"
            case "retrying" | "sleeping":
                row.state, row.until_ms, row.note = event.kind, event.until_ms, failure_text(event, self._redact)
            case "skipped":
                row.state, row.until_ms = event.kind, None
                row.note = f"({printable(event.message, one_line=True)} failed)"
                row.started_at_ms = row.ended_at_ms = None
                self._counts[event.kind] += 1
            case "completed" | "failed":
                row.state, row.until_ms, row.note = event.kind, event.until_ms, failure_text(event, self._redact)
                row.ended_at_ms = event.at_ms
                row.started_at_ms = row.started_at_ms or event.at_ms - (event.duration_ms or 0)
                self._counts[event.kind] += 1

    def on_log(self, log: StepLog) -> None:
        """Print log lines above the table."""
        if self._live is None or self._items_total > LOG_ITEMS_MAX:
            return
        from rich.text import Text

        for text in log_texts(log, batch=self._items_total > 1, redact=self._redact):
            self._live.console.print(Text(text, "dim"), soft_wrap=True)

    def tick(self, items_ended: int) -> None:
        self._items_ended = items_ended
        if self._items_before is None:
            self._items_before = items_ended
        self._draw()

    def _draw(self) -> None:
        if self._live is not None:
            self._live.update(self._frame(self._live.console.height, self._live.console.width), refresh=True)

    def print_above(self, text: str) -> bool:
        if self._live is None:
            return False
        from rich.text import Text

        # One write for the text and the new frame: no flicker.
        self._live.console.print(Text(text), soft_wrap=True, end="")
        return True

    @contextmanager
    def hidden(self) -> Iterator[None]:
        live, self._live = self._live, None
        if live is None:
            yield
            return
        live.transient = True
        live.stop()
        try:
            yield
        finally:
            # A new one: the former would go up by the height of its last frame, and erase what was written.
            self._live = _start_live()
            self._draw()

    def end(self) -> None:
        live, self._live = self._live, None
        if live is None:
            return
        if self._items_total > 1:  # the last frame stays on the screen: keep the rows that need attention
            self._rows = {key: row for key, row in self._rows.items() if row.state != "completed"}
        live.update(self._frame(live.console.height, live.console.width))
        live.stop()

    def _row_of(self, event: StepEvent) -> StepRow:
        key = (event.run_id, event.item, event.step_index)
        row = self._rows.get(key)
        if row is None:
            label = step_label(event, batch=self._items_total > 1)
            row = self._rows[key] = StepRow(event.parent, event.depth, label)
            self._drop_oldest_ended()
        return row

    def _drop_oldest_ended(self) -> None:
        if len(self._rows) > ROWS_KEPT_MAX:
            ended = next((key for key, row in self._rows.items() if row.ended_at_ms is not None), None)
            if ended is not None:
                del self._rows[ended]

    def _frame(self, height: int, columns: int = 80) -> Any:
        from rich.console import Group
        from rich.text import Text

        rows = visible_rows(self._rows, max(3, min(ROWS_MAX, height - 4)))
        width = min(max((len(indented(row)) for row in rows), default=0), max(LABEL_CHARS_MIN, columns * 2 // 5))
        now_ms = self._clock.now_ms()

        lines = [Text(no_wrap=True, overflow="ellipsis").append_tokens(format_row(row, width, now_ms)) for row in rows]
        if self._items_total > 1:
            lines.append(Text(_bar(self._items_ended / self._items_total), "cyan").append(self._time_left(), "dim"))
        summary = Text(self._summary(len(rows)), "dim", no_wrap=True)
        summary.truncate(max(1, columns - ECHO_CHARS), overflow="ellipsis")
        return Group(*lines, summary)

    @property
    def _elapsed_ms(self) -> int:
        return self._clock.now_ms() - self._begun_at_ms

    def _time_left(self) -> str:
        ended = self._items_ended - (self._items_before or 0)
        left_ms = time_left_ms(self._elapsed_ms, ended, self._items_total - self._items_ended)
        return "" if left_ms is None else f"  about {coarse_duration(left_ms)} left"

    def _summary(self, shown: int) -> str:
        """Return the last line: items, steps and elapsed time, with `shown` rows above the line."""
        counts = Counter(row.state for row in self._rows.values())
        active = counts["running"] + counts["retrying"] + counts["sleeping"] + counts["waiting"]
        failed, skipped, hidden = self._counts["failed"], self._counts["skipped"], len(self._rows) - shown

        parts = [f"{self._items_ended:,}/{self._items_total:,} items"] if self._items_total > 1 else []
        parts.append(f"{self._counts['completed']:,} steps done")
        parts += [f"{active:,} under way"] if active else []
        parts += [f"{failed:,} failed"] if failed else []
        parts += [f"{skipped:,} skipped"] if skipped else []
        parts += [f"{hidden:,} not shown"] if hidden > 0 else []
        parts.append(duration(self._elapsed_ms))
        return " · ".join(parts)


def _start_live() -> Any:
    from rich.console import Console
    from rich.live import Live

    live = Live(console=Console(file=sys.stderr), auto_refresh=False, redirect_stdout=False)
    live.start()
    return live


def time_left_ms(elapsed_ms: int, ended: int, left: int) -> int | None:
    """Return how long the items that are left will take at the pace so far; None if no pace is known."""
    if left <= 0 or ended <= 0 or elapsed_ms < PACE_MS:
        return None
    return elapsed_ms * left // ended


def _bar(share: float) -> str:
    full = int(BAR_CHARS * min(1.0, share))
    return "━" * full + "╌" * (BAR_CHARS - full)
