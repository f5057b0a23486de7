"""Reading `stepflow-config.yml`: the models of its keys applied, and the checks across them.

Owns every message about a file; the keys are `config_models`'. Only `config.py` uses it, and only when there is a file,
for it loads pydantic. A key that no model knows becomes a warning; a null is an absent key, except
where it is a value (conditions, mock behaviours). All problems of a file are reported together.
"""

from __future__ import annotations

import re
from collections.abc import Callable  # noqa: TC003  # pydantic reads annotations when the models are made
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from stepflow.codec import decode, encode
from stepflow.config.file_models import PLUGIN_MODELS, File, Mock, Model, RuleModel
from stepflow.config.load import (
    Config,
    ConfigInvalid,
    MockBehavior,
    MockComponent,
    MockPlugin,
    PluginConfig,
    RetryConfig,
    did_you_mean,
    digest_of,
    key_text,
    mock_key,
)
from stepflow.config.variables import TemplateInvalid, check_template, map_texts
from stepflow.errors import Code, Failure, Invalid
from stepflow.flow.document import Tree
from stepflow.flow.paths import parse_path
from stepflow.flow.yaml_reader import ComplexKey
from stepflow.retry import BACKOFF_MEMBERS, DEFAULT_BACKOFF, Backoff, backoff_from_tree
from stepflow.routing.table import Rule

if TYPE_CHECKING:
    from pathlib import Path

Place = tuple[str | int, ...]
M = TypeVar("M", bound=Model)
T = TypeVar("T")

PROBLEMS_SHOWN_MAX = 10
"""Problems in one message; the rest is counted."""


_OTHER_TYPES = {
    "nats": "NATS workers are not supported; run the worker as `type: grpc`",
    "stdio": "write `type: stepflow` with `transport: stdio`",
    "http": "write `type: stepflow` with `transport: http`",
}

_RULE_SLIPS = {
    "params": "is passed on as one parameter named `params`; write its members beside `plugin`",
    "component": "does not rename the component; it is passed on as a parameter",
}


# --- reading ---------------------------------------------------------------------------------------------


def read_config(tree: Any, *, source: str, base_dir: Path) -> Config:
    """Read a whole configuration. Raises: ConfigInvalid with every problem found."""
    return _Reader(tree, source, base_dir).read()


class _Unreadable(Exception):  # a signal within this module, not an error for users
    """What stands at some places cannot be understood."""

    def __init__(self, problems: list[tuple[Place, str]]) -> None:
        super().__init__(problems)
        self.problems = problems

    @classmethod
    def at(cls, place: Place, message: str) -> _Unreadable:
        return cls([(place, message)])


