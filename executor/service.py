"""The gRPC edge of an executor: requests of the control plane to a single executor.

- `Attend` proves that the executor is alive, for as long as its stream stands.
- `FollowRun` streams the step events of a run. Many readers may follow a run; a slow reader loses events and never
  slows the run.
- `DrainExecutor` hands all runs over; `UndrainExecutor` ends the drain.

Decides nothing: every request ends in `Executor`.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from stepflow.errors import DeadlineExceeded, FailedPrecondition
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
"""Events queued for one reader; beyond that the oldest are dropped."""

OWNED_POLL_S = 0.1
"""Interval at which a followed run is checked to be still driven here."""

NOT_OWNED_S_MAX = 1.0
"""How long a stream waits for a run that is about to be adopted here; then it ends."""

DRAIN_TIMEOUT_S = 30.0

DRAIN_POLL_S = 0.1
"""Interval at which runs are handed over that could not go before: ending, or waiting to be given back."""


class ExecutorService:
    """The gRPC service of an `Executor`."""

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self._readers: dict[str, list[_EventQueue]] = {}
        """By run. The executor has one listener for each followed run, which serves all its readers."""

    def add_to(self, server: RpcServer) -> None:
        """Register the service at a gRPC server."""
        server.add(pb.DESCRIPTOR.services_by_name["ExecutorService"], _register, self)

    async def attend(
        self, requests: AsyncIterator[pb.AttendRequest], _context: Any
    ) -> AsyncIterator[pb.AttendResponse]:
        """Answer every request with the executor's id."""
        async for _ in requests:
            yield pb.AttendResponse(executor_id=self._executor.id)

    async def follow_run(self, request: pb.FollowRunRequest, _context: Any) -> AsyncIterator[pb.FollowRunResponse]:
        """Stream the events of a run for as long as the run is driven here."""
        events = _EventQueue()
        self._add_reader(request.run_id, events)
        log.info("run followed", run_id=request.run_id)
        try:
            unowned_s = 0.0
            while True:
                for response in events.take_events():
                    yield response

                # The run may not have arrived yet; once it was seen here, its absence means that it ended or moved.
                owned = self._executor.drives_run(request.run_id)
                unowned_s = 0.0 if owned else unowned_s + OWNED_POLL_S
                if unowned_s > NOT_OWNED_S_MAX or (not owned and events.seen):
                    return
                await events.wait_for_event(OWNED_POLL_S)
        finally:
            self._remove_reader(request.run_id, events)

    async def drain_executor(self, _request: pb.DrainExecutorRequest, _context: Any) -> pb.DrainExecutorResponse:
        """Hand over all runs; return when none is left.

        Raises: DeadlineExceeded DRAIN_TIMEOUT; FailedPrecondition DRAIN_ENDED.
        """
        executor = self._executor
        try:
            async with asyncio.timeout(DRAIN_TIMEOUT_S):
                handed_over = await executor.hand_over()
                while executor.runs_left and executor.draining:
                    await asyncio.sleep(DRAIN_POLL_S)
                    if executor.draining:  # else this would begin the drain that was ended meanwhile
                        handed_over += await executor.hand_over()
        except TimeoutError:
            raise DeadlineExceeded(
                "DRAIN_TIMEOUT", "some runs could not be handed over yet; drain the executor again"
            ) from None

        if not executor.draining:
            raise FailedPrecondition("DRAIN_ENDED", f"the drain of executor {executor.id} was ended by an undrain")
        return pb.DrainExecutorResponse(handed_over=handed_over)

    async def undrain_executor(self, _request: pb.UndrainExecutorRequest, _context: Any) -> pb.UndrainExecutorResponse:
        """Take runs again. Raises: FailedPrecondition SERVICE_STOPPING."""
        await self._executor.end_drain()
        return pb.UndrainExecutorResponse()

    # --- readers ------------------------------------------------------------------------------------------------------

    def _add_reader(self, run_id: str, events: _EventQueue) -> None:
        readers = self._readers.setdefault(run_id, [])
        readers.append(events)
        if len(readers) == 1:

            def tell(event: StepEvent) -> None:
                response = pb.FollowRunResponse(event=live_event(event))
                for reader in readers:
                    reader.put_event(response)

            self._executor.listen(run_id, tell)

    def _remove_reader(self, run_id: str, events: _EventQueue) -> None:
        readers = self._readers[run_id]
        readers.remove(events)
        if not readers:
            del self._readers[run_id]
            self._executor.listen(run_id, None)


class _EventQueue:
    """The unread events of a reader."""

    def __init__(self) -> None:
        self.seen = False
        """An event has come: the run is or was driven here."""
        self._queue: deque[pb.FollowRunResponse] = deque()
        self._lost = 0
        """Events dropped since the last response."""
        self._arrival = asyncio.Event()

    def put_event(self, response: pb.FollowRunResponse) -> None:
        self.seen = True
        if len(self._queue) >= EVENTS_MAX:
            self._queue.popleft()
            self._lost += 1
        self._queue.append(response)
        self._arrival.set()

    def take_events(self) -> list[pb.FollowRunResponse]:
        """Remove and return the queued events; the first carries the number of events lost before."""
        self._arrival.clear()
        taken, self._queue = list(self._queue), deque()
        if self._lost and taken:
            taken[0] = pb.FollowRunResponse(event=taken[0].event, lost=self._lost)
            self._lost = 0
        return taken

    async def wait_for_event(self, timeout_s: float) -> None:
        """Return when an event is queued, or after the time-out."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._arrival.wait()
        except TimeoutError:
            return


def live_event(event: StepEvent) -> pb.LiveEvent:
    """Encode a step event."""
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
        done=event.done,
        total=event.total,
        parent=None
        if event.parent is None
        else pb.LiveParent(run_id=event.parent[0], item=event.parent[1], step_index=event.parent[2]),
        path=event.path,
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
        "UndrainExecutor": grpc.unary_unary_rpc_method_handler(
            service.undrain_executor, pb.UndrainExecutorRequest.FromString, pb.UndrainExecutorResponse.SerializeToString
        ),
    }
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("stepflow.mesh.v1.ExecutorService", handlers),)
    )


__all__ = ["ExecutorService", "live_event"]
