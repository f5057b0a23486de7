"""Drains: asks an executor or a host to finish present work and to accept no more.

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
"""Interval between two looks at the cluster, until it shows that an executor drains."""


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
        found = await self._store.get(keys.session_executor(executor_id))
        if found is None:
            raise NotFound("EXECUTOR_NOT_FOUND", f"there is no executor {executor_id}", executor_id=executor_id)

        async with self._reach(state_pb2.ExecutorSession.FromString(found.value).address, executor_id) as channel:
            stub: Any = executor_pb2_grpc.ExecutorServiceStub(channel)
            await stub.DrainExecutor(executor_pb2.DrainExecutorRequest(), timeout=DRAIN_TIMEOUT_S)
            while self._cluster.accepts_runs(executor_id):  # noqa: ASYNC110  # the watch shows it within milliseconds
                await asyncio.sleep(CLUSTER_POLL_S)

    async def drain_host(self, host_id: str) -> None:
        """Return once every call of the host has ended.

        Raises: NotFound; FailedPrecondition; Unavailable; DeadlineExceeded.
        """
        found = await self._store.get(keys.session_host(host_id))
        if found is None:
            raise NotFound("HOST_NOT_FOUND", f"there is no host {host_id}", host_id=host_id)

        async with self._reach(state_pb2.HostSession.FromString(found.value).address, host_id) as channel:
            stub: Any = host_pb2_grpc.ComponentHostServiceStub(channel)
            await stub.DrainHost(host_pb2.DrainHostRequest(), timeout=DRAIN_TIMEOUT_S)

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
