"""The components that run inside the engine: `eval`, `map`, `iterate`, `sleep` and `wait_for_signal`, and sub-runs.

They never go to a host and hold no place in the window. What they do follows from the step's input, so the journal
has only that a sub-run was opened, when a timer fires, or which signal is awaited; the flow, the items and the result
are worked out again by every owner.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid5

import msgspec

from stepflow.codec import Json, blob_id, decode, encode
from stepflow.errors import Code, Failure, Invalid
from stepflow.flow import CompiledFlow, InputValidator, apply_overrides, compile_flow, flow_from_tree
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.entries import flow_result
from stepflow.run.state import DEPTH_MAX, ITEMS_MAX, Blobs, Phase, RunState, Scope, StepRun, Stored
from stepflow.run.values import composed, load

if TYPE_CHECKING:
    from collections.abc import Sequence

FIRE_AT_MS_MAX = 2**62
"""A timer may lie beyond every clock, but not beyond an int64."""

SIGNAL_NAME_CHARS_MAX = 128

Count = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]
Millis = Annotated[int, msgspec.Meta(ge=0)]


class SleepInput(msgspec.Struct):
    duration_ms: Millis
    passthrough: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class WaitInput(msgspec.Struct):
    name: Annotated[str, msgspec.Meta(min_length=1, max_length=SIGNAL_NAME_CHARS_MAX)]
    timeout_ms: Millis | None = None


class EvalInput(msgspec.Struct):
    flow_id: str
    input: msgspec.Raw


class MapInput(msgspec.Struct):
    workflow: msgspec.Raw
    items: list[msgspec.Raw]
    max_concurrency: Count | None = None


class IterateInput(msgspec.Struct):
    flow: msgspec.Raw
    initial_input: msgspec.Raw
    max_iterations: Count = 1000


class IterateOutput(msgspec.Struct):
    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    next: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


INPUT_TYPES: dict[str, type] = {
    "sleep": SleepInput,
    "wait_for_signal": WaitInput,
    "eval": EvalInput,
    "map": MapInput,
    "iterate": IterateInput,
}

Opening = pb.SubRunStarted | pb.TimerSet | pb.SignalAwaited
Begun = Opening | Json | Failure
"""What a step of the engine comes to: a fact to journal, or its outcome at once."""


@dataclass(frozen=True, slots=True)
class SubFlow:
    """A flow ready to run as a sub-run."""

    id: str
    plan: CompiledFlow


@lru_cache(maxsize=256)
def sub_flow(document: bytes) -> SubFlow:
    """Compile a flow document. Raises: Invalid."""
    flow = flow_from_tree(decode(document), source="embedded flow")
    return SubFlow(blob_id(document), compile_flow(flow))


@lru_cache(maxsize=256)
def _input_validator(document: bytes) -> InputValidator | Invalid | None:
    """Compile the input schema of a flow document, or return why that is refused.

    Apart from `sub_flow`, which a replay needs as well: a journaled sub-run opens again whatever its schema is like.
    """
    try:
        return InputValidator.for_input(sub_flow(document).plan.flow)
    except Invalid as error:
        return error


def evaluate_input(state: RunState, step: StepRun, blobs: Blobs) -> bytes | Failure | None:
    """Evaluate the step's input expression; None while a blob is wanted for it."""
    item = step.item
    expr = item.scope.plan.steps[step.index].input
    if state.stored and not load(state, item, expr, blobs):
        return None
    return composed(expr.to_json(item.env), f"the input of step {step.id!r}")


def begin(state: RunState, step: StepRun, kind: str, input: bytes, now_ms: int, blobs: Blobs) -> Begun | None:
    """Start an engine component on its evaluated input; None while a blob (the flow of `eval`) is wanted."""
    try:
        step.memo = msgspec.json.decode(input, type=INPUT_TYPES[kind])
    except msgspec.ValidationError as error:
        return Failure(Code.INVALID_INPUT, f"input of /{kind}: {error}")
    if kind == "sleep":
        return pb.TimerSet(fire_at_ms=min(now_ms + step.memo.duration_ms, FIRE_AT_MS_MAX))
    if kind == "wait_for_signal":
        timeout_ms: int | None = step.memo.timeout_ms
        until_ms = 0 if timeout_ms is None else min(now_ms + timeout_ms, FIRE_AT_MS_MAX)
        return pb.SignalAwaited(name=step.memo.name, until_ms=until_ms)
    if step.item.scope.depth >= DEPTH_MAX:
        return Failure(Code.ORCHESTRATOR_ERROR, f"sub-runs are nested deeper than {DEPTH_MAX} levels")
    if kind == "iterate" and step.memo.max_iterations == 0:
        return _terminated(step.memo.initial_input, 0)
    return _open(state, step, _SUB_RUN_KINDS[kind], 0, blobs)


_SUB_RUN_KINDS = {"eval": pb.SUB_RUN_KIND_EVAL, "map": pb.SUB_RUN_KIND_MAP, "iterate": pb.SUB_RUN_KIND_ITERATE}


