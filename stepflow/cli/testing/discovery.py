"""The flow files that `stepflow test` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.cli.console import Usage

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path


def find_files(paths: Iterable[Path]) -> list[Path]:
    """Return the named files, and the YAML files below the named folders, sorted and without duplicates.

    Hidden folders (`.venv`, `.git`) are skipped. Raises: Usage.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(_yaml_files(path))
        elif path.is_file():
            found.add(path)
        else:
            raise Usage("FILE_UNREADABLE", f"there is no file or folder {path}", path=str(path))
    return sorted(found)


def _yaml_files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix in (".yaml", ".yml") and not hidden and path.is_file():
            yield path
