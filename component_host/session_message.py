"""The content of a host's session in the store: its address, its rules, and the components of each plugin."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

from component_host.route_claims import encoded_routes
from stepflow.codec import encode
from stepflow.mesh.v1 import state_pb2
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from component_host.backend import BackendListing, ComponentInfo, ServerHealth
    from component_host.host import ComponentHost
    from component_host.plugin_claims import PluginClaims
    from component_host.plugins import HostedPlugins
    from stepflow.config import Config
    from stepflow.errors import StepflowError

log = get_logger("component_host.registration")

SESSION_BYTES_MAX = 512 * 1024
"""Above this size the session has no schemas; executors do without them."""


class SessionContent:
    """What the session of one host says."""

    def __init__(
        self, host: ComponentHost, config: Config, claims: PluginClaims, address: str, capacity: int, pool: str
    ) -> None:
        self.routes = encoded_routes(config)
        self._host = host
        self._claims = claims
        self._address = address
        self._capacity = capacity
        self._pool = pool
        self._types: dict[str, str] = {}
        self.add_types(config)

    def add_types(self, config: Config) -> None:
        """Take over the types of plugins; those of the former configuration stay known."""
        self._types |= {name: plugin.type for name, plugin in config.plugins.items()}

    def encode(self, *, draining: bool) -> bytes:
        """Return the session as it should be stored now."""
        rules_hash, route_hashes = rules_of(self.routes)
        budget = self._host.value_budget
        waiting = budget.waiting + self._host.output_turns.waiting
        trouble = self._host.blobs.store.trouble
        session = state_pb2.HostSession(
            address=self._address,
            capacity=self._capacity,
            draining=draining,
            pool=self._pool,
            rules_hash=rules_hash,
            route_hashes=route_hashes,
            value_memory=state_pb2.ValueMemory(bytes_max=budget.bytes_max, waiting=waiting),
            blob_error="" if trouble is None else trouble.message,
        )
        add_plugins(session, self._host.plugins, self._types, self._claims, self._host.id)
        return session.SerializeToString(deterministic=True)


def rules_of(routes: Mapping[str, tuple[bytes, str]]) -> tuple[str, dict[str, str]]:
    """Return the hash of all rules, and the hash of the rules of each prefix; `routes` is prefix → (rules, hash)."""
    hashes = {prefix: digest for prefix, (_, digest) in routes.items()}
    return hashlib.sha256("".join(hashes.values()).encode()).hexdigest(), hashes


def add_plugins(
    session: state_pb2.HostSession, plugins: HostedPlugins, types: Mapping[str, str], claims: PluginClaims, host_id: str
) -> None:
    """Add the state of each plugin to a session; without schemas if the session would be too large."""
    listings = plugins.listings()

    for name in dict.fromkeys([*plugins.backends, *plugins.failures]):
        plugin = _plugin(name, types[name], listings.get(name), plugins.failures.get(name))
        if name in plugins.backends:
            _add_health(plugin, plugins.backends[name].health)
        plugin.digest = claims.digests.get(name, "")
        if name in claims.conflicts:  # as failed, for executors that do not know conflicts
            plugin.conflict, plugin.state = True, state_pb2.PluginListing.STATE_FAILED
            plugin.last_error = claims.conflicts[name]
            plugin.ClearField("components")
        session.plugins.append(plugin)

    if session.ByteSize() > SESSION_BYTES_MAX:
        log.warning("listing too large, schemas are left out", host_id=host_id, size=session.ByteSize())
        for plugin in session.plugins:
            for component in plugin.components:
                component.ClearField("input_schema_json")
                component.ClearField("output_schema_json")


def _plugin(
    name: str, kind: str, listing: BackendListing | None, error: StepflowError | None
) -> state_pb2.PluginListing:
    plugin = state_pb2.PluginListing(plugin=name, type=kind, state=state_pb2.PluginListing.STATE_STARTING)

    if error is not None:
        plugin.state = state_pb2.PluginListing.STATE_FAILED
        plugin.last_error = error.message
    elif listing is not None:
        plugin.state = state_pb2.PluginListing.STATE_READY
        plugin.complete = listing.complete
        plugin.components.extend(_component(info) for info in listing.components)

    return plugin


def _add_health(plugin: state_pb2.PluginListing, health: ServerHealth) -> None:
    plugin.restarts = health.restarts

    if plugin.state == state_pb2.PluginListing.STATE_READY:
        plugin.last_error = health.last_error
        if not health.serving:
            plugin.state = state_pb2.PluginListing.STATE_RESTARTING


def _component(info: ComponentInfo) -> state_pb2.ComponentListing:
    return state_pb2.ComponentListing(
        component=info.component,
        path=info.path,
        description=info.description or "",
        input_schema_json=b"" if info.input_schema is None else encode(info.input_schema),
        output_schema_json=b"" if info.output_schema is None else encode(info.output_schema),
    )


__all__ = ["SESSION_BYTES_MAX", "SessionContent", "add_plugins", "rules_of"]