def _open(
    state: RunState, step: StepRun, kind: pb.SubRunKind, index: int, blobs: Blobs
) -> pb.SubRunStarted | Failure | None:
    """Check that the sub-run can be opened, before that is journaled."""
    document = _document(state, step, kind, blobs)
    if document is None:
        return None
    if isinstance(document, Failure):
        return document
    try:
        sub_flow(document)
    except Invalid as error:
        return Failure(Code.INVALID_INPUT, f"the flow to run is not valid: {error}")
    problem = None if state.policy.input_unchecked else _input_problem(document, _inputs(step, kind, index), kind)
    if problem is not None:
        return problem
    # A retried step starts afresh: its failed attempts are part of the key.
    key = f"{step.component_failed + step.transport_failed}.{index}"
    return pb.SubRunStarted(kind=kind, key=key, index=index)


def _document(state: RunState, step: StepRun, kind: pb.SubRunKind, blobs: Blobs) -> bytes | Failure | None:
    memo: Any = step.memo
    if kind == pb.SUB_RUN_KIND_MAP:
        return bytes(memo.workflow)
    if kind == pb.SUB_RUN_KIND_ITERATE:
        return bytes(memo.flow)
    flow_id: str = memo.flow_id.lower()
    if len(flow_id) != 64 or not all(digit in "0123456789abcdef" for digit in flow_id):
        return Failure(Code.INVALID_INPUT, "flow_id must be 64 hexadecimal digits")
    if flow_id not in blobs:
        state.wanted[flow_id] = True
        return None
    document = blobs[flow_id]
    if document is None:
        return Failure(Code.RESOURCE_UNAVAILABLE, f"there is no flow {flow_id}")
    return document


def _inputs(step: StepRun, kind: pb.SubRunKind, index: int) -> Sequence[msgspec.Raw]:
    memo: Any = step.memo
    if kind == pb.SUB_RUN_KIND_MAP:
        items: list[msgspec.Raw] = memo.items
        return items
    if kind == pb.SUB_RUN_KIND_EVAL:
        return (memo.input,)
    if index == 0:
        return (memo.initial_input,)
    return (_iterate_output(step).next,)  # type: ignore[return-value]  # an iteration follows only where it is set


def _input_problem(document: bytes, inputs: Sequence[msgspec.Raw], kind: pb.SubRunKind) -> Failure | None:
    if len(inputs) > ITEMS_MAX:
        return Failure(Code.INVALID_INPUT, f"{len(inputs):,} items; the limit is {ITEMS_MAX:,}")
    validator = _input_validator(document)
    if validator is None:
        return None
    if isinstance(validator, Invalid):
        return Failure(Code.INVALID_INPUT, f"the flow to run is not valid: {validator}")
    try:
        problem = validator.first_misfit(map(bytes, inputs))
    except Invalid as error:
        return Failure(Code.INVALID_INPUT, f"the input of the flow to run cannot be checked ({error.reason}): {error}")
    if problem is None:
        return None
    number, pointer, message = problem
    where = f"item {number}" if kind == pb.SUB_RUN_KIND_MAP else "input"
    problem_text = f"{where} of the flow to run does not fit its schema at {pointer or '/'}: {message}"
    return Failure(Code.INVALID_INPUT, problem_text)


def open_sub_run(state: RunState, step: StepRun, entry: pb.Entry, blobs: Blobs) -> bool:
    """Make the scope of a journaled SubRunStarted. Return false while a blob is wanted for it."""
    fact = entry.sub_run_started
    inputs: list[Json]
    if fact.kind == pb.SUB_RUN_KIND_CALLBACK:
        opened = _callback_parts(state, fact, blobs)
        if opened is None:
            return False
        plan, inputs = opened
    else:
        document = _engine_document(state, step, fact.kind, blobs)
        if document is None:
            return False
        plan = sub_flow(document).plan
        inputs = [Json(bytes(raw)) for raw in _inputs(step, fact.kind, fact.index)]
    number = len(state.scopes)
    path = f"{step.key}/{fact.key}"
    variables = {name: Json(encode(value)) for name, value in decode(fact.variables_json or b"{}").items()}
    scope = Scope(
        number=number,
        run_id=str(uuid5(UUID(state.run_id), path)),
        key=path,
        plan=plan,
        inputs=inputs,
        variables=variables,
        parent=step,
        kind=fact.kind,
        sub_key=fact.key,
        index=fact.index,
        concurrency_max=_concurrency_max(step, fact),
        created_at_ms=entry.at_ms,
    )
    state.scopes.append(scope)
    state.scopes_live += 1
    if step.sub_runs is None:
        step.sub_runs = []
    step.sub_runs.append(scope)
    if fact.kind == pb.SUB_RUN_KIND_CALLBACK:
        _lend_place(state, step)
    state.opening.append(scope)
    return True


def _lend_place(state: RunState, step: StepRun) -> None:
    if not step.callbacks_live and step.phase is Phase.IN_FLIGHT:
        state.places_taken -= 1
    step.callbacks_live += 1


def _concurrency_max(step: StepRun, fact: pb.SubRunStarted) -> int:
    if fact.kind == pb.SUB_RUN_KIND_MAP:
        return step.memo.max_concurrency or 0
    return fact.max_concurrency


