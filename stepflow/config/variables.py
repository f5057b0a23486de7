"""Environment variables in the texts of a plugin: `$NAME`, `${NAME}`, `${NAME:default}`, `${NAME:-default}`.

- A variable that is set to an empty text counts as set. Defaults may hold variables.
- A backslash escapes `$`, `{`, `}`, `:` and `\\`; before any other character it is kept.
- A `$` without a name is a plain character.
- Values are inserted verbatim: variables in a value are not replaced.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepflow.config.model import BuiltinPlugin, ConfigInvalid, GrpcPlugin, McpPlugin, MockPlugin, key_text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from stepflow.config.model import Config, DocumentPath, PluginConfig

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_ESCAPABLE = frozenset("${}:\\")

NESTING_MAX = 16
"""Levels of defaults within defaults."""


class UnsetVariable(Exception):  # a signal between these modules, not an error for users
    """A variable with neither value nor default."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class TemplateInvalid(Exception):  # a signal, as above
    """A malformed `${`. The message states the problem and never quotes a value."""


def resolve_plugin(config: Config, name: str, environ: Mapping[str, str]) -> PluginConfig:
    """Return a plugin of `config` with the variables in its texts replaced, ready to start.

    Raises:
        ConfigInvalid: a variable is not set and has no default.
    """

    def resolved(path: DocumentPath, text: str) -> str:
        try:
            return substitute(text, environ)
        except UnsetVariable as unset:
            key = key_text(("plugins", name, *path))
            raise ConfigInvalid(
                f"{config.label}: {key}: environment variable `{unset.name}` is not set; "
                f"set it, or write `${{{unset.name}:-default}}`",
                source=config.label,
                field=key,
            ) from None

    return map_texts(config.plugins[name], resolved)


def values_used(config: Config, name: str, environ: Mapping[str, str]) -> set[str]:
    """Return the values of variables that `resolve_plugin` inserts into the texts of a plugin."""
    noting = _Noting(environ)
    map_texts(config.plugins[name], lambda _path, text: substitute(text, noting))
    return noting.used


class _Noting(dict[str, str]):
    """An environment that notes the values read from it."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        super().__init__(environ)
        self.used: set[str] = set()

    def get(self, name: str, default: Any = None) -> Any:
        if name in self:
            self.used.add(self[name])
        return super().get(name, default)


def substitute(text: str, environ: Mapping[str, str]) -> str:
    """Replace the variables in `text`. Raises: UnsetVariable, TemplateInvalid."""
    if "$" not in text and "\\" not in text:
        return text
    return _Template(text, environ).read()


def check_template(text: str) -> None:
    """Check the syntax of `text` without reading any variable. Raises: TemplateInvalid."""
    if "$" in text:
        _Template(text, None).read()


def map_texts(plugin: PluginConfig, change: Callable[[DocumentPath, str], str]) -> PluginConfig:
    """Return the plugin with each text that may hold variables replaced by `change(path, text)`."""
    if isinstance(plugin, MockPlugin):
        return plugin
    if isinstance(plugin, BuiltinPlugin):
        url = plugin.openai.base_url
        if url is None:
            return plugin
        return replace(plugin, openai=replace(plugin.openai, base_url=change(("openai", "baseUrl"), url)))

    command = change(("command",), plugin.command)
    args = tuple(change(("args", index), text) for index, text in enumerate(plugin.args))
    env = {name: change(("env", name), text) for name, text in plugin.env.items()}

    if isinstance(plugin, GrpcPlugin):
        listen, advertise = (change((name,), getattr(plugin, name)) for name in ("listen", "advertise"))
        return replace(plugin, command=command, args=args, env=env, listen=listen, advertise=advertise)

    url = change(("url",), plugin.url)
    headers = {name: change(("headers", name), text) for name, text in plugin.headers.items()}
    if isinstance(plugin, McpPlugin):  # apart from the other kind, so that `replace` knows its type
        return replace(plugin, command=command, args=args, env=env, url=url, headers=headers)
    return replace(plugin, command=command, args=args, env=env, url=url, headers=headers)


class _Template:
    """One pass over a text. With `environ` None only the syntax is checked."""

    def __init__(self, text: str, environ: Mapping[str, str] | None) -> None:
        self._text = text
        self._environ = environ
        self._at = 0

    def read(self) -> str:
        return self._run(until_brace=False, depth=0)

    def _run(self, *, until_brace: bool, depth: int) -> str:
        if depth > NESTING_MAX:
            raise TemplateInvalid(f"defaults are nested deeper than {NESTING_MAX}")

        parts: list[str] = []
        text = self._text
        while self._at < len(text):
            char = text[self._at]
            self._at += 1
            if char == "}" and until_brace:
                return "".join(parts)

            if char == "\\" and text[self._at : self._at + 1] in _ESCAPABLE:
                char = text[self._at]
                self._at += 1
                parts.append(char)
            elif char == "$":
                parts.append(self._variable(depth))
            else:
                parts.append(char)

        if until_brace:
            raise TemplateInvalid("`${` without its `}`")
        return "".join(parts)

    def _variable(self, depth: int) -> str:
        braced = self._text.startswith("{", self._at)
        if braced:
            self._at += 1

        match = _NAME.match(self._text, self._at)
        if match is None:
            if braced:
                raise TemplateInvalid("`${` must be followed by the name of a variable; a plain `$` is written `\\$`")
            return "$"

        self._at = match.end()
        if not braced:
            return self._value(match.group(), None)
        default = self._default(match.group(), depth)
        return self._value(match.group(), default)

    def _default(self, name: str, depth: int) -> str | None:
        """Read the rest of `${NAME…}`, closing brace included; return the default."""
        known = self._environ is None or name in self._environ
        following = self._text[self._at : self._at + 1]
        if following == "}":
            self._at += 1
            return None

        if following != ":":
            raise TemplateInvalid(f"`${{{name}` must be followed by `}}` or `:default}}`")
        self._at += 1
        if self._text.startswith("-", self._at):
            self._at += 1

        environ = self._environ
        if known:
            self._environ = None  # an unused default may hold unset variables
        try:
            return self._run(until_brace=True, depth=depth + 1)
        finally:
            self._environ = environ

    def _value(self, name: str, default: str | None) -> str:
        if self._environ is None:
            return ""
        value = self._environ.get(name, default)
        if value is None:
            raise UnsetVariable(name)
        return value
