"""How to start a server: its command, environment, limits and secrets.

- A server gets the variables of its configuration and `PASSED_VARIABLES`, unless `inherit_env` is set.
- Limits are set by a shell, which then becomes the server: no Python code runs between fork and exec.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from component_host.backend import ShownConfig
from stepflow.config import NO_LIMITS, ServerLimits
from stepflow.errors import Invalid
from stepflow.redaction import ENVIRONMENT_CHARS_MIN
from stepflow.telemetry import is_enabled, is_secret_name

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from component_host.backend import BackendContext
    from component_host.logs import PluginLog

LOG_LEVEL = "STEPFLOW_LOG_LEVEL"

PASSED_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", LOG_LEVEL)
"""Variables of the host's environment that every server gets."""


_PLAIN_WORD = re.compile(r"[A-Za-z0-9_./][A-Za-z0-9_./-]*")
"""A word that YAML reads as text without quotes. Options begin with a dash, and are quoted."""


class CommandConfig(Protocol):
    """The common part of all configurations of server commands."""

    @property
    def command(self) -> str: ...
    @property
    def args(self) -> Sequence[str]: ...
    @property
    def env(self) -> Mapping[str, str]: ...
    @property
    def inherit_env(self) -> bool: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessSpec:
    """How to start one server process."""

    plugin: str
    command: str
    args: Sequence[str]
    env: Mapping[str, str]
    """Variables from the configuration, with substitution done."""
    inherit_env: bool
    working_directory: str
    environ: Mapping[str, str]
    """The host's own environment."""
    stderr_hidden: tuple[str, ...] = ()
    """Prefixes of stderr lines that are neither kept nor logged: some servers echo payloads there."""
    limits: ServerLimits = NO_LIMITS
    shown: ShownConfig | None = None
    """The configuration as written; None: as it stands here."""
    secrets: tuple[str, ...] = ()
    """Secrets to redact from stderr that are in no environment variable."""
    log: PluginLog | None = None
    """Takes the lines of stderr."""

    @classmethod
    def of(cls, context: BackendContext, config: CommandConfig, **more: Any) -> ProcessSpec:
        """Return the spec of a plugin's configuration; `more` adds fields or overrides them."""
        fields: dict[str, Any] = {
            "plugin": context.name,
            "command": config.command,
            "args": config.args,
            "env": config.env,
            "inherit_env": config.inherit_env,
            "working_directory": context.working_directory,
            "environ": context.environ,
            "limits": context.limits,
            "shown": context.shown,
            "log": context.log,
        }
        return cls(**{**fields, **more})


def server_environment(spec: ProcessSpec) -> dict[str, str]:
    """Return the environment of the server."""
    environ = spec.environ
    passed = environ if spec.inherit_env else {name: environ[name] for name in PASSED_VARIABLES if name in environ}
    return {**_log_level(), **passed, **spec.env}


def _log_level() -> dict[str, str]:
    """Let servers log as much as this process; at its usual levels they choose their own."""
    return {LOG_LEVEL: "debug"} if is_enabled("debug") else {}


def secrets_of(spec: ProcessSpec) -> list[str]:
    """Return the texts to redact: the spec's secrets and the secret-looking variables, possible parts of `args`."""
    variables = {**spec.environ, **spec.env}
    named = [value for name, value in variables.items() if len(value) >= ENVIRONMENT_CHARS_MIN and is_secret_name(name)]
    return [*spec.secrets, *named]


def resolve_command(spec: ProcessSpec) -> str:
    """Return the absolute path of the command.

    A bare `python` or `python3` is the host's own interpreter, so that a configuration works in any virtual
    environment. Another bare name is searched on the server's PATH, then in the interpreter's folder. A name with a
    slash is relative to the working directory.

    Raises:
        Invalid: COMMAND_NOT_FOUND; the message names the folders searched.
    """
    command = spec.command
    own_folder = Path(sys.executable).parent

    if "/" in command:
        path = Path(spec.working_directory, command)
        if path.is_file() and os.access(path, os.X_OK):
            return str(path)
        why = "is not an executable file" if path.exists() else "does not exist"
        raise _not_found(spec, f"{Path(spec.working_directory, shown_command(spec))} {why}")

    if command in ("python", "python3") and (own_folder / command).is_file():
        return str(own_folder / command)

    search_path = server_environment(spec).get("PATH", os.defpath)
    found = shutil.which(command, path=search_path) or shutil.which(command, path=str(own_folder))
    if found is None:
        raise _not_found(spec, f"it is neither on PATH ({search_path}) nor in {own_folder}")
    return str(Path(found).absolute())


def shown_command(spec: ProcessSpec) -> str:
    """Return the command as the configuration has it, with variables unexpanded."""
    return _shown(spec).command


def shown_command_line(spec: ProcessSpec) -> str:
    """Return the command line as the configuration has it."""
    return _shown(spec).command_line()


def _shown(spec: ProcessSpec) -> ShownConfig:
    return spec.shown or ShownConfig.of(spec)


def limited_command(command: Sequence[str], limits: ServerLimits) -> list[str]:
    """Return a command line to start a command under limits.

    A limit above the host's own ends the server at once, with an error of the shell on stderr.
    """
    orders = []
    if limits.memory_bytes is not None:
        orders.append(f"ulimit -v {limits.memory_bytes // 1024}")
    if limits.open_files is not None:
        orders.append(f"ulimit -n {limits.open_files}")

    if not orders:
        return list(command)
    return ["/bin/sh", "-c", " && ".join([*orders, 'exec "$0" "$@"']), *command]


def _better_words(spec: ProcessSpec) -> str:
    """Return how to write a command that holds arguments, or names a script; empty if it does neither."""
    shown = shown_command(spec)
    words = shown.split()
    is_script = len(words) == 1 and shown.endswith(".py") and Path(spec.working_directory, shown).is_file()
    if is_script:
        words = ["python", shown]
    if len(words) < 2:
        return ""

    program, *args = (word if _PLAIN_WORD.fullmatch(word) else json.dumps(word) for word in words)
    rest = [*args, "…"] if spec.args else args
    why = "a script is an argument of its interpreter" if is_script else "`command` is one program, without arguments"
    return f"{why}: write `command: {program}` and `args: [{', '.join(rest)}]`"


def _not_found(spec: ProcessSpec, searched: str) -> Invalid:
    return Invalid(
        "COMMAND_NOT_FOUND",
        f"plugin {spec.plugin!r}: the command {shown_command(spec)!r} was not found: {searched}; "
        + (_better_words(spec) or "install it, or correct `command` in the configuration"),
        plugin=spec.plugin,
        command=shown_command(spec),
    )


__all__ = [
    "CommandConfig",
    "ProcessSpec",
    "limited_command",
    "resolve_command",
    "secrets_of",
    "server_environment",
    "shown_command",
    "shown_command_line",
]
