"""Routes: the mesh's rules together with the components offered by hosts. Implements the engine's `Routes`, and
finds the host for a call.

- A call goes to a host that offers its component. Hosts of one plugin may differ: an update adds or removes components.
- A component that no host offers now keeps its route: its calls wait for a host.
- A plugin that failed to start on every host is routed to a failed host, which fails the call with the reason.
- A step is not routed while a plugin on its path is starting, or was never offered and is still waited for: the rules
  could pick a wrong component. Nor while its component is unknown and a host of the plugin is starting, or has left
  less than a time-out ago: the next one may offer it.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from executor.hosts.offers import PluginOffers
from stepflow.routing.table import NoRoute, PluginComponents, RouteTable, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from executor.hosts.offers import HostGroups
    from executor.hosts.peer import HostPeer
    from stepflow.codec import Json
    from stepflow.routing.table import Target

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

        `unheard_timeout_s`: how long an unknown plugin or component is waited for; `on_timeout` must then rebuild.
        0: all hosts are known.
        """
        self.rules = rules
        self.builtins = builtins
        self.by_group: dict[str, list[HostPeer]] = {}
        """The hosts to which calls of a group may go. Never an empty list."""
        self.on_wanted: Callable[[str], None] = lambda _plugin: None
        """Called with a plugin that is starting when a step waits for it."""

        self._unheard_timeout_s = unheard_timeout_s
        self._on_timeout = on_timeout
        self._offers: dict[str, PluginOffers] = {}
        """By plugin, also of plugins whose hosts are away."""
        self._unlike: dict[str, HostGroups] = {}
        """By plugin, of those whose hosts differ."""
        self._unheard_since_s: dict[str, float] = {}
        self._hosting: dict[str, set[str]] = {}
        """By plugin: the ids of the hosts that took calls at the last rebuild."""
        self._left_at_s: dict[str, float] = {}
        """By plugin: when a host last stopped to take calls (it drains, or is lost)."""
        self._timer: asyncio.TimerHandle | None = None
        self._starting: frozenset[str] = frozenset()
        self._starting_hosted: frozenset[str] = frozenset()
        """Plugins that a live host is starting."""
        self._unsettled: frozenset[str] = frozenset()
        """Plugins of which a host may come that offers more."""
        self._table = RouteTable(rules, builtins)

    def rebuild(self, peers: Iterable[HostPeer]) -> bool:
        """Build the table from the rules and the offers of these hosts; return True if calls change their groups."""
        # 1. Sort the hosts by plugin.
        ready: dict[str, list[HostPeer]] = {}
        failed: dict[str, list[HostPeer]] = {}
        offered: dict[str, list[PluginComponents]] = {}
        starting: set[str] = set()
        for peer in peers:
            starting |= peer.starting
            for name, components in peer.plugins.items():
                if name not in peer.failed:
                    offered.setdefault(name, []).append(components)
                # A draining host takes no calls: without another host they wait as if there were none.
                if not peer.draining:
                    (failed if name in peer.failed else ready).setdefault(name, []).append(peer)

        # 2. Merge their offers. Where nothing is waited for, a component that is no longer offered is forgotten.
        for name, components_list in offered.items():
            if name not in self._offers or not self._unheard_timeout_s:
                self._offers[name] = PluginOffers()
            self._offers[name].take(components_list)

        # 3. Group the hosts. A plugin that failed everywhere stays callable: the call returns the reason.
        before = self._unlike
        splits = {name: self._offers[name].split(name, peers) for name, peers in ready.items()}
        self._unlike = {name: groups for name, groups in splits.items() if groups is not None}
        self.by_group = {name: peers for name, peers in {**failed, **ready}.items() if name not in self._unlike}
        for groups in self._unlike.values():
            self.by_group |= groups.by_group

        # 4. Note what is still waited for.
        hosting = {name: {peer.id for peer in peers} for name, peers in {**failed, **ready}.items()}
        self._note_waits(hosting, starting)

        # 5. Build the table.
        known = {name: offers.merged() for name, offers in self._offers.items()}
        unknown = {name: _FAILED for name in failed if name not in known}
        self._table = RouteTable(self.rules, {**self.builtins, **unknown, **known})
        return before != self._unlike

    def resolve(self, path: str, input: Json) -> Target | NoRoute | None:
        """Return the target of a component path, None while a plugin on the path is waited for."""
        if self._starting and (met := self._starting & self._plugins_of(path)):
            for plugin in met:
                self.on_wanted(plugin)
            return None

        target = self._table.resolve(path, input)
        if self._unsettled and isinstance(target, NoRoute) and target.reason == "not_listed":
            return None if self._unsettled & self._plugins_of(path) else target
        return target

    def group_of(self, target: Target) -> str:
        """Return the group of hosts for a call: those of its plugin, or those of its component."""
        if self._unlike and (groups := self._unlike.get(target.plugin)) is not None:
            return groups.group_of(target.component)
        return target.plugin

    def find_room(self, group: str, depth: int) -> HostPeer | None:
        """Return the host with the most room for a call of this depth, None if all are full."""
        peers = self.by_group.get(group, ())
        if len(peers) > 1:
            return max((peer for peer in peers if peer.can_take(depth)), key=_room, default=None)
        return peers[0] if peers and peers[0].can_take(depth) else None

    def may_be_engine(self, path: str) -> bool:
        return self._table.may_be_engine(path)

    @property
    def waits(self) -> bool:
        """Return True if steps may wait for plugins that are not known yet."""
        return bool(self._starting or self._unsettled)

    def has_host(self, plugin: str) -> bool:
        """Return True if a host runs the plugin and takes calls. Tracked only where hosts may be waited for."""
        return plugin in self._hosting

    def missing_plugins(self, path: str) -> set[str]:
        """Return the plugins on a path that are waited for, and that no host runs or starts."""
        awaited = (self._starting | self._unsettled) & self._plugins_of(path)
        return {plugin for plugin in awaited if plugin not in self._hosting and plugin not in self._starting_hosted}

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plugins_of(self, path: str) -> set[str]:
        """Return the plugins named by the rules for a path."""
        prefix = "/" + path[1:].partition("/")[0]
        return {rule.plugin for rule in (*self.rules.get(prefix, ()), *self.rules.get("/", ()))}

    def _note_waits(self, hosting: dict[str, set[str]], starting: set[str]) -> None:
        """Note the plugins that are waited for, and rebuild when the first wait ends."""
        self._starting_hosted = frozenset(starting)
        if not self._unheard_timeout_s:
            self._starting = frozenset(starting - hosting.keys())
            return
        loop = asyncio.get_running_loop()
        now_s, timeout_s = loop.time(), self._unheard_timeout_s

        # 1. Plugins of the rules without any offer so far: a step routed now could call the wrong component.
        named = {rule.plugin for rules in self.rules.values() for rule in rules}
        unheard = named - self._offers.keys() - self.builtins.keys()
        self._unheard_since_s = {name: self._unheard_since_s.get(name, now_s) for name in unheard}
        waited_for = {name: at_s + timeout_s for name, at_s in self._unheard_since_s.items()}

        # 2. Plugins that have just lost a host: the next one may offer more.
        for name, host_ids in self._hosting.items():
            if host_ids - hosting.get(name, set()):
                self._left_at_s[name] = now_s
        self._hosting = hosting
        left = {name: at_s + timeout_s for name, at_s in self._left_at_s.items() if at_s + timeout_s > now_s}
        self._left_at_s = {name: self._left_at_s[name] for name in left}

        # 3. Rebuild when the first of these waits ends.
        waited_for = {name: until_s for name, until_s in waited_for.items() if until_s > now_s}
        self._starting = frozenset((starting | waited_for.keys()) - hosting.keys())
        self._unsettled = frozenset(starting | left.keys())
        if self._timer is None and (waited_for or left):
            self._timer = loop.call_at(min((*waited_for.values(), *left.values())), self._stop_waiting)

    def _stop_waiting(self) -> None:
        self._timer = None
        self._on_timeout()


def _room(peer: HostPeer) -> int:
    return peer.room


__all__ = ["HostRoutes"]
