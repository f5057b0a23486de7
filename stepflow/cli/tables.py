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


def print_json_with_list(tree: dict[str, Any], name: str, elements: Iterable[Any]) -> None:
    """Print a tree as indented JSON with a further member, a list, whose elements are printed as they come."""
    import msgspec

    def indented(value: Any, depth: int) -> bytes:
        text = msgspec.json.format(msgspec.json.encode(value), indent=2)
        return text.replace(b"\n", b"\n" + b"  " * depth)  # a newline in a string is escaped

    console.out(indented(tree, 0).removesuffix(b"\n}") + b",\n  " + msgspec.json.encode(name) + b": [")
    separator = b"\n    "
    for element in elements:
        console.out(separator + indented(element, 2))
        separator = b",\n    "
    console.out((b"]" if separator == b"\n    " else b"\n  ]") + b"\n}\n")


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
