"""The catalogue of the mesh: its routes, and the components that live hosts offer, for checks before a run.

- Routes and sessions of hosts are followed from `start` on, or from the first check. A mesh in one process checks by
  its own means, and follows nothing.
- A new catalogue, with a new revision, is made only when a check asks for it and what it holds has changed: sessions
  change with every note about memory, too.
- Never an error by ignorance: while a host of a plugin starts, has failed to start it, or has left less than
  `LEFT_HOST_S` ago without a successor, the list of the plugin counts as incomplete. A plugin without a host is
  unknown.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from control_plane.mesh_catalogue import make_catalogue, plugin_states
from stepflow.mesh.v1 import state_pb2
from stepflow.off_loop import off_loop
from stepflow.store import keys, range_all
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger
from stepflow.vital import ended

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from control_plane.mesh_catalogue import PluginState
    from stepflow.check import Catalogue
    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)

LEFT_HOST_S = 30.0
"""How long a host that has left may come back with components that no other host offers."""

FIRST_LIST_S = 5.0
"""Longest wait of a check for the first list of routes and hosts."""


class MeshCatalogue(NamedTuple):
    """A catalogue and its number: equal numbers of one replica mean equal catalogues."""

    revision: int
    catalogue: Catalogue


class _Session(NamedTuple):
    """A host as registered, and what a catalogue shows of it."""

    value: bytes
    mod_revision: int
    plugins: tuple[PluginState, ...]


class MeshOffers:
    """Follows routes and hosts, and makes catalogues of them."""

    def __init__(self, store: Store, now_s: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._now_s = now_s
        self._routes: dict[str, KeyValue] = {}
        """By prefix."""
        self._sessions: dict[str, _Session] = {}
        self._left_at_s: dict[str, list[float]] = {}
        """By plugin: when hosts stopped to run it, for those that no other host has followed."""

        self._made: MeshCatalogue | None = None
        self._key: object = None
        """What the made catalogue holds."""
        self._stale = True
        self._stale_at_s = 0.0
        """When a departure counts no longer; 0 without one."""
        self._making = asyncio.Lock()
        self._refreshing = asyncio.Lock()
        self._refreshes = 0
        """Readings of the store that have begun."""

        self._tasks: list[asyncio.Task[None]] = []
        self._listed = (asyncio.Event(), asyncio.Event())

    def ended(self) -> list[str]:
        """Return the tasks that have ended although the replica goes on."""
        return ended(*self._tasks)

    def start(self) -> None:
        """Begin to follow routes and hosts, unless that has begun. Departures before it are not known."""
        if not self._tasks:
            follows = (
                follow(self._store, keys.ROUTES, listed=self._list_routes, changed=self._change_routes),
                follow(self._store, keys.HOST_SESSIONS, listed=self._list_sessions, changed=self._change_sessions),
            )
            self._tasks = [asyncio.create_task(following, name="follow routes and hosts") for following in follows]

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def known(self) -> MeshCatalogue | None:
        """Return the present catalogue if it is made already."""
        if self._stale or (self._stale_at_s and self._now_s() >= self._stale_at_s):
            return None
        return self._made

    async def current(self) -> MeshCatalogue:
        """Return the present catalogue. Without an answer of the store, an empty one that gives no errors."""
        made = self.known()
        if made is not None:
            return made
        self.start()
        try:
            async with asyncio.timeout(FIRST_LIST_S):
                await asyncio.gather(*(event.wait() for event in self._listed))
        except TimeoutError:
            from stepflow.check import Catalogue

            return MeshCatalogue(0, Catalogue({}, has_all_routes=False))

        async with self._making:
            return self.known() or await self._make()

    async def refresh(self) -> None:
        """Read what the watches have not told yet: a host may have registered a moment ago. Raises: StepflowError."""
        wanted = self._refreshes + 1
        async with self._refreshing:
            if self._refreshes >= wanted:
                return  # one that began after this call is done

            self._refreshes += 1
            # Additions only: what the watches told meanwhile is newer than these lists.
            async for item in range_all(self._store, keys.ROUTES):
                prefix = keys.tail(keys.ROUTES, item.key)
                if prefix not in self._routes or self._routes[prefix].mod_revision < item.mod_revision:
                    self._routes[prefix] = item
                    self._stale = True
            async for item in range_all(self._store, keys.HOST_SESSIONS):
                known = self._sessions.get(keys.tail(keys.HOST_SESSIONS, item.key))
                if known is None or known.mod_revision < item.mod_revision:
                    self._take_session(item)

    # --- following ----------------------------------------------------------------------------------------------------

    def _list_routes(self, items: list[KeyValue]) -> None:
        self._routes = {keys.tail(keys.ROUTES, item.key): item for item in items}
        self._stale = True
        self._listed[0].set()

    def _change_routes(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            prefix = keys.tail(keys.ROUTES, event.kv.key)
            if event.kind == "put":
                self._routes[prefix] = event.kv
            else:
                self._routes.pop(prefix, None)
        self._stale = True

    def _list_sessions(self, items: list[KeyValue]) -> None:
        found = {keys.tail(keys.HOST_SESSIONS, item.key) for item in items}
        for host_id in self._sessions.keys() - found:
            self._drop_session(host_id)
        for item in items:
            self._take_session(item)
        self._listed[1].set()

    def _change_sessions(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                self._take_session(event.kv)
            else:
                self._drop_session(keys.tail(keys.HOST_SESSIONS, event.kv.key))

    def _take_session(self, item: KeyValue) -> None:
        host_id = keys.tail(keys.HOST_SESSIONS, item.key)
        before = self._sessions.get(host_id)
        plugins: tuple[PluginState, ...] = ()
        if before is not None and before.value == item.value:
            plugins = before.plugins
        else:
            try:
                plugins = plugin_states(state_pb2.HostSession.FromString(item.value))
            except DecodeError:  # of a later version, say
                log.error("a host's session cannot be read", host_id=host_id)
        self._note_moves(() if before is None else before.plugins, plugins)
        self._sessions[host_id] = _Session(item.value, item.mod_revision, plugins)
        self._stale = self._stale or before is None or before.plugins != plugins

    def _drop_session(self, host_id: str) -> None:
        before = self._sessions.pop(host_id, None)
        if before is not None:
            self._note_moves(before.plugins, ())
            self._stale = True

    def _note_moves(self, before: Sequence[PluginState], after: Sequence[PluginState]) -> None:
        """Note the plugins that a host has stopped to run. One that a host begins to run makes up for a departure."""
        ran, runs = ({plugin[0] for plugin in plugins if plugin[2]} for plugins in (before, after))
        for name in ran - runs:
            self._left_at_s.setdefault(name, []).append(self._now_s())
        for name in runs - ran:
            if name in self._left_at_s:
                del self._left_at_s[name][0]
                if not self._left_at_s[name]:
                    del self._left_at_s[name]

    # --- the catalogue ------------------------------------------------------------------------------------------------

    async def _make(self) -> MeshCatalogue:
        # 1. Take over all changes so far: those of the meantime make it stale again.
        now_s = self._now_s()
        recent = {name: [at_s for at_s in left if at_s + LEFT_HOST_S > now_s] for name, left in self._left_at_s.items()}
        self._left_at_s = {name: left for name, left in recent.items() if left}
        self._stale_at_s = min((left[-1] + LEFT_HOST_S for left in self._left_at_s.values()), default=0.0)
        self._stale = False

        # 2. Make a catalogue, if it would differ.
        states = sorted(state for session in self._sessions.values() for state in session.plugins)
        routes = {prefix: item.value for prefix, item in sorted(self._routes.items())}
        key = (routes, states, sorted(self._left_at_s))
        if self._made is None or key != self._key:
            sessions = [self._sessions[host_id].value for host_id in sorted(self._sessions)]
            size = sum(map(len, sessions))
            made = await off_loop(size, make_catalogue, routes, sessions, frozenset(self._left_at_s))
            self._made = MeshCatalogue(1 if self._made is None else self._made.revision + 1, made)
            self._key = key
        return self._made


__all__ = ["MeshCatalogue", "MeshOffers"]
