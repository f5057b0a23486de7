"""Routes: the mesh's rules together with the components offered by hosts. Implements the engine's `Routes`, and
finds the host for a call.

- A plugin keeps its last known components while its hosts are away: steps are routed, and the calls wait.
- A plugin that failed to start on every host is routed to a failed host, which fails the call with the reason.
- A step is not routed while a plugin on its path is starting, or was never offered and is still waited for: the rules
  could pick a wrong component.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.routing.table import PluginComponents, RouteTable, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from executor.hosts.peer import HostPeer
    from stepflow.codec import Json
    from stepflow.routing.table import NoRoute, Target

_FAILED = PluginComponents(complete=False)
"""Offer of a plugin that failed to start everywhere: any path leads to its host, which reports the reason."""


class HostRoutes:
    """The routing table of an executor, rebuilt whenever rules or offers change."""

    def __init__(
        self,
        rules: Mapping[str, Sequence[Rule]],
        builtins: Mapping[str, PluginComponents],
        *,
        unheard_timeout_s: float,
        on_timeout: Callable[[], None],
    ) -> None:
        """`builtins` need no host: plugins with components run by the engine.

        `unheard_timeout_s`: how long a plugin without any offer so far is waited for; `on_timeout` must then rebuild.
        """
        self.rules = rules
        self.builtins = builtins
        self.by_plugin: dict[str, list[HostPeer]] = {}
        """The hosts to which calls of a plugin may go."""
        self.on_wanted: Callable[[str], None] = lambda _plugin: None
        """Called with a plugin that is starting when a step waits for it."""

        self._unheard_timeout_s = unheard_timeout_s
        self._on_timeout = on_timeout
        self._known: dict[str, PluginComponents] = {}
        """Last offer of each plugin, also of plugins whose hosts are away."""
        self._unheard_since_s: dict[str, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._starting: frozenset[str] = frozenset()
        self._table = RouteTable(rules, builtins)

    def rebuild(self, peers: Iterable[HostPeer]) -> None:
        """Build the table from the rules and the offers of these hosts."""
        ready: dict[str, list[HostPeer]] = {}
        failed: dict[str, list[HostPeer]] = {}
        starting: set[str] = set()

        for peer in peers:
            starting |= peer.starting
            for name, offered in peer.plugins.items():
                if name not in peer.failed:
                    self._known[name] = offered
                # A draining host takes no calls: without another host they wait as if there were none.
                if not peer.draining:
                    (failed if name in peer.failed else ready).setdefault(name, []).append(peer)

        # A plugin that failed everywhere stays callable: the call returns the reason.
        self.by_plugin = {**failed, **ready}
        unknown = {name: _FAILED for name in failed if name not in self._known}
        self._starting = frozenset((starting | self._unheard()) - set(self.by_plugin))
        self._table = RouteTable(self.rules, {**self.builtins, **unknown, **self._known})

    def resolve(self, path: str, input: Json) -> Target | NoRoute | None:
        """Return the target of a component path, None while a plugin on the path is starting."""
        if self._starting and (met := self._starting & self._plugins_of(path)):
            for plugin in met:
                self.on_wanted(plugin)
            return None
        return self._table.resolve(path, input)

    def find_room(self, plugin: str, depth: int) -> HostPeer | None:
        """Return the host with the most room for a call of this depth, None if all are full."""
        peers = self.by_plugin.get(plugin, ())
        if len(peers) > 1:
            return max((peer for peer in peers if peer.can_take(depth)), key=_room, default=None)
        return peers[0] if peers and peers[0].can_take(depth) else None

    def may_be_engine(self, path: str) -> bool:
        return self._table.may_be_engine(path)

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plugins_of(self, path: str) -> set[str]:
        """Return the plugins named by the rules for a path."""
        prefix = "/" + path[1:].partition("/")[0]
        return {rule.plugin for rule in (*self.rules.get(prefix, ()), *self.rules.get("/", ()))}

    def _unheard(self) -> set[str]:
        """Return the plugins of the rules without any offer so far that are still waited for.

        Their components are unknown: a step routed now could call the wrong component.
        """
        if not self._unheard_timeout_s:
            return set()
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        named = {rule.plugin for rules in self.rules.values() for rule in rules}
        unheard = named - self._known.keys() - self.builtins.keys()
        self._unheard_since_s = {name: self._unheard_since_s.get(name, now_s) for name in unheard}

        waited_for = {name for name, at_s in self._unheard_since_s.items() if now_s - at_s < self._unheard_timeout_s}
        if waited_for and self._timer is None:
            self._timer = loop.call_later(self._unheard_timeout_s, self._stop_waiting)
        return waited_for

    def _stop_waiting(self) -> None:
        self._timer = None
        self._on_timeout()


def _room(peer: HostPeer) -> int:
    return peer.room


__all__ = ["HostRoutes"]