def _engine_document(state: RunState, step: StepRun, kind: pb.SubRunKind, blobs: Blobs) -> bytes | None:
    if step.memo is None:  # a replay: the input was evaluated by another owner
        input = evaluate_input(state, step, blobs)
        if input is None:
            return None
        assert not isinstance(input, Failure), "a sub-run was journaled for an input that fails"
        kinds = {value: name for name, value in _SUB_RUN_KINDS.items()}
        step.memo = msgspec.json.decode(input, type=INPUT_TYPES[kinds[kind]])
    document = _document(state, step, kind, blobs)
    if isinstance(document, Failure):
        state.lost_blob = step.memo.flow_id
        return None
    return document


def _callback_parts(state: RunState, fact: pb.SubRunStarted, blobs: Blobs) -> tuple[CompiledFlow, list[Json]] | None:
    parts: list[bytes] = []
    for payload, shared in ((fact.flow, True), (fact.inputs, False)):
        if not payload.blob:
            parts.append(payload.json)
        elif payload.blob not in blobs:
            state.wanted[payload.blob] = shared
        else:
            content = blobs[payload.blob]
            if content is None:
                state.lost_blob = payload.blob
            else:
                parts.append(content)
    if len(parts) < 2:
        return None
    plan = callback_plan(parts[0], fact.overrides_json)
    return plan, [Json(bytes(raw)) for raw in msgspec.json.decode(parts[1], type=list[msgspec.Raw])]


def callback_plan(document: bytes, overrides_json: bytes) -> CompiledFlow:
    """Compile what a component asked to run. Raises: Invalid (the owner checks with this before it journals)."""
    if not overrides_json:
        return sub_flow(document).plan
    return compile_flow(apply_overrides(sub_flow(document).plan.flow, decode(overrides_json)))


def fired(state: RunState, step: StepRun, blobs: Blobs) -> Json | None:
    """Return the output of a `sleep` whose time has come; None while a blob is wanted for it."""
    if step.memo is None:
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


def signalled(state: RunState, step: StepRun, blobs: Blobs) -> Json | None:
    """Return the output of a `wait_for_signal` that has got its signal; None while a blob is wanted for it."""
    payload = step.signal
    assert payload is not None
    raw = payload.raw
    if isinstance(payload, Stored) and not raw:
        content = blobs.get(payload.blob)
        if content is None:
            if payload.blob in blobs:
                state.lost_blob = payload.blob
            else:
                state.wanted[payload.blob] = False
            return None
        raw = content
    return Json(b'{"payload":' + raw + b',"timed_out":false}')


NOT_SIGNALLED = Json(b'{"payload":null,"timed_out":true}')
"""The output of one whose time was over first."""


def resume_parent(state: RunState, step: StepRun, blobs: Blobs) -> Begun | None:
    """Go on with a step whose sub-run has ended: its outcome, or the next iteration."""
    assert step.sub_runs, "a parent without a sub-run"
    scope = step.sub_runs[-1]
    outcomes = [item.outcome for item in scope.items]
    assert None not in outcomes
    assert not any(isinstance(value, Stored) for value in outcomes)
    results: list[Json | Failure] = outcomes  # type: ignore[assignment]  # just asserted
    if scope.kind == pb.SUB_RUN_KIND_MAP:
        failed = sum(isinstance(outcome, Failure) for outcome in results)
        texts = b",".join(flow_result(outcome) for outcome in results)
        counts = b'],"successful":%d,"failed":%d}' % (len(results) - failed, failed)
        return Json(b'{"results":[' + texts + counts)
    if scope.kind == pb.SUB_RUN_KIND_EVAL:
        return Json(b'{"result":' + flow_result(results[0]) + b',"run_id":"' + scope.run_id.encode() + b'"}')
    return _next_iteration(state, step, scope, results[0], blobs)


def _next_iteration(
    state: RunState, step: StepRun, scope: Scope, outcome: Json | Failure, blobs: Blobs
) -> Begun | None:
    if isinstance(outcome, Failure):
        return outcome
    output = _iterate_output(step)
    done = scope.index + 1
    if output.result is not msgspec.UNSET:
        return Json(encode({"result": output.result, "iterations": done, "terminated": False}))
    if output.next is msgspec.UNSET:
        return Failure(Code.INVALID_INPUT, "Workflow result must contain either 'result' or 'next' field")
    if done >= step.memo.max_iterations:
        return _terminated(output.next, done)
    return _open(state, step, pb.SUB_RUN_KIND_ITERATE, done, blobs)


def _terminated(pending: msgspec.Raw | msgspec.UnsetType, iterations: int) -> Json:
    return Json(encode({"result": pending, "iterations": iterations, "terminated": True}))


def _iterate_output(step: StepRun) -> IterateOutput:
    """Read what the newest iteration gave; neither member is set where it gave something else."""
    assert step.sub_runs
    outcome = step.sub_runs[-1].items[0].outcome
    assert isinstance(outcome, Json)
    try:
        return msgspec.json.decode(outcome.raw, type=IterateOutput)
    except msgspec.ValidationError:
        return IterateOutput()
