"""Listings and events of a run, derived from entries for clients and the command line.

Never stored. `step_event` turns an entry into an event; `StepList` folds a journal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from stepflow.codec import Json
from stepflow.errors import Failure
from stepflow.flow.values import Stored
from stepflow.log_lines import LogLine, lines_from_pb
from stepflow.run.entries import failure_from_pb, json_of
from stepflow.run.failed_steps import skipped_for, step_path

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepflow.codec import LargeJson
    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.run.scope import Scope, StepRun
    from stepflow.run.state import RunState

EventKind = Literal[
    "started", "completed", "failed", "skipped", "retrying", "sleeping", "waiting", "sub_run", "progress"
]


class StepEvent(msgspec.Struct, frozen=True):
    """A change of a step. Times are milliseconds since 1970."""

    kind: EventKind
    run_id: str
    depth: int
    item: int
    """Index in the whole run, across partitions."""
    step_id: str
    step_index: int
    component: str
    attempt: int
    at_ms: int
    duration_ms: int | None = None
    """Duration of the attempt, of a call by one clock; None if the step was never dispatched."""
    failure: Failure | None = None
    until_ms: int | None = None
    """When the next attempt, the end of a sleep or the end of a wait for a signal is due."""
    message: str = ""
    """Text of a progress report, name of the awaited signal, or id of the failed step that a skipped one needs."""
    done: float = 0.0
    """Of a progress report: the amount done so far."""
    total: float = 0.0
    """Of a progress report: the whole amount; 0 if unknown."""
    parent: tuple[str, int, int] | None = None
    """For a step of a sub-run: run id, item and index of the step that opened the sub-run."""
    path: str = ""
    """Path of the step, such as `7/summaries[0]/ask`."""
    log_tail: tuple[LogLine, ...] = ()
    """The last log lines of a failed attempt that ended the step."""


def step_event(state: RunState, entry: pb.Entry) -> StepEvent | None:
    """Return the event of an entry, applied or not; None if the entry is not about a step."""
    kind = entry.WhichOneof("kind")
    if kind not in _KINDS:
        return None

    scope = state.scopes[entry.scope]
    step = scope.plan.steps[entry.step]
    event_kind: EventKind = _KINDS[kind]

    attempt, duration, failure, until, message = 0, None, None, None, ""
    log_tail: tuple[LogLine, ...] = ()
    if kind == "step_completed":
        done = entry.step_completed
        attempt = done.attempt
        duration = _duration_ms(entry, done)
        if done.HasField("failure"):
            event_kind, failure = "failed", failure_from_pb(done.failure)
            if message := skipped_for(scope, entry.item, entry.step, done.failure):
                event_kind = "skipped"
        log_tail = lines_from_pb(done.log_tail)
    elif kind == "attempt_failed":
        failed = entry.attempt_failed
        attempt, until, failure = failed.attempt, failed.retry_at_ms, failure_from_pb(failed.failure)
        duration = _duration_ms(entry, failed)
    elif kind == "timer_set":
        until = entry.timer_set.fire_at_ms
    elif kind == "signal_awaited":
        until, message = entry.signal_awaited.until_ms or None, entry.signal_awaited.name

    return StepEvent(
        kind=event_kind,
        run_id=scope.run_id,
        depth=scope.depth,
        item=scope.first_item + entry.item,
        step_id=step.id,
        step_index=step.index,
        component=step.component,
        attempt=attempt,
        at_ms=entry.at_ms,
        duration_ms=duration,
        failure=failure,
        until_ms=until,
        message=message,
        parent=_parent(scope),
        path=step_path(scope.items[entry.item], step.id),
        log_tail=log_tail,
    )


def result_of(state: RunState, entry: pb.Entry) -> Json:
    """Return the result of a step's last entry, which `state` has recorded: whole, in the blob store, or composed."""
    if not entry.step_completed.of_sub_run:
        return json_of(entry.step_completed.result)
    result = state.scopes[entry.scope].items[entry.item].env.results[entry.step]
    return result if isinstance(result, Json) else Json(b"null")  # of a damaged run, which ends for it


def _duration_ms(entry: pb.Entry, ended: pb.StepCompleted | pb.AttemptFailed) -> int | None:
    if not ended.started_at_ms:
        return None
    # Entries without a duration: the difference of two clocks, which may be negative.
    return ended.duration_ms or max(0, entry.at_ms - ended.started_at_ms)


def _parent(scope: Scope) -> tuple[str, int, int] | None:
    opener = scope.parent
    if opener is None:
        return None
    above = opener.item.scope
    return above.run_id, above.first_item + opener.item.index, opener.index


_KINDS: dict[str | None, EventKind] = {
    "step_completed": "completed",
    "attempt_failed": "retrying",
    "timer_set": "sleeping",
    "signal_awaited": "waiting",
    "sub_run_started": "sub_run",
}


