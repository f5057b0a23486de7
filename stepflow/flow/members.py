"""Typed members of mappings, and notes on unread members.

`MemberReader` knows the source of a document, so that every error has a document path and, for a text, a location.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.errors import Invalid
from stepflow.flow.diagnostics import Diagnostic
from stepflow.flow.duration import parse_duration_ms
from stepflow.flow.model import FlowInvalid
from stepflow.flow.source import describe
from stepflow.flow.syntax import NOTES_MAX, Notes, suggestion
from stepflow.json_problems import json_path, shown

if TYPE_CHECKING:
    from stepflow.flow.document import Tree
    from stepflow.flow.source import DocumentPath

RETRIES_MAX = 2**32 - 1


class MemberReader:
    """Methods take a mapping, the key of a member, and the document path of the mapping."""

    def __init__(self, source: str, tree: Tree | None) -> None:
        self.source = source
        self.tree = tree
        self.warnings: list[Diagnostic] = []
        self.notes = Notes()

    def text(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> str | None:
        value = tree.get(key)
        if value is not None and not isinstance(value, str):
            raise self.invalid((*doc_path, key), f"must be text, not {describe(value)}; put it in quotes")
        return value

    def required_text(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> str:
        value = self.text(tree, key, doc_path)
        if value is None:
            near = [name for name in tree if suggestion(name, (key,))]
            raise self.invalid((*doc_path, key), "is required" + (f"; did you mean it by `{near[0]}`?" if near else ""))
        return value

    def listing(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> list[Any]:
        value = tree.get(key)
        if value is None:
            return []
        if not isinstance(value, list):
            raise self.invalid((*doc_path, key), f"must be a list, not {describe(value)}")
        return value

    def mapping(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> dict[str, Any]:
        value = tree.get(key)
        if value is None:
            return {}
        if not isinstance(value, dict):
            raise self.invalid((*doc_path, key), f"must be a mapping, not {describe(value)}")
        return value

    def boolean(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> bool:
        value = tree.get(key)
        if value is None:
            return False
        if not isinstance(value, bool):
            raise self.invalid((*doc_path, key), f"must be true or false, not {describe(value)}")
        return value

    def count(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> int | None:
        value = as_integer(tree.get(key))
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= RETRIES_MAX:
            raise self.invalid((*doc_path, key), f"must be a whole number from 0 to {RETRIES_MAX:,}")
        return value

    def duration(self, tree: dict[str, Any], key: str, doc_path: DocumentPath) -> int | None:
        if tree.get(key) is None:
            return None
        try:
            return parse_duration_ms(tree[key])
        except Invalid as error:
            raise self.invalid((*doc_path, key), error.message, reason=error.reason) from None

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
                raise self.invalid((*doc_path, key), problem)

    def invalid(self, doc_path: DocumentPath, problem: str, *, reason: str = "FLOW_INVALID") -> FlowInvalid:
        line, column = self.tree.nearest(doc_path) if self.tree else (0, 0)
        field = json_path(doc_path) if doc_path else ""
        return FlowInvalid(reason, problem, source=self.source, line=line, column=column, field=field)


def as_integer(value: Any) -> Any:
    """Return an integer for a float without a fraction, the form of integers in protobuf's JSON values."""
    return int(value) if isinstance(value, float) and value.is_integer() else value
