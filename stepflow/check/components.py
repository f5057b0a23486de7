"""Findings about the components of a flow: whether they exist, and which members a builtin reads.

Literal inner flows of `map`, `iterate` and `eval` are checked like the outer flow, at any depth; their findings have
places in the outer document.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stepflow.check.variables import inner_variable_findings
from stepflow.flow import syntax
from stepflow.flow.diagnostics import Diagnostic
from stepflow.json_problems import json_path, shown

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from stepflow.check.catalogue import Catalogue, Found
    from stepflow.flow.model import Flow, Step
    from stepflow.flow.source import DocumentPath
    from stepflow.flow.types.components import InnerFlow
    from stepflow.routing.table import NoRoute

INNER_DEPTH_MAX = 64
"""Literal flows inside each other, as many as a run opens."""

INNER_FLOWS_MAX = 1_000

HINTS_MAX = 50
"""Searches for a similar name in one check: each takes up to a few ten milliseconds."""

NAMES_SEARCHED_MAX = 200
"""Above this number of members the search for a similar one is skipped."""

_WITH_INNER_FLOW = ("/map", "/iterate", "/eval", "/put_blob")
_PASSES_MEMBERS_ON = ("/openai",)
"""Builtins that give unknown members to a service."""

_NAMES_MAX = 10


class ComponentCheck:
    """The check of one flow, with the flows inside it."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.has_schemas = False
        """True if the schemas of a component are known: only then types can tell more."""
        self._hints_left = HINTS_MAX
        self._hints: dict[str, str] = {}
        """By component path."""
        self._flows_left = INNER_FLOWS_MAX

    def findings(self, flow: Flow, at: DocumentPath = (), depth: int = 0) -> Iterator[Diagnostic]:
        """Yield the findings about a flow in document order. `at`: the document path of an inner flow."""
        stored: dict[str, InnerFlow] = {}
        for index, step in enumerate(flow.steps):
            if not step.component.startswith("/"):
                continue  # code 2500

            expression = syntax.parse_expression(step.input)
            found = self.catalogue.find(step.component, step.input)
            path = (*at, "steps", index)
            yield from self._existence(step, found, path)

            one = found.component
            if one is None:
                continue
            self.has_schemas |= bool(one.input_schema) or bool(one.output_schema)
            input_path = (*path, "input")
            reads_all = found.is_builtin and one.component not in _PASSES_MEMBERS_ON
            yield from self._unknown_members(step, expression, one.input_schema, input_path, is_closed=reads_all)

            inner = None
            if found.is_builtin and one.component in _WITH_INNER_FLOW:
                inner = _inner_flow(one.component, step, expression, input_path, stored)
            if inner is not None and depth < INNER_DEPTH_MAX and self._flows_left > 0:
                self._flows_left -= 1
                yield from inner_variable_findings(inner.flow, step, inner.doc_path)
                yield from self.findings(inner.flow, inner.doc_path, depth + 1)

    def _existence(self, step: Step, found: Found, path: DocumentPath) -> Iterator[Diagnostic]:
        calls = f"Step '{shown(step.id)}' calls `{shown(step.component)}`"
        where = json_path((*path, "component"))
        data: dict[str, Any] = {"step_id": step.id, "component": step.component}

        if found.problem is not None:
            yield self._missing(step, found.problem, f"{calls}, ", where, data)
        elif found.unlisted:
            text = f"{calls}, which plugin `{shown(found.unlisted)}` does not list{self._hint(step.component)}"
            yield Diagnostic(2900, text, where, {**data, "plugin": found.unlisted}, severity="warning")
        elif found.unhosted:
            text = f"{calls}, and no live host offers plugin `{shown(found.unhosted)}`: the run waits for one"
            yield Diagnostic(1906, text, where, {**data, "plugin": found.unhosted})

    def _missing(self, step: Step, problem: NoRoute, calls: str, where: str, data: dict[str, Any]) -> Diagnostic:
        component = step.component
        head = "/" + component[1:].partition("/")[0]
        if problem.reason == "no_rule":
            hint = self._hint(component) or _listed("routes", sorted(self.catalogue.routes))
            text = f"{calls}and no route leads there{hint}"
            return Diagnostic(2901, text, where, data, severity=None if self.catalogue.has_all_routes else "warning")
        if problem.reason == "not_listed":
            hint = self._hint(component) or _listed("components of this route", self.catalogue.paths_of(head))
            return Diagnostic(2900, f"{calls}which does not exist{hint}", where, data)
        if problem.reason == "excluded":
            text = f"{calls}which `componentAllow` or `componentDeny` of its rules exclude"
            return Diagnostic(2902, text, where, data)
        return Diagnostic(2902, f"{calls}and its input meets the conditions of no rule for it", where, data)

    def _unknown_members(
        self, step: Step, expression: syntax.Expression, schema: Any, at: DocumentPath, *, is_closed: bool
    ) -> Iterator[Diagnostic]:
        """Yield the members of a written-out input that the component does not know.

        `is_closed`: the component reads no others. Else a member counts only if it resembles one that is not given. A
        member that refers to a step may be there for the order of the steps.
        """
        known = schema.get("properties") if isinstance(schema, dict) else None
        if not known or not isinstance(known, dict) or schema.get("additionalProperties") is False:
            return

        written = list(_members(expression, at))
        absent = known.keys() - {name for _, name, _ in written}
        for path, name, value in written:
            if name in known:
                continue
            meant = self._meant(name, absent)
            if meant is None and (not is_closed or _refers_to_step(value)):
                continue
            text = f"`{shown(step.component)}` of step '{shown(step.id)}' does not read `{shown(name)}`"
            text += _listed("it reads", list(known)) if meant is None else f"; did you mean `{shown(meant)}`?"
            data = {"step_id": step.id, "member": name, **({} if meant is None else {"meant": meant})}
            finding = Diagnostic(2903, text, json_path((*path, name)), data)
            yield finding if is_closed else replace(finding, severity="warning")

    def _meant(self, name: str, known: Collection[str]) -> str | None:
        if self._hints_left <= 0 or len(known) > NAMES_SEARCHED_MAX:
            return None
        self._hints_left -= 1
        return syntax.closest(name, known)

    def _hint(self, path: str) -> str:
        if path not in self._hints:
            if self._hints_left <= 0:
                return ""
            self._hints_left -= 1
            near = self.catalogue.similar(path)
            self._hints[path] = "" if near is None else f"; did you mean `{shown(near)}`?"
        return self._hints[path]


