"""Routes: from the path of a component to the plugin that runs it.

Owns the meaning of prefixes and of ordered rules with conditions, allow lists and deny lists.

- The first rule wins whose conditions hold, whose plugin has the component and whose lists admit it. Rules of the
  step's own prefix precede the rules of `/`.
- A condition on a path missing from the input does not hold; it is no error.
- The input is decoded only if a candidate rule has conditions. Other results are cached per path.

Pure, and a table is immutable. Not here: live hosts of a plugin, and reading rules from a file (`stepflow.config`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from stepflow.codec import encode
from stepflow.errors import Code, Failure
from stepflow.flow.paths import MISSING
from stepflow.flow.syntax import suggestion
from stepflow.routing.patterns import PatternMatcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from stepflow.codec import Json
    from stepflow.flow.paths import Path

ENGINE_COMPONENTS = frozenset(("/eval", "/map", "/iterate", "/sleep", "/wait_for_signal"))
"""Components of a plugin of type `builtin` that the run engine executes itself, without a host."""

REMEMBERED_PATHS_MAX = 4_096
"""Cached paths. Flows name few; sub-flows built at run time may name any number."""

_ROOT = "/"


class Rule(msgspec.Struct, frozen=True):
    """One rule of a route.

    `conditions` are pairs of a path into the step's input and the JSON tree expected there. `allow` and `deny` hold
    component ids (None: no list). `params` go to the plugin with each call.
    """

    plugin: str
    conditions: tuple[tuple[Path, Any], ...] = ()
    allow: frozenset[str] | None = None
    deny: frozenset[str] | None = None
    params: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def admits(self, component: str) -> bool:
        if self.deny is not None and component in self.deny:
            return False
        return self.allow is None or component in self.allow

    def holds(self, tree: Any) -> bool:
        """Check the conditions against a decoded input."""
        for path, expected in self.conditions:
            value = path.project(tree)
            if value is MISSING or not json_equal(value, expected):
                return False
        return True


class PluginComponents(msgspec.Struct, frozen=True):
    """Components of a plugin, as pairs of component id and path pattern.

    `complete` is false if the server may have unlisted components. `engine` holds the ids that the run engine executes
    (`ENGINE_COMPONENTS` for a plugin of type `builtin`).
    """

    components: tuple[tuple[str, str], ...] = ()
    complete: bool = True
    engine: frozenset[str] = frozenset()


class Target(msgspec.Struct, frozen=True):
    """Destination of a step. Shared between steps: do not change the mappings."""

    plugin: str
    component: str
    engine: str | None = None
    """`eval`, `map`, `iterate` or `sleep` if the run engine executes the step itself."""
    path_params: Mapping[str, str] = msgspec.field(default_factory=dict)
    route_params: Mapping[str, Any] = msgspec.field(default_factory=dict)


class NoRoute(msgspec.Struct, frozen=True):
    """A path without a target. `message` is for people.

    `reason` is one of `not_a_path` (no leading slash), `no_rule` (unknown prefix), `not_listed` (no plugin of the rules
    has the component), `excluded` (allow and deny lists), `condition` (the input meets none of the conditions).
    """

    message: str
    reason: str

    def failure(self) -> Failure:
        """Return the failure of a step that cannot be routed."""
        stack = [{"error": _ROUTING_FAILED, "attachments": [self.message]}]
        return Failure(Code.ORCHESTRATOR_ERROR, _ROUTING_FAILED, encode({"reason": self.reason, "stack": stack}))


_ROUTING_FAILED = "error routing component"


class _RouteChoice(msgspec.Struct, frozen=True):
    """Candidate rules of a path that depend on the input, and the result if none holds."""

    candidates: tuple[tuple[Rule, Target], ...]
    otherwise: Target | NoRoute

    def pick(self, tree: Any) -> Target | NoRoute:
        for rule, target in self.candidates:
            if rule.holds(tree):
                return target
        return self.otherwise


class RouteTable:
    """Routes by prefix over the components of the plugins.

    A plugin named by the rules but missing from `plugins` is still unknown: its rules admit any path, and calls wait
    for a host with that plugin.
    """

    def __init__(self, routes: Mapping[str, Sequence[Rule]], plugins: Mapping[str, PluginComponents]) -> None:
        self._routes = {prefix: tuple(rules) for prefix, rules in routes.items()}
        self._plugins = plugins
        named = {rule.plugin for rules in self._routes.values() for rule in rules}
        self._matchers = {name: _matcher(plugins.get(name, _UNHEARD)) for name in named}
        self._remembered: dict[str, Target | NoRoute | _RouteChoice] = {}

    def resolve(self, path: str, input: Json) -> Target | NoRoute:
        """Find the target of the component path `path` for a step's resolved input."""
        found = self._remembered.get(path)
        if found is None:
            found = self._remember(path)
        if found.__class__ is _RouteChoice:
            return found.pick(input.tree)
        return found  # type: ignore[return-value]  # not a _RouteChoice; compared by class, twice as fast as isinstance

    def targets(self, path: str) -> tuple[Target, ...]:
        """Return each target that some input of a step leads to; empty if there is none."""
        found = self._remembered.get(path) or self._remember(path)
        if not isinstance(found, _RouteChoice):
            return (found,) if isinstance(found, Target) else ()
        otherwise = (found.otherwise,) if isinstance(found.otherwise, Target) else ()
        return (*(target for _, target in found.candidates), *otherwise)

    def may_be_engine(self, path: str) -> bool:
        """Return True if `path` can lead to a component of the engine for some input."""
        found = self._remembered.get(path) or self._remember(path)
        if isinstance(found, _RouteChoice):
            targets: list[Target | NoRoute] = [target for _, target in found.candidates]
            return any(_is_engine(target) for target in (*targets, found.otherwise))
        return _is_engine(found)

    def _remember(self, path: str) -> Target | NoRoute | _RouteChoice:
        if len(self._remembered) >= REMEMBERED_PATHS_MAX:
            self._remembered.clear()
        found = self._remembered[path] = self._plan(path)
        return found

    def _plan(self, path: str) -> Target | NoRoute | _RouteChoice:
        """Collect the rules for `path`, up to the first rule that does not depend on the input."""
        attempts = self._attempts(path)
        conditional: list[tuple[Rule, Target]] = []
        unlisted: list[str] = []
        excluded: list[str] = []
        for rule, remainder in attempts:
            match = self._matchers[rule.plugin].match(remainder)
            if match is None:
                unlisted.append(rule.plugin)
                continue

            component, path_params = match
            if not rule.admits(component):
                excluded.append(rule.plugin)
                continue

            target = self._target(rule, component, path_params)
            if not rule.conditions:
                return _RouteChoice(tuple(conditional), target) if conditional else target
            conditional.append((rule, target))

        if conditional:
            return _RouteChoice(tuple(conditional), _unmet(path))
        return self._nowhere(path, matched=bool(attempts), unlisted=unlisted, excluded=excluded)

    def _attempts(self, path: str) -> list[tuple[Rule, str]]:
        """Return the candidate rules, each with the rest of the path after its prefix."""
        if not path.startswith("/"):
            return []
        segment, slash, rest = path[1:].partition("/")
        attempts: list[tuple[Rule, str]] = []
        if segment:
            remainder = slash + rest or "/"
            attempts.extend((rule, remainder) for rule in self._routes.get("/" + segment, ()))
        attempts.extend((rule, path) for rule in self._routes.get(_ROOT, ()))
        return attempts

    def _target(self, rule: Rule, component: str, path_params: dict[str, str]) -> Target:
        plugin = self._plugins.get(rule.plugin, _UNHEARD)
        engine = component.lstrip("/") if component in plugin.engine else None
        return Target(rule.plugin, component, engine, path_params, rule.params)

    def _nowhere(self, path: str, *, matched: bool, unlisted: list[str], excluded: list[str]) -> NoRoute:
        if not path.startswith("/"):
            return NoRoute(f"`{path}` is not a component path: it must start with `/`", "not_a_path")
        if not matched:
            known = ", ".join(f"`{prefix}`" for prefix in sorted(self._routes)) or "none"
            return NoRoute(f"no route for `{path}`; routes of the configuration: {known}", "no_rule")
        if excluded:
            return NoRoute(
                f"`{path}` is excluded by `componentAllow` or `componentDeny` of plugin {_names(excluded)}", "excluded"
            )
        hint = suggestion(path, self._component_paths(path))
        return NoRoute(f"plugin {_names(unlisted)} has no component for `{path}`{hint}", "not_listed")

    def _component_paths(self, path: str) -> Iterator[str]:
        """Yield the whole paths of the components that the rules for `path` can reach, patterns left out."""
        prefix = "/" + path[1:].partition("/")[0]
        for route, rules in self._routes.items():
            if route in (prefix, _ROOT):
                for rule in rules:
                    for component, pattern in self._plugins.get(rule.plugin, _UNHEARD).components:
                        if "{" not in pattern and rule.admits(component):
                            yield route.rstrip("/") + pattern


def json_equal(left: Any, right: Any) -> bool:
    """Compare two JSON trees: numbers by value (1 equals 1.0), booleans only with booleans, members in any order."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict):
        if not isinstance(right, dict) or left.keys() != right.keys():
            return False
        return all(json_equal(value, right[name]) for name, value in left.items())
    if isinstance(left, list):
        if not isinstance(right, list) or len(left) != len(right):
            return False
        return all(json_equal(a, b) for a, b in zip(left, right, strict=True))
    return bool(left == right)


def _is_engine(target: Target | NoRoute) -> bool:
    return isinstance(target, Target) and target.engine is not None


def _unmet(path: str) -> NoRoute:
    return NoRoute(f"the step's input meets the conditions of no rule for `{path}`", "condition")


def _names(plugins: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in dict.fromkeys(plugins))


_UNHEARD = PluginComponents(complete=False)


def _matcher(offered: PluginComponents) -> PatternMatcher:
    return PatternMatcher(offered.components, complete=offered.complete)
