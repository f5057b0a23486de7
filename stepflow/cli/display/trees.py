"""Runs, results, steps and events as trees for programs (`--json` and results)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from stepflow.codec import LargeJson, decode
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from stepflow.client import ClientEvent
    from stepflow.codec import Json
    from stepflow.run.views import StepView


class AnyRun(Protocol):
    """The common fields of a local run and a client's run."""

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
    @property
    def queued_reason(self) -> str: ...
    @property
    def paused_ms(self) -> int: ...


def result_tree(outcome: Json | Failure | None, status: str) -> dict[str, Any]:
    """Return the FlowResult of an item. An item that never ran (None) fails with the run's status as the reason."""
    if outcome is None:
        code = Code.CANCELLED if status == "cancelled" else Code.ORCHESTRATOR_ERROR
        outcome = Failure(code, f"the run ended as {status} before this item did")
    return _flow_result(outcome)


def item_tree(item: int, status: str, outcome: Json | Failure | LargeJson | None) -> dict[str, Any]:
    """Return an item as a tree, without `result` until it has ended."""
    tree: dict[str, Any] = {"item": item, "status": status}
    return tree if outcome is None else tree | {"result": outcome_tree(outcome)}


def outcome_tree(outcome: Json | Failure | LargeJson) -> dict[str, Any]:
    """Return the FlowResult of an item or step that has ended."""
    return large_tree(outcome.text_bytes) if isinstance(outcome, LargeJson) else _flow_result(outcome)


def large_tree(text_bytes: int) -> dict[str, Any]:
    """Return the FlowResult of a result of more than 16 MiB, with its length in its place."""
    return {"outcome": "success", "result_bytes": text_bytes}


def run_tree(run: AnyRun, status: str | None = None) -> dict[str, Any]:
    """Return a run as a tree. `status` replaces the run's own: a local run may be `interrupted`."""
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
        "paused_ms": run.paused_ms,
    } | ({"queued_reason": run.queued_reason} if run.queued_reason else {})


def step_tree(step: StepView) -> dict[str, Any]:
    """Return a step as a tree; `result` is None until the step has ended."""
    return {
        "run_id": step.run_id,
        "item": step.item,
        "step_id": step.step_id,
        "component": step.component,
        "depth": step.depth,
        "status": step.status,
        "attempt": step.attempt,
        "retries": step.retries,
        "started_at_ms": step.started_at_ms,
        "completed_at_ms": step.completed_at_ms,
        "duration_ms": step.duration_ms,
        "path": step.path,
        "skipped_for": step.skipped_for or None,
        "result": None if step.outcome is None else outcome_tree(step.outcome),
    }


def event_tree(event: ClientEvent) -> dict[str, Any]:
    """Return an event as a tree, without unset members and without results."""
    tree: dict[str, Any] = {"kind": event.kind, "at_ms": event.at_ms, "run_id": event.run_id}
    if event.kind.startswith(("step_", "sub_run")):
        tree |= {"item": event.item, "step_id": event.step_id, "component": event.component, "depth": event.depth}
        tree |= {"attempt": event.attempt} if event.attempt else {}
    elif event.kind.startswith("item_") or event.kind == "signalled":
        tree["item"] = event.item

    if event.path:
        tree["path"] = event.path
    for name in ("duration_ms", "until_ms", "message", "done", "total", "sub_run_id", "executor_id", "dropped"):
        value = getattr(event, name)
        tree |= {name: value} if value else {}
    if event.lines:
        tree["lines"] = [{"at_ms": line.at_ms, "level": line.level, "text": line.text} for line in event.lines]
    if event.failure is not None:
        tree["error"] = {"code": event.failure.code.name, "message": event.failure.message}
        tree["error"] |= {"data": decode(event.failure.data)} if event.failure.data else {}
    if event.run is not None:
        tree["run"] = run_tree(event.run)
    return tree


def _flow_result(outcome: Json | Failure) -> dict[str, Any]:
    from stepflow.run.entries import flow_result  # the engine, which lists of runs do without

    tree: dict[str, Any] = decode(flow_result(outcome))
    return tree