class _Reader:
    """One reading: collects problems and warnings with their places."""

    def __init__(self, tree: Any, source: str, base_dir: Path) -> None:
        self._document = tree if isinstance(tree, Tree) else None
        self._tree: Any = tree.value if isinstance(tree, Tree) else tree
        self._source = source
        self._base_dir = base_dir
        self._problems: list[tuple[Place, str]] = []
        self._warnings: list[str] = []

    def read(self) -> Config:
        file = self._attempt(self._file)
        if file is None:
            raise self._failed()
        plugins = self._plugins(file.plugins)
        routes = self._routes(file.routes, file.plugins)
        backoff = self._attempt(self._backoff, file.retry.backoff)
        working_directory = self._attempt(self._working_directory, file.working_directory)
        if self._problems or backoff is None or working_directory is None:
            raise self._failed()
        return Config(
            working_directory=working_directory,
            plugins=plugins,
            routes=routes,
            retry=RetryConfig(file.retry.transport_max_retries, backoff) if "retry" in file.model_fields_set else None,
            allowed_paths=tuple(self._base_dir / path for path in file.allowed_paths),
            storage=file.storage_config,
            digest=digest_of(self._tree),
            label=self._source,
            warnings=tuple(self._warnings),
        )

    def _file(self) -> File:
        if not isinstance(self._tree, dict):
            raise _Unreadable.at((), "must be a mapping with `plugins` and `routes`")
        return self._model(File, self._tree, ())

    def _backoff(self, tree: dict[str, Any] | None) -> Backoff:
        if tree is None:
            return DEFAULT_BACKOFF
        place: Place = ("retry", "backoff")
        kind = tree.get("type")
        members = BACKOFF_MEMBERS.get(kind) if isinstance(kind, str) else None
        if members is not None:
            self._unknown(tree, members, place)
            tree = {name: value for name, value in tree.items() if name in members}
        try:
            return backoff_from_tree(tree)
        except Invalid as error:
            member = str(error.details["field"])
            raise _Unreadable.at((*place, member) if member else place, str(error.details["problem"])) from None

    def _working_directory(self, text: str | None) -> Path:
        if text is None:
            return self._base_dir
        folder = self._base_dir / text
        if not folder.is_dir():
            raise _Unreadable.at(("workingDirectory",), f"{folder} is not a folder")
        return folder

    # plugins

    def _plugins(self, trees: dict[str, Any]) -> dict[str, PluginConfig]:
        plugins: dict[str, PluginConfig] = {}
        for name, tree in trees.items():
            plugin = self._attempt(self._plugin, tree, ("plugins", name))
            if plugin is not None:
                plugins[name] = plugin
                self._check_templates(plugin, ("plugins", name))
        return plugins

    def _check_templates(self, plugin: PluginConfig, place: Place) -> None:
        def check(below: Place, text: str) -> str:
            try:
                check_template(text)
            except TemplateInvalid as error:
                self._problems.append(((*place, *below), str(error)))
            return text

        map_texts(plugin, check)

    def _plugin(self, tree: Any, place: Place) -> PluginConfig:
        if not isinstance(tree, dict):
            raise _Unreadable.at(place, "must be a mapping with a `type`")
        kind = tree.get("type")
        if not isinstance(kind, str):
            raise _Unreadable.at(place, f"needs a `type`, one of {_quoted(PLUGIN_MODELS)}")
        model = PLUGIN_MODELS.get(kind)
        if model is None:
            raise _Unreadable.at((*place, "type"), f"no such type of plugin: `{kind}`; {_type_hint(kind)}")
        read = self._model(model, tree, place)
        if isinstance(read, Mock):
            return self._mock(read, place)
        try:
            return read.plugin()
        except ValueError as error:
            raise _Unreadable.at(place, str(error)) from None

    def _mock(self, read: Mock, place: Place) -> MockPlugin:
        components: dict[str, MockComponent] = {}
        for path, tree in read.components.items():
            component = self._attempt(self._mock_component, path, tree, (*place, "components", path))
            if component is not None:
                components[path] = component
        return MockPlugin(components=components)

    def _mock_component(self, path: str, tree: Any, place: Place) -> MockComponent:
        if not path.startswith("/"):
            raise _Unreadable.at(place, f"must start with a slash; write `/{path}`")
        required = ("input_schema", "output_schema", "behaviors")
        if not isinstance(tree, dict) or any(name not in tree for name in required):
            raise _Unreadable.at(place, f"must be a mapping with {_quoted(required)}")
        self._unknown(tree, required, place)
        if not isinstance(tree["behaviors"], dict):
            raise _Unreadable.at((*place, "behaviors"), "must map inputs to outcomes")
        behaviors: dict[bytes, MockBehavior] = {}
        for key, value in tree["behaviors"].items():
            behavior = self._attempt(_mock_behavior, value, (*place, "behaviors", key))
            if behavior is not None:
                behaviors[_behavior_key(key)] = behavior
        return MockComponent(
            input_schema=tree["input_schema"], output_schema=tree["output_schema"], behaviors=behaviors
        )

    # routes

    def _routes(self, trees: dict[str, Any], plugins: dict[str, Any]) -> dict[str, tuple[Rule, ...]]:
        routes: dict[str, tuple[Rule, ...]] = {}
        for key, tree in trees.items():
            prefix = self._attempt(self._prefix, key, routes)
            rules = self._attempt(self._rules, tree, ("routes", key), plugins)
            if prefix is not None and rules is not None:
                routes[prefix] = rules
        return routes

    def _prefix(self, key: str, routes: dict[str, tuple[Rule, ...]]) -> str:
        """Return the prefix that a route's key stands for. A final `/{*name}` says what is so anyway."""
        place: Place = ("routes", key)
        prefix = _REST.sub("", key) or ("/" if key else "")
        if prefix != "/" and not _PREFIX.fullmatch(prefix):
            raise _Unreadable.at(place, _route_key_problem(key))
        if prefix in routes:
            raise _Unreadable.at(place, f"is the route `{prefix}` a second time; put its rules into one list")
        return prefix

    def _rules(self, tree: Any, place: Place, plugins: dict[str, Any]) -> tuple[Rule, ...]:
        if not isinstance(tree, list):
            raise _Unreadable.at(place, "must be a list of rules, each with a `plugin`")
        read = [self._attempt(self._rule, rule, (*place, index), plugins) for index, rule in enumerate(tree)]
        return tuple(rule for rule in read if rule is not None)

    def _rule(self, tree: Any, place: Place, plugins: dict[str, Any]) -> Rule:
        read = self._model(RuleModel, tree, place)
        if read.plugin not in plugins:
            hint = did_you_mean(read.plugin, plugins) or f"; plugins: {_quoted(plugins) or 'none'}"
            raise _Unreadable.at((*place, "plugin"), f"no plugin is called `{read.plugin}`{hint}")
        conditions = [self._condition(tree, (*place, "conditions", i)) for i, tree in enumerate(read.conditions)]
        return Rule(
            read.plugin,
            tuple(conditions),
            None if read.component_allow is None else frozenset(read.component_allow),
            None if read.component_deny is None else frozenset(read.component_deny),
            read.model_extra or {},
        )

    def _condition(self, tree: Any, place: Place) -> tuple[Any, Any]:
        if not isinstance(tree, dict) or "path" not in tree or "value" not in tree:
            raise _Unreadable.at(place, "must be a mapping with `path` and `value`")
        self._unknown(tree, ("path", "value"), place)
        if not isinstance(tree["path"], str):
            raise _Unreadable.at((*place, "path"), "must be a text like `$.user.name`")
        try:
            return parse_path(tree["path"]), tree["value"]
        except Invalid as error:
            raise _Unreadable.at((*place, "path"), error.message) from None

    # problems and warnings

    def _attempt(self, read: Callable[..., T], *arguments: Any) -> T | None:
        """Read one of several things: its problems are noted, and the others are read all the same."""
        try:
            return read(*arguments)
        except _Unreadable as error:
            self._problems.extend(error.problems)
            return None

    def _model(self, model: type[M], tree: Any, place: Place) -> M:
        try:
            read = model.model_validate(tree)
        except ValidationError as invalid:
            if isinstance(tree, dict) and model is not RuleModel:
                self._unknown(tree, model.keys(), place)  # often the misspelt key explains the missing one
            errors = invalid.errors(include_url=False, include_input=False, include_context=False)
            raise _Unreadable(
                [((*place, *error["loc"]), _message(error["type"], error["msg"])) for error in errors]
            ) from None
        self._extras(read, place)
        return read

    def _extras(self, read: Model, place: Place) -> None:
        """Warn of the keys that no model knows, at any depth."""
        extras = read.model_extra or {}
        if isinstance(read, RuleModel):
            self._rule_slips(extras, place)
        else:
            self._unknown(extras, read.keys(), place)
        for name, info in type(read).model_fields.items():
            below = getattr(read, name)
            if isinstance(below, Model):
                self._extras(below, (*place, info.alias or name))

    def _rule_slips(self, params: dict[str, Any], place: Place) -> None:
        """Extra keys of a rule are parameters of the plugin; only what looks like a slip is worth a word."""
        for name in params:
            if name in _RULE_SLIPS:
                self._warn((*place, name), _RULE_SLIPS[name])
            elif hint := did_you_mean(name, RuleModel.keys(), cutoff=0.8):
                self._warn((*place, name), f"is passed on as a parameter{hint}")

    def _unknown(self, tree: dict[str, Any], known: Any, place: Place) -> None:
        for name in tree:
            if name not in known:
                self._warn((*place, name), f"is not a known key and has no effect{did_you_mean(name, known)}")

    def _warn(self, place: Place, message: str) -> None:
        self._warnings.append(self._line(place, message))

    def _line(self, place: Place, message: str) -> str:
        where = self._source
        if self._document is not None:
            line, column = self._document.nearest(place)
            where = f"{where}:{line}:{column}"
        return f"{where}: {key_text(place)}: {message}" if place else f"{where}: {message}"

    def _failed(self) -> ConfigInvalid:
        assert self._problems
        lines = [self._line(*problem) for problem in self._problems[:PROBLEMS_SHOWN_MAX]]
        if len(self._problems) > len(lines):
            lines.append(f"and {len(self._problems) - len(lines)} more")
        lines.extend(self._warnings[:PROBLEMS_SHOWN_MAX])
        place = self._problems[0][0]
        line, column = self._document.nearest(place) if self._document is not None else (None, None)
        return ConfigInvalid("\n".join(lines), source=self._source, field=key_text(place), line=line, column=column)


