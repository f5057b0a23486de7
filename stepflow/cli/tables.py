"""Listings on stdout: columns for people, JSON for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.cli import console
from stepflow.printable import printable

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


CELL_CHARS_MIN = 9
"""A cell is not cut to less: an ellipsis and the last 8 characters of an id."""

ID_HEADS = ("RUN_ID", "RUN")


def print_json(tree: Any) -> None:
    """Print a tree as JSON: indented on a terminal, on one line elsewhere."""
    console.out(json_text(tree) + b"\n")


def json_text(tree: Any) -> bytes:
    """Return a tree as JSON as `print_json` prints it, without the end of the line."""
    import sys

    import msgspec

    text = msgspec.json.encode(tree)
    return msgspec.json.format(text, indent=2) if sys.stdout.isatty() else text


def print_json_with_list(tree: dict[str, Any], name: str, elements: Iterable[Any]) -> None:
    """Print a tree as `print_json` does, with a further member: a list, whose elements are printed as they come."""
    text = json_text({**tree, name: []})
    between = b"\n    " if text.endswith(b"\n}") else b""
    console.out(text[: text.rindex(b"]")])

    separator = between
    for element in elements:
        # A newline in a string is escaped: those in the text are for the eye.
        console.out(separator + json_text(element).replace(b"\n", b"\n    "))
        separator = b"," + between
    console.out((b"\n  " if between and separator != between else b"") + b"]" + (b"\n" if between else b"") + b"}\n")


def print_json_line(tree: Any) -> None:
    """Print a tree as a line of JSON (JSONL)."""
    import msgspec

    console.out(msgspec.json.encode(tree) + b"\n")


def print_table(
    heads: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    whole: Sequence[str] = (),
    least: Sequence[str] = (),
    chars_min: Mapping[str, int] | None = None,
) -> None:
    """Print rows as aligned columns below the heads, as wide as the terminal at most.

    On a narrow terminal the widest cells are cut, but those of the columns in `whole`. If that is not enough, the
    columns in `least` are left out, the first ones first. `chars_min`: by head, what is not cut of its cells. A pipe
    gets the whole table.
    """
    table = [list(heads), *([printable(cell, one_line=True) for cell in row] for row in rows)]
    room = _terminal_columns()
    if room is not None:
        table = _fitted(table, room, whole, least, chars_min or {})

    widths = _widths(table)
    for row in table:
        cells = [cell.ljust(width) for cell, width in zip(row, widths, strict=True)]
        console.show("  ".join(cells).rstrip())


def _fitted(
    table: list[list[str]], room: int, whole: Sequence[str], least: Sequence[str], chars_min: Mapping[str, int]
) -> list[list[str]]:
    """Return a table that fits into `room` columns, if its cells can be cut so far."""

    def floors() -> list[int]:
        return [
            width if head in whole else min(width, max(len(head), CELL_CHARS_MIN, chars_min.get(head, 0)))
            for head, width in zip(table[0], _widths(table), strict=True)
        ]

    # 1. Leave out columns.
    for name in least:
        if _total(floors()) > room and name in table[0]:
            index = table[0].index(name)
            table = [row[:index] + row[index + 1 :] for row in table]

    # 2. Cut the widest of the others.
    widths, lowest = _widths(table), floors()
    while _total(widths) > room and widths != lowest:
        index = max(range(len(widths)), key=lambda column: (widths[column] > lowest[column], widths[column]))
        widths[index] -= 1
    return [[_cut(cell, width, head) for cell, width, head in zip(row, widths, table[0], strict=True)] for row in table]


def _widths(table: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(*table, strict=True)]


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + 2 * (len(widths) - 1)


def _cut(cell: str, width: int, head: str) -> str:
    """Cut a cell; of an id, its end stays, which commands accept."""
    if len(cell) <= width:
        return cell
    return f"…{cell[len(cell) - width + 1 :]}" if head in ID_HEADS else f"{cell[: width - 1]}…"


def _terminal_columns() -> int | None:
    import os
    import sys

    if not sys.stdout.isatty():
        return None
    try:
        named = os.environ.get("COLUMNS", "")
        return int(named) if named.isdigit() else os.get_terminal_size(sys.stdout.fileno()).columns
    except OSError:
        return None


def print_members(members: Iterable[tuple[str, str]]) -> None:
    """Print names and values, one pair per line. A terminal gets long values folded between words."""
    from stepflow.cli.folding import fold

    listed = list(members)
    width = max((len(name) for name, _ in listed), default=0) + 2
    room = _terminal_columns()
    for name, value in listed:
        lines = [value] if room is None else fold(value, room - width).split("\n")
        for head, line in zip([f"{name}:", *[""] * (len(lines) - 1)], lines, strict=True):
            console.show(f"{head:<{width}}{line}")
