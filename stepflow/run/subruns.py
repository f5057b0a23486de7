"""Sub-runs: flows started inside a run by `eval`, `map`, `iterate` or a host's component (the last are *call-backs*).

The journal has only the opening of a sub-run. An engine component's flow and items follow from the step's input, and
every owner works out both again; a call-back's flow and inputs are in the entry.

A sub-run opens in two steps: `plan_sub_run` or `start_callback` checks the request and returns the entry; once the
entry is applied, `open_sub_run` creates the scope, in live execution and in replay alike.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any
from uuid import UUID, uuid5

import msgspec

from stepflow.codec import Json, blob_id, composed_problem, decode, encode
from stepflow.errors import Code, Failure, Invalid, NotFound, Unavailable
from stepflow.flow import CompiledFlow, InputValidator, apply_overrides, compile_flow, flow_from_tree
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.scope import Scope, StepRun
from stepflow.run.state import ITEMS_MAX, Blobs, RunState
from stepflow.run.values import evaluate_input, joined, required_blob

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.mesh.v1 import host_pb2

Count = Annotated[int, msgspec.Meta(ge=0, le=2**32 - 1)]


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
    """Output of an iteration; neither member is set for an output of another shape."""

    result: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    next: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


INPUT_TYPES: dict[pb.SubRunKind, type] = {
    pb.SUB_RUN_KIND_EVAL: EvalInput,
    pb.SUB_RUN_KIND_MAP: MapInput,
    pb.SUB_RUN_KIND_ITERATE: IterateInput,
}
"""Input of each engine component that opens sub-runs."""


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
    """Compile the input schema of a flow document, or return the reason for a refusal.

    Not part of `sub_flow`, because a replay opens a journaled sub-run regardless of the schema.
    """
    try:
        return InputValidator.for_input(sub_flow(document).plan.flow)
    except Invalid as error:
        return error


def plan_sub_run(
    state: RunState, step: StepRun, kind: pb.SubRunKind, index: int, blobs: Blobs
) -> pb.SubRunStarted | Failure | None:
    """Check an engine component's sub-run and return the opening entry; None until the flow is loaded.

    `index` is the number of the iteration, 0 for other kinds.
    """
    document = _document(state, step, kind, blobs)
    if document is None or isinstance(document, Failure):
        return document

    try:
        sub_flow(document)
    except Invalid as error:
        return Failure(Code.INVALID_INPUT, f"the flow to run is not valid: {error}")
    inputs = _inputs(state, step, kind, index, blobs)
    if inputs is None or isinstance(inputs, Failure):
        return inputs
    problem = None if state.policy.input_unchecked else _input_problem(document, inputs, kind)
    if problem is not None:
        return problem

    # The failed attempts are part of the key: a retried step starts over with sub-runs of its own.
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


def _inputs(
    state: RunState, step: StepRun, kind: pb.SubRunKind, index: int, blobs: Blobs
) -> Sequence[bytes | msgspec.Raw] | Failure | None:
    """Return the inputs of an engine component's sub-run; None until the blobs of the last iteration are loaded."""
    memo: Any = step.memo
    if kind == pb.SUB_RUN_KIND_MAP:
        items: list[msgspec.Raw] = memo.items
        return items
    if kind == pb.SUB_RUN_KIND_EVAL:
        return (memo.input,)
    if index == 0:
        return (memo.initial_input,)
    if state.composes:
        return _next_input(state, step, index, blobs)
    return (iterate_output(step).next,)  # type: ignore[return-value]  # an iteration follows only where it is set


def _next_input(state: RunState, step: StepRun, index: int, blobs: Blobs) -> Sequence[bytes] | Failure | None:
    """Return the input of the iteration after a given number of them, from engine version 2 on."""
    assert step.sub_runs
    iterated = step.sub_runs[index - 1].iterated
    assert iterated is not None, "an iteration was opened after one without `next`"
    text = joined(state, iterated[1], blobs)
    if text is None:
        return None
    problem = composed_problem(text)
    if problem is not None:
        return Failure(Code.EXPRESSION_FAILURE, f"the next input cannot be used: {problem}")
    return (text,)


def _input_problem(document: bytes, inputs: Sequence[bytes | msgspec.Raw], kind: pb.SubRunKind) -> Failure | None:
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


def iterate_output(step: StepRun) -> IterateOutput:
    """Read the output of the newest iteration of an `iterate` step."""
    assert step.sub_runs
    outcome = step.sub_runs[-1].items[0].outcome
    assert isinstance(outcome, Json)
    try:
        return msgspec.json.decode(outcome.raw, type=IterateOutput)
    except msgspec.ValidationError:
        return IterateOutput()


