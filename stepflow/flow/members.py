"""Typed members of mappings, and notes on unread members.

`MemberReader` knows the source of a document, so that every error has a document path and, for a text, a location.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, TypeVar

from stepflow.errors import Invalid
from stepflow.flow.diagnostics import Diagnostic
from stepflow.flow.duration import parse_duration_ms
from stepflow.flow.model import FlowInvalid
from stepflow.flow.source import describe
from stepflow.flow.syntax import NOTES_MAX, Notes, suggestion
from stepflow.json_problems import json_path, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.flow.document import Tree
    from stepflow.flow.source import DocumentPath

T = TypeVar("T")

RETRIES_MAX = 2**32 - 1

PROBLEMS_MAX = 100
"""Problems collected from one document; reading stops at this number."""


class TooManyProblems(Exception):
    """A signal within the readers: `PROBLEMS_MAX` is reached."""


class MemberReader:
    """Methods take a mapping, the key of a member, and the document path of the mapping.

    A problem does not stop the reading: a method notes it and returns the value of an absent member. `read_all` raises
    all problems together.
    """

    def __init__(self, source: str, tree: Tree | None) -> None:
        self.source = source
        self.tree = tree
        self.warnings: list[Diagnostic] = []
        self.notes = Notes()
        self.problems: list[FlowInvalid] = []

    def text(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> str | None:
        value = tree.get(key)
        if value is None or isinstance(value, str):
            return value
        self.problem((*doc_path, key), f"must be text, not {describe(value)}; put it in quotes")
        return None

    def required_text(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> str:
        if tree.get(key) is None:
            near = [name for name in tree if suggestion(name, (key,))]
            self.problem((*doc_path, key), "is required" + (f"; did you mean it by `{near[0]}`?" if near else ""))
        return self.text(tree, key, doc_path) or ""

    def listing(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> list[Any]:
        value = tree.get(key)
        if value is not None and not isinstance(value, list):
            self.problem((*doc_path, key), f"must be a list, not {describe(value)}")
            return []
        return value or []

    def mapping(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> dict[str, Any]:
        value = tree.get(key)
        if value is not None and not isinstance(value, dict):
            self.problem((*doc_path, key), f"must be a mapping, not {describe(value)}")
            return {}
        return value or {}

    def boolean(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> bool:
        value = tree.get(key)
        if value is not None and not isinstance(value, bool):
            self.problem((*doc_path, key), f"must be true or false, not {describe(value)}")
        return value is True

    def count(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> int | None:
        value = as_integer(tree.get(key))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= RETRIES_MAX:
            self.problem((*doc_path, key), f"must be a whole number from 0 to {RETRIES_MAX:,}")
            return None
        return value

    def duration(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> int | None:
        if tree.get(key) is None:
            return None
        try:
            return parse_duration_ms(tree[key])
        except Invalid as error:
            self.problem((*doc_path, key), error.message, reason=error.reason)
            return None

    def all_warnings(self) -> tuple[Diagnostic, ...]:
        # The caller has read all fields before: arguments are evaluated in order.
        unread = [Diagnostic(1900, sentence, json_path(doc_path)) for doc_path, sentence in self.notes.items]
        return (*self.warnings, *unread)

    def note_unread(
        self,
        tree: dict[str, Any],
        doc_path: DocumentPath,
        known: tuple[str, ...],
        legacy: dict[str, str] | None = None,
        tolerated: tuple[str, ...] = (),
    ) -> None:
        for key, value in tree.items():
            if key in known or key in tolerated:
                continue

            if legacy and key in legacy:
                if value is not None and len(self.warnings) < NOTES_MAX:  # old files say `inputSchema: null`
                    sentence = f"`{key}` is not read: {legacy[key]}"
                    self.warnings.append(Diagnostic(1901, sentence, json_path((*doc_path, key))))
            else:
                self.notes.unread(doc_path, key, "is not a known member here", known)

    def refuse_unknown(self, tree: dict[str, Any], doc_path: DocumentPath, known: tuple[str, ...]) -> None:
        for key in tree:
            if key not in known:
                problem = f"`{shown(key)}` is not a known member here{suggestion(key, known)}"
                self.problem((*doc_path, key), problem)

    def slip(self, doc_path: DocumentPath, problem: str) -> None:
        """Note a slip that other readers tolerate: a problem of a text, an error among the warnings of a tree.

        Stored flows and inner flows are trees: a run that began with a slip must go on in the same way.
        """
        if self.tree is not None:
            self.problem(doc_path, problem)
        else:
            self.warnings.append(Diagnostic(2006, problem, json_path(doc_path)))

    def problem(self, doc_path: DocumentPath, problem: str, *, reason: str = "FLOW_INVALID") -> None:
        self.problems.append(self._error(doc_path, problem, reason))
        if len(self.problems) >= PROBLEMS_MAX:
            raise TooManyProblems

    def _error(self, doc_path: DocumentPath, problem: str, reason: str) -> FlowInvalid:
        line, column = self.tree.nearest(doc_path) if self.tree else (0, 0)
        field = json_path(doc_path) if doc_path else ""
        return FlowInvalid(reason, problem, source=self.source, line=line, column=column, field=field)

    def read_all(self, read: Callable[..., T], *arguments: Any) -> T:
        """Return what `read` returns. Raises: FlowInvalid, with all problems noted meanwhile."""
        found: T | None = None
        with contextlib.suppress(TooManyProblems):
            found = read(*arguments)
        if not self.problems:
            assert found is not None
            return found

        # A misspelt member often explains a missing one.
        unread = [self._error(doc_path, sentence, "FLOW_INVALID") for doc_path, sentence in self.notes.items]
        first, *others = sorted(self.problems + unread, key=lambda error: (error.line, error.column))
        raise FlowInvalid(
            first.reason,
            first.problem,
            source=self.source,
            line=first.line,
            column=first.column,
            field=first.field,
            others=others,
        )


def as_integer(value: Any) -> Any:
    """Return an integer for a float without a fraction, the form of integers in protobuf's JSON values."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
