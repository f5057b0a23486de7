"""Errors in documents: where (a path within the document, a location in the text) and the type of the value there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.errors import Invalid
from stepflow.json_problems import Part

if TYPE_CHECKING:
    from collections.abc import Sequence

DocumentPath = tuple[Part, ...]
"""Keys and indices that lead from the root of a document to one of its values."""

Location = tuple[int, int]
"""Line and column in a text, both 1-based."""


def line_and_column(text: str, at: int) -> Location:
    """Return the location of the character at index `at`."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


PROBLEMS_SHOWN_MAX = 20
"""Problems quoted in one message; the rest is counted."""


class DocumentInvalid(Invalid):
    """An unacceptable document. `line` and `column` are 1-based; 0 without a text.

    The message also holds the problems of `others`, a line each; all other members are those of the first problem.
    """

    def __init__(
        self,
        reason: str,
        problem: str,
        *,
        source: str,
        line: int = 0,
        column: int = 0,
        field: str = "",
        others: Sequence[DocumentInvalid] = (),
    ) -> None:
        location = f"{source}:{line}:{column}" if line else source
        named = f"{field}: {problem}" if field else problem
        quoted = [f"{location}: {named}", *(other.message for other in others[: PROBLEMS_SHOWN_MAX - 1])]
        if len(others) >= PROBLEMS_SHOWN_MAX:
            quoted.append(f"and {len(others) - PROBLEMS_SHOWN_MAX + 1} more")
        super().__init__(reason, "\n".join(quoted), source=source, line=line, column=column, field=field)
        self.others = tuple(others)
        self.problem = problem
        self.source = source
        self.line = line
        self.column = column
        self.field = field


def describe(value: Any) -> str:
    """Name the JSON type of `value` for a message."""
    if value is None:
        return "null"
    names = {bool: "a boolean", int: "a number", float: "a number", list: "a list", dict: "a mapping"}
    return names.get(type(value), "a string")
