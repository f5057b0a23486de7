"""Listings on stdout: columns for people, JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


def print_json(tree: Any) -> None:
    """Print a tree as indented JSON."""
    import msgspec

    console.out(msgspec.json.format(msgspec.json.encode(tree), indent=2) + b"\n")


def print_json_line(tree: Any) -> None:
    """Print a tree as a line of JSON (JSONL)."""
    import msgspec

    console.out(msgspec.json.encode(tree) + b"\n")


def print_table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows as aligned columns below the heads."""
    table = [heads, *([printable(cell, one_line=True) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        console.show("  ".join(cells).rstrip())


def print_members(members: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair per line."""
    listed = list(members)
    width = max((len(name) for name, _ in listed), default=0) + 2
    for name, value in listed:
        console.show(f"{name + ':':<{width}}{value}")
