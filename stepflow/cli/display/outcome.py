"""How a run has ended, whoever drove it: its results for programs, a line or two for people, the exit code."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, Protocol

import typer

from stepflow.cli import console
from stepflow.cli.display.live import duration, explained, plain
from stepflow.codec import decode
from stepflow.errors import Code, Failure
from stepflow.run.entries import flow_result

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.codec import Json
    from stepflow.flow import Redactor


class AnyRun(Protocol):
    """What is read of a run: that of the local store, and that of a client."""

    @property
    def run_id(self) -> str: ...
    @property
    def flow_id(self) -> str: ...
    @property
    def flow_name(self) -> str: ...
    @property
    def status(self) -> str: ...
    @property
    def items_total(self) -> int: ...
    @property
    def items_completed(self) -> int: ...
    @property
    def items_failed(self) -> int: ...
    @property
    def items_cancelled(self) -> int: ...
    @property
    def created_at_ms(self) -> int: ...
    @property
    def completed_at_ms(self) -> int | None: ...
    @property
    def labels(self) -> dict[str, Any]: ...


@dataclass(frozen=True, slots=True)
class Ended:
    """A run that has ended, with a FlowResult tree per item."""

    run: AnyRun
    results: list[dict[str, Any]]


def result_tree(outcome: Json | Failure | None, status: str) -> dict[str, Any]:
    """Return an item's FlowResult; that of an item that was never run (None) says why, from the run's status."""
    if outcome is None:
        code = Code.CANCELLED if status == "cancelled" else Code.ORCHESTRATOR_ERROR
        outcome = Failure(code, f"the run ended as {status} before this item did")
    tree: dict[str, Any] = decode(flow_result(outcome))
    return tree


def run_tree(run: AnyRun, status: str | None = None) -> dict[str, Any]:
    """Return a run as programs get it. `status` instead of its own, as people see it."""
    return {
        "run_id": run.run_id,
        "status": status or run.status,
        "flow_id": run.flow_id,
        "flow_name": run.flow_name or None,
        "flow": run.labels.get("flow"),
        "config": run.labels.get("config"),
        "items_total": run.items_total,
        "items_completed": run.items_completed,
        "items_failed": run.items_failed,
        "items_cancelled": run.items_cancelled,
        "created_at_ms": run.created_at_ms,
        "completed_at_ms": run.completed_at_ms,
    }


def run_name(run: AnyRun) -> str:
    """Return what people call the flow: its name, else its file."""
    return run.flow_name or PurePath(str(run.labels.get("flow") or "")).name or run.flow_id[:12]


def finish(
    ended: Ended, redactor: Redactor, output: Path | None, *, batch: bool, json: bool = False, results: bool = True
) -> None:
    """Tell people how it went, and write the results; with `json`, the run with them, as one object.

    Without `results`, stdout is left alone.

    Raises: typer.Exit (1), when the run or one of its items did not succeed.
    """
    from stepflow.cli.tables import print_json
    from stepflow.cli.values import write_results

    tell_end(ended, redactor)
    if json:
        print_json(run_tree(ended.run) | {"results": ended.results})
    if output is not None or (results and not json):
        write_results(ended.results, output, batch=batch)
    if any(result["outcome"] != "success" for result in ended.results) or ended.run.status != "completed":
        raise typer.Exit(console.EXIT_FAILED)


def tell_end(ended: Ended, redactor: Redactor) -> None:
    """Say how it went, in a line or two."""
    run = ended.run
    took = duration((run.completed_at_ms or run.created_at_ms) - run.created_at_ms)
    style = "green" if run.status == "completed" else "red"
    counts = f": {run.items_completed:,} of {run.items_total:,} items completed" if run.items_total > 1 else ""
    console.say(f"{console.styled(run.status, style)} after {took}{counts}")
    failed = [result["error"] for result in ended.results if result["outcome"] == "failed"]
    if failed and run.items_total == 1:
        error = failed[0]
        told = explained(error["code"], error["message"], error.get("data"))
        console.say(f"{error['code']}: {plain(told, redactor.text)}")
