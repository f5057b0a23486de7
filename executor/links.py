"""The executor's streams: one to every host that is registered, for as long as it is.

- A host is known by its session. Its stream is opened when the session comes, and again whenever it breaks; what is in
  flight there is then sent again, the same attempts, and the host joins it.
- Calls are given up (UNREACHABLE) when the host's session is gone, when its address refuses connections or is answered
  by another host, and when it was out of reach for a lease's length. Whatever comes for them later is dropped.
- The reader never waits for the writer; what gathers while a frame is being written goes into the next one.
- The rules of the mesh (`routes/`) are followed here as well, and the plugins' own listings.

Does not choose hosts, and does not know runs.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from executor.peers import Peer
from stepflow.errors import StepflowError
from stepflow.frames import FrameQueue, pump
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.probe import refuses
from stepflow.routes import decode_rules
from stepflow.routing import ENGINE_COMPONENTS, PluginComponents
from stepflow.store import keys
from stepflow.store.lease import LEASE_TTL_S
from stepflow.store.mirror import Mirror
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from executor.hosts import Hosts
    from stepflow.routing import Rule
    from stepflow.rpc import Tls
    from stepflow.store import KeyValue, Store

log = get_logger(__name__)

CONNECT = "/stepflow.mesh.v1.ComponentHostService/Connect"

GREETING_TIMEOUT_S = 2.0
"""From dialling to the host's hello."""

RECONNECT_S_MIN = 0.02
RECONNECT_S_MAX = 1.0
"""Between two tries, doubling."""

OUT_OF_REACH_S_MAX = LEASE_TTL_S
"""A host that cannot be reached for so long has lost its lease, or is cut off from us alone: its calls go elsewhere."""


class Linked(Protocol):
    """What the links need of their executor."""

    hosts: Hosts

    def hello(self) -> host_pb2.Hello: ...
    def on_frame(self, peer: Peer, frame: host_pb2.HostFrame) -> None: ...


class Links:
    """See the head of this module."""

    def __init__(self, store: Store, executor: Linked, *, tls: Tls | None = None) -> None:
        self.executor = executor
        self.tls = tls
        self._links: dict[str, _Link] = {}
        self._ending: set[asyncio.Task[None]] = set()
        self._routes: dict[str, tuple[tuple[Rule, ...], dict[str, str]]] = {}
        self._listed = False
        self._sessions = Mirror(store, keys.HOST_SESSIONS, self._on_session)
        self._rules = Mirror(store, keys.ROUTES, self._on_route)

    async def start(self) -> None:
        """Return when all hosts and rules are known; the streams open meanwhile."""
        await self._rules.start()
        await self._sessions.start()
        self._listed = True
        self._show_rules()

    async def close(self) -> None:
        await self._sessions.close()
        await self._rules.close()
        for link in self._links.values():
            link.stop()
        links = [link.task for link in self._links.values()]
        await asyncio.gather(*links, *self._ending, return_exceptions=True)

    # --- rules --------------------------------------------------------------------------------------------------------

    def _on_route(self, key: str, item: KeyValue | None) -> None:
        prefix = keys.tail(keys.ROUTES, key)
        if item is None:
            self._routes.pop(prefix, None)
        else:
            try:
                self._routes[prefix] = decode_rules(item.value)
            except StepflowError as error:
                log.error("route ignored", prefix=prefix, reason=error.reason, error=error.message)
                return
        if self._listed:
            self._show_rules()

    def _show_rules(self) -> None:
        rules = {prefix: rules for prefix, (rules, _) in self._routes.items()}
        types = {plugin: kind for _, named in self._routes.values() for plugin, kind in named.items()}
        self.executor.hosts.set_rules(rules, builtins_of(types))

    # --- hosts --------------------------------------------------------------------------------------------------------

    def _on_session(self, key: str, item: KeyValue | None) -> None:
        host_id = keys.tail(keys.HOST_SESSIONS, key)
        link = self._links.get(host_id)
        if item is None:
            if link is not None:
                self._drop(link)
            return
        session = state_pb2.HostSession.FromString(item.value)
        if link is not None and (link.address, link.created) != (session.address, item.create_revision):
            self._drop(link)
            link = None
        if link is None:
            link = self._links[host_id] = _Link(self, host_id, session.address, item.create_revision)
        show(link.peer, session)
        self.executor.hosts.set_peer(link.peer)

    def _drop(self, link: _Link) -> None:
        log.info("host is gone", host_id=link.peer.id)
        del self._links[link.peer.id]
        link.stop()
        self._ending.add(link.task)
        link.task.add_done_callback(self._ending.discard)
        link.give_up("its session has ended")
        self.executor.hosts.remove_peer(link.peer)


