"""The end of a run, a single run or a batch: results for programs, a summary for people, the exit code.

- The results go to stdout (or `--output`): one FlowResult for a single run, one line per item for a batch, in the
  order of the inputs. For a failed item, the FlowResult is the error.
- The summary goes to stderr: status, duration, and for a batch the number of completed items. For a failed single run,
  the error follows; for a batch, behind the results, the errors of the first failed items.
- The exit code is 1 unless the run and all its items succeeded.

Not here: the format of the results (`stepflow.cli.output`).
"""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from stepflow.cli import console
from stepflow.cli.display.failures import FailedItems, failed_line, has_trace
from stepflow.cli.display.flow_lines import FlowLines
from stepflow.cli.display.texts import run_took
from stepflow.cli.display.trees import large_tree, result_tree, run_tree
from stepflow.cli.output import LargeResult, YamlTooLarge, write_results
from stepflow.codec import LargeJson
from stepflow.errors import FailedPrecondition
from stepflow.standard_streams import StdoutUnwritable

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    from stepflow.cli.display.streamed import ResultStream
    from stepflow.cli.display.trees import AnyRun
    from stepflow.cli.output import FlowResult
    from stepflow.codec import Json
    from stepflow.errors import Failure
    from stepflow.flow import Redactor


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended, with a FlowResult per item. Those of a batch, and large ones, are read while iterated."""

    run: AnyRun
    results: Iterable[FlowResult]
    results_command: str
    """The command that prints the results from the store."""

    def results_since(self, first: int) -> Iterable[FlowResult]:
        """Return the results of the items from `first` on."""
        from itertools import islice

        from stepflow.cli.display.results import StoredResults

        if isinstance(self.results, StoredResults):
            return self.results.since(first)
        return islice(self.results, first, None)

    @property
    def errors_command(self) -> str:
        """The command that prints what has failed, with traces."""
        return self.results_command.replace(" --result", " --error", 1)


def read_already(outcomes: Sequence[Json | Failure | LargeJson | None], status: str) -> list[FlowResult]:
    """Return the FlowResults of outcomes in memory; none if one of them is large."""
    found = [outcome for outcome in outcomes if not isinstance(outcome, LargeJson)]
    return [result_tree(outcome, status) for outcome in found] if len(found) == len(outcomes) else []


def finish(
    ended: Ended,
    redactor: Redactor,
    output: Path | None,
    *,
    batch: bool,
    json: bool = False,
    results: bool = True,
    stream: ResultStream | None = None,
) -> None:
    """Print the summary and write the results; with `json`, the run and its results (large ones aside) as one object.

    Without `results`, stdout stays empty. `stream` has written some results while the run went on.

    Raises:
        typer.Exit: the run or one of its items did not succeed (1).
        FailedPrecondition: STDOUT_UNWRITABLE, FILE_UNWRITABLE, RESULT_TOO_LARGE (for YAML); the text has the command
            that prints the results again.
    """
    from stepflow.cli.tables import print_json_with_list

    print_summary(ended, redactor)
    failed = FailedItems() if ended.run.items_total > 1 else None
    found = ended.results if failed is None else failed.noting(ended.results)
    if json:
        try:
            print_json_with_list(run_tree(ended.run), "results", _without_large(found, ended.results_command))
        except StdoutUnwritable as error:
            raise _unwritable(None, error, ended.results_command) from None
        found = ended.results
    if stream is not None:
        failed = stream.failed
        with _explained(output, ended.results_command):
            stream.finish(ended.results_since)
    elif output is not None or (results and not json):
        write(found, output, ended.results_command, batch=batch)
    if failed is not None:
        failed.say(redactor.text, ended.errors_command, FlowLines(ended.run))

    if ended.run.status != "completed" or ended.run.items_completed != ended.run.items_total:
        raise typer.Exit(console.EXIT_FAILED)


def write(results: Iterable[FlowResult], output: Path | None, command: str, *, batch: bool) -> None:
    """Write results to stdout or to a file; `command` prints them again. Raises: FailedPrecondition, as `finish`."""
    with _explained(output, command):
        write_results(results, output, batch=batch)


@contextmanager
def _explained(output: Path | None, command: str) -> Iterator[None]:
    """Turn errors of writing results into errors that name the command that prints them again."""
    try:
        yield
    except OSError as error:
        raise _unwritable(output, error, command) from None
    except YamlTooLarge as error:
        text = f"{error}: name a file that ends in .json; the results are stored, and this prints them: {command}"
        raise FailedPrecondition("RESULT_TOO_LARGE", text) from None


def _without_large(results: Iterable[FlowResult], command: str) -> Iterator[dict[str, Any]]:
    """Yield the results as trees, large ones without their value; tell how many, and how to get them."""
    large = 0
    for result in results:
        if isinstance(result, LargeResult):
            large += 1
            yield large_tree(result.text_bytes)
        else:
            yield result
    if large:
        console.say(f"{large:,} result(s) of more than 16 MiB left out; this prints them: {command}")


def _unwritable(output: Path | None, error: OSError, command: str) -> FailedPrecondition:
    stored = f"{error.strerror}; they are stored, and this prints them: {command}"
    if isinstance(error, StdoutUnwritable):
        return FailedPrecondition("STDOUT_UNWRITABLE", f"cannot write the results to stdout: {stored}")
    return FailedPrecondition("FILE_UNWRITABLE", f"cannot write the results to {output}: {stored}")


def print_summary(ended: Ended, redactor: Redactor) -> None:
    """Print status, duration and item counts; for a failed single run, also the error."""
    run = ended.run
    style = "green" if run.status == "completed" else "red"
    single = run.items_total == 1
    counts = f": {run.items_completed:,} of {run.items_total:,} items completed" if run.items_total > 1 else ""

    trees = [result for result in ended.results if isinstance(result, dict)] if single else []
    errors = [tree["error"] for tree in trees if tree["outcome"] == "failed"]
    trace = f"; its trace: {ended.errors_command}" if any(map(has_trace, errors)) else ""
    console.say(f"{console.styled(run.status, style)} after {run_took(run)}{counts}{trace}")
    for error in errors:
        console.say(failed_line(error, redactor.text, FlowLines(run)))
