"""From stored routes and sessions of hosts to a catalogue for checks. Pure, but for its log."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, TypeAlias

from stepflow.codec import decode
from stepflow.errors import StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.routing.stored import decode_rules
from stepflow.routing.table import ENGINE_COMPONENTS
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepflow.check import Catalogue, KnownPlugin
    from stepflow.routing.table import Rule

log = get_logger(__name__)

SCHEMAS_BYTES_MAX = 16 * 1024 * 1024
"""Schemas of one catalogue; further ones count as unknown."""

_Listing = state_pb2.PluginListing
_OFFERING = frozenset((_Listing.STATE_READY, _Listing.STATE_RESTARTING))

PluginState: TypeAlias = tuple[str, str, bool, str, bytes]
"""Plugin, type, True if the host runs it and takes calls, its state, the digest of its list."""


def plugin_states(session: state_pb2.HostSession) -> tuple[PluginState, ...]:
    """Return what a catalogue shows of a host, apart from the components themselves."""
    states: list[PluginState] = []
    for plugin in session.plugins:
        digest = hashlib.sha256()
        for component in plugin.components:
            digest.update(component.SerializeToString(deterministic=True))
        runs = plugin.state in _OFFERING and not session.draining
        state = f"{plugin.state} {plugin.complete} {plugin.conflict}"
        states.append((plugin.plugin, plugin.type, runs, state, digest.digest()))
    return tuple(states)


def make_catalogue(routes: Mapping[str, bytes], sessions: Sequence[bytes], left: frozenset[str]) -> Catalogue:
    """Make the catalogue of stored rules and sessions. `left`: plugins that a host has left a short time ago."""
    from stepflow.check import Catalogue

    # 1. The rules.
    rules: dict[str, tuple[Rule, ...]] = {}
    types: dict[str, str] = {}
    for prefix, text in routes.items():
        try:
            rules[prefix], named = decode_rules(text)
        except StepflowError as error:
            log.error("route ignored", prefix=prefix, reason=error.reason, error=error.message)
            continue
        types.update(named)

    # 2. The lists of plugins, by what their hosts do with them.
    offering: dict[str, list[state_pb2.PluginListing]] = {}
    hosted: set[str] = set()
    unsettled = set(left)
    for text in sessions:
        session = state_pb2.HostSession.FromString(text)
        for plugin in session.plugins:
            if plugin.conflict:
                continue
            if plugin.state not in _OFFERING:
                unsettled.add(plugin.plugin)
                continue
            offering.setdefault(plugin.plugin, []).append(plugin)
            if not session.draining:
                hosted.add(plugin.plugin)

    # 3. Their components. The engine's own need no host.
    reader = _SchemaReader()
    plugins = {name: _plugin(offering[name], reader, is_open=name in unsettled) for name in sorted(hosted)}
    builtins = {name for name, kind in types.items() if kind == "builtin"}
    plugins |= {name: _engine_plugin() for name in builtins - hosted}
    unhosted = frozenset(types.keys() - hosted - builtins - unsettled) | (left - hosted - builtins)
    return Catalogue(rules, plugins, unhosted, has_all_routes=bool(sessions))


class _SchemaReader:
    """Reads the schemas of one catalogue; equal texts become one schema."""

    def __init__(self) -> None:
        self._read: dict[bytes, Any] = {}
        self._bytes_left = SCHEMAS_BYTES_MAX

    def read(self, text: bytes) -> Any:
        """Return a schema; None for none, and beyond the bound of a catalogue."""
        if not text:
            return None
        if text not in self._read:
            self._bytes_left -= len(text)
            self._read[text] = _decoded(text) if self._bytes_left >= 0 else None
        return self._read[text]


def _decoded(text: bytes) -> Any:
    try:
        return decode(text)
    except (ValueError, StepflowError):  # of a host that checks less
        return None


def _plugin(listings: Sequence[state_pb2.PluginListing], reader: _SchemaReader, *, is_open: bool) -> KnownPlugin:
    """Return the components of a plugin over its hosts. `is_open`: a host may come that offers more."""
    from stepflow.check import KnownComponent, KnownPlugin

    found: dict[tuple[str, str], state_pb2.ComponentListing] = {}
    unlike: set[tuple[str, str]] = set()
    for listing in listings:
        for one in listing.components:
            known = found.setdefault((one.component, one.path), one)
            if (known.input_schema_json, known.output_schema_json) != (one.input_schema_json, one.output_schema_json):
                unlike.add((one.component, one.path))

    components = tuple(
        KnownComponent(*key)
        if key in unlike  # during an update: neither schema holds for all calls
        else KnownComponent(*key, reader.read(one.input_schema_json), reader.read(one.output_schema_json))
        for key, one in found.items()
    )
    is_complete = not is_open and all(listing.complete for listing in listings)
    return KnownPlugin(components, is_complete, is_builtin=all(listing.type == "builtin" for listing in listings))


def _engine_plugin() -> KnownPlugin:
    from stepflow.check import KnownComponent, KnownPlugin

    components = tuple(KnownComponent(name, name) for name in sorted(ENGINE_COMPONENTS))
    return KnownPlugin(components, is_complete=False, is_builtin=True)


__all__ = ["PluginState", "make_catalogue", "plugin_states"]
