"""Live events: starts and progress of a followed run, streamed from its owners.

- Best effort: a failed stream is logged and opened again; the follower gets no error.
- A run may have an owner per partition, and owners change: a lookup every `OWNERS_INTERVAL_S` finds them.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc

from stepflow.mesh.v1 import executor_pb2, executor_pb2_grpc
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of
from stepflow.run.entries import failure_from_pb
from stepflow.run.views import StepEvent
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from control_plane.cluster import Cluster
    from stepflow.rpc.tls import Tls

log = get_logger(__name__)

OWNERS_INTERVAL_S = 0.25
"""Interval between two lookups of a run's owners. A new owner's events before its lookup are not shown live."""


class LiveEvents:
    """The `LiveSource` of a mesh: streams from executors at the addresses of their sessions."""

    def __init__(self, cluster: Cluster, tls: Tls | None = None) -> None:
        self._cluster = cluster
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def follow(self, run_id: str, listener: Callable[[StepEvent], None]) -> Callable[[], None]:
        """Call `listener` with the events of a run from all its owners; return a function to stop."""
        task = asyncio.create_task(self._follow(run_id, listener), name=f"live events of {run_id}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def end() -> None:
            task.cancel()

        return end

    async def _follow(self, run_id: str, listener: Callable[[StepEvent], None]) -> None:
        streams: dict[str, asyncio.Task[None]] = {}
        try:
            while True:
                for executor_id, address in self._cluster.owner_addresses(run_id).items():
                    if address and (executor_id not in streams or streams[executor_id].done()):
                        streams[executor_id] = asyncio.create_task(self._stream(run_id, address, listener))
                await asyncio.sleep(OWNERS_INTERVAL_S)
        finally:
            for stream in streams.values():
                stream.cancel()
            await asyncio.gather(*streams.values(), return_exceptions=True)

    async def _stream(self, run_id: str, address: str, listener: Callable[[StepEvent], None]) -> None:
        channel = open_channel(address, self._tls)
        try:
            stub: Any = executor_pb2_grpc.ExecutorServiceStub(channel)
            async for response in stub.FollowRun(executor_pb2.FollowRunRequest(run_id=run_id)):
                listener(_step_event(response.event))
        except grpc.aio.AioRpcError as failed:
            log.info("no live events", run_id=run_id, address=address, reason=error_of(failed).reason)
        finally:
            await channel.close()


def _step_event(live: executor_pb2.LiveEvent) -> StepEvent:
    parent = (live.parent.run_id, live.parent.item, live.parent.step_index) if live.HasField("parent") else None
    kind: Any = live.kind
    return StepEvent(
        kind=kind,
        run_id=live.run_id,
        depth=live.depth,
        item=live.item,
        step_id=live.step_id,
        step_index=live.step_index,
        component=live.component,
        attempt=live.attempt,
        at_ms=live.at_ms,
        duration_ms=live.duration_ms if live.HasField("duration_ms") else None,
        failure=failure_from_pb(live.failure) if live.HasField("failure") else None,
        until_ms=live.until_ms if live.HasField("until_ms") else None,
        message=live.message,
        done=live.done,
        total=live.total,
        parent=parent,
        path=live.path,
    )


__all__ = ["LiveEvents"]
