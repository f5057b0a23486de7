"""Runs and steps for people: the rows of listings, the details of a run, the table of steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING

from stepflow.cli import console
from stepflow.cli.display.failures import failed_line, print_errors
from stepflow.cli.display.flow_lines import FlowLines
from stepflow.cli.display.texts import clock, duration, plain, run_took
from stepflow.cli.display.trees import outcome_tree
from stepflow.cli.tables import print_members, print_table
from stepflow.codec import Json, LargeJson
from stepflow.errors import Failure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepflow.cli.display.trees import AnyRun
    from stepflow.flow import Redactor
    from stepflow.run.views import StepView


STEPFLOW_LABELS = ("flow", "batch", "config", "config_digest", "working_directory")
"""Labels by which commands find flow and config of a run again; every other one is the user's."""
REASON_CHARS = 60
"""Length of the reason in a listing of queued runs."""


@dataclass(frozen=True, slots=True)
class ShownItem:
    """An item of a run. `outcome` is None until the item has ended, and for a result that is not shown."""

    item: int
    status: str
    outcome: Json | Failure | LargeJson | None


def shown_item(item: int, status: str, outcome: Json | Failure | LargeJson | None, *, result: bool) -> ShownItem:
    """Return an item to show. Without `result`, it keeps no result in memory."""
    return ShownItem(item, status, outcome if result or not isinstance(outcome, Json) else None)


@dataclass(frozen=True, slots=True)
class ShownRun:
    """A run at the time of reading. `steps` is empty unless requested."""

    run: AnyRun
    status: str
    """The run's status, or `interrupted`."""
    items: list[ShownItem]
    steps: list[StepView]
    redactor: Redactor
    option: str = ""
    """Names the run's place in a suggested command, after a blank."""


def run_name(run: AnyRun) -> str:
    """Return the name of a run's flow, else the name of the file, else a prefix of the flow id."""
    return run.flow_name or PurePath(str(run.labels.get("flow") or "")).name or run.flow_id[:12]


def print_runs(found: Iterable[tuple[AnyRun, str]]) -> None:
    """Print a table of runs with their statuses."""
    listed = list(found)
    rows = [
        (
            run.run_id,
            _listed_status(run, status),
            run_name(run),
            _item_counts(run),
            clock(run.created_at_ms),
            _took(run),
        )
        for run, status in listed
    ]
    heads = ("RUN_ID", "STATUS", "FLOW", "ITEMS", "BEGAN", "TOOK")
    # The reason of a queued run can be cut, a status cannot.
    statuses = {"STATUS": max((len(status) for _, status in listed), default=0)}
    print_table(heads, rows, whole=heads[3:], least=("TOOK", "ITEMS"), chars_min=statuses)


def _listed_status(run: AnyRun, status: str) -> str:
    """Return a status, with the reason of a queued run as far as a column has room for it."""
    reason = run.queued_reason
    if not reason:
        return status
    return f"{status} ({reason if len(reason) <= REASON_CHARS else reason[: REASON_CHARS - 1] + '…'})"


def print_run(shown: ShownRun) -> None:
    """Print the details of a run, the failures of its items, and the size of large results."""
    run = shown.run
    lines = [
        ("run", run.run_id),
        ("status", f"{shown.status} ({run.queued_reason})" if run.queued_reason else shown.status),
        ("flow", " ".join(dict.fromkeys(filter(None, (run.flow_name, run.labels.get("flow")))))),
    ]
    if "config" in run.labels:  # a run of a mesh has none: the mesh has its own config
        lines.append(("config", run.labels["config"] or "(default)"))

    if own := {name: value for name, value in run.labels.items() if name not in STEPFLOW_LABELS}:
        lines.append(("labels", ", ".join(f"{name}={value}" for name, value in own.items())))
    lines.append(("began", clock(run.created_at_ms)))
    if run.completed_at_ms is not None:
        lines.append(("took", _took(run)))
    if run.paused_ms:
        lines.append(("paused", duration(run.paused_ms)))

    if run.items_total != 1:
        counts = f"{run.items_total:,}, {run.items_completed:,} completed, {run.items_failed:,} failed"
        cancelled = f", {run.items_cancelled:,} cancelled" if run.items_cancelled else ""
        lines.append(("items", counts + cancelled))
    flow_lines = FlowLines(run)
    for item in shown.items:
        if isinstance(item.outcome, Failure):
            error = outcome_tree(item.outcome)["error"]
            member = "error" if run.items_total == 1 else f"item {item.item}"
            lines.append((member, failed_line(error, shown.redactor.text, flow_lines)))
        elif isinstance(item.outcome, LargeJson):
            command = f"stepflow runs show {run.run_id} --result --item {item.item}{shown.option}"
            lines.append((f"item {item.item}", f"a result of {item.outcome.text_bytes:,} bytes: {command}"))
    print_members(lines)


def print_failures(shown: ShownRun, item: int | None) -> None:
    """Print the failures of a run, or of one item, with their traces."""
    run = shown.run
    steps = [step for step in shown.steps if item is None or _belongs_to(step, item, batch=run.items_total > 1)]
    items = [(each.item, each.outcome) for each in shown.items if item in (None, each.item)]
    failed = [(number, outcome) for number, outcome in items if isinstance(outcome, Failure)]
    if failed or any(step.status == "failed" for step in steps):
        print_errors(steps, failed, shown.redactor.text, FlowLines(run))
    else:
        console.say(f"nothing has failed in run {run.run_id}")


def _belongs_to(step: StepView, item: int, *, batch: bool) -> bool:
    """Return True if a step of any depth is of this item."""
    if not batch or not step.path:
        return step.item == item
    return step.path.startswith(f"{item}/")


def print_steps(steps: Iterable[StepView], redactor: Redactor) -> None:
    """Print a table of steps, the steps of sub-runs indented."""
    rows = []
    for step in steps:
        took = "" if step.duration_ms is None else duration(step.duration_ms)
        name = "  " * step.depth + step.step_id
        attempt = str(step.attempt or "")
        status = f"skipped ({step.skipped_for} failed)" if step.skipped_for else step.status
        failure = "" if step.skipped_for else _failure(step.outcome, redactor)
        rows.append((name, str(step.item), step.component, status, attempt, took, failure))
    heads = ("STEP", "ITEM", "COMPONENT", "STATUS", "ATTEMPT", "TOOK", "")
    print_table(heads, rows, whole=("ITEM", "TOOK"), least=("ATTEMPT", "COMPONENT", "ITEM"))


def _failure(outcome: Json | Failure | LargeJson | None, redactor: Redactor) -> str:
    return f"{outcome.code.name}: {plain(outcome.message, redactor.text)}" if isinstance(outcome, Failure) else ""


def _item_counts(run: AnyRun) -> str:
    done = run.items_completed + run.items_failed + run.items_cancelled
    apart = [f"{run.items_failed} failed"] if run.items_failed else []
    apart += [f"{run.items_cancelled} cancelled"] if run.items_cancelled else []
    return f"{done}/{run.items_total}" + (f" ({', '.join(apart)})" if apart else "")


def _took(run: AnyRun) -> str:
    return "" if run.completed_at_ms is None else run_took(run)
