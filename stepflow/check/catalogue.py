"""The components that exist, as far as the caller knows them.

A `Catalogue` has three sources: a configuration alone (builtins, mocks and rules), started servers, and the sessions of
hosts in a control plane. A plugin of the rules without an entry in `plugins` is unknown: no finding.
"""

from __future__ import annotations

from functools import cached_property
from itertools import islice
from typing import TYPE_CHECKING, Any

import msgspec

from stepflow.codec import Json
from stepflow.flow.syntax import closest
from stepflow.routing.table import NoRoute, PluginComponents, RouteTable, Target

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stepflow.flow.types import ComponentSchema
    from stepflow.routing.table import Rule

PATHS_MAX = 2_000
"""Component paths among which a similar one is searched."""

_ROOT = "/"
_NULL = Json(b"null")
_NO_INPUT: Any = object()


class KnownComponent(msgspec.Struct, frozen=True):
    """A component: its id, its path below a route (`/add`, `/files/{*path}`), and its schemas, None if unknown."""

    component: str
    path: str
    input_schema: Any = None
    output_schema: Any = None


class KnownPlugin(msgspec.Struct, frozen=True):
    """The components of a plugin.

    `is_complete` is False if a server may have components that it does not list. `is_builtin`: the mesh provides them.
    """

    components: tuple[KnownComponent, ...] = ()
    is_complete: bool = True
    is_builtin: bool = False


class Found(msgspec.Struct, frozen=True):
    """What is known about the component at a path of a flow.

    At most one of `component` (the only one that any input leads to) and `problem` is set; neither if it is unknown.
    `unlisted` is the plugin that does not list the component, "" if it is listed or the list is unknown.
    """

    component: KnownComponent | None = None
    is_builtin: bool = False
    problem: NoRoute | None = None
    unlisted: str = ""
    unhosted: str = ""
    """The plugin that no live host offers."""


