"""The executor's streams: one to every registered host, for as long as the host's session stands.

- A host's stream is opened when the session appears, and again after every break. The calls in flight there are then
  sent again, the same attempts, and the host joins them.
- Calls are given up (UNREACHABLE) when the host's session is gone, when its address refuses connections or belongs to
  another host, and when the host was out of reach for a lease's length. Later frames about given-up calls are dropped.
- The reader never waits for the writer; frames put during a write are joined into the next write.
- The rules of the mesh (`routes/`) are followed here as well, and the plugin listings of hosts.

Does not choose hosts, and does not know runs.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Protocol

from google.protobuf.message import DecodeError

from executor.hosts.peer import HostPeer
from stepflow.errors import StepflowError
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.retry import doubling
from stepflow.routing.stored import decode_rules
from stepflow.routing.table import ENGINE_COMPONENTS, PluginComponents
from stepflow.rpc.frames import FrameQueue, pump
from stepflow.rpc.probe import refuses
from stepflow.store import keys
from stepflow.store.follow import follow
from stepflow.store.lease import LEASE_TTL_S
from stepflow.telemetry import get_logger, log_defect
from stepflow.vital import ended, guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from executor.hosts.peer import Send
    from stepflow.routing.table import Rule
    from stepflow.rpc.tls import Tls
    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)

CONNECT = "/stepflow.mesh.v1.ComponentHostService/Connect"

GREETING_TIMEOUT_S = 2.0
"""From the opening of a stream to the host's hello."""

RECONNECT_S_MIN = 0.02
RECONNECT_S_MAX = 1.0
"""Pause between two tries, doubling."""

ROUTES_KEPT_S = 30.0
"""How long rules are kept that a list of the store lacks."""

OUT_OF_REACH_S_MAX = LEASE_TTL_S
"""A host out of reach for this long has lost its lease, or is cut off from this executor alone: its calls go elsewhere.
It gave up the connection long before (`LINK_PING_MS`), and with it the calls that never arrived."""


class LinkedPool(Protocol):
    """The side of the pool of hosts that links use."""

    def set_peer(self, peer: HostPeer) -> None: ...
    def set_rules(self, rules: Mapping[str, Sequence[Rule]], builtins: Mapping[str, PluginComponents]) -> None: ...
    def resume_peer(self, peer: HostPeer, send: Send) -> None: ...
    def grant_credits(self, peer: HostPeer, credits_total: int) -> None: ...
    def calls_at(self, peer: HostPeer) -> list[host_pb2.Call]: ...


class LinkedExecutor(Protocol):
    """The side of the executor that links use."""

    id: str

    @property
    def hosts(self) -> LinkedPool: ...
    @property
    def on_frame(self) -> Callable[[HostPeer, host_pb2.HostFrame], None]: ...
    @property
    def host_gone(self) -> Callable[[str, str], None]: ...


