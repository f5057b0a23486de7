"""RunsService: submit, read, follow, cancel, signal, list and delete runs.

Each method decodes its request, calls the control plane, and encodes the answer. Submissions: see `submissions`.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from control_plane.api.messages import MessageWriter, run_message
from control_plane.deletion import delete_run
from control_plane.obstacles import host_wait_reason, queued_reason
from control_plane.paging import page_size
from control_plane.run_list import RunFilter
from control_plane.signals import signal
from control_plane.views import status_name
from stepflow.errors import Invalid, StepflowError
from stepflow.ids import parse_run_id
from stepflow.mesh.v1 import runs_pb2, runs_pb2_grpc
from stepflow.rpc import call_memory
from stepflow.rpc.errors import retry_after_ms
from stepflow.rpc.findings import finding_message, worst_first

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from control_plane.api.submissions import Submissions
    from control_plane.api.values import Values
    from control_plane.control_plane import ControlPlane
    from control_plane.events import Events
    from control_plane.listing import Listing
    from control_plane.views import RunView
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

RUNS_PER_CALL_MAX = 1_000
SUBMISSIONS_AT_ONCE = 32

FINDINGS_PER_REJECTION = 20


class RunsServicer(runs_pb2_grpc.RunsServiceServicer):
    def __init__(
        self,
        control: ControlPlane,
        store: Store,
        blobs: BlobStore,
        *,
        submissions: Submissions,
        values: Values,
        listing: Listing,
        events: Events,
    ) -> None:
        self._control = control
        self._store = store
        self._blobs = blobs
        self._submissions = submissions
        self._values = values
        self._listing = listing
        self._events = events

    async def SubmitRun(self, request: runs_pb2.SubmitRunRequest, _: Any) -> runs_pb2.SubmitRunResponse:
        return runs_pb2.SubmitRunResponse(run_id=await self._submissions.submit(request))

    async def SubmitRuns(self, request: runs_pb2.SubmitRunsRequest, _: Any) -> runs_pb2.SubmitRunsResponse:
        if len(request.runs) > RUNS_PER_CALL_MAX:
            raise Invalid(
                "TOO_MANY_RUNS", f"{len(request.runs):,} runs in one call; the limit is {RUNS_PER_CALL_MAX:,}"
            )
        slots = asyncio.Semaphore(SUBMISSIONS_AT_ONCE)

        async def submit(run: runs_pb2.SubmitRunRequest) -> runs_pb2.SubmitOutcome:
            async with slots:
                try:
                    return runs_pb2.SubmitOutcome(run_id=await self._submissions.submit(run))
                except StepflowError as error:
                    rejection = runs_pb2.Rejection(
                        status=error.status,
                        reason=error.reason,
                        message=error.message,
                        retry_after_ms=retry_after_ms(error),
                    )
                    found = error.details.get("diagnostics")
                    if isinstance(found, dict):
                        some = worst_first(found["diagnostics"])[:FINDINGS_PER_REJECTION]
                        rejection.diagnostics.extend(map(finding_message, some))
                    return runs_pb2.SubmitOutcome(rejection=rejection)

        return runs_pb2.SubmitRunsResponse(outcomes=await asyncio.gather(*map(submit, request.runs)))

    async def SubmitBatch(
        self, requests: AsyncIterator[runs_pb2.SubmitBatchRequest], _: Any
    ) -> runs_pb2.SubmitBatchResponse:
        return runs_pb2.SubmitBatchResponse(run_id=await self._submissions.submit_batch(requests))

    async def GetRun(self, request: runs_pb2.GetRunRequest, _: Any) -> runs_pb2.GetRunResponse:
        return runs_pb2.GetRunResponse(
            run=_message(self._control, await self._control.get_run(parse_run_id(request.run_id)))
        )

    async def WaitRun(self, request: runs_pb2.WaitRunRequest, _: Any) -> runs_pb2.WaitRunResponse:
        run_id = parse_run_id(request.run_id)
        view = await self._control.wait(run_id, timeout_s=request.timeout_ms / 1000 or None)
        reply = runs_pb2.WaitRunResponse(run=_message(self._control, view))

        if request.include_items:
            items, reply.next_page_token = await self._listing.items(run_id, page_size(0), "")
            writer = MessageWriter(self._values, request.value_form)
            reply.items.extend([await writer.item(item) for item in items])
        return reply

    async def WatchRun(
        self, request: runs_pb2.WatchRunRequest, _: Any
    ) -> AsyncGenerator[runs_pb2.WatchRunResponse, None]:
        run_id = parse_run_id(request.run_id)
        after = {position.partition: position.seq for position in request.positions}
        writer = MessageWriter(self._values, request.value_form, with_logs=request.include_logs)
        events = self._events.follow(
            run_id,
            after,
            with_results=request.include_results,
            with_logs=request.include_logs,
            until_now=request.until_now,
        )
        async with aclosing(events) as batches:
            async for batch in batches:
                yield await writer.event_batch(batch)
                call_memory.release()  # the message is sent

    async def CancelRun(self, request: runs_pb2.CancelRunRequest, _: Any) -> runs_pb2.CancelRunResponse:
        return runs_pb2.CancelRunResponse(
            run=_message(self._control, await self._control.cancel(parse_run_id(request.run_id)))
        )

    async def SignalRun(self, request: runs_pb2.SignalRunRequest, _: Any) -> runs_pb2.SignalRunResponse:
        payload = await self._values.read(request.payload, "payload") if request.HasField("payload") else b"null"
        signal_id = await signal(
            self._store,
            self._blobs,
            parse_run_id(request.run_id),
            request.name,
            payload,
            item=request.item,
            signal_id=request.signal_id,
        )
        return runs_pb2.SignalRunResponse(signal_id=signal_id)

    async def DeleteRun(self, request: runs_pb2.DeleteRunRequest, _: Any) -> runs_pb2.DeleteRunResponse:
        is_packed = self._control.run_store.is_packed
        await delete_run(self._store, self._blobs, parse_run_id(request.run_id), is_packed)
        return runs_pb2.DeleteRunResponse()

    async def ListRuns(self, request: runs_pb2.ListRunsRequest, _: Any) -> runs_pb2.ListRunsResponse:
        wanted = RunFilter(
            statuses=frozenset(map(status_name, request.statuses)),
            flow_name=request.flow_name,
            created_since_ms=request.created_since_ms,
            labels=dict(request.labels),
        )
        runs, token = await self._control.run_list.page(wanted, page_size(request.page_size), request.page_token)
        return runs_pb2.ListRunsResponse(runs=(_message(self._control, run) for run in runs), next_page_token=token)

    async def ListItems(self, request: runs_pb2.ListItemsRequest, _: Any) -> runs_pb2.ListItemsResponse:
        items, token = await self._listing.items(
            parse_run_id(request.run_id), page_size(request.page_size), request.page_token, request.first_item
        )
        writer = MessageWriter(self._values, request.value_form)
        return runs_pb2.ListItemsResponse(items=[await writer.item(item) for item in items], next_page_token=token)

    async def GetResult(
        self, request: runs_pb2.GetResultRequest, _: Any
    ) -> AsyncGenerator[runs_pb2.GetResultResponse, None]:
        found = await self._listing.result(parse_run_id(request.run_id), request.item, request.offset)
        async with aclosing(found.chunks) as chunks:
            yield runs_pb2.GetResultResponse(chunk=await anext(chunks, b""), result_bytes=found.text_bytes)
            async for chunk in chunks:
                yield runs_pb2.GetResultResponse(chunk=chunk)

    async def ListSteps(self, request: runs_pb2.ListStepsRequest, _: Any) -> runs_pb2.ListStepsResponse:
        page = await self._listing.steps(
            parse_run_id(request.run_id),
            page_size(request.page_size),
            request.page_token,
            with_results=request.include_results,
        )
        writer = MessageWriter(self._values, request.value_form)
        return runs_pb2.ListStepsResponse(
            steps=[await writer.step(step, with_result=request.include_results) for step in page.steps],
            next_page_token=page.token,
            incomplete=page.incomplete,
        )


def _message(control: ControlPlane, view: RunView) -> runs_pb2.Run:
    """Encode a run, with the reason if no executor drives it, or if it waits for a host."""
    if not view.terminal:
        reason = queued_reason(control.cluster, view.run_id) or host_wait_reason(control.cluster, view)
        view = replace(view, queued_reason=reason)
    return run_message(view)


__all__ = ["RunsServicer"]