class Catalogue:
    """Rules by prefix, and the components of plugins by name. Immutable; share one between checks.

    `unhosted`: plugins that no live host offers now. Their components are unknown, and runs wait for a host.
    `has_all_routes` is False if further routes may exist: an unknown route is then a warning.
    """

    # No dataclass: it would take a millisecond of each start.
    def __init__(
        self,
        routes: Mapping[str, Sequence[Rule]],
        plugins: Mapping[str, KnownPlugin] | None = None,
        unhosted: frozenset[str] = frozenset(),
        has_all_routes: bool = True,
    ) -> None:
        self.routes = routes
        self.plugins: Mapping[str, KnownPlugin] = plugins or {}
        self.unhosted = unhosted
        self.has_all_routes = has_all_routes

    def find(self, path: str, input: Any = _NO_INPUT) -> Found:
        """Return what is known about a path of a flow. `input`: the step's expression, for the conditions of rules."""
        targets = self._table.targets(path)
        if not targets:
            found = self._table.resolve(path, _NULL)
            return Found(problem=found if isinstance(found, NoRoute) else None)

        if input is not _NO_INPUT and self._has_conditions(path) and (constant := _constant(input)) is not None:
            one = self._table.resolve(path, constant)
            if isinstance(one, NoRoute):
                return Found(problem=one)
            targets = (one,)
        return self._found(targets)

    def schemas(self, path: str) -> ComponentSchema | None:
        """Return the schemas of the component at a path, for `analyse_flow`; None if they are unknown."""
        from stepflow.flow.types import ComponentSchema

        found = self.find(path)
        if found.component is None:
            return None
        one = found.component
        return ComponentSchema(one.input_schema, one.output_schema, one.component if found.is_builtin else "")

    def similar(self, path: str) -> str | None:
        """Return the path that was probably meant: of a component, or below a similar route."""
        head, tail = _split(path)
        # 1. A component of the same route, or of the route `/`.
        near = self._closest_below(head, tail) or _closest(path, {one: one for one in self.paths_of(_ROOT)})
        if near is not None:
            return near

        # 2. The component is under another route.
        for _, known in self._paths:
            if known.endswith(path) or (tail and _split(known)[1] == tail):
                return known

        # 3. The route is misspelt.
        route = None if head in self.routes else _closest(head, {one: one for one in self.routes if one != _ROOT})
        if route is None:
            return None
        is_unknown = any(not self._is_listed(rule.plugin) for rule in self.routes[route])
        return self._closest_below(route, tail) or (route + tail if is_unknown else None)

    def paths_of(self, route: str) -> list[str]:
        """Return the whole paths of the components of a route, without patterns."""
        return [path for of, path in self._paths if of == route]

    def _closest_below(self, route: str, tail: str) -> str | None:
        return _closest(tail, {path.removeprefix(route): path for path in self.paths_of(route)})

    def _found(self, targets: tuple[Target, ...]) -> Found:
        named = {(target.plugin, target.component) for target in targets}
        unhosted = next((target.plugin for target in targets if target.plugin in self.unhosted), "")
        unlisted = "" if any(self._may_have(target) for target in targets) else targets[0].plugin
        if len(named) > 1:
            return Found(unlisted=unlisted, unhosted=unhosted)

        (key,) = named
        plugin = self.plugins.get(key[0])
        is_builtin = plugin is not None and plugin.is_builtin
        return Found(self._components.get(key), is_builtin, None, unlisted, unhosted)

    def _may_have(self, target: Target) -> bool:
        """Return True if a plugin lists the component, or nothing is known about its components."""
        return (target.plugin, target.component) in self._components or not self._is_listed(target.plugin)

    def _is_listed(self, plugin: str) -> bool:
        known = None if plugin in self.unhosted else self.plugins.get(plugin)
        return known is not None and (known.is_complete or bool(known.components))

    def _has_conditions(self, path: str) -> bool:
        rules = (*self.routes.get(_split(path)[0], ()), *self.routes.get(_ROOT, ()))
        return any(rule.conditions for rule in rules)

    @cached_property
    def _table(self) -> RouteTable:
        offers = {
            name: PluginComponents(
                tuple((one.component, one.path) for one in plugin.components),
                complete=plugin.is_complete and name not in self.unhosted,
            )
            for name, plugin in self.plugins.items()
        }
        return RouteTable(self.routes, offers)

    @cached_property
    def _components(self) -> dict[tuple[str, str], KnownComponent]:
        found: dict[tuple[str, str], KnownComponent] = {}
        for name, plugin in self.plugins.items():
            for one in plugin.components:
                found.setdefault((name, one.component), one)
        return found

    @cached_property
    def _paths(self) -> tuple[tuple[str, str], ...]:
        """Routes, each with the whole path of a component."""
        return tuple(islice(dict.fromkeys(self._all_paths()), PATHS_MAX))

    def _all_paths(self) -> Iterator[tuple[str, str]]:
        for route, rules in self.routes.items():
            for rule in rules:
                plugin = self.plugins.get(rule.plugin)
                for one in () if plugin is None else plugin.components:
                    if "{" not in one.path and rule.admits(one.component):
                        yield route, route.rstrip("/") + one.path


def _constant(expression: Any) -> Json | None:
    """Return the value of an expression without references, else None."""
    from stepflow.flow import VariableSpecs, compile_expression, syntax

    if any(syntax.references(syntax.parse_expression(expression), ())):
        return None
    text = compile_expression(expression, {}, VariableSpecs()).constant
    return None if text is None else Json(text)


def _split(path: str) -> tuple[str, str]:
    """Return the first segment of a path and the rest, each with its slash: `/a/b/c` is `/a` and `/b/c`."""
    head, slash, rest = path[1:].partition("/")
    return "/" + head, slash + rest


def _closest(name: str, known: Mapping[str, str]) -> str | None:
    """Return the value whose key resembles the name most, ignoring case."""
    folded = {key.casefold(): value for key, value in known.items()}
    near = closest(name.casefold(), folded)
    return None if near is None else folded[near]