def open_sub_run(state: RunState, step: StepRun, entry: pb.Entry, blobs: Blobs) -> bool:
    """Create the scope of a journaled SubRunStarted. Return False until its blobs are loaded."""
    fact = entry.sub_run_started
    is_callback = fact.kind == pb.SUB_RUN_KIND_CALLBACK
    parts = _callback_parts(state, fact, blobs) if is_callback else _engine_parts(state, step, fact, blobs)
    if parts is None:
        return False
    plan, inputs = parts

    path = f"{step.key}/{fact.key}"
    variables = {name: Json(encode(value)) for name, value in decode(fact.variables_json or b"{}").items()}
    scope = Scope(
        number=len(state.scopes),
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
        value_bytes_max=state.root.value_bytes_max,
    )

    state.scopes.append(scope)
    state.scopes_live += 1
    if step.sub_runs is None:
        step.sub_runs = []
    step.sub_runs.append(scope)
    if is_callback:
        state.lend_slot(step)
    state.opening.append(scope)
    return True


def _concurrency_max(step: StepRun, fact: pb.SubRunStarted) -> int:
    if fact.kind == pb.SUB_RUN_KIND_MAP:
        return step.memo.max_concurrency or 0
    return fact.max_concurrency


def _engine_parts(
    state: RunState, step: StepRun, fact: pb.SubRunStarted, blobs: Blobs
) -> tuple[CompiledFlow, list[Json]] | None:
    """Return flow and inputs of an engine component's sub-run; None until both are loaded."""
    if step.memo is None:  # a replay: another owner evaluated the input
        input = evaluate_input(state, step, blobs)
        if input is None:
            return None
        assert not isinstance(input, Failure), "a sub-run was journaled for an input that fails"
        step.memo = msgspec.json.decode(input, type=INPUT_TYPES[fact.kind])

    document = _document(state, step, fact.kind, blobs)
    if isinstance(document, Failure):
        state.lost_blob = step.memo.flow_id
        return None
    if document is None:
        return None
    texts = _inputs(state, step, fact.kind, fact.index, blobs)
    if texts is None:
        return None
    assert not isinstance(texts, Failure), "a sub-run was journaled for inputs that fail"
    return sub_flow(document).plan, [Json(bytes(raw)) for raw in texts]


# Call-backs.


def start_callback(state: RunState, step: StepRun, request: host_pb2.StartRun, now_ms: int) -> Scope | pb.Entry:
    """Return the sub-run named by a component's request, or an entry to open the sub-run.

    A key with a leading '#' is a number made up by the host for a caller without a key. A retried component may
    send other requests in another order, so such a key holds only together with the content of the request.

    Raises:
        NotFound: the step is no longer active.
        Unavailable: an earlier request for the same sub-run is still being opened.
    """
    if step.item.active.get(step.index) is not step:
        raise NotFound("STEP_NOT_ACTIVE", f"step {step.id!r} has ended; its component can start nothing more")

    key = request.key
    if key.startswith("#"):
        content = _identity(request.flow) + _identity(request.inputs)
        key += "-" + blob_id(content)[:16]
    for scope in step.sub_runs or ():
        if scope.sub_key == key:
            return scope
    if any(owner is step and entry.sub_run_started.key == key for owner, entry in state.unopened):
        raise Unavailable("SUB_RUN_OPENING", f"the sub-run {key!r} of this step is being opened; ask again")

    return pb.Entry(
        scope=step.item.scope.number,
        item=step.item.index,
        step=step.index,
        at_ms=now_ms,
        sub_run_started=pb.SubRunStarted(
            kind=pb.SUB_RUN_KIND_CALLBACK,
            key=key,
            flow=request.flow,
            inputs=request.inputs,
            max_concurrency=request.max_concurrency,
            variables_json=request.variables_json,
            overrides_json=request.overrides_json,
        ),
    )


def _identity(payload: pb.Payload) -> bytes:
    """Return bytes that are the same for every sender of the payload: some do not know the length of a blob."""
    return (pb.Payload(blob=payload.blob) if payload.blob else payload).SerializeToString()


def callback_plan(document: bytes, overrides_json: bytes) -> CompiledFlow:
    """Compile the flow of a call-back. Raises: Invalid (owners call this before journaling)."""
    if not overrides_json:
        return sub_flow(document).plan
    return compile_flow(apply_overrides(sub_flow(document).plan.flow, decode(overrides_json)))


def _callback_parts(state: RunState, fact: pb.SubRunStarted, blobs: Blobs) -> tuple[CompiledFlow, list[Json]] | None:
    """Return flow and inputs of a call-back; None until both are loaded."""
    document = _payload(state, fact.flow, blobs, shared=True)
    inputs = _payload(state, fact.inputs, blobs, shared=False)
    if document is None or inputs is None:
        return None
    plan = callback_plan(document, fact.overrides_json)
    return plan, [Json(bytes(raw)) for raw in msgspec.json.decode(inputs, type=list[msgspec.Raw])]


def _payload(state: RunState, payload: pb.Payload, blobs: Blobs, *, shared: bool) -> bytes | None:
    return required_blob(state, payload.blob, blobs, shared=shared) if payload.blob else payload.json
