"""ClusterService: list executors, hosts and the leader from the store; drain executors and hosts, and end drains."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from control_plane.obstacles import blob_warnings, executor_obstacle, host_obstacle, plugin_warnings
from stepflow.errors import FailedPrecondition, Invalid
from stepflow.mesh.v1 import cluster_pb2, cluster_pb2_grpc, state_pb2
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from control_plane.room import Room
    from stepflow.store import Store
    from stepflow.value_budget import ValueBudget


class Drainer(Protocol):
    """Drains executors and hosts, and ends drains. Raises: NotFound, FailedPrecondition, Unavailable."""

    async def drain_executor(self, executor_id: str) -> None: ...
    async def drain_host(self, host_id: str) -> None: ...
    async def undrain_executor(self, executor_id: str) -> None: ...
    async def undrain_host(self, host_id: str) -> None: ...


class ClusterServicer(cluster_pb2_grpc.ClusterServiceServicer):
    def __init__(
        self,
        store: Store,
        control_plane_id: str,
        drainer: Drainer | None,
        room: Room,
        value_budget: ValueBudget,
    ) -> None:
        self._store = store
        self._room = room
        self._id = control_plane_id
        self._drainer = drainer
        self._value_budget = value_budget

    async def GetCluster(self, _request: cluster_pb2.GetClusterRequest, _: Any) -> cluster_pb2.GetClusterResponse:
        leader = await self._store.get(keys.leader())
        reply = cluster_pb2.GetClusterResponse(
            control_plane_id=self._id,
            leader_id="" if leader is None else leader.value.decode(),
            value_bytes_max=self._value_budget.bytes_max,
            value_waiting=self._value_budget.waiting,
            store=await self._room.report(),
        )

        # 1. Read the members.
        executors: dict[str, state_pb2.ExecutorSession] = {}
        async for item in range_all(self._store, keys.EXECUTOR_SESSIONS):
            executor_id = keys.tail(keys.EXECUTOR_SESSIONS, item.key)
            executor = executors[executor_id] = state_pb2.ExecutorSession.FromString(item.value)
            reply.executors.add(
                executor_id=executor_id,
                address=executor.address,
                runs=await self._count(keys.assigned_to(executor_id)),
                runs_max=executor.runs_max,
                engine_version=executor.engine_version,
                draining=executor.draining,
                blob_error=executor.blob_error,
                value_bytes_max=executor.value_memory.bytes_max,
                value_waiting=executor.value_memory.waiting,
            )

        hosts: dict[str, state_pb2.HostSession] = {}
        async for item in range_all(self._store, keys.HOST_SESSIONS):
            host_id = keys.tail(keys.HOST_SESSIONS, item.key)
            hosts[host_id] = state_pb2.HostSession.FromString(item.value)
            reply.hosts.append(_host(host_id, hosts[host_id]))
        reply.runs_pending = await self._count(keys.PENDING)

        # 2. Judge.
        runs = {executor.executor_id: executor.runs for executor in reply.executors}
        obstacles = [
            "" if reply.leader_id else "no control plane leads",
            executor_obstacle(executors, runs),
            host_obstacle(hosts),
            await self._room.obstacle(),
        ]
        reply.obstacles.extend(filter(None, obstacles))
        reply.warnings.extend([*blob_warnings({**executors, **hosts}), *plugin_warnings(hosts)])
        reply.warnings.extend(filter(None, [await self._room.warning()]))
        return reply

    async def _count(self, prefix: str) -> int:
        return sum([1 async for _ in range_all(self._store, prefix)])

    async def Drain(self, request: cluster_pb2.DrainRequest, _: Any) -> cluster_pb2.DrainResponse:
        drainer = self._drainer_for(request)
        if request.executor_id:
            await drainer.drain_executor(request.executor_id)
        else:
            await drainer.drain_host(request.host_id)
        return cluster_pb2.DrainResponse()

    async def Undrain(self, request: cluster_pb2.UndrainRequest, _: Any) -> cluster_pb2.UndrainResponse:
        drainer = self._drainer_for(request)
        if request.executor_id:
            await drainer.undrain_executor(request.executor_id)
        else:
            await drainer.undrain_host(request.host_id)
        return cluster_pb2.UndrainResponse()

    def _drainer_for(self, request: cluster_pb2.DrainRequest | cluster_pb2.UndrainRequest) -> Drainer:
        if not (request.executor_id or request.host_id):
            raise Invalid("DRAIN_TARGET_MISSING", "the request names no target: set executor_id or host_id")
        if self._drainer is None:
            raise FailedPrecondition("DRAIN_UNSUPPORTED", "an embedded mesh has no executors or hosts to drain")
        return self._drainer


def _host(host_id: str, session: state_pb2.HostSession) -> cluster_pb2.HostInfo:
    host = cluster_pb2.HostInfo(
        host_id=host_id,
        address=session.address,
        capacity=session.capacity,
        draining=session.draining,
        blob_error=session.blob_error,
        pool=session.pool,
        value_bytes_max=session.value_memory.bytes_max,
        value_waiting=session.value_memory.waiting,
    )

    for plugin in session.plugins:
        host.plugins.add(
            plugin=plugin.plugin,
            type=plugin.type,
            state="conflict" if plugin.conflict else _state_name(plugin.state),
            last_error=plugin.last_error,
            components=len(plugin.components),
            restarts=plugin.restarts,
        )
    return host


def _state_name(state: int) -> str:
    """Return the state of a plugin as clients read it; hosts of a later version may have states without a name here."""
    try:
        name = state_pb2.PluginListing.State.Name(state)
    except ValueError:
        return f"unknown ({state})"
    return name.removeprefix("STATE_").lower()
