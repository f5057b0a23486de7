"""Facts in: the only code that changes the journaled part of a run's state.

`apply` never evaluates an expression and never needs a blob, so it cannot fail on a good journal. What follows from a
fact is worked out in `advancing`, which a replay calls after each entry.
"""

from __future__ import annotations

from collections import deque
from heapq import heappush
from typing import TYPE_CHECKING

from stepflow.errors import Code, DataLoss
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.retry import RetryClass, retry_class
from stepflow.run.advance import end_item, open_all_items
from stepflow.run.entries import failure_from_pb, json_of
from stepflow.run.state import INNOCENT_MS, Phase, RunState, Scope, StepRun

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.codec import Json
    from stepflow.flow import CompiledFlow
    from stepflow.mesh.v1 import state_pb2


def new_run(
    run_id: str,
    *,
    partition: int,
    first_item: int,
    plan: CompiledFlow,
    inputs: Sequence[Json],
    variables: dict[str, Json],
    policy: state_pb2.Policy,
) -> RunState:
    """Return the state of a partition before its first entry. `plan` has the overrides applied already."""
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
        )
    )
    state.scopes_live = 1
    return state


def apply(state: RunState, entry: pb.Entry) -> None:
    """Record one journaled fact.

    Raises:
        DataLoss: the entry cannot follow the ones before it.
    """
    if state.status is not None:
        raise _inconsistent(state, entry, "the run has ended before it")
    state.entries_journaled += 1
    quiet_ms = entry.at_ms - state.last_at_ms
    state.last_at_ms = entry.at_ms
    kind = entry.WhichOneof("kind")
    if kind == "adopted":
        if quiet_ms > INNOCENT_MS:
            state.adoptions_in_a_row = state.adoptions_fruitless = 0
        _apply_adopted(state, entry.adopted)
        return
    state.adoptions_in_a_row = 0
    if kind == "survived":
        return
    state.adoptions_fruitless = 0
    if kind == "step_completed":
        _apply_step_completed(state, entry)
    elif kind == "attempt_failed":
        _apply_attempt_failed(state, entry)
    elif kind == "timer_set":
        step = _active(state, entry)
        step.phase = Phase.SLEEPING
        _wake_at(state, step, entry.timer_set.fire_at_ms)
    elif kind == "sub_run_started":
        step = _active(state, entry)
        if entry.sub_run_started.kind != pb.SUB_RUN_KIND_CALLBACK:
            step.phase = Phase.PARENT
        state.unopened.append((step, entry))
    elif kind == "inbox_taken":
        state.inbox_taken.add(entry.inbox_taken.id)
        state.cancelled = state.cancelled or entry.inbox_taken.cancel
        if entry.inbox_taken.HasField("signal"):
            signal = entry.inbox_taken.signal
            state.signals.setdefault((entry.item, signal.name), deque()).append(json_of(signal.payload))
            _match_signals(state, (entry.item, signal.name))
    elif kind == "signal_awaited":
        step = _active(state, entry)
        step.phase, step.signal = Phase.WAITING, None
        if entry.signal_awaited.until_ms:
            _wake_at(state, step, entry.signal_awaited.until_ms)
        place = (_root_item(step), entry.signal_awaited.name)
        state.signal_waits.setdefault(place, deque()).append(step)
        _match_signals(state, place)
    elif kind == "run_completed":
        state.status = entry.run_completed.status
        _end_items(state, entry)
    else:
        raise _inconsistent(state, entry, "its kind is not known to this version")


def _apply_adopted(state: RunState, adopted: pb.Adopted) -> None:
    state.adoptions += 1
    if not adopted.handed_over:
        owners = 2 if adopted.unnoted_owner else 1
        state.adoptions_in_a_row += owners
        state.adoptions_fruitless += owners
    state.epoch = adopted.epoch
    if state.adoptions == 1:
        state.root.created_at_ms = state.last_at_ms
        state.opening.append(state.root)


def _apply_step_completed(state: RunState, entry: pb.Entry) -> None:
    step = _active(state, entry)
    item = step.item
    leave_flight(state, step)
    del item.active[step.index]
    fact = entry.step_completed
    if fact.HasField("failure"):
        item.env.results[step.index] = failure_from_pb(fact.failure)
        item.step_failed = True
    else:
        value = json_of(fact.result)
        item.env.results[step.index] = value
        if not value.raw:
            state.stored = True
    item.open -= 1
    item.dirty += 1
    step.wake_at_ms = -1
    state.dirty.append((item, step.index))


def _apply_attempt_failed(state: RunState, entry: pb.Entry) -> None:
    step = _active(state, entry)
    leave_flight(state, step)
    fact = entry.attempt_failed
    if retry_class(Code(fact.failure.code)) is RetryClass.COMPONENT:
        step.component_failed += 1
    else:
        step.transport_failed += 1
    step.phase = Phase.RETRYING
    step.memo = None
    if step.sub_runs and step.sub_runs[0].kind != pb.SUB_RUN_KIND_CALLBACK:
        step.sub_runs = None  # the engine's own components start afresh; components find theirs again by key
    _wake_at(state, step, fact.retry_at_ms)


def _wake_at(state: RunState, step: StepRun, at_ms: int) -> None:
    step.wake_at_ms = at_ms
    heappush(state.timers, (at_ms, step.item.scope.number, step.item.index, step.index, step))


def _match_signals(state: RunState, place: tuple[int, str]) -> None:
    """Give the oldest signal to the step that has waited longest, as long as there are both."""
    signals, waits = state.signals.get(place), state.signal_waits.get(place)
    while signals and waits:
        step = waits.popleft()
        if step.phase is Phase.WAITING and step.signal is None and step.item.active.get(step.index) is step:
            step.signal = signals.popleft()
            step.wake_at_ms = -1
            state.signalled.append(step)


def _root_item(step: StepRun) -> int:
    """Return the item of the run itself that a step, of whatever sub-run, works for."""
    while step.item.scope.parent is not None:
        step = step.item.scope.parent
    return step.item.index


def leave_flight(state: RunState, step: StepRun) -> None:
    """Give the place in the window back, if the step holds one."""
    if step.phase is Phase.IN_FLIGHT:
        step.phase = Phase.SETTLING
        if not step.callbacks_live:
            state.places_taken -= 1


def _active(state: RunState, entry: pb.Entry) -> StepRun:
    try:
        return state.scopes[entry.scope].items[entry.item].active[entry.step]
    except (IndexError, KeyError):
        raise _inconsistent(state, entry, "no such step is active") from None


def _end_items(state: RunState, entry: pb.Entry) -> None:
    """Give every item without an outcome the one that the run's end means for it."""
    status, failure = entry.run_completed.status, entry.run_completed.failure
    if status not in (pb.RUN_STATUS_CANCELLED, pb.RUN_STATUS_RECOVERY_FAILED) and not failure.message:
        return
    cause = failure_from_pb(failure)
    for scope in state.scopes:
        open_all_items(scope)
        for item in scope.items:
            if item.outcome is None:
                end_item(state, item, cause)
            item.active.clear()


def _inconsistent(state: RunState, entry: pb.Entry, why: str) -> DataLoss:
    kind = entry.WhichOneof("kind")
    return DataLoss(
        "JOURNAL_INCONSISTENT",
        f"journal of run {state.run_id}, partition {state.partition}: entry {state.entries_journaled} ({kind}, scope "
        f"{entry.scope}, item {entry.item}, step {entry.step}) cannot be: {why}",
        run_id=state.run_id,
    )
