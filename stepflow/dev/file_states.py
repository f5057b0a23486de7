"""The state of watched files: what was changed, created or deleted since an earlier look.

Comparing states, instead of believing single notices, makes no difference between the ways in which editors write: in
place, by a rename, or by a deletion and a new file.
"""

from __future__ import annotations

import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.dev.sources import is_tool_folder

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepflow.dev.sources import PluginSources

FOLDERS_MAX = 1_000
"""Folders that are watched; those nearest to the scripts first."""

FILES_MAX = 10_000
"""Files that are compared."""

Signature = tuple[int, int, int]
"""Time of the last change, size, and number of the file: a file that was rewritten or replaced differs."""


@dataclass(frozen=True, slots=True)
class FileStates:
    """The state of all watched files."""

    files: Mapping[Path, Signature]
    folders: frozenset[Path]
    """The folders to watch."""
    complete: bool = True
    """False if there are more files or folders than are looked at."""

    def changed_since(self, before: FileStates) -> set[Path]:
        """Return the files that were changed, created or deleted. Pure."""
        paths = self.files.keys() | before.files.keys()
        return {path for path in paths if self.files.get(path) != before.files.get(path)}


def look_at_files(sources: Iterable[PluginSources], single_files: Iterable[Path]) -> FileStates:
    """Return the state of the files of plugins, and of further files. Blocks."""
    files: dict[Path, Signature] = {}
    folders: dict[Path, None] = {}
    complete = True

    each = list(sources)
    for path in {*single_files, *(script for one in each for script in one.scripts)}:
        folders[path.parent] = None
        signature = _signature(path)
        if signature is not None:
            files[path] = signature

    roots: dict[Path, frozenset[str]] = {}
    for one in each:
        for folder, suffixes in (one.folders or {}).items():
            roots[folder] = roots.get(folder, frozenset()) | suffixes

    waiting = deque(roots.items())
    while waiting:
        folder, suffixes = waiting.popleft()
        if len(folders) >= FOLDERS_MAX or len(files) >= FILES_MAX:
            complete = False
            break
        folders[folder] = None
        for entry in _entries(folder):
            path = Path(entry.path)
            if entry.is_dir(follow_symlinks=False):
                if path not in roots and not is_tool_folder(path):
                    waiting.append((path, suffixes))
            elif path.suffix in suffixes and (signature := _signature(path)) is not None:
                files[path] = signature

    return FileStates(files, frozenset(folder for folder in folders if folder.is_dir()), complete)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except OSError:  # gone meanwhile, or not readable
        return []


def _signature(path: Path) -> Signature | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


__all__ = ["FILES_MAX", "FOLDERS_MAX", "FileStates", "look_at_files"]
