"""The end of a run, a single run or a batch: results for programs, a summary for people, the exit code.

- The results go to stdout (or `--output`): one FlowResult for a single run, one line per item for a batch, in the
  order of the inputs. For a failed item, the FlowResult is the error.
- The summary goes to stderr: status, duration, and for a batch the number of completed items. For a failed single run,
  the error follows.
- The exit code is 1 unless the run and all its items succeeded.

Not here: the format of the results (`stepflow.cli.output`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from stepflow.cli import console
from stepflow.cli.display.texts import explained, plain, run_took
from stepflow.cli.display.trees import run_tree
from stepflow.errors import FailedPrecondition
from stepflow.standard_streams import StdoutUnwritable

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from stepflow.cli.display.trees import AnyRun
    from stepflow.flow import Redactor


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended, with a FlowResult tree per item. Results of a batch are read while they are iterated."""

    run: AnyRun
    results: Iterable[dict[str, Any]]
    results_command: str
    """The command that prints the results from the store."""


def finish(
    ended: Ended, redactor: Redactor, output: Path | None, *, batch: bool, json: bool = False, results: bool = True
) -> None:
    """Print the summary and write the results; with `json`, the run and its results as one object.

    Without `results`, stdout stays empty.

    Raises:
        typer.Exit: the run or one of its items did not succeed (1).
        FailedPrecondition: STDOUT_UNWRITABLE, FILE_UNWRITABLE; the text has the command that prints the results again.
    """
    from stepflow.cli.output import write_results
    from stepflow.cli.tables import print_json_with_list

    print_summary(ended, redactor)
    try:
        if json:
            print_json_with_list(run_tree(ended.run), "results", ended.results)
        if output is not None or (results and not json):
            write_results(ended.results, output, batch=batch)
    except StdoutUnwritable as error:
        text = _unwritable("stdout", error, ended.results_command)
        raise FailedPrecondition("STDOUT_UNWRITABLE", text) from None
    except OSError as error:
        text = _unwritable(str(output), error, ended.results_command)
        raise FailedPrecondition("FILE_UNWRITABLE", text) from None

    if ended.run.status != "completed" or ended.run.items_completed != ended.run.items_total:
        raise typer.Exit(console.EXIT_FAILED)


def _unwritable(where: str, error: OSError, command: str) -> str:
    return f"cannot write the results to {where}: {error.strerror}; they are stored, and this prints them: {command}"


def print_summary(ended: Ended, redactor: Redactor) -> None:
    """Print status, duration and item counts; for a failed single run, also the error."""
    run = ended.run
    style = "green" if run.status == "completed" else "red"
    single = run.items_total == 1
    counts = f": {run.items_completed:,} of {run.items_total:,} items completed" if run.items_total > 1 else ""
    console.say(f"{console.styled(run.status, style)} after {run_took(run)}{counts}")

    failed = [result["error"] for result in ended.results if result["outcome"] == "failed"] if single else []
    for error in failed:
        text = explained(error["code"], error["message"], error.get("data"))
        console.say(f"{error['code']}: {plain(text, redactor.text)}")
