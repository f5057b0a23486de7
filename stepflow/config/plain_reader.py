"""Reads plain configurations without the models: importing pydantic and making them takes a third of a command's start.

Plain: the keys below, spelled as here, with values of their types, and no problem and no warning. For anything else
the models decide, and word the problems. For each tree this reader gives nothing, or what the models give.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from stepflow.config.model import BuiltinPlugin, Config, McpPlugin, StepflowPlugin, digest_of
from stepflow.config.variables import TemplateInvalid, check_template, map_texts
from stepflow.errors import Invalid
from stepflow.flow.duration import parse_duration_ms
from stepflow.routing.table import Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from stepflow.config.model import DocumentPath, PluginConfig

_PREFIX = re.compile(r"/(?:[^/{}]+)?")
_PROCESSES_MAX = 1_024


class _NotPlain(Exception):  # a signal within this module
    """A value for the models."""


def read_plain_config(tree: Any, *, source: str, base_dir: Path) -> Config | None:
    """Return a plain configuration, or None. Arguments as `read_config`; `tree` is a plain tree."""
    try:
        file = _object(tree, {"plugins", "routes", "storageConfig"}, {"plugins", "routes"})
        plugins = {name: _plugin(one) for name, one in _object(file["plugins"]).items()}
        routes = {_prefix(key): _rules(rules, plugins) for key, rules in _object(file["routes"]).items()}
        storage = _object(file.get("storageConfig", {}))
    except (_NotPlain, TemplateInvalid, Invalid):
        return None
    return Config(
        working_directory=base_dir,
        plugins=plugins,
        routes=routes,
        storage=storage,
        digest=digest_of(tree),
        label=source,
    )


def _plugin(tree: Any) -> PluginConfig:
    kind = _text(_object(tree).get("type"))
    if kind == "builtin":
        _object(tree, {"type"})
        return BuiltinPlugin()

    keys = _KEYS.get(kind)
    if keys is None:
        raise _NotPlain
    given = {name: value for name, value in _object(tree, {"type", *keys}).items() if name != "type"}
    fields = {keys[name][0]: keys[name][1](value) for name, value in given.items()}
    plugin: PluginConfig = _stepflow(fields) if kind == "stepflow" else _mcp(fields)

    def check(_path: DocumentPath, text: str) -> str:
        check_template(text)
        return text

    return map_texts(plugin, check)


def _stepflow(fields: dict[str, Any]) -> StepflowPlugin:
    is_http = fields.get("transport", "stdio") == "http"
    has_command, has_url = bool(fields.get("command")), bool(fields.get("url"))
    if (has_command == has_url) if is_http else not has_command:
        raise _NotPlain
    return StepflowPlugin(**fields)


def _mcp(fields: dict[str, Any]) -> McpPlugin:
    # Without a transport, the models choose.
    if not fields.get("command") or fields.setdefault("transport", "stdio") != "stdio":
        raise _NotPlain
    return McpPlugin(**fields)


def _prefix(key: str) -> str:
    if not _PREFIX.fullmatch(key):
        raise _NotPlain
    return key


def _rules(trees: Any, plugins: Mapping[str, PluginConfig]) -> tuple[Rule, ...]:
    if not isinstance(trees, list):
        raise _NotPlain
    return tuple(_rule(_object(tree, {"plugin", "componentAllow", "componentDeny"}), plugins) for tree in trees)


def _rule(tree: dict[str, Any], plugins: Mapping[str, PluginConfig]) -> Rule:
    plugin = _text(tree.get("plugin"))
    if plugin not in plugins:
        raise _NotPlain
    allow, deny = (frozenset(_texts(tree[key])) if key in tree else None for key in ("componentAllow", "componentDeny"))
    return Rule(plugin, (), allow, deny, {})


def _object(tree: Any, known: set[str] | None = None, required: set[str] | None = None) -> dict[str, Any]:
    """Return the mapping, whose keys are some of `known` and all of `required`."""
    if not isinstance(tree, dict) or not all(type(key) is str for key in tree):
        raise _NotPlain
    if (known is not None and not known.issuperset(tree)) or (required is not None and not required.issubset(tree)):
        raise _NotPlain
    return tree


def _text(value: Any) -> str:
    if type(value) is not str:
        raise _NotPlain
    return value


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise _NotPlain
    return tuple(_text(one) for one in value)


def _pairs(value: Any) -> dict[str, str]:
    return {name: _text(one) for name, one in _object(value).items()}


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise _NotPlain
    return value


def _processes(value: Any) -> int:
    if type(value) is not int or not 1 <= value <= _PROCESSES_MAX:
        raise _NotPlain
    return value


def _duration_ms(value: Any) -> int:
    return parse_duration_ms(_text(value))


def _transport(value: Any) -> str:
    if value not in ("stdio", "http"):
        raise _NotPlain
    return _text(value)


_Keys = dict[str, "tuple[str, Callable[[Any], Any]]"]

_SERVER: _Keys = {
    "transport": ("transport", _transport),
    "command": ("command", _text),
    "args": ("args", _texts),
    "env": ("env", _pairs),
    "inheritEnv": ("inherit_env", _flag),
    "url": ("url", _text),
    "startTimeout": ("start_timeout_ms", _duration_ms),
}
"""By key of a file: the field of the plugin, and the function that reads the value."""

_KEYS: dict[str, _Keys] = {"mcp": _SERVER, "stepflow": {**_SERVER, "processes": ("processes", _processes)}}


__all__ = ["read_plain_config"]