class HostLinks:
    """The rules and hosts in the store, and a stream to each host."""

    def __init__(self, store: Store, executor: LinkedExecutor, *, tls: Tls | None = None) -> None:
        self.executor = executor
        self.tls = tls
        self._store = store
        self._links: dict[str, _HostLink] = {}
        self._routes: dict[str, tuple[tuple[Rule, ...], dict[str, str]]] = {}
        """By prefix: the rules, and the types of the plugins that they name."""
        self._missing_since_s: dict[str, float] = {}
        """Since when a list of the store lacks rules that are known here, by the monotonic clock."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._followers: list[asyncio.Task[None]] = []
        self.registered = asyncio.Event()
        """The executor has an id: streams may be opened."""

    async def start(self) -> None:
        """Return when all rules and hosts are known, however long the store is away.

        Call before the executor gets its first run, whose calls the hosts may hold. The streams open once the executor
        is registered (`connect`), and then send the questions asked until then.
        """
        await self._follow(keys.ROUTES, self._routes_listed, self._routes_changed)
        await self._follow(keys.HOST_SESSIONS, self._sessions_listed, self._sessions_changed)

    async def _follow(
        self,
        prefix: str,
        take_list: Callable[[list[KeyValue]], None],
        changed: Callable[[Sequence[StoreEvent]], None],
    ) -> None:
        known = asyncio.Event()

        def listed(items: list[KeyValue]) -> None:
            take_list(items)
            known.set()

        following = follow(self._store, prefix, listed=listed, changed=changed)
        follower = asyncio.create_task(following, name=f"follow {prefix}")
        self._followers.append(follower)
        self._keep(follower)
        await known.wait()

    def connect(self) -> None:
        """Open the streams; the executor is registered."""
        self.registered.set()

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def ended(self) -> list[str]:
        """Return the tasks that have ended although the links go on."""
        return ended(*self._followers, *(link.task for link in self._links.values()))

    def _keep(self, task: asyncio.Task[None]) -> None:
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- rules --------------------------------------------------------------------------------------------------------

    def _routes_listed(self, items: list[KeyValue]) -> None:
        """Take a list. Rules that it lacks are kept for a while: a wiped store gets them again with its hosts."""
        now_s = time.monotonic()
        missing = self._routes.keys() - {keys.tail(keys.ROUTES, item.key) for item in items}
        self._missing_since_s = {prefix: self._missing_since_s.get(prefix, now_s) for prefix in missing}
        kept = {prefix for prefix, since_s in self._missing_since_s.items() if now_s - since_s < ROUTES_KEPT_S}
        if kept:
            log.warning("the store has lost routes; kept until hosts register again", prefixes=sorted(kept))

        self._routes = {prefix: self._routes[prefix] for prefix in kept}
        for item in items:
            self._on_route(item)
        self._update_rules()

    def _routes_changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                self._on_route(event.kv)
            else:
                self._routes.pop(keys.tail(keys.ROUTES, event.kv.key), None)
        self._update_rules()

    def _on_route(self, item: KeyValue) -> None:
        prefix = keys.tail(keys.ROUTES, item.key)
        try:
            self._routes[prefix] = decode_rules(item.value)
        except StepflowError as error:
            log.error("route ignored", prefix=prefix, reason=error.reason, error=error.message)

    def _update_rules(self) -> None:
        rules = {prefix: rules for prefix, (rules, _) in self._routes.items()}
        types = {plugin: kind for _, named in self._routes.values() for plugin, kind in named.items()}
        self.executor.hosts.set_rules(rules, builtins_of(types))

    # --- hosts --------------------------------------------------------------------------------------------------------

    def _sessions_listed(self, items: list[KeyValue]) -> None:
        found = {keys.tail(keys.HOST_SESSIONS, item.key) for item in items}
        for host_id in self._links.keys() - found:
            self._drop_host(host_id)
        for item in items:
            link = self._links.get(keys.tail(keys.HOST_SESSIONS, item.key))
            if link is not None and item.mod_revision < link.modified:
                link.modified = 0  # an older copy of the store was restored: its revisions begin again
            self._on_session(item)

    def _sessions_changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                self._on_session(event.kv)
            else:
                self._drop_host(keys.tail(keys.HOST_SESSIONS, event.kv.key))

    def _on_session(self, item: KeyValue) -> None:
        host_id = keys.tail(keys.HOST_SESSIONS, item.key)
        try:
            session = state_pb2.HostSession.FromString(item.value)
        except DecodeError:  # of a later version, say: its calls go to other hosts
            log.error("a host's session cannot be read", host_id=host_id)
            return
        link = self._links.get(host_id)
        if link is not None and (link.address, link.created) != (session.address, item.create_revision):
            self._drop_host(host_id)
            link = None

        if link is None:
            link = self._links[host_id] = _HostLink(self, host_id, session.address, item.create_revision)
            self._keep(link.task)
        elif item.mod_revision <= link.modified:
            return  # a list and a watch may both tell of one change

        link.modified = item.mod_revision
        update_peer(link.peer, session)
        self.executor.hosts.set_peer(link.peer)

    def _drop_host(self, host_id: str) -> None:
        link = self._links.pop(host_id, None)
        if link is not None:
            log.info("host is gone", host_id=host_id)
            link.task.cancel()
            self.executor.host_gone(host_id, f"host {host_id} is gone")


class _HostLink:
    """A host and its stream, opened again after every break."""

    def __init__(self, links: HostLinks, host_id: str, address: str, created: int) -> None:
        self.peer = HostPeer(host_id, {}, metered=True)
        self.address = address
        self.created = created
        """Create revision of the session: a later one belongs to a restarted host."""
        self.modified = 0
        """Revision of the session as it was taken over last."""
        self._links = links
        self._reached_at = time.monotonic()
        self.task = asyncio.create_task(self._run(), name=f"link {host_id}")

    async def _run(self) -> None:
        await self._links.registered.wait()
        pauses = doubling(RECONNECT_S_MIN, RECONNECT_S_MAX)
        self._reached_at = time.monotonic()
        while True:
            # 1. Carry frames until the stream breaks.
            reached_at = self._reached_at
            try:
                reason = await self._carry_frames()
            except Exception as error:  # without this the host would be lost until the executor restarts
                log_defect(log, "stream failed by a defect", error, host_id=self.peer.id)
                reason = ""

            # 2. Fail the calls in flight, if they are known to be lost.
            if not reason and await refuses(self.address):
                reason = "its address refuses connections"
            if not reason and time.monotonic() - self._reached_at > OUT_OF_REACH_S_MAX:
                reason = "it cannot be reached"
            if reason:
                guarded(log, "giving up calls", self._give_up_calls, reason, host_id=self.peer.id)

            # 3. Try again; soon, if the host was reached.
            if self._reached_at > reached_at:
                pauses = doubling(RECONNECT_S_MIN, RECONNECT_S_MAX)
            await asyncio.sleep(next(pauses))

    async def _carry_frames(self) -> str:
        """Open a stream and carry frames until the stream ends; return the reason why its calls are lost, else ""."""
        import grpc

        from stepflow.rpc.channel import open_link

        channel = open_link(self.address, self._links.tls)
        try:
            open_stream: Any = channel.stream_stream(
                CONNECT,
                request_serializer=None,  # the queue holds encoded frames
                response_deserializer=host_pb2.HostFrame.FromString,
            )
            return await self._carry_on(open_stream())
        except grpc.aio.AioRpcError as error:
            log.debug("stream failed", host_id=self.peer.id, code=error.code().name)
            return ""
        except (TimeoutError, StepflowError) as error:
            log.info("stream given up", host_id=self.peer.id, error=type(error).__name__)
            return ""
        finally:
            await channel.close()

    async def _carry_on(self, stream: Any) -> str:
        import grpc

        # 1. Say hello, and write from a task of its own.
        queue = FrameQueue()
        queue.put(host_pb2.ExecutorFrame(hello=host_pb2.Hello(executor_id=self._links.executor.id)))
        writer = asyncio.create_task(pump(queue, stream.write), name=f"write {self.peer.id}")
        writer.add_done_callback(lambda _: stream.cancel())  # a stream that cannot be written must not be read on

        # 2. Check that this is the host of the session.
        try:
            async with asyncio.timeout(GREETING_TIMEOUT_S):
                frame = await stream.read()
            if frame is grpc.aio.EOF:
                return ""
            if frame.hello.host_id != self.peer.id:
                return f"its address is that of host {frame.hello.host_id!r} now"

            # 3. Send the calls in flight again, and read until the stream ends.
            log.info("connected to host", host_id=self.peer.id, address=self.address)
            self._links.executor.hosts.resume_peer(self.peer, queue.put)
            while frame is not grpc.aio.EOF:
                self._receive(frame)
                frame = await stream.read()
            return ""
        finally:
            if self.peer.send is not None:
                self._reached_at = time.monotonic()
                log.info("stream to host ended", host_id=self.peer.id)
            self.peer.interrupt()
            writer.cancel()
            await asyncio.gather(writer, return_exceptions=True)

    def _receive(self, frame: host_pb2.HostFrame) -> None:
        executor = self._links.executor
        executor.on_frame(self.peer, frame)
        if frame.credits:
            executor.hosts.grant_credits(self.peer, frame.credits)

    def _give_up_calls(self, reason: str) -> None:
        """Fail the calls in flight at the host; each is tried again, elsewhere if need be."""
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


def update_peer(peer: HostPeer, session: state_pb2.HostSession) -> None:
    """Take over the plugins and the state listed in a host's session."""
    listing = state_pb2.PluginListing
    peer.draining = session.draining
    peer.plugins = {
        plugin.plugin: _components(plugin)
        for plugin in session.plugins
        if plugin.state != listing.STATE_STARTING and not plugin.conflict
    }
    peer.failed = frozenset(peer.plugins) & {
        plugin.plugin for plugin in session.plugins if plugin.state == listing.STATE_FAILED
    }
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
    """Return the engine's own components by plugin, for the plugins of type `builtin`; no host is needed for these.

    Not complete: the other components of such a plugin wait for a host.
    """
    return {
        name: PluginComponents(complete=False, engine=ENGINE_COMPONENTS)
        for name, kind in types.items()
        if kind == "builtin"
    }


__all__ = ["HostLinks", "LinkedExecutor", "builtins_of"]
