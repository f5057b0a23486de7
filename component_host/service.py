"""The component host behind gRPC: one stream of frames for each executor.

- A stream is only a carrier. After a break the calls continue, for the next owner of each run to join.
- The reader never waits for the writer; messages gathered during a write leave in the next frame.
- Credits are separate frames; the queue joins frames due together.
- A drain marks the session and grants no more credits, until the last acknowledgement. It lasts until an undrain.
- Restarts of plugins and reloads of the configuration are those of `plugin_changes`.

Does not look into calls and results: see `host`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from component_host.credits import CAPACITY_DEFAULT, Account, Credits
from component_host.log_stream import LogStream
from stepflow.errors import DeadlineExceeded, FailedPrecondition, Unavailable
from stepflow.mesh.v1 import host_pb2
from stepflow.rpc.frames import FrameQueue, pump
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from component_host.host import ComponentHost
    from component_host.logs import HostLogs
    from component_host.plugin_changes import PluginChanges
    from component_host.replacements import PluginOutcome
    from component_host.stream import HostStream
    from stepflow.rpc.server import RpcServer

log = get_logger(__name__)

DRAIN_POLL_S = 0.02

DRAIN_HELD_S = 10.0
"""Age above which a held result no longer delays the end of a host: a take-over asks within the length of a lease.
Results that a dead executor has journaled and not acknowledged are never asked for."""

DRAIN_QUIET_S = 0.3
"""Time without calls before the host counts as idle: calls may be in flight until the executors learn of the drain."""

DRAIN_TIMEOUT_S = 50.0
"""Limit of one drain request; shorter than the client's timeout."""


class HostService:
    """Serves one `ComponentHost`."""

    def __init__(self, host: ComponentHost, *, capacity: int = CAPACITY_DEFAULT) -> None:
        self.on_drain: Callable[[bool], None] = lambda _draining: None
        """Called with True at each begin of a drain and with False at its end, to tell the executors."""
        self.changes: PluginChanges | None = None
        """Set once the plugins have started."""
        self._host = host
        self._credits = Credits(capacity)
        self._connections: dict[Account, ExecutorConnection] = {}
        self._draining = False
        self._stopping = False
        """The process ends: a drain is final."""

    def add_to(self, server: RpcServer) -> None:
        """Register the service with a gRPC server."""
        server.add(host_pb2.DESCRIPTOR.services_by_name["ComponentHostService"], _register(self._host.logs), self)

    @property
    def draining(self) -> bool:
        """True while the host takes no calls."""
        return self._draining

    async def drain(self, grace_s: float, *, stopping: bool = False) -> bool:
        """Take no more calls; return True once no call is in flight and no result is wanted, False after the grace.

        `stopping`: the process ends, and `end_drain` is refused. Else the drain may end meanwhile: see `draining`.
        """
        # 1. Tell the executors, and grant no more credits.
        self._draining = True
        self._stopping = self._stopping or stopping
        self.on_drain(True)
        log.info("draining", host_id=self._host.id, calls=self._host.calls_held)

        # 2. Wait until the host stays idle for a while, or is idle without any stream.
        loop = asyncio.get_running_loop()
        until_s = loop.time() + grace_s
        quiet_until_s = loop.time() + DRAIN_QUIET_S
        while loop.time() < until_s and self._draining:
            if self._is_wanted():
                quiet_until_s = loop.time() + DRAIN_QUIET_S
            elif not self._connections or loop.time() >= quiet_until_s:
                break
            await asyncio.sleep(DRAIN_POLL_S)  # an event would cost a check per call

        return not self._is_wanted()

    def _is_wanted(self) -> bool:
        return self._host.calls_in_flight > 0 or self._host.held_results.newest_age_s < DRAIN_HELD_S

    async def drain_host(self, _request: host_pb2.DrainHostRequest, _context: Any) -> host_pb2.DrainHostResponse:
        """Raises: DeadlineExceeded DRAIN_TIMEOUT; FailedPrecondition DRAIN_ENDED."""
        idle = await self.drain(DRAIN_TIMEOUT_S)
        if not self._draining:
            raise FailedPrecondition("DRAIN_ENDED", f"the drain of host {self._host.id} was ended by an undrain")
        if not idle:
            raise DeadlineExceeded(
                "DRAIN_TIMEOUT", f"host {self._host.id} still has {self._host.calls_held} calls; ask again"
            )
        return host_pb2.DrainHostResponse()

    def end_drain(self) -> None:
        """Take calls again. Idempotent. Raises: FailedPrecondition SERVICE_STOPPING."""
        if self._stopping:
            raise FailedPrecondition("SERVICE_STOPPING", f"host {self._host.id} is being stopped; its drain is final")
        if self._draining:
            self._draining = False
            self.on_drain(False)
            self.share_credits()
            log.info("drain ended", host_id=self._host.id)

    async def undrain_host(self, _request: host_pb2.UndrainHostRequest, _context: Any) -> host_pb2.UndrainHostResponse:
        self.end_drain()
        return host_pb2.UndrainHostResponse()

    async def restart_plugin(
        self, request: host_pb2.RestartHostPluginRequest, _context: Any
    ) -> host_pb2.RestartHostPluginResponse:
        """Raises: as `PluginChanges.restart`; Unavailable HOST_STARTING."""
        change = await self._changes_of_plugins().restart(request.plugin)
        return host_pb2.RestartHostPluginResponse(change=_change_message(change))

    async def reload(self, _request: host_pb2.ReloadHostRequest, _context: Any) -> host_pb2.ReloadHostResponse:
        """Raises: as `PluginChanges.reload`; Unavailable HOST_STARTING."""
        done = await self._changes_of_plugins().reload()
        return host_pb2.ReloadHostResponse(
            changes=[_change_message(change) for change in done.changes],
            routes_added=done.routes_added,
            routes_removed=done.routes_removed,
            routes_changed=done.routes_changed,
        )

    def _changes_of_plugins(self) -> PluginChanges:
        if self.changes is None:
            raise Unavailable("HOST_STARTING", f"host {self._host.id} is starting its plugins; try again")
        return self.changes

    async def connect(self, frames: AsyncIterator[host_pb2.ExecutorFrame], context: Any) -> None:
        """Carry one executor's stream. Raises: FailedPrecondition STREAM_INVALID; Overloaded STREAM_OVERRUN."""
        connection = await self._greet(frames)
        try:
            await connection.run(frames, context)
        finally:
            self._forget(connection)

    async def _greet(self, frames: AsyncIterator[host_pb2.ExecutorFrame]) -> ExecutorConnection:
        # 1. Read the hello.
        first = await anext(aiter(frames), None)
        if first is None or not first.hello.executor_id:
            raise FailedPrecondition(
                "STREAM_INVALID", "the first frame of a stream must be a hello that names the executor"
            )

        # 2. Open stream and account; answer with the host's hello, then with credits.
        connection = ExecutorConnection(self, self._host, first.hello.executor_id)
        account = connection.account = self._credits.open_account(lambda: len(connection.stream.calls))
        self._connections[account] = connection
        connection.queue.put(host_pb2.HostFrame(hello=host_pb2.HostHello(host_id=self._host.id)))
        self.share_credits()
        log.info("executor connected", executor_id=connection.executor_id)

        # 3. Process the first frame: it may hold calls, too.
        connection.receive(first)
        return connection

    def _forget(self, connection: ExecutorConnection) -> None:
        connection.stream.close()
        del self._connections[connection.account]
        self._credits.close_account(connection.account)
        self.share_credits()
        log.info("executor disconnected", executor_id=connection.executor_id)

    def share_credits(self) -> None:
        """Grant the free credits."""
        if self._draining or not self._connections:
            return
        for account in self._credits.share(self._host.calls_in_flight):
            self._connections[account].queue.put(host_pb2.HostFrame(credits=account.granted))


