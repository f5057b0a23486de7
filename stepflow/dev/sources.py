"""The files that belong to a plugin: the script of its command, and the sources next to it.

- A script is a word of the command line that names a source file, a module after `-m`, or an executable file inside the
  working directory. Data files are none: a server may write to them.
- Sources of the script's language in the folder of the script, and below, belong to it, too: it may import them.
  A script that a command line names belongs to the plugins that name it alone.
- Folders of tools are ignored: virtual environments, `node_modules`, caches, and all whose name begins with a dot.

A plugin without a local script (`uvx …`, a URL) has no files: nothing tells when it changes.
"""

from __future__ import annotations

import ast
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.config import BuiltinPlugin, ConfigInvalid, MockPlugin, resolve_plugin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stepflow.config import Config

_LANGUAGES = (
    frozenset({".py"}),
    frozenset({".js", ".mjs", ".cjs", ".jsx", ".ts", ".mts", ".cts", ".tsx"}),
    frozenset({".go"}),
    frozenset({".rb"}),
    frozenset({".rs"}),
    frozenset({".php"}),
    frozenset({".sh"}),
)
_LANGUAGE_OF = {suffix: language for language in _LANGUAGES for suffix in language}
"""By suffix of a script: the suffixes of the files that it may import."""

IGNORED_FOLDERS = frozenset({"__pycache__", "node_modules", "site-packages", "venv", "env"})
"""Besides those whose name begins with a dot, and those that hold a `pyvenv.cfg`."""

FOLDER_OPTIONS = frozenset({"--directory", "--project", "--cwd", "--prefix", "-C"})
"""Options whose argument is the folder of the program, in the command lines of `uv`, `npm` and their kind."""


PARSED_BYTES_MAX = 1024 * 1024
"""Longer Python files are not checked for syntax errors: the parser takes a hundred times their size."""


@dataclass(frozen=True, slots=True)
class PluginSources:
    """The files of one plugin."""

    scripts: frozenset[Path] = frozenset()
    folders: Mapping[Path, frozenset[str]] | None = None
    """By folder: the suffixes of the files that belong to the plugin, in it and beneath it."""

    def has_file(self, path: Path) -> bool:
        """Return True if a file belongs to the plugin, as a script or next to one."""
        if path in self.scripts:
            return True
        return any(
            path.suffix in suffixes and path.is_relative_to(folder) and not _is_ignored(path.relative_to(folder))
            for folder, suffixes in (self.folders or {}).items()
        )

    def __bool__(self) -> bool:
        return bool(self.scripts or self.folders)


def sources_of(config: Config, environ: Mapping[str, str]) -> dict[str, PluginSources]:
    """Return the files of each plugin with a route and a command, by plugin. Looks at the file system."""
    routed = {rule.plugin for rules in config.routes.values() for rule in rules}
    found: dict[str, PluginSources] = {}
    for name, plugin in config.plugins.items():
        if name not in routed or isinstance(plugin, (BuiltinPlugin, MockPlugin)) or not plugin.command:
            continue
        try:
            resolved = resolve_plugin(config, name, environ)
        except ConfigInvalid:  # a variable is not set: the host says so
            resolved = plugin
        assert not isinstance(resolved, (BuiltinPlugin, MockPlugin))
        found[name] = _sources(config.working_directory, (resolved.command, *resolved.args))
    return found


def plugins_touched(sources: Mapping[str, PluginSources], changed: Iterable[Path]) -> list[str]:
    """Return the plugins that changed files belong to, in the order of `sources`. Pure."""
    touched: set[str] = set()
    for path in changed:
        naming = {name for name, each in sources.items() if path in each.scripts}
        touched |= naming or {name for name, each in sources.items() if each.has_file(path)}
    return [name for name in sources if name in touched]


def first_syntax_error(paths: Iterable[Path]) -> str:
    """Return the first syntax error in Python files: `server.py:3: invalid syntax`; empty if there is none. Blocks.

    Files that this interpreter cannot judge (they are gone, no regular files, no text, too long) have none.
    """
    for path in paths:
        if path.suffix != ".py":
            continue
        try:
            if not path.is_file() or path.stat().st_size > PARSED_BYTES_MAX:
                continue
            ast.parse(path.read_bytes(), path.name)
        except SyntaxError as error:
            return f"{path}:{error.lineno}: {error.msg}"
        except (OSError, ValueError, RecursionError, MemoryError):
            continue
    return ""


def _sources(working_directory: Path, words: Sequence[str]) -> PluginSources:
    scripts: set[Path] = set()
    folders: dict[Path, frozenset[str]] = {}

    def add_folder(folder: Path, suffixes: frozenset[str]) -> None:
        folders[folder] = folders.get(folder, frozenset()) | suffixes

    for index, word in enumerate(words):
        before = words[index - 1] if index else ""
        option, _, value = word.partition("=")
        path = _path(working_directory, value if option in FOLDER_OPTIONS and value else word)

        # 1. A module: `python -m package.server`.
        if before == "-m":
            for module in _module_paths(working_directory, word):
                if module.suffix:
                    scripts.add(module)
                    add_folder(module.parent, _LANGUAGE_OF[".py"])
                else:
                    add_folder(module, _LANGUAGE_OF[".py"])

        # 2. The folder of a program: `uv --directory server run main`, `python server`.
        elif _is_folder(path):
            if option in FOLDER_OPTIONS or before in FOLDER_OPTIONS:
                add_folder(path, frozenset(_LANGUAGE_OF))
            elif (path / "__main__.py").is_file():
                add_folder(path, _LANGUAGE_OF[".py"])

        # 3. A script, also one that was deleted; or the command itself, if it lies in the working directory.
        elif path.suffix in _LANGUAGE_OF and not word.startswith("-"):
            scripts.add(path)
            add_folder(path.parent, _LANGUAGE_OF[path.suffix])
        elif index == 0 and "/" in word and path.is_file() and _is_own(path, working_directory):
            scripts.add(path)
            add_folder(path.parent, _LANGUAGE_OF[".py"])

    return PluginSources(frozenset(scripts), folders)


def _path(working_directory: Path, word: str) -> Path:
    """Return the path that a word would name, without `.` and `..`."""
    return Path(os.path.normpath(working_directory / word))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # too long for a path: code after `-c`, for example
        return False


def _module_paths(working_directory: Path, module: str) -> Iterator[Path]:
    """Yield the file of a module in the working directory, and the folder of its outermost package."""
    path = working_directory.joinpath(*module.split("."))
    if path.with_suffix(".py").is_file():
        yield path.with_suffix(".py")
    package = working_directory / module.partition(".")[0]
    if package.is_dir():
        yield package


def is_tool_folder(folder: Path) -> bool:
    """Return True if a folder holds no sources of a component. Looks at the file system."""
    return folder.name.startswith(".") or folder.name in IGNORED_FOLDERS or (folder / "pyvenv.cfg").is_file()


def _is_own(path: Path, folder: Path) -> bool:
    return path.is_relative_to(folder) and not _is_ignored(path.relative_to(folder))


def _is_ignored(path: Path) -> bool:
    """Return True if a relative path leads through a folder of a tool."""
    return any(part.startswith(".") or part in IGNORED_FOLDERS for part in path.parts[:-1])


__all__ = ["PluginSources", "first_syntax_error", "is_tool_folder", "plugins_touched", "sources_of"]
