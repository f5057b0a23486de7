"""Claims on the names of plugins: two pools of hosts never share a name for two different servers.

- A plugin's identity is the digest of its type, command, arguments and URL, unexpanded: no secret enters it.
- The key `plugins/<name>` names the pool that owns the name. Within a pool, identities may differ: a rolling update.
- A pool takes over a name whose owner has no live host with it. Claims are settled after the session stands, so of two
  pools that start together one sees the other.
- A plugin in conflict gets no calls until its host registers again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.config import BuiltinPlugin, MockPlugin
from stepflow.config.model import digest_of
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Put, Txn, absent, keys, modified_at, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from stepflow.config import Config
    from stepflow.store import Store

log = get_logger(__name__)


class PluginClaims:
    """The claims of one host on the names of its plugins that have servers."""

    def __init__(self, store: Store, host_id: str, pool: str, config: Config) -> None:
        self.digests = server_digests(config)
        """By plugin: the identity of its server."""
        self.conflicts: dict[str, str] = {}
        """By plugin: why it must get no calls."""
        self._store = store
        self._host_id = host_id
        self._pool = pool

    async def settle(self) -> None:
        """Claim the names, and note the conflicts. Call after each registration. Raises: StepflowError."""
        others: dict[str, state_pb2.HostSession] = {}
        async for item in range_all(self._store, keys.HOST_SESSIONS):
            host_id = keys.tail(keys.HOST_SESSIONS, item.key)
            if host_id != self._host_id:
                others[host_id] = state_pb2.HostSession.FromString(item.value)

        conflicts = {name: await self._claim(name, others) for name in self.digests}
        self.conflicts = {name: conflict for name, conflict in conflicts.items() if conflict}
        for name, conflict in self.conflicts.items():
            log.error("plugin gets no calls", plugin=name, error=conflict)

    async def _claim(self, name: str, others: dict[str, state_pb2.HostSession]) -> str:
        """Claim a name; return why this host must not use it, empty if it may."""
        key, digest = keys.plugin(name), self.digests[name]
        claim = Put(key, state_pb2.PluginOwner(pool=self._pool, digest=digest).SerializeToString())
        differing = _hosts_with(name, others, differs_from=digest)

        while True:
            existing = await self._store.get(key)
            owner = state_pb2.PluginOwner() if existing is None else state_pb2.PluginOwner.FromString(existing.value)

            # 1. Another pool's name: the same server may be shared, a different one must not be mixed with ours.
            if existing is not None and owner.pool != self._pool:
                if owner.digest == digest:
                    return ""
                holders = [host_id for host_id, pool in differing.items() if pool == owner.pool]
                if holders:
                    return (
                        f"pool {owner.pool or '(default)'} owns the plugin name {name!r} with another server (host "
                        f"{holders[0]}); rename the plugin in one configuration, or restart this host when that pool "
                        "is gone"
                    )

            # 2. Ours, or free: write it, unless the claim has changed since the read.
            same_pool = [host_id for host_id, pool in differing.items() if pool == self._pool]
            if same_pool:
                log.warning(
                    "plugin is another server on a host of the same pool; right during an update, else name the pools",
                    plugin=name,
                    host_id=same_pool[0],
                )
            compare = absent(key) if existing is None else modified_at(key, existing.mod_revision)
            if (await self._store.txn(Txn((compare,), (claim,)))).succeeded:
                return ""


def server_digests(config: Config) -> dict[str, str]:
    """Return the identities of the servers of a configuration, by plugin."""
    return {
        name: digest_of({part: getattr(plugin, part, None) for part in ("type", "command", "args", "url")})
        for name, plugin in config.plugins.items()
        if not isinstance(plugin, (BuiltinPlugin, MockPlugin))
    }


def _hosts_with(name: str, sessions: dict[str, state_pb2.HostSession], *, differs_from: str) -> dict[str, str]:
    """Return the hosts, with their pools, on which a plugin of this name has another known identity."""
    return {
        host_id: session.pool
        for host_id, session in sessions.items()
        for plugin in session.plugins
        if plugin.plugin == name and plugin.digest not in ("", differs_from) and not plugin.conflict
    }


__all__ = ["PluginClaims", "server_digests"]
