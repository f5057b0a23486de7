"""Entries in: the only writer of the journaled part of a run's state.

`apply` never evaluates an expression and never needs a blob, so a good journal is always applied. `advance` works
out the consequences; a replay calls `advance` after each entry.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from stepflow.codec import PAYLOAD_BYTES_MAX, RESULT_BYTES_MAX
from stepflow.errors import Code, DataLoss, FailedPrecondition, Failure
from stepflow.failure_data import trace_bytes
from stepflow.log_lines import tail_bytes
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.retry import RetryClass, retry_class
from stepflow.run.advance import end_item, open_all_items
from stepflow.run.derived import as_result, derived_result
from stepflow.run.entries import CodeUnknown, code_from_pb, failure_from_pb, json_of
from stepflow.run.phases import DONE, PARENT, RETRYING, SLEEPING, WAITING, IllegalTransition
from stepflow.run.scope import Scope, StepRun
from stepflow.run.state import POISON_WINDOW_MS, RunState

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.codec import Json
    from stepflow.flow import CompiledFlow
    from stepflow.mesh.v1 import state_pb2

UNKNOWN_ENTRY = "ENTRY_UNKNOWN"
"""Reason of an entry that a later version wrote."""


def new_run(
    run_id: str,
    *,
    partition: int,
    first_item: int,
    plan: CompiledFlow,
    inputs: Sequence[Json],
    variables: dict[str, Json],
    policy: state_pb2.Policy,
    batch: bool = False,
) -> RunState:
    """Return the state of a partition before the first entry. `plan` includes the overrides.

    `batch`: the run has several items, so that paths of steps begin with the item.
    """
    state = RunState(run_id, partition, policy)

    state.scopes.append(
        Scope(
            number=0,
            run_id=run_id,
            key=run_id,
            plan=plan,
            inputs=list(inputs),
            variables=variables,
            first_item=first_item,
            batch=batch,
            value_bytes_max=RESULT_BYTES_MAX if state.composes else PAYLOAD_BYTES_MAX,
        )
    )
    state.scopes_live = 1

    return state


def apply(state: RunState, entry: pb.Entry) -> None:
    """Record one journaled entry.

    Raises:
        DataLoss: the entry cannot follow the previous entries.
        FailedPrecondition: `ENTRY_UNKNOWN`, a later version wrote the entry.
    """
    if state.status is not None:
        raise _inconsistent(state, entry, "the run has ended before it")

    state.entries_journaled += 1
    state.quiet_ms = entry.at_ms - state.last_at_ms
    state.last_at_ms = entry.at_ms

    kind = entry.WhichOneof("kind")
    record = ENTRY_KINDS.get(kind)
    if record is None:
        raise _unknown(state, entry, "its kind")
    if kind not in _KINDS_WITHOUT_PROGRESS:
        state.adoptions_in_a_row = state.adoptions_fruitless = state.adoptions_given_back = 0

    try:
        record(state, entry)
    except IllegalTransition as error:
        raise _inconsistent(state, entry, str(error)) from None
    except CodeUnknown as error:
        raise _unknown(state, entry, f"failure code {error.code}") from None


# One function a kind of entry, in the order of the protobuf.


def _adopted(state: RunState, entry: pb.Entry) -> None:
    fact = entry.adopted
    if state.quiet_ms > POISON_WINDOW_MS:
        state.adoptions_in_a_row = state.adoptions_fruitless = 0

    state.adoptions += 1
    if fact.given_back:
        state.adoptions_given_back += 1
    elif not fact.handed_over:
        owners = 2 if fact.unnoted_owner else 1
        state.adoptions_in_a_row += owners
        state.adoptions_fruitless += owners

    state.epoch = fact.epoch
    if state.adoptions == 1:
        state.root.created_at_ms = state.last_at_ms
        state.opening.append(state.root)
    elif state.timers:
        _carry_waits_over(state)


def _carry_waits_over(state: RunState) -> None:
    """Move the pending wake-ups from the clock of the previous owner to the clock of the next.

    No wait gets longer: if the next owner's clock lags behind the journal, a wait has no more left than at the previous
    owner's last entry, and never more than its whole duration.
    """
    lag_ms = max(0, -state.quiet_ms)
    timers, state.timers = state.timers, []
    for at_ms, *_, step in timers:
        if step.wake_at_ms != at_ms or step.item.active.get(step.index) is not step:
            continue  # a cancelled timer
        step.wake_at_ms = at_ms - lag_ms
        if step.wait_ms:
            step.wake_at_ms = min(step.wake_at_ms, state.last_at_ms + step.wait_ms)
        state.push_timer(step)


def _step_completed(state: RunState, entry: pb.Entry) -> None:
    step = _active_step(state, entry)
    item = step.item
    fact = entry.step_completed
    failure = failure_from_pb(fact.failure) if fact.HasField("failure") else None
    if failure is not None and failure.data:
        state.trace_bytes += trace_bytes(failure.data)
    if fact.log_tail:
        state.log_tail_bytes += tail_bytes(fact.log_tail)
    state.leave_flight(step, DONE)
    del item.active[step.index]

    if failure is not None:
        item.env.results[step.index] = failure
        item.step_failed = True
    elif fact.of_sub_run:
        item.env.results[step.index] = _of_sub_run(state, entry, step)
    else:
        value = json_of(fact.result, state.entries_journaled - 1)
        item.env.results[step.index] = value
        if not value.raw:
            state.stored = True

    item.open -= 1
    item.dirty += 1
    step.wake_at_ms = -1
    state.dirty.append((item, step.index))


def _of_sub_run(state: RunState, entry: pb.Entry, step: StepRun) -> Json | Failure:
    """Return the result of an engine component, derived from its last sub-run."""
    if state.lost_blob:  # the sub-run cannot go on here: the run ends for it
        return Failure(Code.ORCHESTRATOR_ERROR, f"a value of this run is gone from the blob store: {state.lost_blob}")
    if not step.sub_runs or not step.sub_runs[-1].ended:
        raise _inconsistent(state, entry, "its sub-run has not ended")
    value = derived_result(step)
    if isinstance(value, Failure):
        raise _inconsistent(state, entry, value.message)

    result = as_result(value)
    if result is value:
        state.stored = True
    return result


def _attempt_failed(state: RunState, entry: pb.Entry) -> None:
    step = _active_step(state, entry)
    fact = entry.attempt_failed
    code = code_from_pb(fact.failure)
    state.leave_flight(step, RETRYING)

    if retry_class(code) is RetryClass.COMPONENT:
        step.component_failed += 1
    else:
        step.transport_failed += 1

    # Engine components start over; a host's component finds its sub-runs again by key.
    step.memo = None
    step.started_at_ms = 0
    if step.sub_runs and step.sub_runs[0].kind != pb.SUB_RUN_KIND_CALLBACK:
        step.sub_runs = None

    step.wake_at_ms, step.wait_ms = fact.retry_at_ms, fact.delay_ms
    state.push_timer(step)


def _timer_set(state: RunState, entry: pb.Entry) -> None:
    step = _active_step(state, entry)
    step.enter(SLEEPING)
    step.started_at_ms = entry.at_ms
    step.wake_at_ms, step.wait_ms = entry.timer_set.fire_at_ms, entry.timer_set.duration_ms
    state.push_timer(step)


def _sub_run_started(state: RunState, entry: pb.Entry) -> None:
    step = _active_step(state, entry)
    if entry.sub_run_started.kind not in pb.SubRunKind.values():
        raise _unknown(state, entry, f"sub-run kind {entry.sub_run_started.kind}")
    if entry.sub_run_started.kind != pb.SUB_RUN_KIND_CALLBACK:
        step.enter(PARENT)
        step.started_at_ms = step.started_at_ms or entry.at_ms  # `iterate` opens several
    state.unopened.append((step, entry))


def _inbox_taken(state: RunState, entry: pb.Entry) -> None:
    fact = entry.inbox_taken
    state.inbox_taken.add(fact.id)
    state.cancelled = state.cancelled or fact.cancel
    if fact.HasField("signal"):
        queue_key = (entry.item, fact.signal.name)
        state.signals.setdefault(queue_key, deque()).append(json_of(fact.signal.payload))
        state.signals_unreceived += 1
        _match_signals(state, queue_key)


def _run_completed(state: RunState, entry: pb.Entry) -> None:
    if entry.run_completed.status not in pb.RunStatus.values():
        raise _unknown(state, entry, f"run status {entry.run_completed.status}")
    state.status = entry.run_completed.status
    _end_items(state, entry)


def _signal_awaited(state: RunState, entry: pb.Entry) -> None:
    step = _active_step(state, entry)
    fact = entry.signal_awaited
    step.enter(WAITING)
    step.started_at_ms = entry.at_ms
    step.signal = None
    if fact.until_ms:
        step.wake_at_ms, step.wait_ms = fact.until_ms, fact.timeout_ms
        state.push_timer(step)

    queue_key = (_root_item(step), fact.name)
    state.signal_waits.setdefault(queue_key, deque()).append(step)
    _match_signals(state, queue_key)


def _survived(state: RunState, _entry: pb.Entry) -> None:
    state.adoptions_in_a_row = 0


ENTRY_KINDS: dict[str | None, Callable[[RunState, pb.Entry], None]] = {
    "adopted": _adopted,
    "step_completed": _step_completed,
    "attempt_failed": _attempt_failed,
    "timer_set": _timer_set,
    "sub_run_started": _sub_run_started,
    "inbox_taken": _inbox_taken,
    "run_completed": _run_completed,
    "signal_awaited": _signal_awaited,
    "survived": _survived,
}
"""Every kind of entry, with the function that records it."""

_KINDS_WITHOUT_PROGRESS = frozenset(("adopted", "survived"))
"""Kinds that do not show that an owner has moved the run forward."""


def _match_signals(state: RunState, queue_key: tuple[int, str]) -> None:
    """Give the oldest signals to the steps with the longest wait."""
    signals, waits = state.signals.get(queue_key), state.signal_waits.get(queue_key)
    while signals and waits:
        step = waits.popleft()
        if step.phase is WAITING and step.signal is None and step.item.active.get(step.index) is step:
            step.signal = signals.popleft()
            state.signals_unreceived -= 1
            step.wake_at_ms = -1
            state.signalled.append(step)


def _root_item(step: StepRun) -> int:
    """Return the item of the root scope above a step of any depth."""
    while step.item.scope.parent is not None:
        step = step.item.scope.parent
    return step.item.index


def _active_step(state: RunState, entry: pb.Entry) -> StepRun:
    try:
        return state.scopes[entry.scope].items[entry.item].active[entry.step]
    except (IndexError, KeyError):
        raise _inconsistent(state, entry, "no such step is active") from None


def _end_items(state: RunState, entry: pb.Entry) -> None:
    """If a failure ends the run, make it the outcome of every item without an outcome."""
    status, failure = entry.run_completed.status, entry.run_completed.failure
    if status not in (pb.RUN_STATUS_CANCELLED, pb.RUN_STATUS_RECOVERY_FAILED) and not failure.message:
        return

    cause = failure_from_pb(failure)
    for scope in state.scopes:
        open_all_items(scope)
        for item in scope.items:
            if item.outcome is None:
                end_item(state, item, cause)
            state.cut_off.extend(item.active.values())
            item.active.clear()


def _unknown(state: RunState, entry: pb.Entry, what: str) -> FailedPrecondition:
    kind = entry.WhichOneof("kind") or "of an unknown kind"
    return FailedPrecondition(
        UNKNOWN_ENTRY,
        f"journal of run {state.run_id}, partition {state.partition}: entry {state.entries_journaled} ({kind}) is of a "
        f"later version: {what} is not known to this version; update it",
        run_id=state.run_id,
    )


def _inconsistent(state: RunState, entry: pb.Entry, why: str) -> DataLoss:
    kind = entry.WhichOneof("kind")
    return DataLoss(
        "JOURNAL_INCONSISTENT",
        f"journal of run {state.run_id}, partition {state.partition}: entry {state.entries_journaled} ({kind}, scope "
        f"{entry.scope}, item {entry.item}, step {entry.step}) cannot be applied: {why}",
        run_id=state.run_id,
    )
