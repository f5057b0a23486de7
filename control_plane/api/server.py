"""The public API over gRPC: the server of a control plane, with all services."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.api.blobs import BlobsServicer
from control_plane.api.cluster import ClusterServicer
from control_plane.api.components import ComponentsServicer
from control_plane.api.flows import FlowsServicer
from control_plane.api.runs import RunsServicer
from control_plane.api.submissions import Submissions
from control_plane.api.values import Values
from control_plane.catalog import Catalog
from control_plane.events import Events
from control_plane.room import Room
from control_plane.store_meter import StoreMeter
from stepflow.mesh.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    components_pb2,
    components_pb2_grpc,
    flows_pb2,
    flows_pb2_grpc,
    runs_pb2,
    runs_pb2_grpc,
)
from stepflow.rpc.server import RpcServer
from stepflow.value_budget import ValueBudget

if TYPE_CHECKING:
    from control_plane.api.cluster import Drainer
    from control_plane.control_plane import ControlPlane
    from control_plane.events import LiveSource, LogSource
    from control_plane.restarts import Restarts
    from stepflow.rpc.health import ProcessHealth
    from stepflow.rpc.tls import Tls
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

STOP_GRACE_S = 1.0
"""Grace for calls in flight. Long waits are cut after it; their clients continue at another replica."""

LARGE_REQUESTS = (
    "/stepflow.mesh.v1.FlowsService/StoreFlow",
    "/stepflow.mesh.v1.FlowsService/ValidateFlow",
    "/stepflow.mesh.v1.FlowsService/GetFlow",
    "/stepflow.mesh.v1.RunsService/SubmitRun",
    "/stepflow.mesh.v1.RunsService/SubmitRuns",
    "/stepflow.mesh.v1.RunsService/SignalRun",
    "/stepflow.mesh.v1.BlobsService/PutBlob",
)
"""The unary methods whose requests carry values."""


class ApiServer:
    """Serves the API of a started control plane."""

    def __init__(
        self,
        control: ControlPlane,
        store: Store,
        blobs: BlobStore,
        *,
        tls: Tls | None = None,
        insecure: bool = False,
        health: ProcessHealth | None = None,
        live: LiveSource | None = None,
        logs: LogSource | None = None,
        drainer: Drainer | None = None,
        restarts: Restarts | None = None,
        value_bytes_max: int = 0,
        room: Room | None = None,
    ) -> None:
        """`live`: source of live events; without it followers see durable events only. `logs`: source of log lines.
        `drainer` and `restarts`: without them drains and restarts are refused. `value_bytes_max`: memory for the large
        values of all calls; 0 for a share of what the process has. `room`: without it the room of the store is
        measured, and nothing else is done for it.
        """
        values = Values(blobs)
        catalog = Catalog(store)
        self._events = Events(control, control.run_store, blobs, live, logs)
        self.value_budget = ValueBudget(value_bytes_max)
        self._server = RpcServer(
            tls=tls,
            insecure=insecure,
            health=health,
            value_budget=self.value_budget,
            large_requests=LARGE_REQUESTS,
        )
        room = room or Room(store, StoreMeter(store), control.activity, control.leadership)
        runs = RunsServicer(
            control,
            control.run_store,
            blobs,
            submissions=Submissions(
                control, control.run_store, catalog=catalog, values=values, pressure=room.admission
            ),
            values=values,
            listing=control.listing,
            events=self._events,
        )

        cluster = ClusterServicer(store, control.id, drainer, room, self.value_budget)

        for module, grpc_module, name, servicer in (
            (flows_pb2, flows_pb2_grpc, "FlowsService", FlowsServicer(control, catalog, values)),
            (runs_pb2, runs_pb2_grpc, "RunsService", runs),
            (blobs_pb2, blobs_pb2_grpc, "BlobsService", BlobsServicer(blobs)),
            (components_pb2, components_pb2_grpc, "ComponentsService", ComponentsServicer(store, values, restarts)),
            (cluster_pb2, cluster_pb2_grpc, "ClusterService", cluster),
        ):
            register = getattr(grpc_module, f"add_{name}Servicer_to_server")
            self._server.add(module.DESCRIPTOR.services_by_name[name], register, servicer)

    @property
    def address(self) -> str:
        """HOST:PORT with the actual port."""
        return self._server.address

    async def start(self, listen: str) -> str:
        """Listen at HOST:PORT and return the address. Raises: as `RpcServer.start`."""
        return await self._server.start(listen)

    async def stop(self) -> None:
        """End all calls. The control plane stays open."""
        await self._events.close()
        await self._server.stop(STOP_GRACE_S)


__all__ = ["ApiServer"]
