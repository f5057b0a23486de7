"""The types of a whole flow: its steps in order, its output, its input; and the findings.

The type of a step's output is declared under `schemas.properties.steps`, else its component tells it, together with the
default of `onError`. A declared type is not compared with the component's.

Findings: 2100 (a value does not fit), 2101 (a path does not exist), and, if strict, 1101 (unknown, so not checked).
Literal flows inside `map`, `iterate` and `eval` are analysed in the same way, with their places in the outer document.

Limits: inner flows inside each other up to `INNER_DEPTH_MAX`, and `INNER_FLOWS_MAX` of them; `FINDINGS_MAX`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from stepflow.flow import syntax
from stepflow.flow.diagnostics import Diagnostic
from stepflow.flow.types import components
from stepflow.flow.types.fits import Verdict, fits
from stepflow.flow.types.inputs import InputUses
from stepflow.flow.types.make import ANY, NULL, bounded, literal_type, union
from stepflow.flow.types.scope import PREFIX, WORK_PER_STEP, TypeScope
from stepflow.flow.types.synthesis import ExpressionTyper
from stepflow.flow.variables import VariableSpecs
from stepflow.json_problems import json_path, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.flow.model import Flow, Step
    from stepflow.flow.source import DocumentPath
    from stepflow.flow.types.components import ComponentSchema, InnerFlow
    from stepflow.json_problems import Part

INNER_DEPTH_MAX = 8
INNER_FLOWS_MAX = 200

FINDINGS_MAX = 200
"""Findings of one analysis."""


@dataclass(slots=True)
class FlowTypes:
    """The types of a flow, by step id in document order."""

    scope: TypeScope
    step_inputs: dict[str, Any] = field(default_factory=dict)
    """What the expressions of the steps give."""
    step_wanted: dict[str, Any] = field(default_factory=dict)
    """What the components take; *any* if unknown."""
    step_outputs: dict[str, Any] = field(default_factory=dict)
    output: Any = field(default_factory=dict)
    input: Any = field(default_factory=dict)
    """The declared type, else the type that follows from the uses."""
    findings: list[Diagnostic] = field(default_factory=list)


def analyse_flow(
    flow: Flow,
    lookup: Callable[[str], ComponentSchema | None],
    *,
    is_strict: bool = False,
    certain_only: bool = False,
) -> FlowTypes:
    """Return the types of a flow, and what does not fit.

    `lookup` returns the schemas of the component at a path of the flow, None if they are unknown. `certain_only`: find
    only what makes a step fail whenever it runs, and paths that may not exist. The declared output and the type of an
    undeclared input are then not compared.
    """
    return _Analysis(flow, lookup, TypeScope(), is_strict=is_strict, certain_only=certain_only).run()


class _Analysis:
    """One flow, or an inner flow whose inputs have the type `items`."""

    def __init__(
        self,
        flow: Flow,
        lookup: Callable[[str], ComponentSchema | None],
        scope: TypeScope,
        *,
        is_strict: bool,
        certain_only: bool,
        items: Any = None,
        depth: int = 0,
        budget: list[int] | None = None,
    ) -> None:
        self.flow = flow
        self.lookup = lookup
        self.scope = scope
        self.is_strict = is_strict
        self.certain_only = certain_only
        self.depth = depth
        self.budget = [INNER_FLOWS_MAX] if budget is None else budget
        self.stored: dict[str, InnerFlow] = {}

        definitions = flow.schema_definitions
        # First of all schemas, so that the names of the flow's own definitions stay.
        scope.adopt({"anyOf": [{"$ref": PREFIX + name} for name in definitions]}, definitions)
        declared = flow.schema("input")
        self.declared_input = None if declared is None else scope.adopt(declared, definitions)
        given = ANY if items is None else items
        self.types = FlowTypes(scope, input=given if self.declared_input is None else self.declared_input)
        variables = VariableSpecs.from_schema(flow.schema("variables"))
        self.typer = ExpressionTyper(scope, variables, definitions, self.types.input, is_strict=is_strict)
        self.uses = InputUses(scope)

    def run(self) -> FlowTypes:
        for index, step in enumerate(self.flow.steps):
            self.step(step, ("steps", index, "input"))

        at = ("output",)
        output = syntax.parse_expression(self.flow.output)
        wanted = self.declared("output")
        given = self.typer.exact(output, at)
        self.types.output = self.typer.widened(output)
        if wanted is not None and not self.certain_only:
            self.compare(output, given, wanted, at, "The output")
        self.uses.read(output, ANY if wanted is None else wanted, at)

        self.types.step_outputs = self.typer.steps
        self.types.findings = self.typer.findings
        if self.declared_input is None and self.depth == 0 and not self.certain_only:
            self.types.input = self.uses.type()
            self.types.findings += self.uses.conflicts
        del self.types.findings[FINDINGS_MAX:]
        return self.types

    def step(self, step: Step, at: DocumentPath) -> None:
        self.scope.allow(WORK_PER_STEP)
        expression = syntax.parse_expression(step.input)
        known = self.lookup(step.component) or components.ComponentSchema()
        given = self.typer.exact(expression, at)
        inner = components.inner_flow(known.builtin, expression, at, self.stored)
        stored = components.stored_flow(known.builtin, expression, at)
        if stored is not None:
            self.stored[step.id] = stored

        # 1. The input, against the component and the inner flow.
        wanted = ANY if known.input is None else self.scope.adopt(known.input)
        if inner is not None and isinstance(wanted, dict) and inner.flow.schema("input") is not None:
            declared = self.scope.adopt(inner.flow.schema("input"), inner.flow.schema_definitions)
            wanted = components.with_items(known.builtin, wanted, declared)
        self.types.step_inputs[step.id] = self.typer.widened(expression)
        self.types.step_wanted[step.id] = wanted
        self.uses.read(expression, wanted, at)
        if known.input is not None:
            self.compare(expression, given, wanted, at, f"The input of step '{shown(step.id)}'", step)
        elif self.is_strict:
            subject = f"The input of step '{shown(step.id)}' cannot be checked"
            text = f"{subject}: component '{shown(step.component)}' has no known input schema"
            self.report(Diagnostic(1101, text, json_path(at), {"step_id": step.id}))

        # 2. The inner flow, then the output.
        inner_output = None if inner is None else self.inner(known.builtin, inner, given)
        self.typer.steps[step.id] = self.output_of(step, known, inner_output)

    def output_of(self, step: Step, known: ComponentSchema, inner_output: Any) -> Any:
        """Return the type of a step's output: declared, else told by the component and `onError`."""
        declared = self.flow.schema("steps")
        members = declared.get("properties", {}) if isinstance(declared, dict) else {}
        if step.id in members:
            return self.scope.adopt(members[step.id], self.flow.schema_definitions)
        if known.output is None:
            return ANY

        made = self.scope.adopt(known.output)
        if known.builtin:
            given = self.types.step_inputs[step.id]
            made = components.output_type(known.builtin, self.scope, made, given, inner_output)
        if step.on_error.has_default:
            made = union([made, literal_type(step.on_error.default, exact=False)])
        return bounded(made)

    def inner(self, builtin: str, inner: InnerFlow, given: Any) -> Any:
        """Analyse an inner flow, and return the type of its output; None if it is not analysed."""
        if self.depth >= INNER_DEPTH_MAX or self.budget[0] <= 0:
            return None
        self.budget[0] -= 1

        types = _Analysis(
            inner.flow,
            self.lookup,
            self.scope,
            is_strict=self.is_strict,
            certain_only=self.certain_only,
            items=components.item_type(builtin, self.scope, given),
            depth=self.depth + 1,
            budget=self.budget,
        ).run()
        prefix = json_path(inner.doc_path)
        for found in types.findings:
            self.report(replace(found, path=prefix + (found.path or "$").removeprefix("$")))

        declared = inner.flow.schema("output")
        if declared is not None:
            return self.scope.adopt(declared, inner.flow.schema_definitions)
        return NULL if inner.flow.output is None else types.output

    def declared(self, part: str) -> Any:
        schema = self.flow.schema(part)  # type: ignore[arg-type]  # callers name a part
        return None if schema is None else self.scope.adopt(schema, self.flow.schema_definitions)

    def report(self, finding: Diagnostic) -> None:
        if len(self.typer.findings) < FINDINGS_MAX:
            self.typer.findings.append(finding)

    def compare(
        self,
        expression: syntax.Expression,
        given: Any,
        wanted: Any,
        at: DocumentPath,
        subject: str,
        step: Step | None = None,
    ) -> None:
        """Report where the type of an expression does not fit."""
        fit = fits(self.scope, given, wanted)
        # A component that refuses its input is replaced by the default of `onError`.
        has_default = step is not None and step.on_error.has_default
        for problem in fit.problems:
            is_certain = problem.verdict is Verdict.NO
            if self.certain_only and not is_certain:
                continue
            if self.certain_only and problem.is_open:
                is_certain = False
            doc_path, rest = _located(expression, at, problem.path)
            inside = f"`{json_path(rest)[1:].lstrip('.')}`: " if rest else ""
            text = f"{subject} {'does not fit' if is_certain else 'may not fit'}: {inside}{problem.text}"
            data = {"missing": problem.missing} if problem.missing else {}
            finding = Diagnostic(2100, text, json_path(doc_path), data)
            is_error = is_certain and not (self.certain_only and has_default)
            self.report(finding if is_error else replace(finding, severity="warning"))

        if fit.verdict is Verdict.UNKNOWN and self.is_strict:
            text = f"{subject} cannot be checked in full: a part has an unknown type"
            self.report(Diagnostic(1101, text, json_path(at)))