def call_event(
    step: StepRun, kind: EventKind, at_ms: int, message: str = "", *, done: float = 0.0, total: float = 0.0
) -> StepEvent:
    """Return the event of a dispatch or of a progress report, without an entry."""
    scope = step.item.scope
    return StepEvent(
        kind=kind,
        run_id=scope.run_id,
        depth=scope.depth,
        item=scope.first_item + step.item.index,
        step_id=step.id,
        step_index=step.index,
        component=scope.plan.steps[step.index].component,
        attempt=step.attempt,
        at_ms=at_ms,
        message=message,
        done=done,
        total=total,
        parent=_parent(scope),
        path=step_path(step.item, step.id),
    )


class StepView(msgspec.Struct, gc=False):
    """A step in a listing.

    `status`: running, completed, failed, skipped (a step that it needs has failed), or cancelled (the run ended before
    the step did).

    The garbage collector skips it: a view is part of no cycle, and a long run has thousands.
    """

    run_id: str
    item: int
    step_id: str
    step_index: int
    component: str
    depth: int
    status: str = "running"
    attempt: int = 0
    started_at_ms: int | None = None
    completed_at_ms: int | None = None
    duration_ms: int | None = None
    """Duration of the last attempt, as in StepEvent; None without an end of its own, or if it was never dispatched."""
    outcome: Json | Failure | LargeJson | None = None
    retries: int = 0
    path: str = ""
    """As in StepEvent."""
    skipped_for: str = ""
    """Of a skipped step: the id of the failed step."""


class StepList:
    """The started steps of a partition, kept current entry by entry."""

    def __init__(self) -> None:
        self._ended: dict[tuple[int, int, int], StepView] = {}
        """Steps with entries, by scope, item and step. A view is replaced and never changed."""

    def add(self, state: RunState, entry: pb.Entry) -> None:
        """Add an entry that `state` has recorded."""
        kind = entry.WhichOneof("kind")
        if kind not in _KINDS:
            return

        key = (entry.scope, entry.item, entry.step)
        view = _new_view(state.scopes[entry.scope], entry.item, entry.step)
        known = self._ended.get(key)
        if known is not None:
            view.attempt, view.retries = known.attempt, known.retries

        if kind == "step_completed":
            _end_view(view, state, entry)
        elif kind == "attempt_failed":
            view.attempt = max(view.attempt, entry.attempt_failed.attempt)
            view.retries += 1
        self._ended[key] = view

    def views(self, state: RunState) -> list[StepView]:
        """Return all steps, sorted by scope in the order of opening, then item, then step."""
        views = dict(self._ended)
        active = (step for scope in state.scopes for item in scope.items for step in item.active.values())
        for step in (*active, *state.cut_off):
            item, scope = step.item, step.item.scope
            key = (scope.number, item.index, step.index)
            if key not in views:
                views[key] = _new_view(scope, item.index, step.index)

        listed = [views[key] for key in sorted(views)]
        return listed if state.status is None else [_at_end(view, state.last_at_ms) for view in listed]


def _new_view(scope: Scope, item: int, index: int) -> StepView:
    step = scope.plan.steps[index]
    path = step_path(scope.items[item], step.id)
    return StepView(scope.run_id, scope.first_item + item, step.id, index, step.component, scope.depth, path=path)


def _end_view(view: StepView, state: RunState, entry: pb.Entry) -> None:
    """Complete the view of a step by the entry that ends it."""
    done = entry.step_completed
    view.attempt = max(view.attempt, done.attempt)
    view.completed_at_ms = entry.at_ms
    view.started_at_ms = done.started_at_ms or None
    view.duration_ms = _duration_ms(entry, done)

    outcome = state.scopes[entry.scope].items[entry.item].env.results[entry.step]
    if isinstance(outcome, Stored) and not done.of_sub_run:  # that of the state is loaded and unloaded meanwhile
        outcome = json_of(done.result)
    view.outcome = outcome
    view.status = "completed"
    if isinstance(outcome, Failure):
        view.skipped_for = skipped_for(state.scopes[entry.scope], entry.item, entry.step, done.failure)
        view.status = "skipped" if view.skipped_for else "failed"


def _at_end(view: StepView, ended_at_ms: int) -> StepView:
    """Return the view of a step after the end of its run."""
    if view.status != "running":
        return view
    return msgspec.structs.replace(view, status="cancelled", completed_at_ms=ended_at_ms)


def list_steps(state: RunState, entries: Iterable[pb.Entry]) -> list[StepView]:
    """List the started steps of a replayed state, given the replayed entries."""
    steps = StepList()
    for entry in entries:
        steps.add(state, entry)
    return steps.views(state)
