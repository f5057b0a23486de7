"""Decisions: the only place where actions are made.

`decide` is idempotent: pending work is marked (a step in flight, an entry being journaled) and never requested twice.
The journaled part of the state stays unchanged. Facts found by the engine (a failed input, a due timer, the end of the
run) are returned as `Append`, to be journaled and applied like any other.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import TYPE_CHECKING, Protocol, assert_never

from stepflow.codec import Json, composed_problem
from stepflow.errors import Code, Failure
from stepflow.flow.values import Composed
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.routing.table import NoRoute
from stepflow.run.actions import Append, CancelCall, Dispatch, ScopeEnded, WantBlob
from stepflow.run.advance import advance
from stepflow.run.builtins import NOT_SIGNALLED, begin, resume_parent, signal_output, sleep_output
from stepflow.run.entries import failure_to_pb
from stepflow.run.failed_steps import failure_of_input, failure_of_route
from stepflow.run.phases import IN_FLIGHT, PARENT, READY, RETRYING, SETTLING, SLEEPING, WAITING
from stepflow.run.settle import settle
from stepflow.run.state import (
    ADOPTIONS_FRUITLESS_MAX,
    ADOPTIONS_IN_A_ROW_MAX,
    JOURNAL_BYTES_MAX,
    JOURNAL_ENTRIES_MAX,
    Blobs,
    RunState,
)
from stepflow.run.values import evaluate_input, unload

if TYPE_CHECKING:
    from stepflow.routing.table import Target
    from stepflow.run.actions import Action
    from stepflow.run.builtins import Begun, Fact
    from stepflow.run.scope import StepRun


class Routes(Protocol):
    """The part of the mesh's routing table needed for decisions."""

    def resolve(self, path: str, input: Json) -> Target | NoRoute | None:
        """Return the target of a component path; None while a server with the component may be starting."""
        ...

    def may_be_engine(self, path: str) -> bool:
        """Return True if some input leads from `path` to an engine component."""
        ...


def decide(state: RunState, now_ms: int, routes: Routes, blobs: Blobs) -> list[Action]:
    """Return the actions to take now. Apply the returned entries, then call again.

    `blobs` holds the blobs loaded for earlier `WantBlob` actions, at least until the next call.
    """
    actions: list[Action] = []
    if state.status is not None or state.ending:
        _report_ended_scopes(state, actions)
        return actions

    # 1. Consequences of the entries applied since the last call.
    if state.blocked_steps:
        state.fresh.extend(state.blocked_steps)
        state.blocked_steps = []
    advance(state, blobs)

    # 2. Reasons to end the run early.
    failure = _cause_to_end(state)
    if failure is not None:
        _end(state, now_ms, actions, *failure)
        return actions

    # 3. Steps that wait for an event.
    if state.timers and state.timers[0][0] <= now_ms:
        _fire_timers(state, now_ms, blobs, actions)
    if state.signalled:
        _resume_signalled(state, now_ms, blobs, actions)
    if state.due:
        _resume_parents(state, now_ms, blobs, actions)

    # 4. Ready steps.
    if state.fresh or state.ready or state.engine_ready:
        _start_ready(state, now_ms, routes, blobs, actions)

    # 5. Ended sub-runs, blobs, and the end of the run.
    if state.scopes_ended:
        _report_ended_scopes(state, actions)
    if state.wanted:
        sizes = state.wanted_bytes
        actions.extend(WantBlob(blob, shared, sizes.get(blob, 0)) for blob, shared in state.take_wanted().items())
    if state.loaded:
        unload(state)
    if not state.scopes_live and not state.unopened:
        root_failed = any(isinstance(item.outcome, Failure) for item in state.root.items)
        _end(state, now_ms, actions, pb.RUN_STATUS_FAILED if root_failed else pb.RUN_STATUS_COMPLETED)
    return actions


