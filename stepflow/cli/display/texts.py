"""Texts for people: durations, instants, step labels, failures, texts of components.

No component's input or output is shown. Texts of failures and progress come from components: `plain` redacts, cuts
and shows control characters as escapes.
"""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING, Any

from stepflow.codec import decode
from stepflow.errors import Code
from stepflow.failure_data import failed_step
from stepflow.printable import printable
from stepflow.telemetry import without_hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepflow.cli.display.trees import AnyRun
    from stepflow.log_lines import LogLine, StepLog
    from stepflow.run.views import StepEvent

TEXT_CHARS_MAX = 300
"""A longer text of a component is cut."""

_SPACE = re.compile(r"\s+")


def step_label(event: StepEvent, *, batch: bool) -> str:
    """Return a step's id, with the item number if the step may run for several items."""
    return f"{event.step_id}[{event.item}]" if batch or event.depth else event.step_id


def signal_text(event: StepEvent) -> str:
    """Return the signal and the deadline of a waiting step."""
    until = "" if event.until_ms is None else f" until {clock(event.until_ms)}"
    return f"the signal {plain(event.message, str)}{until}"


def failure_text(event: StepEvent, redact: Callable[[str], str]) -> str:
    """Return an event's failure in one line; empty without a failure."""
    failure = event.failure
    if failure is None:
        return ""
    text = f"{failure.code.name}: {plain(explained(failure.code.name, failure.message, failure.data), redact)}"
    failed = failed_step(failure.data)
    return f"{text}; at {plain(failed.expression, redact)}" if failed is not None and failed.expression else text


def explained(code: str, message: str, data: bytes | Mapping[str, Any] | None) -> str:
    """Return a failure's message, followed by the reason of the engine's routing, if any.

    Only routing failures of the engine carry such a reason; notes of components may quote payloads.
    """
    if code != Code.ORCHESTRATOR_ERROR.name or not data:
        return message
    facts = decode(data) if isinstance(data, bytes) else data
    notes = facts["stack"][0]["attachments"] if "reason" in facts and facts.get("stack") else []
    return f"{message}: {notes[0]}" if notes else message


def plain(text: str, redact: Callable[[str], str]) -> str:
    """Return a text of a component fit for a terminal: redacted, on one line, cut to `TEXT_CHARS_MAX`."""
    shown = printable(_SPACE.sub(" ", redact(without_hidden(text))).strip(), one_line=True)
    return shown if len(shown) <= TEXT_CHARS_MAX else f"{shown[:TEXT_CHARS_MAX]}…"


def log_label(log: StepLog, *, batch: bool) -> str:
    """Return the label of log lines: that of their step, or the name of the plugin.

    A step of the run itself has its path, `0/ask` in a batch. The lines of a sub-run do not have theirs: `ask[0]`.
    """
    if not log.run_id or not (batch or log.depth):
        return log.step_id
    return f"{log.step_id}[{log.item}]" if log.depth else f"{log.item}/{log.step_id}"


def log_texts(log: StepLog, *, batch: bool, redact: Callable[[str], str]) -> list[str]:
    """Return log lines for a terminal, each with the label of its step: `ask | loading the model`."""
    label = log_label(log, batch=batch)
    texts = [f"{label} | … {log.dropped:,} lines left out"] if log.dropped else []
    return texts + [f"{label} | {log_line_text(line, redact)}" for line in log.lines]


def log_line_text(line: LogLine, redact: Callable[[str], str]) -> str:
    """Return a log line on one line, with its level if it is a warning or an error."""
    level = f"{line.level.upper()} " if line.level in ("warning", "error") else ""
    return f"{level}{printable(redact(without_hidden(line.text)), one_line=True)}"


def elapsed_ms(from_ms: int, to_ms: int) -> int:
    """Return the time between two instants; 0 if clocks that differ put them in the wrong order."""
    return max(0, to_ms - from_ms)


def run_took(run: AnyRun) -> str:
    """Return how long an ended run took, without the time in which no process drove it."""
    return duration(elapsed_ms(run.created_at_ms + run.paused_ms, run.completed_at_ms or 0))


def duration(milliseconds: int) -> str:
    """Format a duration: `12 ms`, `1.2 s`, `3 min 2 s`, `1 h 5 min`, `2 d 3 h`."""
    if milliseconds < 1_000:
        return f"{milliseconds} ms"
    seconds = milliseconds / 1_000
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes = int(seconds) // 60
    if minutes < 60:
        return f"{minutes} min {int(seconds) % 60} s"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 24 else f"{hours // 24} d {hours % 24} h"


def coarse_duration(milliseconds: int) -> str:
    """Format an estimate: `5 s`, `3 min`, `1 h 20 min`, `2 d`."""
    minutes = round(milliseconds / 60_000)
    if minutes < 2:
        return f"{max(1, round(milliseconds / 1_000))} s"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours >= 48:
        return f"{round(hours / 24)} d"
    return f"{hours} h {minutes // 10 * 10} min" if hours < 10 and minutes >= 10 else f"{hours} h"


def progress_text(event: StepEvent, redact: Callable[[str], str]) -> str:
    """Return a progress report in one line: `3/10 pages`, `40% uploading`, or the message alone."""
    done, total = event.done, event.total
    if total == 1 and 0 <= done <= 1:
        share = f"{done:.0%}"  # a share is all that pull workers and some MCP servers report
    elif total > 0:
        share = f"{done:,.15g}/{total:,.15g}"
    else:
        share = f"{done:,.15g}" if done else ""
    return f"{share} {plain(event.message, redact)}".strip()


def clock(at_ms: int) -> str:
    """Format an instant in local time, with the date unless it is today's."""
    at = time.localtime(at_ms / 1_000)
    today = time.localtime()
    same_day = at[:3] == today[:3]
    return time.strftime("%H:%M:%S" if same_day else "%Y-%m-%d %H:%M:%S", at)
