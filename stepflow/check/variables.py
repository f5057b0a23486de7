"""Findings about the values of variables: missing ones, and values for variables that the flow does not have.

A use counts as certain if each successful run evaluates it: in the output, and in the inputs of steps that the output
needs, outside `$if`, the later options of `$coalesce`, and defaults. Conditions count for nothing: what fails in one
makes it false, so that it may ask whether a variable has a value.
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
    """Yield for each variable outside `valued` a use without default, a certain one if there is any."""
    certain = {place for place, _ in _certain_uses(flow, at)}
    uses: dict[str, DocumentPath] = {}
    for place, ref in _uses(flow, at):
        if not isinstance(ref, syntax.VariableRef) or not ref.path.parts or ref.default is not None:
            continue
        name = str(ref.path.parts[0])
        is_undeclared = specs.declared and name not in specs  # code 2005
        if name in valued or is_undeclared or specs.default(name) is not None:
            continue
        if name not in uses or (place in certain and uses[name] not in certain):
            uses[name] = place

    for name, place in uses.items():
        text = f"Variable '{shown(name)}' has no value, and its use no default"
        finding = Diagnostic(2904, text, json_path(place), {"variable": name})
        yield finding if place in certain else replace(finding, severity="warning")


def _unknown(flow: Flow, specs: VariableSpecs, given: Mapping[str, Any]) -> Iterator[Diagnostic]:
    read = (ref for expression, _ in _expressions(flow) for _, ref in syntax.references(expression, ()))
    used = {str(ref.path.parts[0]) for ref in read if isinstance(ref, syntax.VariableRef) and ref.path.parts}
    known = {*specs.specs, *used}
    unvalued = [name for name in known if name not in given][:NAMES_MAX]
    for name in [name for name in given if name not in known][:NAMES_MAX]:
        # A misspelt name leaves another variable without a value; any other one is only superfluous.
        near = syntax.closest(name, unvalued)
        hint = "" if near is None else f"; did you mean `{shown(near)}`?"
        text = f"Variable '{shown(name)}' is given, and the flow has none of that name{hint}"
        finding = Diagnostic(2905, text, None, {"variable": name})
        yield finding if near is not None else replace(finding, severity="warning")


def _expressions(flow: Flow, at: DocumentPath = ()) -> Iterator[tuple[syntax.Expression, DocumentPath]]:
    for index, step in enumerate(flow.steps):
        yield syntax.parse_expression(step.input), (*at, "steps", index, "input")
    yield syntax.parse_expression(flow.output), (*at, "output")


def _uses(flow: Flow, at: DocumentPath) -> Places:
    """Yield the references outside conditions: what fails in a condition makes it false."""
    for expression, place in _expressions(flow, at):
        yield from _evaluated(expression, place, certain=False)


def _certain_uses(flow: Flow, at: DocumentPath) -> Places:
    """Yield the references that each successful run evaluates."""
    needed: set[str] = set()
    *inputs, output = _expressions(flow, at)
    found = list(_evaluated(*output, certain=True))
    needed.update(ref.step for _, ref in found if isinstance(ref, syntax.StepRef))
    yield from found

    # Steps refer to earlier ones.
    for step, (expression, place) in zip(reversed(flow.steps), reversed(inputs), strict=True):
        if step.id in needed:
            found = list(_evaluated(expression, place, certain=True))
            needed.update(ref.step for _, ref in found if isinstance(ref, syntax.StepRef))
            yield from found


def _evaluated(expression: syntax.Expression, at: DocumentPath, *, certain: bool) -> Places:
    """Yield the references outside conditions; only those of each evaluation if `certain`."""
    match expression:
        case syntax.StepRef() | syntax.InputRef() | syntax.VariableRef():
            yield at, expression
            if isinstance(expression, syntax.VariableRef) and expression.default is not None and not certain:
                yield from _evaluated(expression.default, at, certain=False)
        case syntax.If(_, then, otherwise):
            if not certain:
                yield from _evaluated(then, (*at, "then"), certain=False)
                yield from _evaluated(otherwise, (*at, "else"), certain=False)
        case syntax.Coalesce(options):
            for index, option in enumerate(options[:1] if certain else options):
                yield from _evaluated(option, (*at, index), certain=certain)
        case syntax.Array(items):
            for index, item in enumerate(items):
                yield from _evaluated(item, (*at, index), certain=certain)
        case syntax.Object(members):
            for key, value in members:
                yield from _evaluated(value, (*at, key), certain=certain)
        case syntax.Literal():
            pass
        case _:
            assert_never(expression)
