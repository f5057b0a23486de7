"""Errors in documents: where (a path within the document, a location in the text) and the type of the value there."""

from __future__ import annotations

from typing import Any

from stepflow.errors import Invalid
from stepflow.json_problems import Part

DocumentPath = tuple[Part, ...]
"""Keys and indices that lead from the root of a document to one of its values."""

Location = tuple[int, int]
"""Line and column in a text, both 1-based."""


def line_and_column(text: str, at: int) -> Location:
    """Return the location of the character at index `at`."""
    return text.count("\n", 0, at) + 1, at - text.rfind("\n", 0, at)


class DocumentInvalid(Invalid):
    """An unacceptable document. `line` and `column` are 1-based; 0 without a text."""

    def __init__(
        self, reason: str, problem: str, *, source: str, line: int = 0, column: int = 0, field: str = ""
    ) -> None:
        location = f"{source}:{line}:{column}" if line else source
        named = f"{field}: {problem}" if field else problem
        super().__init__(reason, f"{location}: {named}", source=source, line=line, column=column, field=field)
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
