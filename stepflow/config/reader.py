"""Read the tree of a `stepflow-config.yml`: apply the models, then check across sections.

Null means absent, except where it is a value (conditions, mock behaviours).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.codec import decode, encode
from stepflow.config.file_models import PLUGIN_MODELS, FileModel, MockModel
from stepflow.config.model import (
    Config,
    DocumentPath,
    MockBehavior,
    MockComponent,
    MockPlugin,
    PluginConfig,
    RetryConfig,
    digest_of,
    mock_key,
)
from stepflow.config.problems import Problems, Unreadable, quoted
from stepflow.config.route_reader import RouteReader
from stepflow.config.variables import TemplateInvalid, check_template, map_texts
from stepflow.errors import Code, Failure, Invalid
from stepflow.flow.document import Tree
from stepflow.flow.format import CONFIG_ONLY
from stepflow.flow.syntax import suggestion
from stepflow.flow.yaml_reader import ComplexKey
from stepflow.retry import BACKOFF_MEMBERS, DEFAULT_BACKOFF, Backoff, backoff_from_tree

if TYPE_CHECKING:
    from pathlib import Path

_OTHER_TYPES = {
    "nats": "NATS workers are not supported; run the worker as `type: grpc`",
    "stdio": "write `type: stepflow` with `transport: stdio`",
    "http": "write `type: stepflow` with `transport: http`",
}


def read_config(tree: Any, *, source: str, base_dir: Path) -> Config:
    """Read a configuration. Raises: ConfigInvalid, with all problems of the file."""
    return ConfigReader(tree, source, base_dir).read()


class ConfigReader:
    """Reads one tree."""

    def __init__(self, tree: Any, source: str, base_dir: Path) -> None:
        self._tree: Any = tree.value if isinstance(tree, Tree) else tree
        self._source = source
        self._base_dir = base_dir
        self._problems = Problems(tree, source)

    def read(self) -> Config:
        problems = self._problems
        file = problems.attempt(self._file)
        if file is None:
            raise problems.error()

        plugins = self._plugins(file.plugins)
        routes = RouteReader(problems, file.plugins).read(file.routes)
        backoff = problems.attempt(self._backoff, file.retry.backoff)
        working_directory = problems.attempt(self._working_directory, file.working_directory)
        if problems or backoff is None or working_directory is None:
            raise problems.error()

        return Config(
            working_directory=working_directory,
            plugins=plugins,
            routes=routes,
            retry=RetryConfig(file.retry.transport_max_retries, backoff) if "retry" in file.model_fields_set else None,
            allowed_paths=tuple(self._base_dir / path for path in file.allowed_paths),
            storage=file.storage_config,
            retention=file.retention.retention,
            digest=digest_of(self._tree),
            label=self._source,
            warnings=problems.warnings,
        )

    def _file(self) -> FileModel:
        if not isinstance(self._tree, dict):
            raise Unreadable.at((), "must be a mapping with `plugins` and `routes`")
        flow_only = [key for key in ("steps", "output") if key in self._tree]
        if flow_only and not any(key in self._tree for key in CONFIG_ONLY):
            named = quoted(flow_only).replace(", ", " and ")
            raise Unreadable.at(
                (flow_only[0],), f"this is a flow ({named}), not a configuration, which has `plugins` and `routes`"
            )
        return self._problems.read_model(FileModel, self._tree, ())

    def _backoff(self, tree: dict[str, Any] | None) -> Backoff:
        if tree is None:
            return DEFAULT_BACKOFF
        path: DocumentPath = ("retry", "backoff")
        kind = tree.get("type")
        members = BACKOFF_MEMBERS.get(kind) if isinstance(kind, str) else None
        if members is not None:
            self._problems.warn_unknown(tree, members, path)
            tree = {name: value for name, value in tree.items() if name in members}

        try:
            return backoff_from_tree(tree)
        except Invalid as error:
            member = str(error.details["field"])
            raise Unreadable.at((*path, member) if member else path, str(error.details["problem"])) from None

    def _working_directory(self, text: str | None) -> Path:
        if text is None:
            return self._base_dir
        folder = self._base_dir / text
        if not folder.is_dir():
            raise Unreadable.at(("workingDirectory",), f"{folder} is not a folder")
        return folder

    def _plugins(self, trees: dict[str, Any]) -> dict[str, PluginConfig]:
        plugins: dict[str, PluginConfig] = {}
        for name, tree in trees.items():
            plugin = self._problems.attempt(self._plugin, tree, ("plugins", name))
            if plugin is not None:
                plugins[name] = plugin
                self._check_templates(plugin, ("plugins", name))
        return plugins

    def _check_templates(self, plugin: PluginConfig, path: DocumentPath) -> None:
        def check(below: DocumentPath, text: str) -> str:
            try:
                check_template(text)
            except TemplateInvalid as error:
                self._problems.add((*path, *below), str(error))
            return text

        map_texts(plugin, check)

    def _plugin(self, tree: Any, path: DocumentPath) -> PluginConfig:
        if not isinstance(tree, dict):
            raise Unreadable.at(path, "must be a mapping with a `type`")
        kind = tree.get("type")
        if not isinstance(kind, str):
            raise Unreadable.at(path, f"needs a `type`, one of {quoted(PLUGIN_MODELS)}")
        model = PLUGIN_MODELS.get(kind)
        if model is None:
            raise Unreadable.at((*path, "type"), f"no such type of plugin: `{kind}`; {_type_hint(kind)}")

        read = self._problems.read_model(model, tree, path)
        if isinstance(read, MockModel):
            return self._mock(read, path)
        try:
            return read.plugin()
        except ValueError as error:
            raise Unreadable.at(path, str(error)) from None

    def _mock(self, read: MockModel, path: DocumentPath) -> MockPlugin:
        components: dict[str, MockComponent] = {}
        for name, tree in read.components.items():
            component = self._problems.attempt(self._mock_component, name, tree, (*path, "components", name))
            if component is not None:
                components[name] = component
        return MockPlugin(components=components)

    def _mock_component(self, name: str, tree: Any, path: DocumentPath) -> MockComponent:
        if not name.startswith("/"):
            raise Unreadable.at(path, f"must start with a slash; write `/{name}`")
        required = ("input_schema", "output_schema", "behaviors")
        if not isinstance(tree, dict) or any(name not in tree for name in required):
            raise Unreadable.at(path, f"must be a mapping with {quoted(required)}")
        self._problems.warn_unknown(tree, required, path)
        if not isinstance(tree["behaviors"], dict):
            raise Unreadable.at((*path, "behaviors"), "must map inputs to outcomes")

        behaviors: dict[bytes, MockBehavior] = {}
        for key, value in tree["behaviors"].items():
            behavior = self._problems.attempt(_mock_behavior, value, (*path, "behaviors", key))
            if behavior is not None:
                behaviors[_behavior_key(key)] = behavior

        return MockComponent(
            input_schema=tree["input_schema"], output_schema=tree["output_schema"], behaviors=behaviors
        )


def _type_hint(kind: str) -> str:
    return (
        _OTHER_TYPES.get(kind)
        or suggestion(kind, tuple(PLUGIN_MODELS)).removeprefix("; ")
        or f"known: {quoted(PLUGIN_MODELS)}"
    )


def _behavior_key(key: str) -> bytes:
    """Return the key of a mock behaviour. A plain key is a string; a `ComplexKey` holds JSON text."""
    return mock_key(decode(str(key)) if isinstance(key, ComplexKey) else key)


def _mock_behavior(tree: Any, path: DocumentPath) -> MockBehavior:
    if isinstance(tree, dict):
        outcome, error = tree.get("outcome"), tree.get("error")
        if outcome == "success" and "result" in tree:
            return MockBehavior(result=encode(tree["result"]))
        if outcome == "failed" and isinstance(error, dict):
            return MockBehavior(failure=_mock_failure(error, (*path, "error")))
        if "outcome" not in tree and isinstance(error, str):
            return MockBehavior(error=error)
    raise Unreadable.at(
        path, "must be `outcome: success` with a `result`, `outcome: failed` with an `error`, or `error: text`"
    )


def _mock_failure(error: dict[str, Any], path: DocumentPath) -> Failure:
    code, message = error.get("code"), error.get("message")
    if not isinstance(code, str) or code not in Code.__members__:
        hint = suggestion(code, tuple(Code.__members__)) if isinstance(code, str) else ""
        raise Unreadable.at((*path, "code"), f"must be the name of a failure code, as `COMPONENT_FAILED`{hint}")
    if not isinstance(message, str):
        raise Unreadable.at((*path, "message"), "must be a text")

    return Failure(Code[code], message, encode(error["data"]) if error.get("data") is not None else b"")
