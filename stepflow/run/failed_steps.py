"""Which step a failure belongs to: the step's path and attempt, added to the failure before it is journaled.

The members are journaled with the failure, or derived from the entries alone, so every owner and reader sees the same.
Runs admitted by earlier versions have none (`Policy.locates_failures`). A skipped step keeps the failure of the step
that it needed, unchanged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.errors import Failure
from stepflow.failure_data import FailedStep, failed_step, with_step, without_trace
from stepflow.flow.failing import failing_path
from stepflow.json_problems import json_path
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.step_path import parent_path, path_of_step

if TYPE_CHECKING:
    from stepflow.flow import Expr
    from stepflow.json_problems import Part
    from stepflow.run.scope import Item, Scope, StepRun
    from stepflow.run.state import RunState

TRACES_BYTES_MAX = 64 * 1024
"""Traces of failures in the journal of one partition. Once they are longer, later failures are journaled without."""


def item_path(item: Item) -> str:
    """Return the path of an item, which the ids of its steps follow; empty for a run of one."""
    scope = item.scope
    parent = scope.parent
    if parent is None:
        return str(scope.first_item + item.index) if scope.batch else ""
    return parent_path(item_path(parent.item), parent.id, _sub_run_index(scope, parent, item.index))


def step_path(item: Item, step_id: str) -> str:
    """Return the path of a step: item of a batch, sub-runs, step (`7/summaries[0]/ask`)."""
    return path_of_step(item_path(item), step_id)


def _sub_run_index(scope: Scope, parent: StepRun, index: int) -> tuple[int, ...]:
    match scope.kind:
        case pb.SUB_RUN_KIND_EVAL:
            return ()
        case pb.SUB_RUN_KIND_MAP:
            return (index,)
        case pb.SUB_RUN_KIND_ITERATE:
            return (scope.index,)
        case _:
            number = next((at for at, each in enumerate(parent.sub_runs or ()) if each is scope), 0)
            return (number,) if len(scope.inputs) == 1 else (number, index)


def failure_of_attempt(
    state: RunState, step: StepRun, failure: Failure, attempt: int, host: str, *, final: bool
) -> Failure:
    """Return the failure of an attempt with its step. That of an engine's sub-run names the inner step already."""
    data = failure.data if final and state.trace_bytes < TRACES_BYTES_MAX else without_trace(failure.data)
    if state.policy.locates_failures and (host or failed_step(data) is None):
        data = with_step(data, _described(step, attempt, host))
    return Failure(failure.code, failure.message, data)


def failure_of_route(state: RunState, step: StepRun, failure: Failure) -> Failure:
    """Return the failure of a step without a route with its step."""
    if not state.policy.locates_failures:
        return failure
    return Failure(failure.code, failure.message, with_step(failure.data, _described(step)))


def failure_of_input(state: RunState, step: StepRun, failure: Failure) -> Failure:
    """Return the failure of a step's input expression with its path in the flow; that of a step needed, as it is."""
    item = step.item
    plan = item.scope.plan
    if _is_result(item, plan.steps[step.index].input, failure):
        if state.trace_bytes < TRACES_BYTES_MAX:
            return failure
        return Failure(failure.code, failure.message, without_trace(failure.data))

    if not state.policy.locates_failures:
        return failure
    within = failing_path(plan.flow.steps[step.index].input, plan.index_of, plan.variables, item.env)
    described = _described(step, expression=_spelled("steps", step.index, "input", *within))
    return Failure(failure.code, failure.message, with_step(failure.data, described))


def failure_of_output(state: RunState, item: Item, failure: Failure) -> Failure:
    """Return the failure of an item's output expression with its path in the flow; that of a step needed, as it is."""
    plan = item.scope.plan
    if not state.policy.locates_failures or _is_result(item, plan.output, failure):
        return failure
    within = failing_path(plan.flow.output, plan.index_of, plan.variables, item.env)
    described = FailedStep(step=item_path(item), expression=_spelled("output", *within))
    return Failure(failure.code, failure.message, with_step(failure.data, described))


def skipped_for(scope: Scope, item: int, step: int, failure: pb.Failure) -> str:
    """Return the id of the failed step because of which a step was skipped; empty if the step failed itself."""
    if failure.origin != pb.ORIGIN_INPUT:
        return ""
    results, steps = scope.items[item].env.results, scope.plan.steps

    found, seen = step, {step}
    while True:
        needed = next((ref for ref in steps[found].input.refs if _same(results[ref], failure)), None)
        if needed is None or needed in seen:
            return "" if found == step else steps[found].id
        found = needed
        seen.add(needed)


def _same(result: object, failure: pb.Failure) -> bool:
    """Return True if a result is the journaled failure; its trace may have been left out meanwhile."""
    if not isinstance(result, Failure) or int(result.code) != failure.code or result.message != failure.message:
        return False
    return failed_step(result.data) == failed_step(failure.data_json)


def _is_result(item: Item, expr: Expr, failure: Failure) -> bool:
    """Return True if an expression fails because a step that it reads has failed."""
    return any(item.env.results[ref] is failure for ref in expr.refs)


def _described(step: StepRun, attempt: int = 0, host: str = "", expression: str = "") -> FailedStep:
    item = step.item
    component = item.scope.plan.steps[step.index].component
    return FailedStep(step_path(item, step.id), component, attempt, host, expression)


def _spelled(*parts: Part) -> str:
    return json_path(parts).removeprefix("$.")


__all__ = [
    "failure_of_attempt",
    "failure_of_input",
    "failure_of_output",
    "failure_of_route",
    "item_path",
    "skipped_for",
    "step_path",
]
