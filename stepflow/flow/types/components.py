"""The schemas of components, and builtins whose output follows from their input.

- `noop` returns its input; `sleep` returns its `passthrough`.
- `map`, `iterate` and `eval` with a literal flow return what that flow returns. The flow of `eval` is the literal that
  a `put_blob` step stores.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from stepflow.flow import syntax
from stepflow.flow.model import Flow, FlowInvalid
from stepflow.flow.parse import flow_from_tree
from stepflow.flow.types.make import ANY, is_any, union

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.flow.source import DocumentPath
    from stepflow.flow.types.scope import TypeScope


@dataclass(frozen=True, slots=True)
class ComponentSchema:
    """The JSON Schemas of a component, None if unknown. `builtin` is its id (`/map`) if the mesh provides it."""

    input: Any = None
    output: Any = None
    builtin: str = ""


class InnerFlow(NamedTuple):
    """A literal flow in the input of a step, and its document path."""

    flow: Flow
    doc_path: DocumentPath


_FLOW_MEMBER = {"/map": "workflow", "/iterate": "flow"}
_ITEM_MEMBER = {"/map": "items", "/iterate": "initial_input", "/eval": "input"}


def inner_flow(
    builtin: str, expression: syntax.Expression, at: DocumentPath, stored: Mapping[str, InnerFlow]
) -> InnerFlow | None:
    """Return the literal flow that a step runs. `stored`: by step, the flows of the `put_blob` steps before."""
    members = _members(expression)
    if builtin == "/eval":
        match members.get("flow_id"):
            case syntax.StepRef(step, path) if path.parts == ("blob_id",):
                return stored.get(step)
        return None
    name = _FLOW_MEMBER.get(builtin)
    return None if name is None else _literal_flow(members.get(name), (*at, name))


def stored_flow(builtin: str, expression: syntax.Expression, at: DocumentPath) -> InnerFlow | None:
    """Return the literal flow that a `put_blob` step stores."""
    return _literal_flow(_members(expression).get("data"), (*at, "data")) if builtin == "/put_blob" else None


def item_type(builtin: str, scope: TypeScope, given: Any) -> Any:
    """Return the type of the inputs of the inner flow; `given` is the type of the step's input."""
    name = _ITEM_MEMBER.get(builtin)
    if name is None or builtin == "/iterate":
        return ANY  # the later inputs of an iteration come from the flow itself
    found = scope.project(given, (name,))
    if found.missing is not None:
        return ANY
    return scope.elements(found.type) if builtin == "/map" else found.type


def with_items(builtin: str, wanted: dict[str, Any], declared: Any) -> dict[str, Any]:
    """Return the input type of a component with the declared input of its inner flow in place."""
    name = _ITEM_MEMBER[builtin]
    member = {"type": "array", "items": declared} if builtin == "/map" else declared
    return {**wanted, "properties": {**wanted.get("properties", {}), name: member}}


def output_type(builtin: str, scope: TypeScope, output: Any, given: Any, inner: Any) -> Any:
    """Complete the output type of a builtin. `inner`: the type of its inner flow's output, None if unknown."""
    if builtin == "/noop":
        return given
    if builtin == "/sleep":
        found = scope.project(given, ("passthrough",))
        return output if found.missing is not None else _replaced(output, ("properties", "passthrough"), found.type)
    if inner is None or is_any(inner):
        return output
    if builtin == "/map":
        return _replaced(output, ("properties", "results", "items", "properties", "result"), inner)
    if builtin == "/eval":
        return _replaced(output, ("properties", "result", "properties", "result"), inner)
    if builtin == "/iterate":
        # Without any iteration, and after the last one allowed, the result is the pending input.
        ends = [scope.project(inner, ("result",)), scope.project(inner, ("next",))]
        ends.append(scope.project(given, ("initial_input",)))
        known = [end.type for end in ends if end.missing is None]
        return _replaced(output, ("properties", "result"), union(known)) if known else output
    return output


def _replaced(type_: Any, keys: tuple[str, ...], value: Any) -> Any:
    """Return a copy of a type with another type at these keys; unchanged if it has no such place."""
    if not keys:
        return value
    if not isinstance(type_, dict) or keys[0] not in type_:
        return type_
    return {**type_, keys[0]: _replaced(type_[keys[0]], keys[1:], value)}


def _members(expression: syntax.Expression) -> dict[str, syntax.Expression]:
    return dict(expression.members) if isinstance(expression, syntax.Object) else {}


def _literal_flow(expression: syntax.Expression | None, at: DocumentPath) -> InnerFlow | None:
    is_quoted = isinstance(expression, syntax.Literal) and expression.quoted
    tree = None if expression is None else _constant(expression)
    if not isinstance(tree, dict):
        return None
    try:
        flow = flow_from_tree(tree)
    except FlowInvalid:
        return None  # other checks report it
    return InnerFlow(flow, (*at, "$literal") if is_quoted else at)


def _constant(expression: syntax.Expression) -> Any:
    """Return the value of an expression of literals, lists and objects; None for any other."""
    match expression:
        case syntax.Literal(value):
            return value
        case syntax.Array(items):
            values = [_constant(item) for item in items]
            is_known = all(value is not None or item == syntax.NULL for value, item in zip(values, items, strict=True))
            return values if is_known else None
        case syntax.Object(members):
            tree = {key: _constant(value) for key, value in members}
            is_known = all(tree[key] is not None or value == syntax.NULL for key, value in members)
            return tree if is_known else None
        case _:
            return None
