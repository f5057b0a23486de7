"""Findings about the values of variables: missing ones, and values for variables that the flow does not have.

A use counts as certain if each successful run evaluates it: in the output, and in the inputs of steps that the output
needs, outside the branches of `$if`, the later options of `$coalesce`, and defaults.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, assert_never

from stepflow.flow import syntax
from stepflow.flow.diagnostics import Diagnostic
from stepflow.flow.variables import VariableSpecs
from stepflow.json_problems import json_path, shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from stepflow.flow.model import Flow, Step
    from stepflow.flow.source import DocumentPath

    Reference = syntax.StepRef | syntax.InputRef | syntax.VariableRef
    Places = Iterator[tuple[DocumentPath, Reference]]

NAMES_MAX = 50
"""Unknown names of values that are reported, and variables that each is compared with."""

_DECLARED_AT = ("schemas", "properties", "variables", "properties")


def variable_findings(flow: Flow, given: Mapping[str, Any]) -> Iterator[Diagnostic]:
    """Yield the findings about the values given for a run."""
    specs = VariableSpecs.from_schema(flow.schema("variables"))
    missing = [spec.name for spec in specs if spec.required and spec.default is None and spec.name not in given]
    for name in missing:
        text = f"Variable '{shown(name)}' is required, and has no value; give it one, or declare a default"
        yield Diagnostic(2904, text, json_path((*_DECLARED_AT, name)), {"variable": name})

    yield from _uses_without_value(flow, specs, {*given, *missing})
    yield from _unknown(flow, specs, given)


def inner_variable_findings(flow: Flow, step: Step, at: DocumentPath) -> Iterator[Diagnostic]:
    """Yield the uses of variables in the inner flow of a step: inner flows are given no values."""
    specs = VariableSpecs.from_schema(flow.schema("variables"))
    for finding in _uses_without_value(flow, specs, set(), at):
        name = finding.data["variable"]
        text = f"The inner flow of step '{shown(step.id)}' gets no variables: pass '{shown(name)}' in its input"
        yield replace(finding, code=2906, formatted=text)


def _uses_without_value(
    flow: Flow, specs: VariableSpecs, valued: set[str], at: DocumentPath = ()
) -> Iterator[Diagnostic]:
    """Yield the uses of variables outside `valued` that have no default."""
    certain = {place for place, _ in _certain_uses(flow, at)}
    told: set[str] = set()
    for place, ref in _uses(flow, at):
        if not isinstance(ref, syntax.VariableRef) or not ref.path.parts or ref.default is not None:
            continue
        name = str(ref.path.parts[0])
        is_undeclared = specs.declared and name not in specs  # code 2005
        if name in valued or is_undeclared or specs.default(name) is not None or name in told:
            continue
        told.add(name)
        text = f"Variable '{shown(name)}' has no value, and its use no default"
        finding = Diagnostic(2904, text, json_path(place), {"variable": name})
        yield finding if place in certain else replace(finding, severity="warning")


def _unknown(flow: Flow, specs: VariableSpecs, given: Mapping[str, Any]) -> Iterator[Diagnostic]:
    used = {str(ref.path.parts[0]) for _, ref in _uses(flow) if isinstance(ref, syntax.VariableRef) and ref.path.parts}
    known = {*specs.specs, *used}
    unvalued = [name for name in known if name not in given][:NAMES_MAX]
    for name in [name for name in given if name not in known][:NAMES_MAX]:
        # A misspelt name leaves another variable without a value; any other one is only superfluous.
        near = syntax.closest(name, unvalued)
        hint = "" if near is None else f"; did you mean `{shown(near)}`?"
        text = f"Variable '{shown(name)}' is given, and the flow has none of that name{hint}"
        finding = Diagnostic(2905, text, None, {"variable": name})
        yield finding if near is not None else replace(finding, severity="warning")


def _uses(flow: Flow, at: DocumentPath = ()) -> Places:
    for index, step in enumerate(flow.steps):
        yield from syntax.references(syntax.parse_expression(step.input), (*at, "steps", index, "input"))
    yield from syntax.references(syntax.parse_expression(flow.output), (*at, "output"))


def _certain_uses(flow: Flow, at: DocumentPath) -> Places:
    """Yield the references that each successful run evaluates."""
    needed = {step.id for step in flow.steps if step.must_execute}
    found = list(_certain(syntax.parse_expression(flow.output), (*at, "output")))
    needed.update(ref.step for _, ref in found if isinstance(ref, syntax.StepRef))
    yield from found

    # Steps refer to earlier ones.
    for index in reversed(range(len(flow.steps))):
        step = flow.steps[index]
        if step.id in needed:
            found = list(_certain(syntax.parse_expression(step.input), (*at, "steps", index, "input")))
            needed.update(ref.step for _, ref in found if isinstance(ref, syntax.StepRef))
            yield from found


def _certain(expression: syntax.Expression, at: DocumentPath) -> Places:
    match expression:
        case syntax.StepRef() | syntax.InputRef() | syntax.VariableRef():
            yield at, expression
        case syntax.If(condition):
            yield from _certain(condition, (*at, "condition"))
        case syntax.Coalesce(options):
            if options:
                yield from _certain(options[0], (*at, 0))
        case syntax.Array(items):
            for index, item in enumerate(items):
                yield from _certain(item, (*at, index))
        case syntax.Object(members):
            for key, value in members:
                yield from _certain(value, (*at, key))
        case syntax.Literal():
            pass
        case _:
            assert_never(expression)
