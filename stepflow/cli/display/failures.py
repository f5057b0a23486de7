"""Failures for people: the reason, the step, the line of the flow file; and with `--error` the trace.

- `failed_line`: all but the trace, in one line.
- `FailedItems`: the first failed items of a batch, noted while its results are written.
- `print_errors`: every failed step and item of a run, with traces.

Every text of a component is redacted.
"""

from __future__ import annotations

from operator import itemgetter
from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.cli.display.texts import explained, plain
from stepflow.codec import decode
from stepflow.errors import Code, Failure
from stepflow.failure_data import failed_step
from stepflow.printable import printable
from stepflow.telemetry import without_hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from stepflow.cli.display.flow_lines import FlowLines
    from stepflow.cli.output import FlowResult
    from stepflow.failure_data import FailedStep
    from stepflow.run.views import StepView

FAILED_ITEMS_MAX = 10
"""Failed items named at the end of a batch."""


def failed_line(error: Mapping[str, Any], redact: Callable[[str], str], lines: FlowLines | None = None) -> str:
    """Return an error of a FlowResult in one line: code, message, and the step or expression that failed."""
    data = error.get("data")
    message = plain(explained(error["code"], error["message"], data), redact)
    failed = failed_step(data) if isinstance(data, dict) else None
    where = _where(failed, lines) if failed is not None else ""
    return f"{error['code']}: {message}{where}"


def _where(failed: FailedStep, lines: FlowLines | None, *, step_told: bool = False) -> str:
    """Return what a failure tells of its step and expression, after a semicolon."""
    parts = []
    if failed.expression:
        found = lines.locate(failed) if lines is not None else ""
        parts.append(f"at {found} ({failed.expression})" if found else f"at {failed.expression}")
    if failed.component:
        parts += [] if step_told else [f"step {failed.step}"]
        parts.append(f"component {failed.component}")
    if failed.attempt:
        parts.append(f"attempt {failed.attempt}")
    if failed.host:
        parts.append(f"host {failed.host}")
    return "; " + ", ".join(printable(part, one_line=True) for part in parts) if parts else ""


def has_trace(error: Mapping[str, Any]) -> bool:
    """Return True if an error has more to show than its line."""
    data = error.get("data")
    return isinstance(data, dict) and any(data.get(name) for name in ("frames", "traceback", "stderr"))


class FailedItems:
    """Notes the failed items of a batch while its results pass by. Cancelled items are none."""

    def __init__(self) -> None:
        self.count = 0
        self._first: list[tuple[int, dict[str, Any]]] = []

    def noting(self, results: Iterable[FlowResult]) -> Iterator[FlowResult]:
        """Yield the results of all items, in order."""
        for index, result in enumerate(results):
            self.note(index, result)
            yield result

    def note(self, item: int, result: FlowResult) -> None:
        """Note the result of an item, if it has failed."""
        error = result.get("error") if isinstance(result, dict) else None
        if error is not None and error["code"] != Code.CANCELLED.name:
            self.count += 1
            if len(self._first) < FAILED_ITEMS_MAX:
                self._first.append((item, error))

    def say(self, redact: Callable[[str], str], command: str, lines: FlowLines | None) -> None:
        """Print the first failed items with their reasons, and how to see the others."""
        for index, error in sorted(self._first, key=itemgetter(0)):
            console.say(f"item {index}: {failed_line(error, redact, lines)}")
        more = self.count - len(self._first)
        if more:
            console.say(f"and {more:,} more failed items; this shows them all: {command}")


def print_errors(
    steps: Iterable[StepView], items: Iterable[tuple[int, Failure]], redact: Callable[[str], str], lines: FlowLines
) -> None:
    """Print every failed step with its trace, then the failures of items that no step explains."""
    told: set[tuple[str, str]] = set()
    for step in steps:
        if step.status == "failed" and isinstance(step.outcome, Failure):
            told.add((step.outcome.code.name, step.outcome.message))
            _print_error(f"step {step.path or step.step_id}", step.outcome, redact, lines)

    for item, failure in items:
        if (failure.code.name, failure.message) not in told:
            _print_error(f"item {item}", failure, redact, lines)


def _print_error(what: str, failure: Failure, redact: Callable[[str], str], lines: FlowLines) -> None:
    data = _tree(failure.data)
    failed = failed_step(data)
    console.show(f"{what}: {failure.code.name}: {_text(explained(failure.code.name, failure.message, data), redact)}")
    if failed is not None and (where := _where(failed, lines, step_told=True)):
        console.show(f"  {where.removeprefix('; ')}")

    if data.get("frames"):
        _print_frames(data["frames"], redact)
        causes = data.get("causes")
        for cause in causes if isinstance(causes, list) else ():
            if isinstance(cause, dict):
                console.show(f"  caused by {_text(str(cause.get('exception')), redact)}")
                _print_frames(cause.get("frames"), redact)
    elif data.get("traceback"):
        _print_block("traceback of the server", str(data["traceback"]), redact)
    if data.get("stderr"):
        _print_block("end of the server's stderr", str(data["stderr"]), redact)


def _print_frames(frames: Any, redact: Callable[[str], str]) -> None:
    """Print frames as our SDK sends them: those of the user's code, then those of libraries."""
    own = True
    for frame in frames if isinstance(frames, list) else ():
        if not isinstance(frame, dict):
            continue
        if own and frame.get("library"):
            own = False
            console.show("  in libraries:")
        where = f"{frame.get('file')}:{frame.get('line')} in {frame.get('function')}"
        console.show(f"  {_text(where, redact)}")
        if frame.get("code"):
            console.show(f"    {_text(str(frame['code']), redact)}")


def _print_block(title: str, text: str, redact: Callable[[str], str]) -> None:
    console.show(f"  {title}:")
    for line in text.splitlines():
        console.show(f"    {_text(line, redact)}")


def _text(text: str, redact: Callable[[str], str]) -> str:
    return redact(without_hidden(text))


def _tree(data: bytes) -> dict[str, Any]:
    tree = decode(data) if data else {}
    return tree if isinstance(tree, dict) else {}


__all__ = ["FailedItems", "failed_line", "has_trace", "print_errors"]
