"""What to do next. The only place where actions are made.

`decide` may be asked at any time and any number of times: what it has asked for once is marked (a step in flight, an
entry on its way), and is not asked for again. It never changes the journaled part of the state: facts that the engine
finds by itself (a failed input, a fired timer, the end) come back as `Append`, to be journaled and applied like any
other.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING

from stepflow.codec import Json, composed_problem
from stepflow.errors import Code, Failure
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.routing.table import NoRoute
from stepflow.run.advance import advance
from stepflow.run.builtins import NOT_SIGNALLED, begin, evaluate_input, fired, resume_parent, signalled
from stepflow.run.entries import failure_to_pb, step_failed
from stepflow.run.settle import settle
from stepflow.run.state import (
    ADOPTIONS_FRUITLESS_MAX,
    ADOPTIONS_IN_A_ROW_MAX,
    JOURNAL_BYTES_MAX,
    JOURNAL_ENTRIES_MAX,
    Action,
    Append,
    Blobs,
    CancelCall,
    Dispatch,
    Phase,
    Routes,
    RunState,
    ScopeEnded,
    StepRun,
    WantBlob,
)
from stepflow.run.values import unload

if TYPE_CHECKING:
    from stepflow.run.builtins import Begun


def decide(state: RunState, now_ms: int, routes: Routes, blobs: Blobs) -> list[Action]:
    """Return what is to be done now. After the returned entries are applied, ask again.

    `blobs` holds what was brought for earlier `WantBlob` actions, at least until the next call.
    """
    actions: list[Action] = []
    if state.status is not None or state.ending:
        _tell_ended_scopes(state, actions)
        return actions
    if state.blocked_steps:
        state.fresh.extend(state.blocked_steps)
        state.blocked_steps = []
    advance(state, blobs)
    failure = _cause_to_end(state)
    if failure is not None:
        _end(state, now_ms, actions, *failure)
        return actions
    if state.timers and state.timers[0][0] <= now_ms:
        _fire_timers(state, now_ms, blobs, actions)
    if state.signalled:
        _resume_signalled(state, now_ms, blobs, actions)
    if state.due:
        _resume_parents(state, now_ms, blobs, actions)
    if state.fresh or state.ready or state.engine_ready:
        _start_ready(state, now_ms, routes, blobs, actions)
    if state.scopes_ended:
        _tell_ended_scopes(state, actions)
    if state.wanted:
        actions.extend(WantBlob(blob, shared) for blob, shared in state.take_wanted().items())
    if state.loaded:
        unload(state)
    if not state.scopes_live and not state.unopened:
        root_failed = any(isinstance(item.outcome, Failure) for item in state.root.items)
        _end(state, now_ms, actions, pb.RUN_STATUS_FAILED if root_failed else pb.RUN_STATUS_COMPLETED)
    return actions


def _cause_to_end(state: RunState) -> tuple[pb.RunStatus, Failure] | None:
    """Return status and failure if the run must end although it is not complete."""
    if state.cancelled:
        return pb.RUN_STATUS_CANCELLED, Failure(Code.CANCELLED, "the run was cancelled")
    if state.adoptions_in_a_row > ADOPTIONS_IN_A_ROW_MAX or state.adoptions_fruitless > ADOPTIONS_FRUITLESS_MAX:
        return pb.RUN_STATUS_RECOVERY_FAILED, Failure(
            Code.ORCHESTRATOR_ERROR,
            f"{state.adoptions_fruitless - 1} executors in a row died with this run before it made any progress",
        )
    if state.lost_blob:
        return pb.RUN_STATUS_FAILED, Failure(
            Code.ORCHESTRATOR_ERROR, f"a value of this run is gone from the blob store: {state.lost_blob}"
        )
    if state.entries_journaled >= JOURNAL_ENTRIES_MAX or state.bytes_journaled >= JOURNAL_BYTES_MAX:
        return pb.RUN_STATUS_FAILED, Failure(
            Code.ORCHESTRATOR_ERROR,
            f"the run's journal is full ({state.entries_journaled:,} entries, {state.bytes_journaled:,} bytes): "
            "split the work into several runs",
        )
    return None


def _end(
    state: RunState,
    now_ms: int,
    actions: list[Action],
    status: pb.RunStatus,
    failure: Failure | None = None,
) -> None:
    for scope in state.scopes:
        for item in scope.items:
            actions.extend(CancelCall(step) for step in item.active.values() if step.phase is Phase.IN_FLIGHT)
    fact = pb.RunCompleted(status=status)
    if failure is not None:
        fact.failure.CopyFrom(failure_to_pb(failure))
    state.begin_ending()
    actions.append(Append(pb.Entry(at_ms=now_ms, run_completed=fact)))


def _tell_ended_scopes(state: RunState, actions: list[Action]) -> None:
    actions.extend(ScopeEnded(scope) for scope in state.scopes_ended)
    state.scopes_ended = []


def _start_ready(state: RunState, now_ms: int, routes: Routes, blobs: Blobs, actions: list[Action]) -> None:
    for step in state.fresh:
        if not _is_ready(step):
            continue
        item = step.item
        if routes.may_be_engine(item.scope.plan.steps[step.index].component):
            state.engine_ready.append(step)
        else:
            heappush(state.ready, (item.index, step.index, item.scope.number, step))
    state.fresh = []
    if state.engine_ready:
        ready, state.engine_ready = state.engine_ready, []
        for step in ready:
            if _is_ready(step):
                _start(state, step, now_ms, routes, blobs, actions)
    while state.ready and _has_room(state):
        step = heappop(state.ready)[3]
        if _is_ready(step):
            _start(state, step, now_ms, routes, blobs, actions)


def _has_room(state: RunState) -> bool:
    """Whether the window lets another call start. Asked here only: two answers could send a step round for ever."""
    return state.places_taken < state.policy.concurrency_max


def _is_ready(step: StepRun) -> bool:
    return step.phase is Phase.READY and step.item.active.get(step.index) is step and step.item.outcome is None


def _start(state: RunState, step: StepRun, now_ms: int, routes: Routes, blobs: Blobs, actions: list[Action]) -> None:
    """Evaluate the input of a ready step and send it on its way."""
    input = evaluate_input(state, step, blobs)
    if input is None:
        state.blocked_steps.append(step)
        return
    if isinstance(input, Failure):
        _fail(step, now_ms, actions, input, pb.ORIGIN_INPUT)
        return
    item = step.item
    target = routes.resolve(item.scope.plan.steps[step.index].component, Json(input))
    if target is None:
        state.blocked_steps.append(step)
    elif isinstance(target, NoRoute):
        _fail(step, now_ms, actions, target.failure(), pb.ORIGIN_ROUTING)
    elif target.engine is not None:
        _conclude(state, step, begin(state, step, target.engine, input, now_ms, blobs), now_ms, actions)
    elif not _has_room(state):
        # Thought to run in the engine, but its route's conditions say otherwise: it queues like any other.
        heappush(state.ready, (item.index, step.index, item.scope.number, step))
    else:
        step.phase = Phase.IN_FLIGHT
        if not step.callbacks_live:
            state.places_taken += 1
        failed = step.transport_failed + step.component_failed
        step.attempt = step.rejoin or 1 + failed + state.adoptions - step.ready_at
        step.rejoin = 0
        actions.append(Dispatch(step, step.attempt, target, input))


def _fail(step: StepRun, now_ms: int, actions: list[Action], failure: Failure, origin: pb.Origin) -> None:
    """End a step that was never dispatched; `onError` has no say in this."""
    step.phase = Phase.SETTLING
    item = step.item
    entry = step_failed(
        scope=item.scope.number, item=item.index, step=step.index, at_ms=now_ms, failure=failure, origin=origin
    )
    actions.append(Append(entry))


def _conclude(state: RunState, step: StepRun, begun: Begun | None, now_ms: int, actions: list[Action]) -> None:
    """Turn what an engine component came to into an entry."""
    if begun is None:
        _block(state, step)
        return
    attempt = 1 + step.component_failed + step.transport_failed
    if isinstance(begun, Json) and (problem := composed_problem(begun.raw)) is not None:
        begun = Failure(Code.COMPONENT_FAILED, f"the result of step {step.id!r} cannot be kept: {problem}")
    if isinstance(begun, (Json, Failure)):
        entry = settle(
            state,
            step,
            begun,
            origin=pb.ORIGIN_COMPONENT,
            attempt=attempt,
            started_at_ms=step.started_at_ms or now_ms,
            host="",
            now_ms=now_ms,
        )
    else:
        item = step.item
        entry = pb.Entry(scope=item.scope.number, item=item.index, step=step.index, at_ms=now_ms)
        if isinstance(begun, pb.TimerSet):
            entry.timer_set.CopyFrom(begun)
        elif isinstance(begun, pb.SignalAwaited):
            entry.signal_awaited.CopyFrom(begun)
        else:
            entry.sub_run_started.CopyFrom(begun)
        step.started_at_ms = step.started_at_ms or now_ms
    step.phase = Phase.SETTLING
    actions.append(Append(entry))


def _block(state: RunState, step: StepRun) -> None:
    """Set a step aside until the blob that it wants is there."""
    if step.phase is Phase.PARENT:
        state.due.append(step)
    elif step.phase is Phase.WAITING:
        state.signalled.append(step)
    elif step.phase is Phase.SLEEPING:
        heappush(state.timers, (step.wake_at_ms, step.item.scope.number, step.item.index, step.index, step))
    else:
        state.blocked_steps.append(step)


def _fire_timers(state: RunState, now_ms: int, blobs: Blobs, actions: list[Action]) -> None:
    sleeping: list[StepRun] = []
    while state.timers and state.timers[0][0] <= now_ms:
        at_ms, *_, step = heappop(state.timers)
        if step.wake_at_ms != at_ms or step.item.active.get(step.index) is not step:
            continue
        if step.phase is Phase.RETRYING:
            step.phase = Phase.READY
            state.fresh.append(step)
        elif step.phase is Phase.SLEEPING:
            sleeping.append(step)
        elif step.phase is Phase.WAITING:
            _conclude(state, step, NOT_SIGNALLED, now_ms, actions)
    for step in sleeping:
        _conclude(state, step, fired(state, step, blobs), now_ms, actions)


def _resume_signalled(state: RunState, now_ms: int, blobs: Blobs, actions: list[Action]) -> None:
    steps, state.signalled = state.signalled, []
    for step in steps:
        if step.phase is Phase.WAITING and step.item.active.get(step.index) is step:
            _conclude(state, step, signalled(state, step, blobs), now_ms, actions)


def _resume_parents(state: RunState, now_ms: int, blobs: Blobs, actions: list[Action]) -> None:
    due, state.due = state.due, []
    for step in due:
        # A replay may have found that the parent went on: to its outcome, or to another iteration that still runs.
        waits = step.phase is Phase.PARENT and step.item.active.get(step.index) is step
        if waits and step.sub_runs and step.sub_runs[-1].ended:
            _conclude(state, step, resume_parent(state, step, blobs), now_ms, actions)
