"""The components inside the engine: `eval`, `map`, `iterate`, `sleep` and `wait_for_signal`.

Engine components never go to a host and use no slot of the concurrency window. All effects follow from the step's
input, so the journal has only the opening of a sub-run, the instant of a timer or the name of a signal; every owner
works out the flow, the items and the result again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec

from stepflow.codec import PAYLOAD_BYTES_MAX, Json, encode
from stepflow.errors import Code, Failure
from stepflow.flow.nodes import TOO_LARGE
from stepflow.flow.values import Stored
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.derived import derived_result, goes_on
from stepflow.run.entries import flow_result
from stepflow.run.state import DEPTH_MAX, Blobs, RunState
from stepflow.run.subruns import INPUT_TYPES, iterate_output, plan_sub_run
from stepflow.run.values import evaluate_input, required_blob

if TYPE_CHECKING:
    from stepflow.run.scope import Scope, StepRun

WAIT_MS_MAX = 2**61
"""Longest wait; the instants of longer ones would not fit into an int64."""

SIGNAL_NAME_CHARS_MAX = 128

Millis = Annotated[int, msgspec.Meta(ge=0)]


class SleepInput(msgspec.Struct):
    duration_ms: Millis
    passthrough: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class WaitInput(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=SIGNAL_NAME_CHARS_MAX)]
    timeout_ms: Millis | None = None


_SUB_RUN_KINDS = {"eval": pb.SUB_RUN_KIND_EVAL, "map": pb.SUB_RUN_KIND_MAP, "iterate": pb.SUB_RUN_KIND_ITERATE}

_INPUT_TYPES: dict[str, type] = {
    "sleep": SleepInput,
    "wait_for_signal": WaitInput,
    **{name: INPUT_TYPES[kind] for name, kind in _SUB_RUN_KINDS.items()},
}

Fact = pb.SubRunStarted | pb.TimerSet | pb.SignalAwaited
Begun = Fact | Json | Failure
"""Result of starting or resuming an engine component: a fact to journal, or the step's outcome."""

NOT_SIGNALLED = Json(b'{"payload":null,"timed_out":true}')
"""Output of a `wait_for_signal` that timed out."""


def begin(state: RunState, step: StepRun, name: str, input: bytes, now_ms: int, blobs: Blobs) -> Begun | None:
    """Start an engine component on an evaluated input; None until the blob (the flow of `eval`) is loaded."""
    try:
        step.memo = msgspec.json.decode(input, type=_INPUT_TYPES[name])
    except msgspec.ValidationError as error:
        return Failure(Code.INVALID_INPUT, f"input of /{name}: {error}")

    if name == "sleep":
        duration_ms = min(step.memo.duration_ms, WAIT_MS_MAX)
        return pb.TimerSet(fire_at_ms=now_ms + duration_ms, duration_ms=duration_ms)
    if name == "wait_for_signal":
        if step.memo.timeout_ms is None:
            return pb.SignalAwaited(name=step.memo.name)
        timeout_ms = min(step.memo.timeout_ms, WAIT_MS_MAX)
        return pb.SignalAwaited(name=step.memo.name, until_ms=now_ms + timeout_ms, timeout_ms=timeout_ms)

    if step.item.scope.depth >= DEPTH_MAX:
        return Failure(Code.ORCHESTRATOR_ERROR, f"sub-runs are nested deeper than {DEPTH_MAX} levels")
    if name == "iterate" and step.memo.max_iterations == 0:
        return _terminated(step.memo.initial_input, 0)
    return plan_sub_run(state, step, _SUB_RUN_KINDS[name], 0, blobs)


def sleep_output(state: RunState, step: StepRun, blobs: Blobs) -> Json | None:
    """Return the output of a `sleep` whose timer is due; None until its blobs are loaded."""
    if step.memo is None:  # a replay: another owner evaluated the input
        input = evaluate_input(state, step, blobs)
        if input is None:
            return None
        assert not isinstance(input, Failure), "a timer was journaled for an input that fails"
        step.memo = msgspec.json.decode(input, type=SleepInput)

    memo: SleepInput = step.memo
    output: dict[str, Any] = {"duration_ms": memo.duration_ms}
    if memo.passthrough is not msgspec.UNSET:
        output["passthrough"] = memo.passthrough
    return Json(encode(output))


def signal_output(state: RunState, step: StepRun, blobs: Blobs) -> Json | None:
    """Return the output of a `wait_for_signal` after its signal; None until the payload is loaded."""
    payload = step.signal
    assert payload is not None
    raw: bytes | None = payload.raw
    if isinstance(payload, Stored) and not raw:
        raw = required_blob(state, payload.blob, blobs)
    return None if raw is None else Json(b'{"payload":' + raw + b',"timed_out":false}')


def resume_parent(state: RunState, step: StepRun, blobs: Blobs) -> Begun | None:
    """Continue a step whose sub-run has ended: return the step's outcome, or the entry of the next iteration."""
    assert step.sub_runs, "a parent without a sub-run"
    scope = step.sub_runs[-1]
    if state.composes:
        if scope.kind == pb.SUB_RUN_KIND_ITERATE and goes_on(step):
            return plan_sub_run(state, step, pb.SUB_RUN_KIND_ITERATE, scope.index + 1, blobs)
        return derived_result(step)
    outcomes = [item.outcome for item in scope.items]
    assert None not in outcomes
    assert not any(isinstance(value, Stored) for value in outcomes)
    results: list[Json | Failure] = outcomes  # type: ignore[assignment]  # just asserted

    if scope.kind == pb.SUB_RUN_KIND_MAP:
        return _map_output(step, scope, results)

    if scope.kind == pb.SUB_RUN_KIND_EVAL:
        return Json(b'{"result":' + flow_result(results[0]) + b',"run_id":"' + scope.run_id.encode() + b'"}')

    return _next_iteration(state, step, scope, results[0], blobs)


def _map_output(step: StepRun, scope: Scope, results: list[Json | Failure]) -> Json | Failure:
    texts: list[bytes] = []
    size = scope.outcome_bytes
    for outcome in results:
        # Measured before the texts are joined: each of 100,000 may be as large as a value may be.
        text = flow_result(outcome)
        size += len(text) - (len(outcome.raw) if isinstance(outcome, Json) else 0)
        if size > PAYLOAD_BYTES_MAX:
            return Failure(Code.COMPONENT_FAILED, f"the result of step {step.id!r} cannot be kept: {TOO_LARGE.message}")
        texts.append(text)

    failed = sum(isinstance(outcome, Failure) for outcome in results)
    counts = b'],"successful":%d,"failed":%d}' % (len(results) - failed, failed)
    return Json(b'{"results":[' + b",".join(texts) + counts)


def _next_iteration(
    state: RunState, step: StepRun, scope: Scope, outcome: Json | Failure, blobs: Blobs
) -> Begun | None:
    if isinstance(outcome, Failure):
        return outcome

    output = iterate_output(step)
    done = scope.index + 1
    if output.result is not msgspec.UNSET:
        return Json(encode({"result": output.result, "iterations": done, "terminated": False}))
    if output.next is msgspec.UNSET:
        return Failure(Code.INVALID_INPUT, "Workflow result must contain either 'result' or 'next' field")
    if done >= step.memo.max_iterations:
        return _terminated(output.next, done)
    return plan_sub_run(state, step, pb.SUB_RUN_KIND_ITERATE, done, blobs)


def _terminated(pending: msgspec.Raw | msgspec.UnsetType, iterations: int) -> Json:
    return Json(encode({"result": pending, "iterations": iterations, "terminated": True}))
