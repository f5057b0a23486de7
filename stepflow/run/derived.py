"""Results of `eval`, `map` and `iterate`, derived from the outcomes of their sub-runs without a copy.

From engine version 2 on they are not journaled: `apply` derives them at the entry `of_sub_run`, in the same way for
every owner and reader. Pure, and never in need of a blob: `advance` has looked into the output of an iteration before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.codec import JSON_DEPTH_MAX, RESULT_BYTES_MAX, Json
from stepflow.errors import Code, Failure
from stepflow.flow.values import PIECES_MAX, REFERENCE_BYTES_MIN, Composed, Value, unloaded
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.entries import failure_json

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepflow.run.scope import Scope, StepRun

COPIED_BYTES_MAX = 64 * 1024 * 1024
"""Results of a `map` that are neither in the journal nor in the blob store, but in memory."""

SUCCESS = b'{"outcome":"success","result":'
FAILED = b'{"outcome":"failed","error":'


def derived_result(step: StepRun) -> Composed | Failure:
    """Return the result of a step whose last sub-run has ended. An `iterate` must not go on."""
    assert step.sub_runs, "a parent without a sub-run"
    scope = step.sub_runs[-1]
    match scope.kind:
        case pb.SUB_RUN_KIND_MAP:
            return _kept(step, _map_result(scope), scope.copied_bytes)
        case pb.SUB_RUN_KIND_EVAL:
            pieces = [b'{"result":', *_flow_result(scope.items[0].outcome), b',"run_id":"%b"}' % scope.run_id.encode()]
            return _kept(step, Composed(_merged(pieces), 2))
        case _:
            return _iterate_result(step, scope)


def as_result(value: Composed) -> Json:
    """Return the value for expressions to read: a short one is joined."""
    if value.size < REFERENCE_BYTES_MIN and not unloaded(value):
        return Json(value.raw)
    return value


def goes_on(step: StepRun) -> bool:
    """Return True if the last iteration of an `iterate` step asks for another one, and the step's bound allows it."""
    assert step.sub_runs
    scope = step.sub_runs[-1]
    iterated = scope.iterated
    return iterated is not None and iterated[0] == "next" and scope.index + 1 < step.memo.max_iterations


def _iterate_result(step: StepRun, scope: Scope) -> Composed | Failure:
    outcome = scope.items[0].outcome
    if isinstance(outcome, Failure):
        return outcome
    if scope.iterated is None:
        return Failure(Code.INVALID_INPUT, "Workflow result must contain either 'result' or 'next' field")
    name, value = scope.iterated
    terminated = b"false" if name == "result" else b"true"
    behind = b',"iterations":%d,"terminated":%b}' % (scope.index + 1, terminated)
    return _kept(step, Composed([b'{"result":', value, behind], 1))


def _map_result(scope: Scope) -> Composed:
    pieces: list[Value] = [b'{"results":[']
    failed = 0
    for item in scope.items:
        if item.index:
            pieces.append(b",")
        pieces += _flow_result(item.outcome)
        failed += isinstance(item.outcome, Failure)
    pieces.append(b'],"successful":%d,"failed":%d}' % (len(scope.items) - failed, failed))
    return Composed(_merged(pieces), 3)


def flow_result_value(outcome: Json | Failure) -> Composed:
    """Return the FlowResult of an outcome."""
    return Composed(_merged(_flow_result(outcome)), 1)


def _flow_result(outcome: Any) -> tuple[Value, ...]:
    if isinstance(outcome, Failure):
        return (FAILED + failure_json(outcome) + b"}",)
    return SUCCESS, outcome.raw if outcome.__class__ is Json else outcome, b"}"


def _merged(pieces: Iterable[Value]) -> list[Value]:
    """Join neighbouring short texts."""
    merged: list[Value] = []
    texts: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes) and len(piece) < REFERENCE_BYTES_MIN:
            texts.append(piece)
            continue
        if texts:
            merged.append(b"".join(texts))
            texts = []
        merged.append(piece)
    if texts:
        merged.append(b"".join(texts))
    return merged


def _kept(step: StepRun, value: Composed, copied_bytes: int = 0) -> Composed | Failure:
    """Return the value, or the failure of one that is too large."""
    if value.size > RESULT_BYTES_MAX:
        problem = f"it is {value.size:,} bytes; the limit is {RESULT_BYTES_MAX:,}"
    elif copied_bytes > COPIED_BYTES_MAX:
        problem = f"its items are composed of more than {COPIED_BYTES_MAX:,} bytes; let them be results of steps"
    elif value.count > PIECES_MAX:
        problem = f"it has {value.count:,} parts; the limit is {PIECES_MAX:,}"
    elif value.too_deep:
        problem = f"it is nested deeper than {JSON_DEPTH_MAX} levels"
    else:
        return value
    return Failure(Code.COMPONENT_FAILED, f"the result of step {step.id!r} cannot be kept: {problem}")


__all__ = ["as_result", "derived_result", "flow_result_value", "goes_on"]
