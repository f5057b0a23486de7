"""Submissions: decodes a request, refuses it while the store is nearly full, and submits it to the control plane."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

from control_plane.admission import RunRequest
from control_plane.api.batches import BATCHES_AT_ONCE, BatchReader
from control_plane.api.flows import find_flow
from control_plane.api.values import struct_tree
from stepflow.codec import decode
from stepflow.errors import AlreadyExists
from stepflow.ids import parse_run_id
from stepflow.journal import read_record
from stepflow.retry import backoff_from_proto
from stepflow.rpc import call_memory

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from control_plane.api.values import Values
    from control_plane.catalog import Catalog
    from control_plane.control_plane import ControlPlane
    from control_plane.pressure import AdmissionPressure
    from stepflow.mesh.v1 import runs_pb2
    from stepflow.store import Store


class Submissions:
    """Submits runs for the clients of one server."""

    def __init__(
        self, control: ControlPlane, store: Store, *, catalog: Catalog, values: Values, pressure: AdmissionPressure
    ) -> None:
        self._control = control
        self._store = store
        self._catalog = catalog
        self._values = values
        self._pressure = pressure
        self._batches = asyncio.Semaphore(BATCHES_AT_ONCE)

    async def submit(self, request: runs_pb2.SubmitRunRequest) -> str:
        """Submit a run and return its id. Raises: StepflowError."""
        await self._pressure.admit()
        return await self._admit(request, await self._decoded(request))

    async def submit_batch(self, messages: AsyncIterator[runs_pb2.SubmitBatchRequest]) -> str:
        """Submit a run whose inputs arrive in further messages, and return its id. Raises: StepflowError."""
        async with self._batches:
            await self._pressure.admit()
            await call_memory.hold()  # one partition of inputs
            reader = BatchReader(messages, self._values)
            request = await reader.run()
            run = await self._control.admission.stage(await self._decoded(request), reader.parts())
            return await self._admit(request, run)

    async def _decoded(self, request: runs_pb2.SubmitRunRequest) -> RunRequest:
        values, retry = self._values, request.retry
        return RunRequest(
            flow=await find_flow(values, self._catalog, request.flow),
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
            check_flow=not request.no_check,
            labels=struct_tree(request.labels, "labels"),
            transport_retries_max=retry.transport_retries_max if retry.HasField("transport_retries_max") else None,
            backoff=backoff_from_proto(retry.backoff) if retry.HasField("backoff") else None,
        )

    async def _admit(self, request: runs_pb2.SubmitRunRequest, run: RunRequest) -> str:
        """Submit a decoded request. A retry by name may find a newer version than the one the run was admitted with."""
        try:
            return await self._control.submit(run)
        except AlreadyExists:
            admitted = await self._admitted_flow(request)
            if admitted is None or admitted == run.flow:
                raise
            return await self._control.submit(replace(run, flow=admitted))

    async def _admitted_flow(self, request: runs_pb2.SubmitRunRequest) -> str | None:
        """Return the flow of an existing run, if the flow is a version of the requested name."""
        if request.flow.WhichOneof("kind") != "named":
            return None

        record = await read_record(self._store, parse_run_id(request.run_id))
        versions = (await self._catalog.versions(request.flow.named.name)).versions
        return record.flow_id if any(version.flow_id == record.flow_id for version in versions) else None


__all__ = ["Submissions"]