class _Link:
    """One host, and the stream to it."""

    def __init__(self, links: Links, host_id: str, address: str, created: int) -> None:
        self.peer = Peer(host_id, {}, metered=True)
        self.address = address
        self.created = created
        """Create revision of the session: another one is another life of the host."""
        self._links = links
        self._reached_at = time.monotonic()
        self.task = asyncio.create_task(self._run(), name=f"link {host_id}")

    def stop(self) -> None:
        self.task.cancel()

    async def _run(self) -> None:
        pause_s = RECONNECT_S_MIN
        while True:
            reached = self._reached_at
            reason = await self._carry()
            log.info("stream to host ended", host_id=self.peer.id, why=reason or "broken")
            if not reason and await refuses(self.address):
                reason = "its address refuses connections"
            if not reason and time.monotonic() - self._reached_at > OUT_OF_REACH_S_MAX:
                reason = "it could not be reached"
            if reason:
                self.give_up(reason)
            if self._reached_at > reached:
                pause_s = RECONNECT_S_MIN
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_S_MAX)

    async def _carry(self) -> str:
        """Open a stream and carry frames until it ends; return why the calls are lost, empty when they may not be."""
        import grpc

        from stepflow.rpc import open_channel

        # A pool of its own: otherwise a new channel inherits the back-off of the one that has just failed.
        channel = open_channel(self.address, self._links.tls, options=(("grpc.use_local_subchannel_pool", 1),))
        try:
            open_stream = channel.stream_stream(
                CONNECT,
                request_serializer=None,  # the queue has encoded the frames already
                response_deserializer=host_pb2.HostFrame.FromString,
            )
            return await self._talk(open_stream())
        except grpc.aio.AioRpcError as error:
            log.debug("stream failed", host_id=self.peer.id, code=error.code().name)
            return ""
        except (TimeoutError, StepflowError) as error:
            log.info("stream given up", host_id=self.peer.id, error=type(error).__name__)
            return ""
        finally:
            await channel.close()

    async def _talk(self, stream: Any) -> str:
        import grpc

        queue = FrameQueue()
        queue.put(host_pb2.ExecutorFrame(hello=self._links.executor.hello()))
        writer = asyncio.create_task(pump(queue, stream.write), name=f"write {self.peer.id}")
        writer.add_done_callback(lambda _: stream.cancel())  # who cannot write must not go on reading
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                frame = await stream.read()
            if frame is grpc.aio.EOF:
                return ""
            if frame.hello.host_id != self.peer.id:
                return f"its address is that of host {frame.hello.host_id!r} now"
            log.info("connected to host", host_id=self.peer.id, address=self.address)
            self._links.executor.hosts.resume(self.peer, queue.put)
            while frame is not grpc.aio.EOF:
                self._reached_at = time.monotonic()
                self._receive(frame)
                frame = await stream.read()
            return ""
        finally:
            self.peer.interrupt()
            self._reached_at = max(self._reached_at, time.monotonic() if self.peer.id in "" else self._reached_at)
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def _receive(self, frame: host_pb2.HostFrame) -> None:
        executor = self._links.executor
        executor.on_frame(self.peer, frame)
        if frame.credits:
            executor.hosts.grant(self.peer, frame.credits)

    def give_up(self, reason: str) -> None:
        """Fail what is in flight at the host; it is tried again, elsewhere if need be."""
        calls = self._links.executor.hosts.calls_at(self.peer)
        if not calls:
            return
        log.warning("calls given up", host_id=self.peer.id, count=len(calls), why=reason)
        failure = pb.Failure(
            code=pb.FAILURE_CODE_UNREACHABLE,
            message=f"host {self.peer.id} was lost: {reason}",
            origin=pb.ORIGIN_DISPATCH,
        )
        results = [
            host_pb2.CallResult(call_id=call.call_id, key=call.key, attempt=call.attempt, failure=failure)
            for call in calls
        ]
        self._links.executor.on_frame(self.peer, host_pb2.HostFrame(results=results))


def show(peer: Peer, session: state_pb2.HostSession) -> None:
    """Take over what a host says of itself."""
    listing = state_pb2.PluginListing
    peer.draining = session.draining
    peer.plugins = {
        plugin.plugin: _components(plugin) for plugin in session.plugins if plugin.state != listing.STATE_STARTING
    }
    peer.failed = frozenset(plugin.plugin for plugin in session.plugins if plugin.state == listing.STATE_FAILED)
    peer.starting = frozenset(plugin.plugin for plugin in session.plugins if plugin.state == listing.STATE_STARTING)


def _components(plugin: state_pb2.PluginListing) -> PluginComponents:
    if plugin.state == state_pb2.PluginListing.STATE_FAILED:
        return PluginComponents(complete=False)
    return PluginComponents(
        components=tuple((each.component, each.path) for each in plugin.components),
        complete=plugin.complete,
        engine=ENGINE_COMPONENTS if plugin.type == "builtin" else frozenset(),
    )


def builtins_of(types: Mapping[str, str]) -> dict[str, PluginComponents]:
    """Return what needs no host: the engine's own components, by the plugins of type `builtin`."""
    return {
        name: PluginComponents(complete=True, engine=ENGINE_COMPONENTS)
        for name, kind in types.items()
        if kind == "builtin"
    }


__all__ = ["Linked", "Links", "builtins_of"]