def _located(
    expression: syntax.Expression, at: DocumentPath, path: tuple[Part, ...]
) -> tuple[DocumentPath, tuple[Part, ...]]:
    """Follow a path of a value into its expression. Return the document path, and the rest beyond a reference."""
    while path:
        match expression:
            case syntax.Object(members) if path[0] in dict(members):
                expression = dict(members)[path[0]]
            case syntax.Array(items) if isinstance(path[0], int) and path[0] < len(items):
                expression = items[path[0]]
            case syntax.Literal(_, quoted):
                return (*at, *(("$literal",) if quoted else ()), *path), ()
            case _:
                return at, path
        at, path = (*at, path[0]), path[1:]
    return at, ()


def needed_definitions(scope: TypeScope, types: list[Any]) -> dict[str, Any]:
    """Return the definitions that these types refer to, those of the definitions included."""
    found: dict[str, Any] = {}
    todo: list[Any] = list(types)
    while todo:
        node = todo.pop()
        if isinstance(node, dict):
            reference = node.get("$ref")
            if isinstance(reference, str) and reference.startswith(PREFIX):
                name = reference.removeprefix(PREFIX)
                if name not in found and name in scope.definitions:
                    found[name] = scope.definitions[name]
                    todo.append(found[name])
            todo.extend(node.values())
        elif isinstance(node, list):
            todo.extend(node)
    return {name: found[name] for name in scope.definitions if name in found}
