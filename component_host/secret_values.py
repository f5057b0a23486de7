"""The values of the environment that a plugin knows and that no text may show. See `stepflow.telemetry.hide`."""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING

from stepflow.config import BuiltinPlugin, values_used
from stepflow.telemetry import is_secret_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.config import Config

_ORDINARY_NAME = re.compile(
    r"(PATH|HOME|LANG|LANGUAGE|TMPDIR|PWD|OLDPWD|SHELL|TERM|USER|LOGNAME|HOSTNAME|VIRTUAL_ENV|PYTHON\w+|LC_\w+|XDG_\w+)$"
)
"""Variables that hold no secrets on any system: their values, such as the home folder, stand in most messages."""


def secret_values(config: Config, name: str, environ: Mapping[str, str]) -> set[str]:
    """Return the values that a plugin takes from the environment, and those of variables with secret-looking names.

    A plugin with `inheritEnv` takes all values, but ordinary ones and paths of files are no secrets unless the
    configuration names their variables.
    """
    plugin = config.plugins[name]
    found = values_used(config, name, environ)
    found |= {value for key, value in {**environ, **getattr(plugin, "env", {})}.items() if is_secret_name(key)}

    if getattr(plugin, "inherit_env", False):
        found |= {value for key, value in environ.items() if not (_ORDINARY_NAME.match(key) or _is_path(value))}
    if isinstance(plugin, BuiltinPlugin):
        found.add(environ.get(plugin.openai.api_key_env, ""))
    return found


def _is_path(value: str) -> bool:
    """Return True for the path of an existing file, or a list that begins with one."""
    first = value.split(os.pathsep, maxsplit=1)[0]
    return first.startswith("/") and os.path.exists(first)  # noqa: PTH110  # `Path.exists` raises for long texts


__all__ = ["secret_values"]
