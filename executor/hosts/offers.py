"""The components of a plugin as all its hosts offer them together, now and before.

- Hosts of one plugin may differ during an update. The plugin's components are those of all hosts; each call goes to a
  host that offers its component.
- Offers of hosts that have gone are remembered, up to `REMEMBERED_MAX`, behind those of present hosts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from stepflow.routing.table import PluginComponents

if TYPE_CHECKING:
    from collections.abc import Sequence

    from executor.hosts.peer import HostPeer

REMEMBERED_MAX = 10_000
"""Components of a plugin that are remembered although no host offers them; the oldest are forgotten first."""


class PluginOffers:
    """The offers of one plugin."""

    def __init__(self) -> None:
        self._present: dict[tuple[str, str], None] = {}
        """Component id and path, as the present hosts list them."""
        self._past: dict[tuple[str, str], None] = {}
        """Offered before, and by no present host."""
        self._complete = True
        self._engine: frozenset[str] = frozenset()

    def take(self, offered: Sequence[PluginComponents]) -> None:
        """Replace the offers of the present hosts."""
        before = self._present
        self._present = {pair: None for each in offered for pair in each.components}
        self._complete = all(each.complete for each in offered)
        self._engine = frozenset().union(*(each.engine for each in offered))

        self._past = {pair: None for pair in (*self._past, *before) if pair not in self._present}
        while len(self._past) > REMEMBERED_MAX:
            del self._past[next(iter(self._past))]

    def merged(self) -> PluginComponents:
        """Return all components, those of present hosts first: the first of equal paths wins."""
        return PluginComponents((*self._present, *self._past), self._complete, self._engine)

    def split(self, plugin: str, peers: Sequence[HostPeer]) -> HostGroups | None:
        """Group the components by the hosts that offer them; None if each of the hosts offers all components."""
        # 1. The usual case: hosts of one configuration.
        offers = [peer.plugins[plugin] for peer in peers]
        pairs = set(offers[0].components)
        alike = all(
            offer is offers[0] or (offer.complete is offers[0].complete and set(offer.components) == pairs)
            for offer in offers
        )
        if alike and pairs == self._present.keys() and not self._past:
            return None

        # 2. Find the hosts of each component. A component without hosts waits in a group of its own.
        hosts: dict[str, list[HostPeer]] = {component: [] for component, _ in (*self._present, *self._past)}
        for peer, offer in zip(peers, offers, strict=True):
            for component in {component for component, _ in offer.components}:
                hosts[component].append(peer)
        unlisted = [peer for peer, offer in zip(peers, offers, strict=True) if not offer.complete]

        # 3. Name the groups by their hosts.
        groups: dict[str, list[HostPeer]] = {}
        of = {component: _add_group(groups, plugin, offering, peers) for component, offering in hosts.items()}
        return HostGroups(groups, of, _add_group(groups, plugin, unlisted, peers))


class HostGroups(NamedTuple):
    """The hosts of a plugin whose hosts differ, in groups that offer the same components."""

    by_group: dict[str, list[HostPeer]]
    of_component: dict[str, str]
    """By component: its group, which has no hosts if none offers the component."""
    of_unlisted: str
    """The group of components that no host lists: the hosts whose lists are not complete."""

    def group_of(self, component: str) -> str:
        return self.of_component.get(component, self.of_unlisted)


def _add_group(
    groups: dict[str, list[HostPeer]], plugin: str, hosts: list[HostPeer], all_hosts: Sequence[HostPeer]
) -> str:
    """Add a group of hosts and return its name; the group of all hosts has the name of the plugin."""
    name = plugin if len(hosts) == len(all_hosts) else "\0".join((plugin, *(peer.id for peer in hosts), ""))
    if hosts:
        groups[name] = hosts
    return name


__all__ = ["HostGroups", "PluginOffers"]