def _cause_to_end(state: RunState) -> tuple[pb.RunStatus, Failure] | None:
    """Return status and failure if the run must end early, else None."""
    if state.cancelled:
        return pb.RUN_STATUS_CANCELLED, Failure(Code.CANCELLED, "the run was cancelled")

    if state.adoptions_in_a_row > ADOPTIONS_IN_A_ROW_MAX or state.adoptions_fruitless > ADOPTIONS_FRUITLESS_MAX:
        return pb.RUN_STATUS_RECOVERY_FAILED, Failure(
            Code.ORCHESTRATOR_ERROR,
            f"{state.adoptions_fruitless - 1} executors in a row died with this run before it made any progress",
        )

    if state.adoptions_given_back >= ADOPTIONS_IN_A_ROW_MAX:
        return pb.RUN_STATUS_RECOVERY_FAILED, Failure(
            Code.ORCHESTRATOR_ERROR,
            f"{state.adoptions_given_back} executors in a row gave this run back; see their logs for the reason",
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
    """Cancel all calls in flight and end the run."""
    for scope in state.scopes:
        for item in scope.items:
            actions.extend(CancelCall(step) for step in item.active.values() if step.phase is IN_FLIGHT)

    fact = pb.RunCompleted(status=status)
    if failure is not None:
        fact.failure.CopyFrom(failure_to_pb(failure))
    state.begin_ending()
    actions.append(Append(pb.Entry(at_ms=now_ms, run_completed=fact)))


def _report_ended_scopes(state: RunState, actions: list[Action]) -> None:
    actions.extend(ScopeEnded(scope) for scope in state.scopes_ended)
    state.scopes_ended = []


def _start_ready(state: RunState, now_ms: int, routes: Routes, blobs: Blobs, actions: list[Action]) -> None:
    """Start the ready steps: all engine components, and calls to hosts as far as the window has slots."""
    # 1. Sort new steps into the two queues.
    for step in state.fresh:
        if not _is_ready(step):
            continue
        item = step.item
        if routes.may_be_engine(item.scope.plan.steps[step.index].component):
            state.engine_ready.append(step)
        else:
            heappush(state.ready, (item.index, step.index, item.scope.number, step))
    state.fresh = []

    # 2. Engine components use no slot.
    if state.engine_ready:
        ready, state.engine_ready = state.engine_ready, []
        for step in ready:
            if _is_ready(step):
                _start(state, step, now_ms, routes, blobs, actions)

    # 3. Calls to hosts, in order of item, step and scope.
    while state.ready and _has_slot(state):
        step = heappop(state.ready)[3]
        if _is_ready(step):
            _start(state, step, now_ms, routes, blobs, actions)


def _has_slot(state: RunState) -> bool:
    """Return True if the window lets another call start.

    The only such test: two differing tests would move a step between queues endlessly.
    """
    return state.slots_used < state.policy.concurrency_max


def _is_ready(step: StepRun) -> bool:
    return step.phase is READY and step.item.active.get(step.index) is step and step.item.outcome is None


def _start(state: RunState, step: StepRun, now_ms: int, routes: Routes, blobs: Blobs, actions: list[Action]) -> None:
    """Evaluate the input of a ready step, then route and dispatch the step or run it in the engine."""
    input = evaluate_input(state, step, blobs)
    if input is None:
        state.blocked_steps.append(step)
        return
    if isinstance(input, Failure):
        _fail(step, now_ms, actions, failure_of_input(state, step, input), pb.ORIGIN_INPUT)
        return

    item = step.item
    target = routes.resolve(item.scope.plan.steps[step.index].component, Json(input))
    if target is None:
        state.blocked_steps.append(step)
    elif isinstance(target, NoRoute):
        _fail(step, now_ms, actions, failure_of_route(state, step, target.failure()), pb.ORIGIN_ROUTING)
    elif target.engine is not None:
        _conclude_step(state, step, begin(state, step, target.engine, input, now_ms, blobs), now_ms, actions)
    elif not _has_slot(state):
        # Queued as an engine component, but the conditions of its route lead to a host: it waits like any other call.
        heappush(state.ready, (item.index, step.index, item.scope.number, step))
    else:
        state.start_flight(step)
        failed = step.transport_failed + step.component_failed
        step.attempt = step.rejoin or 1 + failed + state.adoptions - step.ready_at
        step.rejoin = 0
        actions.append(Dispatch(step, step.attempt, target, input))


def _fail(step: StepRun, now_ms: int, actions: list[Action], failure: Failure, origin: pb.Origin) -> None:
    """End a step that was never dispatched, without regard to `onError`."""
    step.enter(SETTLING)
    item = step.item
    completed = pb.StepCompleted(failure=failure_to_pb(failure, origin))
    entry = pb.Entry(scope=item.scope.number, item=item.index, step=step.index, at_ms=now_ms, step_completed=completed)
    actions.append(Append(entry))


def _conclude_step(state: RunState, step: StepRun, begun: Begun | None, now_ms: int, actions: list[Action]) -> None:
    """Journal the result of starting or resuming an engine component."""
    if begun is None:
        _block(state, step)
        return
    derived = isinstance(begun, Composed)
    if isinstance(begun, Json) and not derived and (problem := composed_problem(begun.raw)) is not None:
        begun = Failure(Code.COMPONENT_FAILED, f"the result of step {step.id!r} cannot be kept: {problem}")

    if isinstance(begun, (Json, Failure)):
        entry = settle(
            state,
            step,
            begun,
            origin=pb.ORIGIN_COMPONENT,
            attempt=1 + step.component_failed + step.transport_failed,
            started_at_ms=step.started_at_ms or now_ms,
            duration_ms=max(0, now_ms - step.started_at_ms) if step.started_at_ms else 0,
            host="",
            now_ms=now_ms,
            of_sub_run=derived,
        )
    else:
        entry = _fact_entry(step, begun, now_ms)
    step.enter(SETTLING)
    actions.append(Append(entry))


def _fact_entry(step: StepRun, fact: Fact, now_ms: int) -> pb.Entry:
    item = step.item
    entry = pb.Entry(scope=item.scope.number, item=item.index, step=step.index, at_ms=now_ms)
    match fact:
        case pb.TimerSet():
            entry.timer_set.CopyFrom(fact)
        case pb.SignalAwaited():
            entry.signal_awaited.CopyFrom(fact)
        case pb.SubRunStarted():
            entry.sub_run_started.CopyFrom(fact)
        case _:
            assert_never(fact)
    return entry


def _block(state: RunState, step: StepRun) -> None:
    """Return a step to the queue of its phase until the missing blob is loaded."""
    if step.phase is PARENT:
        state.due.append(step)
    elif step.phase is WAITING:
        state.signalled.append(step)
    elif step.phase is SLEEPING:
        state.push_timer(step)
    else:
        state.blocked_steps.append(step)


def _fire_timers(state: RunState, now_ms: int, blobs: Blobs, actions: list[Action]) -> None:
    """Continue the steps with a due timer."""
    sleeping: list[StepRun] = []
    while state.timers and state.timers[0][0] <= now_ms:
        at_ms, *_, step = heappop(state.timers)
        if step.wake_at_ms != at_ms or step.item.active.get(step.index) is not step:
            continue
        if step.phase is RETRYING:
            step.enter(READY)
            state.fresh.append(step)
        elif step.phase is SLEEPING:
            sleeping.append(step)
        elif step.phase is WAITING:
            _conclude_step(state, step, NOT_SIGNALLED, now_ms, actions)

    # After the loop: a sleep that waits for a blob queues its timer again, which is still due.
    for step in sleeping:
        _conclude_step(state, step, sleep_output(state, step, blobs), now_ms, actions)


def _resume_signalled(state: RunState, now_ms: int, blobs: Blobs, actions: list[Action]) -> None:
    steps, state.signalled = state.signalled, []
    for step in steps:
        if step.phase is WAITING and step.item.active.get(step.index) is step:
            _conclude_step(state, step, signal_output(state, step, blobs), now_ms, actions)


def _resume_parents(state: RunState, now_ms: int, blobs: Blobs, actions: list[Action]) -> None:
    due, state.due = state.due, []
    for step in due:
        # After a replay the parent may be past this sub-run: it has its outcome, or a later iteration is running.
        waits = step.phase is PARENT and step.item.active.get(step.index) is step
        if waits and step.sub_runs and step.sub_runs[-1].ended:
            _conclude_step(state, step, resume_parent(state, step, blobs), now_ms, actions)
