"""RunsService: submit, read, follow, cancel, signal, list and delete runs.

Each method decodes its request, calls the control plane, and encodes the answer.
"""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from control_plane.admission import RunRequest
from control_plane.api.flows import read_flow
from control_plane.api.messages import MessageWriter, run_message
from control_plane.api.values import struct_tree
from control_plane.deletion import delete_run
from control_plane.listing import RunFilter
from control_plane.obstacles import queued_reason
from control_plane.paging import page_size
from control_plane.signals import signal
from control_plane.views import status_name
from stepflow.codec import decode
from stepflow.errors import AlreadyExists, Invalid, StepflowError
from stepflow.ids import parse_run_id
from stepflow.journal import read_record
from stepflow.mesh.v1 import runs_pb2, runs_pb2_grpc
from stepflow.retry import backoff_from_proto

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from control_plane.api.values import Values
    from control_plane.catalog import Catalog
    from control_plane.control_plane import ControlPlane
    from control_plane.events import Events
    from control_plane.listing import Listing
    from control_plane.quota import QuotaGate
    from control_plane.views import RunView
    from stepflow.flow import Flow
    from stepflow.mesh.v1 import flows_pb2
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

RUNS_PER_CALL_MAX = 1_000
SUBMISSIONS_AT_ONCE = 32


class RunsServicer(runs_pb2_grpc.RunsServiceServicer):
    def __init__(
        self,
        control: ControlPlane,
        store: Store,
        blobs: BlobStore,
        *,
        catalog: Catalog,
        values: Values,
        listing: Listing,
        events: Events,
        quota: QuotaGate,
    ) -> None:
        self._control = control
        self._store = store
        self._blobs = blobs
        self._catalog = catalog
        self._values = values
        self._listing = listing
        self._events = events
        self._quota = quota

    async def SubmitRun(self, request: runs_pb2.SubmitRunRequest, _: Any) -> runs_pb2.SubmitRunResponse:
        return runs_pb2.SubmitRunResponse(run_id=await self._submit(request))

    async def SubmitRuns(self, request: runs_pb2.SubmitRunsRequest, _: Any) -> runs_pb2.SubmitRunsResponse:
        if len(request.runs) > RUNS_PER_CALL_MAX:
            raise Invalid(
                "TOO_MANY_RUNS", f"{len(request.runs):,} runs in one call; the limit is {RUNS_PER_CALL_MAX:,}"
            )
        slots = asyncio.Semaphore(SUBMISSIONS_AT_ONCE)

        async def submit(run: runs_pb2.SubmitRunRequest) -> runs_pb2.SubmitOutcome:
            async with slots:
                try:
                    return runs_pb2.SubmitOutcome(run_id=await self._submit(run))
                except StepflowError as error:
                    rejection = runs_pb2.Rejection(status=error.status, reason=error.reason, message=error.message)
                    return runs_pb2.SubmitOutcome(rejection=rejection)

        return runs_pb2.SubmitRunsResponse(outcomes=await asyncio.gather(*map(submit, request.runs)))

    async def _submit(self, request: runs_pb2.SubmitRunRequest) -> str:
        # 1. Refuse while the store is nearly full.
        await self._quota.check()

        # 2. Decode.
        values, retry = self._values, request.retry
        flow = await self._flow(request.flow)
        run = RunRequest(
            flow=flow,
            inputs=[await values.read(value, f"input {index}") for index, value in enumerate(request.inputs)],
            run_id=request.run_id or None,
            variables={
                name: decode(await values.read(value, f"variable {name}"))
                for name, value in sorted(request.variables.items())
            },
            overrides=decode(await values.read(request.overrides, "overrides"))
            if request.HasField("overrides")
            else None,
            concurrency_max=request.concurrency_max or None,
            check_input=not request.input_unchecked,
            labels=struct_tree(request.labels, "labels"),
            transport_retries_max=retry.transport_retries_max if retry.HasField("transport_retries_max") else None,
            backoff=backoff_from_proto(retry.backoff) if retry.HasField("backoff") else None,
        )

        # 3. Submit. A retry by name may find a newer version than the one the run was admitted with.
        try:
            return await self._control.submit(run)
        except AlreadyExists:
            admitted = await self._admitted_flow(request)
            if admitted is None or admitted == flow:
                raise
            return await self._control.submit(replace(run, flow=admitted))

    async def _flow(self, reference: flows_pb2.FlowReference) -> Flow | str:
        match reference.WhichOneof("kind"):
            case "flow_id":
                return reference.flow_id
            case "named":
                return await self._catalog.resolve(reference.named.name, reference.named.label)
            case "document":
                return await read_flow(self._values, reference.document)
            case _:
                raise Invalid("FLOW_MISSING", "the request names no flow: set flow_id, named or document")

    async def _admitted_flow(self, request: runs_pb2.SubmitRunRequest) -> str | None:
        """Return the flow of an existing run, if the flow is a version of the requested name."""
        if request.flow.WhichOneof("kind") != "named":
            return None

        record = await read_record(self._store, parse_run_id(request.run_id))
        versions = (await self._catalog.versions(request.flow.named.name)).versions
        return record.flow_id if any(version.flow_id == record.flow_id for version in versions) else None

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
        writer = MessageWriter(self._values, request.value_form)
        async with aclosing(self._events.follow(run_id, after, with_results=request.include_results)) as batches:
            async for batch in batches:
                yield await writer.event_batch(batch)

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
        await delete_run(self._store, self._blobs, parse_run_id(request.run_id))
        return runs_pb2.DeleteRunResponse()

    async def ListRuns(self, request: runs_pb2.ListRunsRequest, _: Any) -> runs_pb2.ListRunsResponse:
        wanted = RunFilter(
            statuses=frozenset(map(status_name, request.statuses)),
            flow_name=request.flow_name,
            created_since_ms=request.created_since_ms,
        )
        runs, token = await self._listing.runs(wanted, page_size(request.page_size), request.page_token)
        return runs_pb2.ListRunsResponse(runs=(_message(self._control, run) for run in runs), next_page_token=token)

    async def ListItems(self, request: runs_pb2.ListItemsRequest, _: Any) -> runs_pb2.ListItemsResponse:
        items, token = await self._listing.items(
            parse_run_id(request.run_id), page_size(request.page_size), request.page_token
        )
        writer = MessageWriter(self._values, request.value_form)
        return runs_pb2.ListItemsResponse(items=[await writer.item(item) for item in items], next_page_token=token)

    async def ListSteps(self, request: runs_pb2.ListStepsRequest, _: Any) -> runs_pb2.ListStepsResponse:
        steps, token = await self._listing.steps(
            parse_run_id(request.run_id),
            page_size(request.page_size),
            request.page_token,
            with_results=request.include_results,
        )
        writer = MessageWriter(self._values, request.value_form)
        return runs_pb2.ListStepsResponse(
            steps=[await writer.step(step, with_result=request.include_results) for step in steps],
            next_page_token=token,
        )


def _message(control: ControlPlane, view: RunView) -> runs_pb2.Run:
    """Encode a run, with the reason if no executor drives it."""
    if not view.terminal:
        view = replace(view, queued_reason=queued_reason(control.cluster, view.run_id))
    return run_message(view)


__all__ = ["RunsServicer"]
