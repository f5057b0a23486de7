"""Static checks of a parsed flow.

Checks run in a fixed order: structure (ids, name, description), references step by step and then of the output,
components, reachability, embedded flows, slips. References must point backwards, so a flow without fatal diagnostics
has no cycles. A flow with fatal diagnostics is neither stored nor run; errors and warnings are advice to its author.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, assert_never

from stepflow.errors import Invalid
from stepflow.flow import syntax
from stepflow.flow.diagnostics import Diagnostic, Diagnostics
from stepflow.flow.model import Flow, FlowInvalid, Step
from stepflow.flow.parse import flow_from_tree
from stepflow.flow.schema import InputValidator
from stepflow.flow.silence import silence_of
from stepflow.flow.slips import inner_flow_member, slip_hints, unquoted_inner_flow
from stepflow.flow.variables import VariableSpecs
from stepflow.json_problems import json_path

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from stepflow.flow.source import DocumentPath

_OF_STORED_FLOWS = frozenset((1001, 1002))
"""Findings about what listings show, which an inner flow never reaches."""

WARNINGS_MAX = 1_000
BLOCKING_MAX = 100
"""Fatal diagnostics and errors together; the search for a similar name takes milliseconds for each."""

_SIMILAR_NAMES_MAX = 200
_SIMILAR_CHARS_MAX = 8_000
"""Above this number of names, or of characters in them, the search for a similar one is skipped."""

_OUTPUT_NAME = "workflow_output"
"""Name of the output in diagnostics; a step may have the same id."""


def validate_flow(flow: Flow) -> Diagnostics:
    """Check a flow. The warnings of parsing (`flow.warnings`) are not repeated."""
    return Diagnostics(tuple(bounded(silence_of(flow).without_silenced(_Checker(flow).run()))))


def bounded(findings: Iterator[Diagnostic]) -> Iterator[Diagnostic]:
    """Stop at `BLOCKING_MAX` blocking findings, and drop warnings beyond `WARNINGS_MAX`."""
    blocking = warnings = 0
    for item in findings:
        if item.level == "warning":
            warnings += 1
            if warnings <= WARNINGS_MAX:
                yield item
            continue

        yield item
        blocking += 1
        if blocking == BLOCKING_MAX:
            return


def validate_config(plugins: Iterable[str], routes: Mapping[str, Sequence[str]]) -> Diagnostics:
    """Check the routes of a configuration against its plugins. `routes`: by prefix, the plugin of each rule."""
    return Diagnostics(tuple(_config_findings(tuple(plugins), routes)))


def _config_findings(plugins: tuple[str, ...], routes: Mapping[str, Sequence[str]]) -> Iterator[Diagnostic]:
    if not plugins:
        yield Diagnostic(1200, "No plugins are configured, so no component can run", "$.plugins")
    if not routes:
        yield Diagnostic(1201, "No routes are configured, so no component can be reached", "$.routes")

    used = {plugin for rules in routes.values() for plugin in rules}
    for plugin in plugins:
        if plugin not in used:
            yield Diagnostic(
                1202,
                f"Plugin '{plugin}' is not used by any route",
                json_path(("plugins", plugin)),
                {"plugin": plugin},
            )

    for prefix, rules in routes.items():
        for index, plugin in enumerate(rules):
            if plugin not in plugins:
                yield Diagnostic(
                    2200,
                    f"Route '{prefix}' names plugin '{plugin}', which is not configured" + _similar(plugin, plugins),
                    json_path(("routes", prefix, index, "plugin")),
                    {"route_path": prefix, "rule_index": index, "plugin": plugin},
                )


@dataclass(slots=True)
class _Checker:
    flow: Flow
    variables: VariableSpecs = field(init=False)
    inputs: list[syntax.Expression] = field(init=False)
    output: syntax.Expression = field(init=False)
    uses: dict[str, list[str]] = field(init=False)

    def __post_init__(self) -> None:
        self.variables = VariableSpecs.from_schema(self.flow.schema("variables"))
        self.inputs = [syntax.parse_expression(step.input) for step in self.flow.steps]
        self.output = syntax.parse_expression(self.flow.output)
        self.uses = {step.id: list(_steps_used(self.inputs[i])) for i, step in enumerate(self.flow.steps)}

    def run(self) -> Iterator[Diagnostic]:
        yield from self.structure()
        yield from self.references()
        yield from self.components()
        yield from self.reachability()
        yield from self.embedded_flows()
        yield from slip_hints(self.flow)

    def structure(self) -> Iterator[Diagnostic]:
        first: dict[str, int] = {}
        for index, step in enumerate(self.flow.steps):
            path = f"$.steps[{index}].id"
            if not step.id.strip():
                yield Diagnostic(3001, f"Step {index} has an empty id", path, {"step_index": index})
            elif step.id in first:
                text = f"Step id '{step.id}' is already that of step {first[step.id]}"
                yield Diagnostic(3000, text, path, {"step_id": step.id})
            first.setdefault(step.id, index)

        if not (self.flow.name or "").strip():
            yield Diagnostic(1001, "The flow has no name", "$.name")
        if self.flow.description is None:
            yield Diagnostic(1002, "The flow has no description", "$.description")

        try:
            InputValidator.for_input(self.flow)
        except Invalid as error:
            # Only a warning: a run may skip the validation of its input.
            yield Diagnostic(1903, f"No input can be validated: {error.message}", "$.schemas.properties.input")

    def references(self) -> Iterator[Diagnostic]:
        earlier: set[str] = set()
        for index, step in enumerate(self.flow.steps):
            for doc_path, ref in syntax.references(self.inputs[index], ("steps", index, "input")):
                yield from self.reference(ref, doc_path, step, earlier)
            earlier.add(step.id)

        for doc_path, ref in syntax.references(self.output, ("output",)):
            yield from self.reference(ref, doc_path, None, earlier)

    def reference(
        self,
        ref: syntax.StepRef | syntax.InputRef | syntax.VariableRef,
        doc_path: DocumentPath,
        step: Step | None,
        earlier: set[str],
    ) -> Iterator[Diagnostic]:
        path = json_path(doc_path)
        match ref:
            case syntax.StepRef(target):
                problems = list(self.step_reference(target, path, step, earlier))
                yield from problems
                if ref.path.parts and not problems:
                    yield _unvalidated(path, f"path {ref.path} of step '{target}'", step_id=target, path=ref.path.text)
            case syntax.InputRef(where):
                if where.parts and self.flow.schema("input") is None:
                    yield _unvalidated(path, f"path {where} of the input", path=where.text)
            case syntax.VariableRef():
                yield from self.variable_reference(ref, path)
            case _:
                assert_never(ref)

    def step_reference(self, target: str, path: str, step: Step | None, earlier: set[str]) -> Iterator[Diagnostic]:
        if target in earlier and (step is None or target != step.id):
            return
        if step and target == step.id:
            yield Diagnostic(3002, f"Step '{target}' refers to itself", path, {"step_id": target})
            return

        inner = unquoted_inner_flow(step) if step else None
        source = step.id if step else _OUTPUT_NAME
        known = tuple(one.id for one in self.flow.steps)
        if target in known:
            problem = f"step '{target}', which comes later{self.cycle(target, source)}; steps refer to earlier ones"
        elif inner is not None and target in inner.step_ids:
            problem = f"step '{target}' of its inner flow; write `{inner.member}: {{ $literal: … }}`"
        else:
            problem = f"step '{target}', which does not exist{_similar(target, known)}"

        subject = f"Step '{source}'" if step else "The output"
        data = {"from_step": source, "referenced_step": target}
        yield Diagnostic(3003, f"{subject} refers to {problem}", path, data)

    def cycle(self, target: str, source: str) -> str:
        """Return a clause for the message if the forward reference `source` → `target` is part of a cycle."""
        seen, todo = {target}, [target]
        while todo:
            for used in self.uses.get(todo.pop(), ()):
                if used == source:
                    return f" and needs '{source}' itself (a cycle)"
                if used not in seen:
                    seen.add(used)
                    todo.append(used)
        return ""

    def variable_reference(self, ref: syntax.VariableRef, path: str) -> Iterator[Diagnostic]:
        if not ref.path.parts:
            return  # evaluation reports the empty path; there is no diagnostic code for it
        name = str(ref.path.parts[0])
        data = {"variable": name}

        if not self.variables.declared:
            yield Diagnostic(1004, f"Variable '{name}' is used, but the flow declares none", "$.variables", data)
            return

        if name not in self.variables:
            hint = _similar(name, tuple(self.variables.specs))
            if ref.default is not None:
                yield Diagnostic(2004, f"Variable '{name}' is not declared; its default is used{hint}", path, data)
            else:
                yield Diagnostic(2005, f"Variable '{name}' is not declared and has no default{hint}", path, data)
            return

        if len(ref.path.parts) > 1:
            yield _unvalidated(path, f"path {ref.path} of variable '{name}'", variable=name, path=ref.path.text)

    def components(self) -> Iterator[Diagnostic]:
        for index, step in enumerate(self.flow.steps):
            if not step.component.startswith("/"):
                hint = f"; did you mean '/{step.component}'?" if step.component.strip() else ""
                yield Diagnostic(
                    2500,
                    f"Component '{step.component}' of step '{step.id}' does not begin with '/'{hint}",
                    f"$.steps[{index}].component",
                    {"step_id": step.id, "component": step.component},
                )

    def reachability(self) -> Iterator[Diagnostic]:
        used: set[str] = set()
        for expression in (*self.inputs, self.output):
            used.update(_plain_references(expression))
        for index, step in enumerate(self.flow.steps):
            if step.id not in used:
                text = f"Step '{step.id}' is not reachable from the output"
                yield Diagnostic(1000, text, f"$.steps[{index}]", {"step_id": step.id})

    def embedded_flows(self) -> Iterator[Diagnostic]:
        for index, step in enumerate(self.flow.steps):
            member = inner_flow_member(step)
            if member is not None and isinstance(self.inputs[index], syntax.Object) and member in step.input:
                yield from self.embedded_flow(index, step, member)

    def embedded_flow(self, index: int, step: Step, member: str) -> Iterator[Diagnostic]:
        found = _literal_of(step.input.get(member))
        if found is None:
            return

        tree, below = found
        path = json_path(("steps", index, "input", member, *below))
        data = {"step_id": step.id}
        try:
            embedded = flow_from_tree(tree, source="the embedded flow")
        except FlowInvalid as error:
            for one in (error, *error.others):
                at = path + one.field.removeprefix("$")
                yield Diagnostic(2003, f"The literal is not a flow: {one.problem}", at, data)
            return

        is_stored = member == "data"
        for item in (*embedded.warnings, *validate_flow(embedded)):
            below_path = None if item.path is None else path + item.path.removeprefix("$")
            if is_stored:
                yield Diagnostic(item.code, item.formatted, below_path, item.data)
            elif item.level == "fatal":
                # Only an error: flows that run an inner flow for no item, or not at all, have been stored so far.
                yield Diagnostic(2003, f"The inner flow cannot run: {item.formatted}", below_path, data)
            elif item.code not in _OF_STORED_FLOWS:
                yield Diagnostic(item.code, item.formatted, below_path, item.data)


def _similar(name: str, known: tuple[str, ...]) -> str:
    are_few = len(known) <= _SIMILAR_NAMES_MAX and sum(map(len, known)) <= _SIMILAR_CHARS_MAX
    return syntax.suggestion(name, known) if are_few else ""


def _unvalidated(at: str, what: str, **data: Any) -> Diagnostic:
    return Diagnostic(1003, f"Nothing checks before the run that {what} exists", at, data)


def _literal_of(tree: Any) -> tuple[Any, DocumentPath] | None:
    """Return the value of a constant expression and the path to the value; None for other expressions."""
    expression = syntax.parse_expression(tree)
    if isinstance(expression, syntax.Literal):
        return expression.value, ("$literal",) if expression.quoted else ()
    return None


def _steps_used(expression: syntax.Expression) -> Iterator[str]:
    return (ref.step for _, ref in syntax.references(expression, ()) if isinstance(ref, syntax.StepRef))


def _plain_references(expression: syntax.Expression) -> Iterator[str]:
    """Yield the references that count for reachability: all except in the default of a variable."""
    match expression:
        case syntax.StepRef(step):
            yield step
        case syntax.If(condition, then, otherwise):
            for part in (condition, then, otherwise):
                yield from _plain_references(part)
        case syntax.Coalesce(items) | syntax.Array(items):
            for item in items:
                yield from _plain_references(item)
        case syntax.Object(members):
            for _, value in members:
                yield from _plain_references(value)
        case syntax.Literal() | syntax.InputRef() | syntax.VariableRef():
            pass
        case _:
            assert_never(expression)
