"""Drains: asks an executor or a host to finish present work and to accept no more, or to accept work again.

A drained executor has handed over all runs; a drained host has finished all calls.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from stepflow.errors import FailedPrecondition, NotFound
from stepflow.mesh.v1 import executor_pb2, executor_pb2_grpc, host_pb2, host_pb2_grpc, state_pb2
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from control_plane.cluster import Cluster
    from stepflow.rpc.tls import Tls
    from stepflow.store import Store

DRAIN_TIMEOUT_S = 60.0

CLUSTER_POLL_S = 0.01
"""Interval between two looks at the cluster, until it shows the begin or the end of a drain."""

CLUSTER_LAG_S = 5.0
"""How long the cluster may lag behind an executor's session; later, the session says something else again."""

UNDRAIN_TIMEOUT_S = 10.0


class Drains:
    """The `Drainer` of a mesh: calls executors and hosts at the addresses of their sessions."""

    def __init__(self, cluster: Cluster, store: Store, tls: Tls | None = None) -> None:
        self._cluster = cluster
        self._store = store
        self._tls = tls

    async def drain_executor(self, executor_id: str) -> None:
        """Return once the executor has handed over all runs and this replica assigns no more.

        Raises: NotFound; FailedPrecondition; Unavailable; DeadlineExceeded.
        """
        async with self._reach_executor(executor_id) as stub:
            await stub.DrainExecutor(executor_pb2.DrainExecutorRequest(), timeout=DRAIN_TIMEOUT_S)
        await self._until_shown(executor_id, accepting=False)

    async def undrain_executor(self, executor_id: str) -> None:
        """Return once the executor accepts runs and this replica knows. Raises: as `drain_executor`."""
        async with self._reach_executor(executor_id) as stub:
            await stub.UndrainExecutor(executor_pb2.UndrainExecutorRequest(), timeout=UNDRAIN_TIMEOUT_S)
        await self._until_shown(executor_id, accepting=True)

    async def drain_host(self, host_id: str) -> None:
        """Return once every call of the host has ended.

        Raises: NotFound; FailedPrecondition; Unavailable; DeadlineExceeded.
        """
        async with self._reach_host(host_id) as stub:
            await stub.DrainHost(host_pb2.DrainHostRequest(), timeout=DRAIN_TIMEOUT_S)

    async def undrain_host(self, host_id: str) -> None:
        """Return once the host accepts calls. Raises: as `drain_host`."""
        async with self._reach_host(host_id) as stub:
            await stub.UndrainHost(host_pb2.UndrainHostRequest(), timeout=UNDRAIN_TIMEOUT_S)

    async def _until_shown(self, executor_id: str, *, accepting: bool) -> None:
        """Return once the cluster shows the executor's new state: within milliseconds, by its watch."""
        for _ in range(int(CLUSTER_LAG_S / CLUSTER_POLL_S)):
            if self._cluster.accepts_runs(executor_id) is accepting:
                return
            await asyncio.sleep(CLUSTER_POLL_S)

    @asynccontextmanager
    async def _reach_executor(self, executor_id: str) -> AsyncIterator[Any]:
        found = await self._store.get(keys.session_executor(executor_id))
        if found is None:
            raise NotFound("EXECUTOR_NOT_FOUND", f"there is no executor {executor_id}", executor_id=executor_id)
        async with self._reach(state_pb2.ExecutorSession.FromString(found.value).address, executor_id) as channel:
            yield executor_pb2_grpc.ExecutorServiceStub(channel)

    @asynccontextmanager
    async def _reach_host(self, host_id: str) -> AsyncIterator[Any]:
        found = await self._store.get(keys.session_host(host_id))
        if found is None:
            raise NotFound("HOST_NOT_FOUND", f"there is no host {host_id}", host_id=host_id)
        async with self._reach(state_pb2.HostSession.FromString(found.value).address, host_id) as channel:
            yield host_pb2_grpc.ComponentHostServiceStub(channel)

    @asynccontextmanager
    async def _reach(self, address: str, identity: str) -> AsyncIterator[grpc.aio.Channel]:
        """Open a channel for one call. Raises: FailedPrecondition `DRAIN_UNSUPPORTED`; the error of the call."""
        if not address:
            raise FailedPrecondition("DRAIN_UNSUPPORTED", f"{identity} cannot be drained: its session has no address")

        channel = open_channel(address, self._tls)
        try:
            yield channel
        except grpc.aio.AioRpcError as failed:
            raise error_of(failed) from None
        finally:
            await channel.close()


__all__ = ["Drains"]
