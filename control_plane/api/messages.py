"""What the control plane says of runs, items, steps and events, as messages of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.api.values import fill_struct
from control_plane.history import Adopted, CancelAsked, ItemDone, Moment, RunDone, Signalled, StepDone, SubRun
from stepflow.errors import Failure
from stepflow.mesh.v1 import runs_pb2

if TYPE_CHECKING:
    from control_plane.api.values import Values
    from control_plane.history import Happening
    from control_plane.views import ItemView, RunView
    from stepflow.mesh.v1 import values_pb2
    from stepflow.run.views import StepEvent, StepView


class MessageWriter:
    """Encodes what holds values, in the form that was asked for."""

    def __init__(self, values: Values, form: values_pb2.ValueForm) -> None:
        self._values = values
        self._form = form

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
            ),
            status=status_constant(view.status),
            attempt=view.attempt,
            retries=view.retries,
            started_at_ms=view.started_at_ms or 0,
            completed_at_ms=view.completed_at_ms or 0,
            outcome=outcome,
        )

    async def moment(self, moment: Moment) -> runs_pb2.WatchRunResponse:
        events = [await self._event(happening) for happening in moment.happenings]
        reply = runs_pb2.WatchRunResponse(events=events)
        if moment.position is not None:
            reply.position.partition, reply.position.seq = moment.position
        return reply

    async def _event(self, happening: Happening) -> runs_pb2.RunEvent:
        match happening:
            case Adopted(at_ms, partition, executor_id, handed_over):
                adopted = runs_pb2.RunAdopted(partition=partition, executor_id=executor_id, handed_over=handed_over)
                return runs_pb2.RunEvent(at_ms=at_ms, run_adopted=adopted)
            case StepDone(event, _):
                return runs_pb2.RunEvent(at_ms=event.at_ms, step_ended=await self._step_ended(happening))
            case SubRun(event, sub_run_id):
                opened = runs_pb2.SubRunOpened(step=_place(event), sub_run_id=sub_run_id)
                return runs_pb2.RunEvent(at_ms=event.at_ms, sub_run_opened=opened)
            case ItemDone(at_ms, _, _):
                return runs_pb2.RunEvent(at_ms=at_ms, item_ended=await self._item_ended(happening))
            case CancelAsked(at_ms):
                return runs_pb2.RunEvent(at_ms=at_ms, run_cancel_requested=runs_pb2.RunCancelRequested())
            case Signalled(at_ms, item, name):
                signalled = runs_pb2.RunSignalled(item=item, signal=name)
                return runs_pb2.RunEvent(at_ms=at_ms, run_signalled=signalled)
            case RunDone(run):
                ended = runs_pb2.RunEnded(run=run_message(run))
                return runs_pb2.RunEvent(at_ms=run.completed_at_ms or 0, run_ended=ended)
            case _:
                return await self._step_event(happening)

    async def _step_event(self, event: StepEvent) -> runs_pb2.RunEvent:
        reply = runs_pb2.RunEvent(at_ms=event.at_ms)
        match event.kind:
            case "started":
                reply.step_started.CopyFrom(runs_pb2.StepStarted(step=_place(event), attempt=event.attempt))
            case "progress":
                progress = runs_pb2.StepProgress(step=_place(event), attempt=event.attempt, message=event.message)
                reply.step_progress.CopyFrom(progress)
            case "retrying":
                assert event.failure is not None
                retrying = runs_pb2.StepRetrying(
                    step=_place(event),
                    attempt=event.attempt,
                    failure=await self._values.failure(event.failure, self._form),
                    retry_at_ms=event.until_ms or 0,
                )
                reply.step_retrying.CopyFrom(retrying)
            case "waiting":
                waiting = runs_pb2.StepWaiting(step=_place(event), signal=event.message, until_ms=event.until_ms or 0)
                reply.step_waiting.CopyFrom(waiting)
            case _:
                reply.step_sleeping.CopyFrom(runs_pb2.StepSleeping(step=_place(event), until_ms=event.until_ms or 0))
        return reply

    async def _step_ended(self, done: StepDone) -> runs_pb2.StepEnded:
        event = done.event
        outcome = event.failure or done.result
        return runs_pb2.StepEnded(
            step=_place(event),
            attempt=event.attempt,
            outcome=None if outcome is None else await self._values.outcome(outcome, self._form),
            duration_ms=max(0, event.duration_ms or 0),
            failed=event.failure is not None,
        )

    async def _item_ended(self, done: ItemDone) -> runs_pb2.ItemEnded:
        outcome = done.outcome
        return runs_pb2.ItemEnded(
            item=done.item,
            failed=isinstance(outcome, Failure),
            outcome=None if outcome is None else await self._values.outcome(outcome, self._form),
        )


def _place(event: StepEvent) -> runs_pb2.StepPlace:
    place = runs_pb2.StepPlace(
        run_id=event.run_id,
        item=event.item,
        step_id=event.step_id,
        step_index=event.step_index,
        component=event.component,
        depth=event.depth,
    )
    if event.parent is not None:
        place.parent.run_id, place.parent.item, place.parent.step_index = event.parent
    return place


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
    )
    if view.labels:
        fill_struct(run.labels, view.labels)
    return run


def status_constant(name: str) -> str:
    """Return the name in the protocol of a status such as `failed`."""
    return f"RUN_STATUS_{name.upper()}"
