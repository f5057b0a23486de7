"""Hints about expressions that are well-formed and probably not what their author means.

- A text with `{{ name }}` or `${name}`, where the name is known in the flow: nothing replaces it.
- An inner flow of `map`, `iterate` or `eval` without `$literal`: its references are resolved in the outer flow.

Hints are warnings, never errors, and a flow that means what it says has a way to say so: `$literal` ends both.
A text is not remarked on if its step also passes a member of that name: then the component replaces the name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, NamedTuple

from stepflow.flow import syntax
from stepflow.flow.diagnostics import Diagnostic
from stepflow.json_problems import json_path, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepflow.flow.model import Flow, Step
    from stepflow.flow.source import DocumentPath

INNER_FLOW_MEMBERS = {
    "/builtin/map": "workflow",
    "/builtin/iterate": "flow",
    "/map": "workflow",
    "/iterate": "flow",
}
"""The member that holds the inner flow, by component."""

_PUT_BLOB = ("/builtin/put_blob", "/put_blob")

_TEMPLATES = re.compile(r"\{\{\s*([\w$][\w.$\[\]-]*)\s*\}\}|\$\{\s*([\w$][\w.$\[\]-]*)\s*\}")
_GROUPS = {"steps": "step", "inputs": "input", "input": "input", "variables": "variable", "vars": "variable"}
_LISTED = re.compile(r"\[")


def slip_hints(flow: Flow) -> Iterator[Diagnostic]:
    """Yield the hints about a flow, in document order."""
    names = _Names(flow)
    for index, step in enumerate(flow.steps):
        doc_path: DocumentPath = ("steps", index, "input")
        inner = unquoted_inner_flow(step)
        member = None if inner is None else inner.member
        if inner is not None and inner.is_misread:
            text = (
                f"The inner flow of step '{step.id}' is not under `$literal`, so its references are resolved in the "
                f"outer flow; write `{inner.member}: {{ $literal: … }}`"
            )
            yield Diagnostic(1905, text, json_path((*doc_path, inner.member)), {"step_id": step.id})

        given = set(_member_names(step.input))
        for at, text in _texts(step.input, doc_path):
            if at[: len(doc_path) + 1] != (*doc_path, member):
                yield from names.hints(text, at, given)

    for at, text in _texts(flow.output, ("output",)):
        yield from names.hints(text, at, set())


def inner_flow_member(step: Step) -> str | None:
    """Return the member of a step's input that holds a flow, or None."""
    if step.component in _PUT_BLOB:
        kind = step.input.get("blob_type") if isinstance(step.input, dict) else None
        return "data" if kind in ("flow", {"$literal": "flow"}) else None
    return INNER_FLOW_MEMBERS.get(step.component)


class UnquotedFlow(NamedTuple):
    """An inner flow without `$literal`."""

    member: str
    step_ids: frozenset[str]
    is_misread: bool
    """True if it has references, and none to its own steps: those are no hint but a fatal finding."""


def unquoted_inner_flow(step: Step) -> UnquotedFlow | None:
    """Return the inner flow of a step if it is written without `$literal`, else None."""
    member = inner_flow_member(step)
    tree = step.input.get(member) if isinstance(step.input, dict) and member else None
    if member is None or not isinstance(tree, dict) or "$literal" in tree or not isinstance(tree.get("steps"), list):
        return None

    ids = frozenset(one["id"] for one in tree["steps"] if isinstance(one, dict) and isinstance(one.get("id"), str))
    refs = [ref for _, ref in syntax.references(syntax.parse_expression(tree), ())]
    own = any(isinstance(ref, syntax.StepRef) and ref.step in ids for ref in refs)
    return UnquotedFlow(member, ids, bool(refs) and not own)


class _Names:
    """The names that expressions of a flow may refer to."""

    def __init__(self, flow: Flow) -> None:
        self._steps = {step.id for step in flow.steps}
        self._inputs = _declared(flow.schema("input"))
        self._variables = _declared(flow.schema("variables"))
        used = [syntax.parse_expression(step.input) for step in flow.steps] + [syntax.parse_expression(flow.output)]
        for expression in used:
            for _, ref in syntax.references(expression, ()):
                if isinstance(ref, syntax.InputRef) and ref.path.parts:
                    self._inputs.add(str(ref.path.parts[0]))

    def hints(self, text: str, doc_path: DocumentPath, given: set[str]) -> Iterator[Diagnostic]:
        """Yield a hint about the first name in `text` that is known here and not one of `given`."""
        for found in _TEMPLATES.finditer(text):
            written = found[1] or found[2]
            meant = self._reference(written)
            if meant is not None and _first(written) not in given:
                sentence = (
                    f"`{shown(found[0])}` is plain text, nothing replaces it; write `{shown(meant)}` as the "
                    "whole value, or `$literal` around the text if the component replaces it"
                )
                yield Diagnostic(1904, sentence, json_path(doc_path), {"text": shown(found[0])})
                return

    def _reference(self, written: str) -> str | None:
        first, _, rest = _LISTED.sub(".[", written).removeprefix("$.").removeprefix("$").partition(".")
        if first in self._steps:
            return _reference("step", first, rest.removeprefix("output.").removeprefix("outputs."))
        if first in self._inputs:
            return _reference("input", first, rest)
        if first in self._variables:
            return _reference("variable", first, rest)

        kind = _GROUPS.get(first)
        name, _, below = rest.partition(".")
        known = {"step": self._steps, "input": self._inputs, "variable": self._variables}
        if kind is None or name not in known[kind]:
            return None
        return _reference(kind, name, below.removeprefix("output.").removeprefix("outputs."))


def _reference(kind: str, name: str, rest: str) -> str:
    path = rest.replace(".[", "[")
    if kind == "step":
        path = "" if path in ("output", "outputs", "result") else path
        return f"{{ $step: {name}, path: {path} }}" if path else f"{{ $step: {name} }}"
    joined = name + (path if path.startswith("[") else f".{path}" if path else "")
    return f"{{ ${kind}: {joined} }}"


def _first(written: str) -> str:
    return written.removeprefix("$.").partition(".")[0].partition("[")[0]


def _declared(schema: Any) -> set[str]:
    properties = schema.get("properties") if isinstance(schema, dict) else None
    return set(properties) if isinstance(properties, dict) else set()


def _texts(tree: Any, doc_path: DocumentPath) -> Iterator[tuple[DocumentPath, str]]:
    """Yield the texts of an expression that no form interprets, with their document paths."""
    if isinstance(tree, str):
        if "{" in tree:
            yield doc_path, tree
    elif isinstance(tree, list):
        for index, item in enumerate(tree):
            yield from _texts(item, (*doc_path, index))
    elif isinstance(tree, dict):
        form = next((key for key in syntax.FORMS if key in tree), None)
        if form in ("$literal", "$step", "$input"):
            return
        for key, value in tree.items():
            if key != "$variable":
                yield from _texts(value, (*doc_path, key))


def _member_names(tree: Any) -> Iterator[str]:
    """Yield the names of all members of an expression, at any depth."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            yield key
            yield from _member_names(value)
    elif isinstance(tree, list):
        for item in tree:
            yield from _member_names(item)
