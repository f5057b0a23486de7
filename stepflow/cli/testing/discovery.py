"""The flow files that `stepflow test` runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.cli.console import Usage

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path


FLOW_SCHEMA = "https://stepflow.org/schemas/v1/flow.json"
"""A document with this `schema` is meant to be a flow."""

YAML_SUFFIXES = (".yaml", ".yml")


def find_files(paths: Iterable[Path], suffixes: Collection[str] = YAML_SUFFIXES) -> list[Path]:
    """Return the named files, and the files below the named folders, sorted and without duplicates.

    Hidden folders (`.venv`, `.git`) are skipped. Raises: Usage.
    """
    found: set[Path] = set()
    for path in paths:
        if path.is_dir():
            found.update(_files_below(path, suffixes))
        elif path.is_file():
            found.add(path)
        else:
            raise Usage("FILE_UNREADABLE", f"there is no file or folder {path}", path=str(path))
    return sorted(found)


def _files_below(folder: Path, suffixes: Collection[str]) -> Iterator[Path]:
    for path in folder.rglob("*"):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if path.suffix in suffixes and not hidden and path.is_file():
            yield path
