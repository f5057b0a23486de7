"""The schemas of components by their path in a flow, without a server if possible.

The components of plugins of type `builtin` and `mock` are known from the code and from the configuration. Those of
other plugins are known from a listing, which starts their servers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.builtin.schemas import BUILTINS
from component_host.mock import mock_components
from stepflow.check import Catalogue, KnownComponent, KnownPlugin
from stepflow.config import BuiltinPlugin, MockPlugin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from component_host.backend import BackendListing, ComponentInfo
    from stepflow.config import Config


def components_without_servers(config: Config) -> dict[str, Sequence[ComponentInfo]]:
    """Return the components of the plugins that need no server, by plugin."""
    known: dict[str, Sequence[ComponentInfo]] = {}
    for name, plugin in config.plugins.items():
        if isinstance(plugin, BuiltinPlugin):
            known[name] = BUILTINS
        elif isinstance(plugin, MockPlugin):
            known[name] = mock_components(plugin)
    return known


def catalogue_of(
    config: Config, listings: Mapping[str, BackendListing] | None = None, *, has_all_routes: bool = True
) -> Catalogue:
    """Return what is known of the components of a configuration. `listings`: of started servers, by plugin.

    The components of other servers are unknown. `has_all_routes`: see `Catalogue`.
    """
    known = {
        name: _known(infos, is_complete=True, is_builtin=isinstance(config.plugins[name], BuiltinPlugin))
        for name, infos in components_without_servers(config).items()
    }
    for name, listing in (listings or {}).items():
        known.setdefault(name, _known(listing.components, is_complete=listing.complete, is_builtin=False))
    return Catalogue(config.routes, known, has_all_routes=has_all_routes)


def _known(infos: Sequence[ComponentInfo], *, is_complete: bool, is_builtin: bool) -> KnownPlugin:
    components = (KnownComponent(one.component, one.path, one.input_schema, one.output_schema) for one in infos)
    return KnownPlugin(tuple(components), is_complete, is_builtin)


__all__ = ["catalogue_of", "components_without_servers"]
