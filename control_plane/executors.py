"""What the API asks of executors and hosts directly: live events of a run, and to drain.

- Live events are a favour: whatever goes wrong with them is logged and tried again, and nobody is told.
- A run may have several owners (one for each partition), and they change: who owns it is looked up again and again.
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
from stepflow.run.entries import failure_from_pb
from stepflow.run.views import StepEvent
from stepflow.store import keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from control_plane.control_plane import ControlPlane
    from stepflow.rpc.tls import Tls
    from stepflow.store import Store

log = get_logger(__name__)

OWNERS_INTERVAL_S = 0.25
"""How often the owners of a followed run are looked up; what happens before a new one is found is not shown live."""

DRAIN_TIMEOUT_S = 60.0

SEEN_INTERVAL_S = 0.01
"""Between two looks whether we have heard that an executor drains."""


class Executors:
    """Reaches executors at the addresses of their sessions. A `LiveSource` and a `Drainer`."""

    def __init__(self, control: ControlPlane, store: Store, tls: Tls | None = None) -> None:
        self._control = control
        self._store = store
        self._tls = tls
        self._tasks: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- live events --------------------------------------------------------------------------------------------------

    def follow(self, run_id: str, listener: Callable[[StepEvent], None]) -> Callable[[], None]:
        """Have the listener called with the events of a run, wherever it is driven; return what ends that."""
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
                for executor_id, address in self._control.owners(run_id).items():
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
                listener(_event(response.event))
        except grpc.aio.AioRpcError as failed:
            log.info("no live events", run_id=run_id, address=address, reason=error_of(failed).reason)
        finally:
            await channel.close()

    # --- drain --------------------------------------------------------------------------------------------------------

    async def drain_executor(self, executor_id: str) -> None:
        """Return when the executor has handed over all its runs, and we give it no more.

        Raises: NotFound; FailedPrecondition; Unavailable; DeadlineExceeded."""
        found = await self._store.get(keys.session_executor(executor_id))
        if found is None:
            raise NotFound("EXECUTOR_NOT_FOUND", f"there is no executor {executor_id}", executor_id=executor_id)
        async with self._reach(state_pb2.ExecutorSession.FromString(found.value).address, executor_id) as channel:
            stub: Any = executor_pb2_grpc.ExecutorServiceStub(channel)
            await stub.DrainExecutor(executor_pb2.DrainExecutorRequest(), timeout=DRAIN_TIMEOUT_S)
            while self._control.places_on(executor_id):  # noqa: ASYNC110  # the watch tells in a moment
                await asyncio.sleep(SEEN_INTERVAL_S)

    async def drain_host(self, host_id: str) -> None:
        """Return when every call of the host has ended.

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
        """Open a channel for one call. Raises: FailedPrecondition `DRAIN_UNSUPPORTED`; what the call fails with."""
        if not address:
            raise FailedPrecondition("DRAIN_UNSUPPORTED", f"{identity} cannot be reached: it has no address")
        channel = open_channel(address, self._tls)
        try:
            yield channel
        except grpc.aio.AioRpcError as failed:
            raise error_of(failed) from None
        finally:
            await channel.close()


def _event(live: executor_pb2.LiveEvent) -> StepEvent:
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
        parent=parent,
    )
