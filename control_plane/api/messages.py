"""Encoding: views and events of runs to messages of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from control_plane.api.values import fill_struct
from control_plane.history import (
    Adopted,
    CancelRequested,
    EventBatch,
    HistoryEndsEarly,
    ItemDone,
    RunDone,
    Signalled,
    StepDone,
    SubRun,
)
from stepflow.errors import Failure
from stepflow.log_lines import StepLog, lines_to_pb
from stepflow.mesh.v1 import runs_pb2
from stepflow.run.views import StepEvent

if TYPE_CHECKING:
    from control_plane.api.values import Values
    from control_plane.history import RunEvent
    from control_plane.views import ItemView, RunView
    from stepflow.mesh.v1 import values_pb2
    from stepflow.run.views import StepView

LONGEST_MS = 2**32 - 1
"""Longest duration that an event can carry, 49 days; a longer one is reported as this."""


class MessageWriter:
    """Encodes items, steps and events, whose values take the requested form; `with_logs`: failures with log lines."""

    def __init__(self, values: Values, form: values_pb2.ValueForm, *, with_logs: bool = False) -> None:
        self._values = values
        self._form = form
        self._with_logs = with_logs

    async def item(self, view: ItemView) -> runs_pb2.Item:
        return runs_pb2.Item(
            item=view.item,
            status=status_constant(view.status),
            outcome=None if view.outcome is None else await self._values.outcome(view.outcome, self._form),
            completed_at_ms=view.completed_at_ms or 0,
        )

    async def step(self, view: StepView, *, with_result: bool) -> runs_pb2.StepSummary:
        outcome = None
        if view.outcome is not None:
            outcome = await self._values.outcome(view.outcome, self._form, with_result=with_result)
        return runs_pb2.StepSummary(
            step=runs_pb2.StepPlace(
                run_id=view.run_id,
                item=view.item,
                step_id=view.step_id,
                step_index=view.step_index,
                component=view.component,
                depth=view.depth,
                path=view.path,
            ),
            status=status_constant(view.status),
            attempt=view.attempt,
            retries=view.retries,
            started_at_ms=view.started_at_ms or 0,
            completed_at_ms=view.completed_at_ms or 0,
            duration_ms=view.duration_ms,
            outcome=outcome,
            failed_step_id=view.skipped_for,
        )

    async def event_batch(self, batch: EventBatch) -> runs_pb2.WatchRunResponse:
        reply = runs_pb2.WatchRunResponse(events=[await self._event(event) for event in batch.events])
        if batch.position is not None:
            reply.position.partition, reply.position.seq = batch.position
        return reply

    async def _event(self, run_event: RunEvent) -> runs_pb2.RunEvent:
        match run_event:
            case Adopted(at_ms, partition, executor_id, handed_over):
                adopted = runs_pb2.RunAdopted(partition=partition, executor_id=executor_id, handed_over=handed_over)
                return runs_pb2.RunEvent(at_ms=at_ms, run_adopted=adopted)

            case StepDone(event, _):
                return runs_pb2.RunEvent(at_ms=event.at_ms, step_ended=await self._step_ended(run_event))

            case SubRun(event, sub_run_id):
                opened = runs_pb2.SubRunOpened(step=_step_position(event), sub_run_id=sub_run_id)
                return runs_pb2.RunEvent(at_ms=event.at_ms, sub_run_opened=opened)

            case ItemDone(at_ms, _, _):
                return runs_pb2.RunEvent(at_ms=at_ms, item_ended=await self._item_ended(run_event))

            case CancelRequested(at_ms):
                return runs_pb2.RunEvent(at_ms=at_ms, run_cancel_requested=runs_pb2.RunCancelRequested())

            case Signalled(at_ms, item, name):
                signalled = runs_pb2.RunSignalled(item=item, signal=name)
                return runs_pb2.RunEvent(at_ms=at_ms, run_signalled=signalled)

            case HistoryEndsEarly(at_ms, partition, reason):
                incomplete = runs_pb2.HistoryIncomplete(partition=partition, reason=reason)
                return runs_pb2.RunEvent(at_ms=at_ms, history_incomplete=incomplete)

            case RunDone(run):
                ended = runs_pb2.RunEnded(run=run_message(run))
                return runs_pb2.RunEvent(at_ms=run.completed_at_ms or 0, run_ended=ended)

            case StepLog():
                return _step_logged(run_event)

            case StepEvent():
                return await self._step_event(run_event)

            case _:
                assert_never(run_event)

    async def _step_event(self, event: StepEvent) -> runs_pb2.RunEvent:
        reply = runs_pb2.RunEvent(at_ms=event.at_ms)
        step = _step_position(event)

        match event.kind:
            case "started":
                reply.step_started.CopyFrom(runs_pb2.StepStarted(step=step, attempt=event.attempt))

            case "progress":
                progress = runs_pb2.StepProgress(
                    step=step, attempt=event.attempt, message=event.message, done=event.done, total=event.total
                )
                reply.step_progress.CopyFrom(progress)

            case "retrying":
                assert event.failure is not None
                retrying = runs_pb2.StepRetrying(
                    step=step,
                    attempt=event.attempt,
                    failure=await self._values.failure(event.failure, self._form),
                    retry_at_ms=event.until_ms or 0,
                )
                reply.step_retrying.CopyFrom(retrying)

            case "skipped":
                assert event.failure is not None
                skipped = runs_pb2.StepSkipped(
                    step=step,
                    failed_step_id=event.message,
                    failure=await self._values.failure(event.failure, self._form),
                )
                reply.step_skipped.CopyFrom(skipped)

            case "waiting":
                waiting = runs_pb2.StepWaiting(step=step, signal=event.message, until_ms=event.until_ms or 0)
                reply.step_waiting.CopyFrom(waiting)

            case _:
                reply.step_sleeping.CopyFrom(runs_pb2.StepSleeping(step=step, until_ms=event.until_ms or 0))

        return reply

    async def _step_ended(self, done: StepDone) -> runs_pb2.StepEnded:
        event = done.event
        outcome = event.failure or done.result
        return runs_pb2.StepEnded(
            step=_step_position(event),
            attempt=event.attempt,
            outcome=None if outcome is None else await self._values.outcome(outcome, self._form),
            duration_ms=min(event.duration_ms or 0, LONGEST_MS),
            failed=event.failure is not None,
            log_tail=lines_to_pb(event.log_tail) if self._with_logs else None,
        )

    async def _item_ended(self, done: ItemDone) -> runs_pb2.ItemEnded:
        outcome = done.outcome
        return runs_pb2.ItemEnded(
            item=done.item,
            failed=isinstance(outcome, Failure),
            outcome=None if outcome is None else await self._values.outcome(outcome, self._form),
        )


def _step_position(event: StepEvent) -> runs_pb2.StepPlace:
    position = runs_pb2.StepPlace(
        run_id=event.run_id,
        item=event.item,
        step_id=event.step_id,
        step_index=event.step_index,
        component=event.component,
        depth=event.depth,
        path=event.path,
    )
    if event.parent is not None:
        position.parent.run_id, position.parent.item, position.parent.step_index = event.parent
    return position


def _step_logged(log: StepLog) -> runs_pb2.RunEvent:
    step = runs_pb2.StepPlace(
        run_id=log.run_id,
        item=log.item,
        step_id=log.step_id,
        step_index=log.step_index,
        component=log.component,
        depth=log.depth,
    )
    lines = lines_to_pb(log.lines)
    logged = runs_pb2.StepLogged(step=step, attempt=log.attempt, lines=lines, dropped=log.dropped)
    return runs_pb2.RunEvent(at_ms=log.lines[-1].at_ms if log.lines else 0, step_logged=logged)


def run_message(view: RunView) -> runs_pb2.Run:
    """Encode a run."""
    run = runs_pb2.Run(
        run_id=view.run_id,
        flow_id=view.flow_id,
        flow_name=view.flow_name,
        status=status_constant(view.status),
        items_total=view.items_total,
        items_completed=view.items_completed,
        items_failed=view.items_failed,
        items_cancelled=view.items_cancelled,
        created_at_ms=view.created_at_ms,
        completed_at_ms=view.completed_at_ms or 0,
        queued_reason=view.queued_reason,
        paused_ms=view.paused_ms,
    )
    if view.labels:
        fill_struct(run.labels, view.labels)
    return run


def status_constant(name: str) -> str:
    """Return the protocol's constant for a status such as `failed`."""
    return f"RUN_STATUS_{name.upper()}"


__all__ = ["MessageWriter", "run_message", "status_constant"]
