"""The executor behind gRPC: what the control plane asks of one executor directly.

- `Attend` says that the executor is there, for as long as its stream stands.
- `FollowRun` passes on the step events of a run; many may watch one run, and a slow one loses events, not the run.
- `DrainExecutor` hands all runs over.

Thin: what happens is decided in `Executor`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from stepflow.errors import Deadline
from stepflow.mesh.v1 import executor_pb2 as pb
from stepflow.run.entries import failure_to_pb
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from executor.executor import Executor
    from stepflow.rpc.server import RpcServer
    from stepflow.run.views import StepEvent

log = get_logger(__name__)

EVENTS_MAX = 2_000
"""Events that wait for one reader; then the oldest go."""

OWNED_POLL_S = 0.1
"""Between two looks whether a watched run is still driven here."""

NOT_OWNED_S_MAX = 1.0
"""A run that is watched may be on its way to us; after this time without it the watch ends."""

DRAIN_TIMEOUT_S = 30.0

DRAIN_POLL_S = 0.1
"""Between two tries to give away runs that could not go: whose end is being written, or that are on their way back."""


class ExecutorService:
    """Serves one `Executor`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._watches: dict[str, list[_Events]] = {}

    def add_to(self, server: RpcServer) -> None:
        """Serve it there."""
        server.add(pb.DESCRIPTOR.services_by_name["ExecutorService"], _register, self)

    async def attend(
        self, requests: AsyncIterator[pb.AttendRequest], _context: Any
    ) -> AsyncIterator[pb.AttendResponse]:
        async for _ in requests:
            yield pb.AttendResponse(executor_id=self._executor.id)

    async def follow_run(self, request: pb.FollowRunRequest, _context: Any) -> AsyncIterator[pb.FollowRunResponse]:
        events = _Events()
        self._listen(request.run_id, events)
        log.info("run followed", run_id=request.run_id)
        try:
            unowned_s = 0.0
            while True:
                for response in events.take():
                    yield response
                owned = self._executor.drives_run(request.run_id)
                unowned_s = 0.0 if owned else unowned_s + OWNED_POLL_S
                if unowned_s > NOT_OWNED_S_MAX or (not owned and events.seen):
                    return
                await events.wait(OWNED_POLL_S)
        finally:
            self._stop_listening(request.run_id, events)

    async def drain_executor(self, _request: pb.DrainExecutorRequest, _context: Any) -> pb.DrainExecutorResponse:
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                handed_over = await self._executor.hand_over()
                while self._executor.runs_left:
                    await asyncio.sleep(DRAIN_POLL_S)
                    handed_over += await self._executor.hand_over()
                return pb.DrainExecutorResponse(handed_over=handed_over)
        except TimeoutError:
            raise Deadline("DRAIN_TIMEOUT", "some runs could not be handed over yet; ask again") from None

    # --- one listener of a run, many readers --------------------------------------------------------------------------

    def _listen(self, run_id: str, events: _Events) -> None:
        readers = self._watches.setdefault(run_id, [])
        readers.append(events)
        if len(readers) == 1:

            def tell(event: StepEvent) -> None:
                response = pb.FollowRunResponse(event=live_event(event))
                for reader in readers:
                    reader.put(response)

            self._executor.listen(run_id, tell)

    def _stop_listening(self, run_id: str, events: _Events) -> None:
        readers = self._watches[run_id]
        readers.remove(events)
        if not readers:
            del self._watches[run_id]
            self._executor.listen(run_id, None)


class _Events:
    """What one reader has still to get."""

    def __init__(self) -> None:
        self.seen = False
        self._queue: deque[pb.FollowRunResponse] = deque()
        self._lost = 0
        self._arrival = asyncio.Event()

    def put(self, response: pb.FollowRunResponse) -> None:
        self.seen = True
        if len(self._queue) >= EVENTS_MAX:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(response)
        self._arrival.set()

    def take(self) -> list[pb.FollowRunResponse]:
        self._arrival.clear()
        taken, self._queue = list(self._queue), deque()
        if self._lost and taken:
            taken[0] = pb.FollowRunResponse(event=taken[0].event, lost=self._lost)
            self._lost = 0
        return taken

    async def wait(self, timeout_s: float) -> None:
        """Return when something has come, or after the time-out."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrival.wait()
        except TimeoutError:
            return


def live_event(event: StepEvent) -> pb.LiveEvent:
    """Encode an event."""
    return pb.LiveEvent(
        kind=event.kind,
        run_id=event.run_id,
        depth=event.depth,
        item=event.item,
        step_id=event.step_id,
        step_index=event.step_index,
        component=event.component,
        attempt=event.attempt,
        at_ms=event.at_ms,
        duration_ms=event.duration_ms,
        failure=None if event.failure is None else failure_to_pb(event.failure),
        until_ms=event.until_ms,
        message=event.message,
        parent=None
        if event.parent is None
        else pb.LiveParent(run_id=event.parent[0], item=event.parent[1], step_index=event.parent[2]),
    )


def _register(service: ExecutorService, server: Any) -> None:
    import grpc

    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        "Attend": grpc.stream_stream_rpc_method_handler(
            service.attend, pb.AttendRequest.FromString, pb.AttendResponse.SerializeToString
        ),
        "FollowRun": grpc.unary_stream_rpc_method_handler(
            service.follow_run, pb.FollowRunRequest.FromString, pb.FollowRunResponse.SerializeToString
        ),
        "DrainExecutor": grpc.unary_unary_rpc_method_handler(
            service.drain_executor, pb.DrainExecutorRequest.FromString, pb.DrainExecutorResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("stepflow.mesh.v1.ExecutorService", handlers),)
    )


__all__ = ["ExecutorService", "live_event"]
