"""Read the `routes` section of a configuration."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from stepflow.config.file_models import RuleModel
from stepflow.config.problems import Problems, Unreadable, quoted
from stepflow.errors import Invalid
from stepflow.flow.paths import parse_path
from stepflow.flow.syntax import suggestion
from stepflow.routing.table import Rule

if TYPE_CHECKING:
    from collections.abc import Collection

    from stepflow.config.model import DocumentPath

_RULE_SLIPS = {
    "params": "is passed on as one parameter named `params`; write its members next to `plugin`",
    "component": "does not rename the component; it is passed on as a parameter",
}

_SLIP_CUTOFF = 0.8
"""Similarity of a parameter's name to a key of a rule that counts as a slip."""

_REST = re.compile(r"/\{\*[^{}/]+\}$")
_PREFIX = re.compile(r"/[^/{}]+")


class RouteReader:
    """Reads routes whose rules name some of `plugins`."""

    def __init__(self, problems: Problems, plugins: Collection[str]) -> None:
        self._problems = problems
        self._plugins = plugins

    def read(self, trees: dict[str, Any]) -> dict[str, tuple[Rule, ...]]:
        """Read the `routes` section: the rules of each prefix, in order."""
        routes: dict[str, tuple[Rule, ...]] = {}
        for key, tree in trees.items():
            prefix = self._problems.attempt(self._prefix, key, routes)
            rules = self._problems.attempt(self._rules, tree, ("routes", key))
            if prefix is not None and rules is not None:
                routes[prefix] = rules
        return routes

    def _prefix(self, key: str, routes: dict[str, tuple[Rule, ...]]) -> str:
        """Return the prefix of a route's key. A final `/{*name}` is redundant and dropped."""
        path: DocumentPath = ("routes", key)
        prefix = _REST.sub("", key) or ("/" if key else "")
        if prefix != "/" and not _PREFIX.fullmatch(prefix):
            raise Unreadable.at(path, _route_key_problem(key))
        if prefix in routes:
            raise Unreadable.at(path, f"is the route `{prefix}` a second time; put its rules into one list")
        return prefix

    def _rules(self, tree: Any, path: DocumentPath) -> tuple[Rule, ...]:
        if not isinstance(tree, list):
            raise Unreadable.at(path, "must be a list of rules, each with a `plugin`")
        read = [self._problems.attempt(self._rule, rule, (*path, index)) for index, rule in enumerate(tree)]
        return tuple(rule for rule in read if rule is not None)

    def _rule(self, tree: Any, path: DocumentPath) -> Rule:
        read = self._problems.read_model(RuleModel, tree, path, extras=True)
        if read.plugin not in self._plugins:
            hint = suggestion(read.plugin, tuple(self._plugins)) or f"; plugins: {quoted(self._plugins) or 'none'}"
            raise Unreadable.at((*path, "plugin"), f"no plugin is called `{read.plugin}`{hint}")

        self._warn_slips(read.model_extra or {}, path)
        conditions = [self._condition(tree, (*path, "conditions", i)) for i, tree in enumerate(read.conditions)]
        return Rule(
            read.plugin,
            tuple(conditions),
            None if read.component_allow is None else frozenset(read.component_allow),
            None if read.component_deny is None else frozenset(read.component_deny),
            read.model_extra or {},
        )

    def _condition(self, tree: Any, path: DocumentPath) -> tuple[Any, Any]:
        if not isinstance(tree, dict) or "path" not in tree or "value" not in tree:
            raise Unreadable.at(path, "must be a mapping with `path` and `value`")
        self._problems.warn_unknown(tree, ("path", "value"), path)
        if not isinstance(tree["path"], str):
            raise Unreadable.at((*path, "path"), "must be a text like `$.user.name`")
        try:
            return parse_path(tree["path"]), tree["value"]
        except Invalid as error:
            raise Unreadable.at((*path, "path"), error.message) from None

    def _warn_slips(self, params: dict[str, Any], path: DocumentPath) -> None:
        """Warn about likely slips among the extra keys of a rule, which are parameters of the plugin."""
        for name in params:
            if name in _RULE_SLIPS:
                self._problems.warn((*path, name), _RULE_SLIPS[name])
            elif hint := suggestion(name, RuleModel.keys(), cutoff=_SLIP_CUTOFF):
                self._problems.warn((*path, name), f"is passed on as a parameter{hint}")


def _route_key_problem(key: str) -> str:
    if not key.startswith("/"):
        return f"a route begins with a slash; write `/{key}`" if key else "a route is `/` or one segment like `/python`"
    first = "/" + key[1:].partition("/")[0]
    return f"a route is `/` or one segment; write `{first}`" if _PREFIX.fullmatch(first) else "is not a route"