def _refers_to_step(expression: syntax.Expression) -> bool:
    return any(isinstance(ref, syntax.StepRef) for _, ref in syntax.references(expression, ()))


def _members(expression: syntax.Expression, at: DocumentPath) -> Iterator[tuple[DocumentPath, str, syntax.Expression]]:
    """Yield the members of the object that an expression gives, as far as it is written out."""
    match expression:
        case syntax.Object(members):
            yield from ((at, name, value) for name, value in members)
        case syntax.Literal(value, quoted) if isinstance(value, dict):
            yield from (((*at, "$literal") if quoted else at, name, syntax.NULL) for name in value)
        case syntax.If(_, then, otherwise):
            yield from _members(then, (*at, "then"))
            yield from _members(otherwise, (*at, "else"))
        case syntax.Coalesce(options):
            for index, option in enumerate(options):
                yield from _members(option, (*at, index))
        case _:
            pass


def _inner_flow(
    builtin: str, step: Step, expression: syntax.Expression, at: DocumentPath, stored: dict[str, InnerFlow]
) -> InnerFlow | None:
    """Return the literal flow that a step runs. `stored`: by step, the flows that `put_blob` steps store."""
    from stepflow.flow.types import components

    kept = components.stored_flow(builtin, expression, at)
    if kept is not None:
        stored[step.id] = kept
    return components.inner_flow(builtin, expression, at, stored)


def _listed(what: str, names: list[str]) -> str:
    if not names:
        return ""
    more = ", …" if len(names) > _NAMES_MAX else ""
    return f"; {what}: " + ", ".join(f"`{shown(name)}`" for name in names[:_NAMES_MAX]) + more
