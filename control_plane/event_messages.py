"""What `history` and `events` tell of a run, as messages of the API."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.history import Adopted, CancelAsked, ItemDone, Moment, RunDone, StepDone, SubRun
from stepflow.errors import Failure
from stepflow.mesh.v1 import runs_pb2

if TYPE_CHECKING:
    from control_plane.history import Happening
    from control_plane.values import Values
    from stepflow.mesh.v1 import values_pb2
    from stepflow.run.views import StepEvent


class EventWriter:
    """Encodes moments, values in the form asked for."""

    def __init__(self, values: Values, form: values_pb2.ValueForm) -> None:
        self._values = values
        self._form = form

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
            case RunDone(run):
                from control_plane.service_runs import run_message

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