class ExecutorConnection:
    """One executor's stream, from the hello to the end."""

    account: Account

    def __init__(self, service: HostService, host: ComponentHost, executor_id: str) -> None:
        self.executor_id = executor_id
        self.queue = FrameQueue()
        self._service = service
        self._hung_up = asyncio.Event()
        self.stream: HostStream = host.connect(self._deliver, self._hung_up.set, executor_id=executor_id)

    def receive(self, frame: host_pb2.ExecutorFrame) -> None:
        self.account.received += len(frame.calls)
        self.stream.receive(frame)
        if frame.calls or frame.cancels:
            self._service.share_credits()

    def _deliver(self, frame: host_pb2.HostFrame) -> None:
        self.queue.put(frame)
        if frame.results:
            self._service.share_credits()

    async def run(self, frames: AsyncIterator[host_pb2.ExecutorFrame], context: Any) -> None:
        """Carry frames both ways until either direction ends, or the host hangs up."""
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._read(frames), name=f"read {self.executor_id}"),
            asyncio.create_task(pump(self.queue, context.write), name=f"write {self.executor_id}"),
            asyncio.create_task(self._hung_up.wait(), name=f"hang up {self.executor_id}"),
        ]

        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _read(self, frames: AsyncIterator[host_pb2.ExecutorFrame]) -> None:
        async for frame in frames:
            self.receive(frame)


def _change_message(change: PluginOutcome) -> host_pb2.PluginChange:
    return host_pb2.PluginChange(plugin=change.plugin, outcome=change.outcome, detail=change.detail)


def _register(logs: HostLogs) -> Callable[[HostService, Any], None]:
    """Return the function that adds the handlers of a service to a server."""

    async def follow_logs(requests: AsyncIterator[host_pb2.FollowLogsRequest], context: Any) -> None:
        await LogStream(logs).run(requests, context)

    return lambda service, server: _add_handlers(service, follow_logs, server)


def _add_handlers(service: HostService, follow_logs: Callable[[Any, Any], Awaitable[None]], server: Any) -> None:
    import grpc

    connect: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
        service.connect,
        request_deserializer=host_pb2.ExecutorFrame.FromString,
        response_serializer=None,  # the queue has encoded the frames already
    )
    drain: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        service.drain_host, host_pb2.DrainHostRequest.FromString, host_pb2.DrainHostResponse.SerializeToString
    )
    undrain: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        service.undrain_host, host_pb2.UndrainHostRequest.FromString, host_pb2.UndrainHostResponse.SerializeToString
    )
    logs: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
        follow_logs,
        request_deserializer=host_pb2.FollowLogsRequest.FromString,
        response_serializer=None,  # as above
    )
    restart: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        service.restart_plugin,
        host_pb2.RestartHostPluginRequest.FromString,
        host_pb2.RestartHostPluginResponse.SerializeToString,
    )
    reload: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        service.reload, host_pb2.ReloadHostRequest.FromString, host_pb2.ReloadHostResponse.SerializeToString
    )

    name = "stepflow.mesh.v1.ComponentHostService"
    handlers = {
        "Connect": connect,
        "DrainHost": drain,
        "UndrainHost": undrain,
        "FollowLogs": logs,
        "RestartHostPlugin": restart,
        "ReloadHost": reload,
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, handlers),))


__all__ = ["HostService"]
