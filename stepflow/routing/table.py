"""From the path of a component to the plugin that runs it.

Owns the meaning of routes: prefixes, ordered rules with conditions and allow and deny lists, and the path patterns
of the components (`/add`, `/core/{name}`, `/core/{*rest}`). Promises:
- the first rule whose conditions hold, whose plugin has the component and whose lists admit it, wins; rules of the
  step's own prefix come before those of `/`;
- literal segments beat parameters, parameters beat a wildcard, segment by segment from the left;
- a condition on a path that the input lacks does not hold, and fails nothing;
- the input is decoded only when a rule on the way has conditions; other results are remembered per path.

Pure; a table never changes. Whether a plugin has a live host is not its business, nor is reading rules from
a file (`config.py`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from stepflow.codec import encode
from stepflow.errors import Code, Failure
from stepflow.flow.paths import MISSING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepflow.codec import Json
    from stepflow.flow.paths import Path

ENGINE_COMPONENTS = frozenset(("/eval", "/map", "/iterate", "/sleep", "/wait_for_signal"))
"""Components of a plugin of type `builtin` that the run engine executes itself: no host ever sees them."""

REMEMBERED_PATHS_MAX = 4_096
"""Paths whose resolution is kept. Flows name few; sub-flows built at run time could name any number."""

_ROOT = "/"


class Rule(msgspec.Struct, frozen=True):
    """One rule of a route.

    `conditions` are (path into the step's input, JSON tree) pairs that must all be equal; `allow` and `deny` hold
    component ids (None: no such list); `params` go to the plugin with each call.
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
    """What a plugin offers: (component id, path pattern) pairs.

    `complete` is false where the server may know more than it lists; `engine` are the ids that the run engine
    executes (`ENGINE_COMPONENTS` for a plugin of type `builtin`).
    """

    components: tuple[tuple[str, str], ...] = ()
    complete: bool = True
    engine: frozenset[str] = frozenset()


class Target(msgspec.Struct, frozen=True):
    """Where a step goes. Shared between steps: the mappings must not be changed."""

    plugin: str
    component: str
    engine: str | None = None
    """`eval`, `map`, `iterate` or `sleep` when the run engine executes the step itself."""
    path_params: Mapping[str, str] = msgspec.field(default_factory=dict)
    route_params: Mapping[str, Any] = msgspec.field(default_factory=dict)


class NoRoute(msgspec.Struct, frozen=True):
    """No rule leads anywhere. `message` explains it to a person; `reason` is one of `not_a_path` (no leading slash),
    `no_rule` (no such prefix), `not_listed` (no plugin of the rules has it), `excluded` (allow and deny lists),
    `condition` (the input meets none of the conditions)."""

    message: str
    reason: str

    def failure(self) -> Failure:
        """Return the failure of a step that cannot be routed."""
        stack = [{"error": _ROUTING_FAILED, "attachments": [self.message]}]
        return Failure(Code.ORCHESTRATOR_ERROR, _ROUTING_FAILED, encode({"reason": self.reason, "stack": stack}))


_ROUTING_FAILED = "error routing component"


class _RouteChoice(msgspec.Struct, frozen=True):
    """The rules of a path that depend on the input, and what holds when none does."""

    candidates: tuple[tuple[Rule, Target], ...]
    otherwise: Target | NoRoute

    def pick(self, tree: Any) -> Target | NoRoute:
        for rule, target in self.candidates:
            if rule.holds(tree):
                return target
        return self.otherwise


class RouteTable:
    """Routes by prefix over the components of the plugins.

    A plugin that the rules name and `plugins` lacks has not been heard of yet: its rules admit any path, and the
    call waits for a host that runs it.
    """

    def __init__(self, routes: Mapping[str, Sequence[Rule]], plugins: Mapping[str, PluginComponents]) -> None:
        self._routes = {prefix: tuple(rules) for prefix, rules in routes.items()}
        self._plugins = plugins
        named = {rule.plugin for rules in self._routes.values() for rule in rules}
        self._matchers = {name: _Matcher(plugins.get(name, _UNHEARD)) for name in named}
        self._remembered: dict[str, Target | NoRoute | _RouteChoice] = {}

    def resolve(self, path: str, input: Json) -> Target | NoRoute:
        """Find the target of the component path `path` for a step's resolved input."""
        found = self._remembered.get(path)
        if found is None:
            found = self._remember(path)
        if found.__class__ is _RouteChoice:
            return found.pick(input.tree)
        return found  # type: ignore[return-value]  # not a _RouteChoice; compared by class, twice as fast as isinstance

    def may_be_engine(self, path: str) -> bool:
        """Tell whether some input can make `path` lead to a component of the engine itself."""
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
        """Walk all rules that `path` can meet, up to the first one that needs no look at the input."""
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
        """The rules to try, each with what is left of the path behind its prefix."""
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
        return NoRoute(f"plugin {_names(unlisted)} has no component for `{path}`", "not_listed")


def json_equal(left: Any, right: Any) -> bool:
    """Compare two JSON trees; numbers by value (1 equals 1.0), booleans only with booleans, members in any order."""
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


class _Leaf(msgspec.Struct, frozen=True):
    """Where a pattern ends: its component, and the names of its parameters from the left."""

    component: str
    names: tuple[str, ...]


class _Branch(msgspec.Struct):
    """What may follow a segment. Parameters share a branch whatever their names, or a pattern that names one
    differently would hide a stronger one behind it."""

    literals: dict[str, _Branch] = msgspec.field(default_factory=dict)
    parameter: _Branch | None = None
    wildcard: _Leaf | None = None
    leaf: _Leaf | None = None


class _Matcher:
    """The path patterns of one plugin; of equal patterns the first counts."""

    def __init__(self, offered: PluginComponents) -> None:
        self._complete = offered.complete
        self._exact: dict[str, str] = {}
        self._root = _Branch()
        self._has_patterns = False
        for component, pattern in offered.components:
            if "{" in pattern:
                self._has_patterns = True
                self._insert(component, pattern)
            else:
                self._exact.setdefault(pattern, component)

    def match(self, remainder: str) -> tuple[str, dict[str, str]] | None:
        """Return component id and path parameters."""
        component = self._exact.get(remainder)
        if component is not None:
            return component, {}
        if self._has_patterns:
            match = _descend(self._root, remainder.split("/")[1:], 0)
            if match is not None:
                leaf, values = match
                return leaf.component, dict(zip(leaf.names, values, strict=True))
        if self._complete or remainder == "/":
            return None
        return remainder, {}

    def _insert(self, component: str, pattern: str) -> None:
        branch = self._root
        names: list[str] = []
        segments = pattern.split("/")[1:]
        for index, segment in enumerate(segments):
            if segment.startswith("{*") and segment.endswith("}") and index == len(segments) - 1:
                branch.wildcard = branch.wildcard or _Leaf(component, (*names, segment[2:-1]))
                return
            if segment.startswith("{") and segment.endswith("}"):
                names.append(segment[1:-1])
                branch.parameter = branch = branch.parameter or _Branch()
            else:
                branch = branch.literals.setdefault(segment, _Branch())
        branch.leaf = branch.leaf or _Leaf(component, tuple(names))


def _descend(branch: _Branch, segments: list[str], index: int) -> tuple[_Leaf, tuple[str, ...]] | None:
    """Match the segments from `index` on; a dead end falls back to the next weaker kind. Return the leaf and what its
    parameters stand for."""
    if index == len(segments):
        return None if branch.leaf is None else (branch.leaf, ())
    segment = segments[index]
    literal = branch.literals.get(segment)
    match = None if literal is None else _descend(literal, segments, index + 1)
    if match is None and segment and branch.parameter is not None:
        below = _descend(branch.parameter, segments, index + 1)
        match = None if below is None else (below[0], (segment, *below[1]))
    if match is None and branch.wildcard is not None:
        rest = "/".join(segments[index:])
        match = (branch.wildcard, (rest,)) if rest else None
    return match
