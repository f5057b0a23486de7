"""The schemas of components by their path in a flow, without a server if possible.

The components of plugins of type `builtin` and `mock` are known from the code and from the configuration. Those of
other plugins are known from a listing, which starts their servers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.builtin.schemas import BUILTINS
from component_host.mock import mock_components
from stepflow.config import BuiltinPlugin, MockPlugin
from stepflow.flow.types import ComponentSchema
from stepflow.routing.table import ENGINE_COMPONENTS, PluginComponents, RouteTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from component_host.backend import ComponentInfo
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


def schema_lookup(
    config: Config, listed: Iterable[tuple[str, ComponentInfo]] = ()
) -> Callable[[str], ComponentSchema | None]:
    """Return the function from the path of a component to its schemas. `listed`: components of started servers.

    The schemas of a path that leads to several components, depending on the input, are unknown.
    """
    known = {name: list(infos) for name, infos in components_without_servers(config).items()}
    for name, info in listed:
        if name not in known or info not in known[name]:
            known.setdefault(name, []).append(info)

    builtins = {name for name, plugin in config.plugins.items() if isinstance(plugin, BuiltinPlugin)}
    table = RouteTable(config.routes, {name: _offer(name, infos, builtins) for name, infos in known.items()})
    by_id = {(name, info.component): info for name, infos in known.items() for info in infos}

    def lookup(path: str) -> ComponentSchema | None:
        found = {(target.plugin, target.component) for target in table.targets(path)}
        info = by_id.get(next(iter(found))) if len(found) == 1 else None
        if info is None:
            return None
        (plugin, component) = next(iter(found))
        return ComponentSchema(info.input_schema, info.output_schema, component if plugin in builtins else "")

    return lookup


def _offer(name: str, infos: Sequence[ComponentInfo], builtins: set[str]) -> PluginComponents:
    # A server may have components that it does not list: their paths stay unknown.
    return PluginComponents(
        tuple((info.component, info.path) for info in infos),
        complete=name in builtins,
        engine=ENGINE_COMPONENTS if name in builtins else frozenset(),
    )


__all__ = ["components_without_servers", "schema_lookup"]
