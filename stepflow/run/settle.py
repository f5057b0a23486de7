"""Which fact the outcome of a call is: the end of its step, or a failed attempt that another one follows.

The rules of retries stand here and nowhere else:
- UNREACHABLE is retried from the transport budget whatever `onError` says: a rolling restart must not turn results
  into defaults. TIMEOUT is, unless `onError` has a default to offer at once.
- COMPONENT_FAILED and RESOURCE_UNAVAILABLE are retried only under `onError: retry`, from the step's own budget.
- What remains after the retries is replaced by the default, where `onError` has one.
Both budgets are counted from the journal, so they survive every owner.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.codec import Json, blob_id, encode
from stepflow.errors import Code, Failure, NotFound, Unavailable
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.retry import RetryClass, backoff_from_proto, delay_ms, retry_class
from stepflow.run.entries import failure_to_pb, payload_of

if TYPE_CHECKING:
    from stepflow.flow import OnError
    from stepflow.mesh.v1 import host_pb2
    from stepflow.run.state import RunState, Scope, StepRun

MAX_RETRIES_DEFAULT = 3
"""Retries of a component under `onError: retry` without `maxRetries`."""


def settle(
    state: RunState,
    step: StepRun,
    outcome: Json | Failure,
    *,
    origin: pb.Origin,
    attempt: int,
    started_at_ms: int,
    host: str,
    now_ms: int,
) -> pb.Entry:
    """Return the entry that the outcome of an attempt amounts to. The step must be active."""
    entry = pb.Entry(scope=step.item.scope.number, item=step.item.index, step=step.index, at_ms=now_ms)
    if not isinstance(outcome, Failure):
        done = entry.step_completed
        done.result.CopyFrom(payload_of(outcome))
    else:
        on_error = step.item.scope.plan.steps[step.index].on_error
        delay = _retry_delay_ms(state, step, on_error, outcome, attempt)
        if delay is not None:
            failed = entry.attempt_failed
            failed.failure.CopyFrom(failure_to_pb(outcome, origin))
            failed.retry_at_ms = now_ms + delay
            failed.attempt, failed.started_at_ms, failed.host = attempt, started_at_ms, host
            return entry
        done = entry.step_completed
        if on_error.has_default:
            done.result.json = encode(on_error.default)
            done.replaced.CopyFrom(failure_to_pb(outcome, origin))
        else:
            done.failure.CopyFrom(failure_to_pb(outcome, origin))
    done.attempt, done.started_at_ms, done.host = attempt, started_at_ms, host
    return entry


def _retry_delay_ms(state: RunState, step: StepRun, on_error: OnError, failure: Failure, attempt: int) -> int | None:
    """Return the wait before the next attempt, None when there is none."""
    policy = state.policy
    kind = retry_class(failure.code)
    if kind is RetryClass.TRANSPORT:
        if failure.code is Code.TIMEOUT and on_error.action == "useDefault":
            return None
        if step.transport_failed >= policy.transport_retries_max:
            return None
        count, backoff = step.transport_failed + 1, None
    elif kind is RetryClass.COMPONENT and on_error.action == "retry":
        retries_max = MAX_RETRIES_DEFAULT if on_error.max_retries is None else on_error.max_retries
        if step.component_failed >= retries_max:
            return None
        count, backoff = step.component_failed + 1, on_error.backoff
    else:
        return None
    return delay_ms(backoff or backoff_from_proto(policy.backoff), count, f"{state.run_id}/{step.key}/{attempt}")


def find_step(state: RunState, key: str) -> StepRun | None:
    """Return the active step with this idempotency key."""
    for scope in state.scopes:
        prefix = scope.key + "/"
        if not key.startswith(prefix):
            continue
        number, _, step_id = key[len(prefix) :].partition("/")
        index = scope.plan.index_of.get(step_id)
        position = int(number) - scope.first_item if number.isdigit() else -1
        if index is not None and 0 <= position < len(scope.items):
            return scope.items[position].active.get(index)
    return None


def start_callback(state: RunState, step: StepRun, request: host_pb2.StartRun, now_ms: int) -> Scope | pb.Entry:
    """Return the sub-run that a component's request means, if it exists already, else the entry that opens it.

    A key that starts with '#' is a count that the host made up for a caller who gave none. A repeated component may
    ask for other things in another order, so such a key holds only together with the content of the request.

    Raises:
        NotFound: the step is not active any more.
        Unavailable: the same sub-run was asked for a moment ago and has not been opened yet.
    """
    if step.item.active.get(step.index) is not step:
        raise NotFound("STEP_NOT_ACTIVE", f"step {step.id!r} has ended; its component can start nothing more")
    key = request.key
    if key.startswith("#"):
        content = request.flow.SerializeToString() + request.inputs.SerializeToString()
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