_REST = re.compile(r"/\{\*[^{}/]+\}$")
_PREFIX = re.compile(r"/[^/{}]+")


def _route_key_problem(key: str) -> str:
    if not key.startswith("/"):
        return f"a route begins with a slash; write `/{key}`" if key else "a route is `/` or one segment like `/python`"
    first = "/" + key[1:].partition("/")[0]
    return f"a route is `/` or one segment; write `{first}`" if _PREFIX.fullmatch(first) else "is not a route"


def _type_hint(kind: str) -> str:
    return (
        _OTHER_TYPES.get(kind)
        or did_you_mean(kind, PLUGIN_MODELS).removeprefix("; ")
        or f"known: {_quoted(PLUGIN_MODELS)}"
    )


def _behavior_key(key: str) -> bytes:
    """Return the key of a mock behaviour: a plain key is a string, any other JSON value came as its text."""
    return mock_key(decode(str(key)) if isinstance(key, ComplexKey) else key)


def _mock_behavior(tree: Any, place: Place) -> MockBehavior:
    if isinstance(tree, dict):
        outcome, error = tree.get("outcome"), tree.get("error")
        if outcome == "success" and "result" in tree:
            return MockBehavior(result=encode(tree["result"]))
        if outcome == "failed" and isinstance(error, dict):
            return MockBehavior(failure=_mock_failure(error, (*place, "error")))
        if "outcome" not in tree and isinstance(error, str):
            return MockBehavior(error=error)
    raise _Unreadable.at(
        place, "must be `outcome: success` with a `result`, `outcome: failed` with an `error`, or `error: text`"
    )


def _mock_failure(error: dict[str, Any], place: Place) -> Failure:
    code, message = error.get("code"), error.get("message")
    if not isinstance(code, str) or code not in Code.__members__:
        hint = did_you_mean(code, Code.__members__) if isinstance(code, str) else ""
        raise _Unreadable.at((*place, "code"), f"must be the name of a failure code, as `COMPONENT_FAILED`{hint}")
    if not isinstance(message, str):
        raise _Unreadable.at((*place, "message"), "must be a text")
    return Failure(Code[code], message, encode(error["data"]) if error.get("data") is not None else b"")


def _message(kind: str, message: str) -> str:
    """Put pydantic's words the way the rest of the messages go."""
    if kind == "missing":
        return "is required"
    if kind == "value_error":
        return message.removeprefix("Value error, ")
    return message.replace("Input should be", "must be").replace("a valid dictionary", "a mapping")


def _quoted(names: Any) -> str:
    return ", ".join(f"`{name}`" for name in names)
