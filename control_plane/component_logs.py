"""Log lines of components, streamed from the hosts.

- A stream per host for all followed runs of this replica, opened with the first of them, and again after every break.
- Best effort: a failed stream is logged, and the followers get no error. Hosts of earlier versions have no logs.
- `sync` returns once everything that the hosts had is here: results of steps come by another way, and often sooner.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from stepflow.log_lines import StepLog, lines_from_pb
from stepflow.mesh.v1 import host_pb2, host_pb2_grpc, state_pb2
from stepflow.retry import doubling
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of
from stepflow.store import keys
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from stepflow.rpc.tls import Tls
    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)

RECONNECT_S_MIN = 0.1
RECONNECT_S_MAX = 5.0

SYNC_S = 1.0
"""Longest wait for the lines that hosts have."""


class ComponentLogs:
    """The `LogSource` of a mesh."""

    def __init__(self, store: Store, tls: Tls | None = None) -> None:
        self.listeners: dict[str, Callable[[StepLog], None]] = {}
        """By root run."""
        self.tls = tls
        self._store = store
        self._streams: dict[str, _HostStream] = {}
        self._follower: asyncio.Task[None] | None = None
        self._listed = asyncio.Event()
        """The hosts are known."""

    async def close(self) -> None:
        tasks = [stream.task for stream in self._streams.values()]
        if self._follower is not None:
            tasks.append(self._follower)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def follow(self, run_id: str, listener: Callable[[StepLog], None]) -> Callable[[], None]:
        """Call `listener` with the lines of a run, those that the hosts have kept first; return a function to stop."""
        if self._follower is None:
            following = follow(self._store, keys.HOST_SESSIONS, listed=self._list_hosts, changed=self._hosts_changed)
            self._follower = asyncio.create_task(following, name="follow the hosts for their logs")

        self.listeners[run_id] = listener
        self._send(host_pb2.FollowLogsRequest(follow=[run_id]))

        def end() -> None:
            if self.listeners.get(run_id) is listener:
                del self.listeners[run_id]
                self._send(host_pb2.FollowLogsRequest(unfollow=[run_id]))

        return end

    async def sync(self) -> None:
        """Return once the lines that the hosts have taken until now were told, or after `SYNC_S`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(SYNC_S):
                await self._listed.wait()
                await asyncio.gather(*(stream.sync() for stream in self._streams.values()))

    def _send(self, request: host_pb2.FollowLogsRequest) -> None:
        for stream in self._streams.values():
            stream.send(request)

    def _list_hosts(self, items: list[KeyValue]) -> None:
        found = {keys.tail(keys.HOST_SESSIONS, item.key) for item in items}
        for host_id in self._streams.keys() - found:
            self._drop_host(host_id)
        for item in items:
            self._add_host(item)
        self._listed.set()

    def _hosts_changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                self._add_host(event.kv)
            else:
                self._drop_host(keys.tail(keys.HOST_SESSIONS, event.kv.key))

    def _add_host(self, item: KeyValue) -> None:
        host_id = keys.tail(keys.HOST_SESSIONS, item.key)
        try:
            address = state_pb2.HostSession.FromString(item.value).address
        except DecodeError:  # of a later version
            return
        known = self._streams.get(host_id)
        if known is not None and known.address != address:
            self._drop_host(host_id)
            known = None
        if known is None and address:
            self._streams[host_id] = _HostStream(self, host_id, address)

    def _drop_host(self, host_id: str) -> None:
        stream = self._streams.pop(host_id, None)
        if stream is not None:
            stream.task.cancel()


class _HostStream:
    """The stream from one host."""

    def __init__(self, logs: ComponentLogs, host_id: str, address: str) -> None:
        self.address = address
        self._logs = logs
        self._host_id = host_id
        self._requests: asyncio.Queue[host_pb2.FollowLogsRequest] = asyncio.Queue()
        """Requests for the open stream."""
        self._requests.put_nowait(host_pb2.FollowLogsRequest(follow=list(logs.listeners)))
        self._failed = False
        """The stream is broken: nothing to wait for."""
        self._sync = self._synced = 0
        self._news = asyncio.Event()
        self.task = asyncio.create_task(self._run(), name=f"logs of {host_id}")

    def send(self, request: host_pb2.FollowLogsRequest) -> None:
        if not self._failed:
            self._requests.put_nowait(request)

    async def sync(self) -> None:
        """Return once the lines until now are here, or the stream is broken."""
        if self._failed:
            return
        self._sync += 1
        wanted = self._sync
        self.send(host_pb2.FollowLogsRequest(sync=wanted))
        while self._synced < wanted and not self._failed:
            self._news.clear()
            await self._news.wait()

    async def _run(self) -> None:
        for pause_s in doubling(RECONNECT_S_MIN, RECONNECT_S_MAX):
            try:
                await self._stream()
            except grpc.aio.AioRpcError as failed:
                if failed.code() is grpc.StatusCode.UNIMPLEMENTED:
                    self._break()
                    return
                log.info("no logs of a host", host_id=self._host_id, reason=error_of(failed).reason)
            except Exception as error:
                log_defect(log, "the logs of a host failed by a defect", error, host_id=self._host_id)
            self._break()
            await asyncio.sleep(pause_s)

            self._failed = False
            self._requests = asyncio.Queue()
            self._requests.put_nowait(host_pb2.FollowLogsRequest(follow=list(self._logs.listeners)))

    async def _stream(self) -> None:
        channel = open_channel(self.address, self._logs.tls)
        try:
            stub: Any = host_pb2_grpc.ComponentHostServiceStub(channel)
            async for response in stub.FollowLogs(self._sent()):
                for told in response.logs:
                    listener = self._logs.listeners.get(told.root_run_id)
                    if listener is not None:
                        listener(_step_log(told))
                if response.synced:
                    self._synced = response.synced
                    self._news.set()
        finally:
            await channel.close()

    async def _sent(self) -> AsyncIterator[host_pb2.FollowLogsRequest]:
        requests = self._requests
        while True:
            yield await requests.get()

    def _break(self) -> None:
        self._failed = True
        self._news.set()


def _step_log(told: host_pb2.CallLog) -> StepLog:
    return StepLog(
        run_id=told.run_id,
        item=told.item,
        step_id=told.step_id,
        step_index=told.step_index,
        component=told.component,
        depth=told.depth,
        attempt=told.attempt,
        lines=lines_from_pb(told.lines),
        dropped=told.dropped,
    )


__all__ = ["ComponentLogs"]
