"""The view for pipes: a line for each step that ends, is retried, sleeps or waits for a signal, and its log lines.

A step is named by its path, which tells steps of one id in different sub-runs apart.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from stepflow.cli import console
from stepflow.cli.display.texts import clock, duration, elapsed_ms, failure_text, log_texts, signal_text, step_label
from stepflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.log_lines import StepLog
    from stepflow.run.views import StepEvent

LINE_ITEMS_MAX = 100
"""A larger batch gets lines for failures and retries only."""


class LineView:
    """Prints a line per event. Texts of failures and logs are redacted."""

    interval_s: float | None = None

    def __init__(self, redact: Callable[[str], str]) -> None:
        self._redact = redact
        self._batch = False
        self._all_events = True

    def begin(self, items_total: int) -> None:
        self._batch = items_total > 1
        self._all_events = items_total <= LINE_ITEMS_MAX

    def on_event(self, event: StepEvent) -> None:
        if self._all_events or event.kind in ("failed", "retrying"):
            line = self._line(event)
            if line is not None:
                console.say(line if event.path else f"{'  ' * event.depth}{line}")

    def on_log(self, log: StepLog) -> None:
        if self._all_events:
            for text in log_texts(log, batch=self._batch, redact=self._redact):
                console.say(console.styled("  " * log.depth + text, "dim"))

    def tick(self, items_ended: int) -> None: ...
    def end(self) -> None: ...
    def print_above(self, text: str) -> bool:  # noqa: ARG002  # the protocol of views
        return False

    def hidden(self) -> AbstractContextManager[None]:
        return nullcontext()

    def _line(self, event: StepEvent) -> str | None:
        """Return the line of an event, None for events without a line (`started`, `progress`)."""
        # Without its path, which an older server does not tell, a step is shown by its id.
        label = event.path or step_label(event, batch=self._batch)
        took = "" if event.duration_ms is None else f" in {duration(event.duration_ms)}"

        match event.kind:
            case "completed":
                return f"done    {label}{took}"
            case "failed":
                return f"failed  {label}{took}: {failure_text(event, self._redact)}"
            case "skipped":
                return f"skipped {label} ({printable(event.message, one_line=True)} failed)"
            case "retrying":
                wait = f"; again in {duration(elapsed_ms(event.at_ms, event.until_ms or event.at_ms))}"
                return f"retry   {label} (attempt {event.attempt}): {failure_text(event, self._redact)}{wait}"
            case "sleeping":
                return f"sleep   {label} until {clock(event.until_ms or event.at_ms)}"
            case "waiting":
                return f"wait    {label} for {signal_text(event)}"
        return None
