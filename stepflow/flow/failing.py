"""Where in an expression an evaluation fails, for the text of the failure. Not on the path of a success.

The expression is evaluated part by part once more: the parts of an object or array in order, the chosen branch of
`$if`, the options of `$coalesce` up to the failing one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.errors import Failure
from stepflow.flow import syntax
from stepflow.flow.expr import compile_parsed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepflow.flow.expr import Expr
    from stepflow.flow.nodes import Env
    from stepflow.flow.source import DocumentPath
    from stepflow.flow.variables import VariableSpecs
    from stepflow.json_problems import Part


def failing_path(tree: Any, index_of: dict[str, int], variables: VariableSpecs, env: Env) -> DocumentPath:
    """Return the path of the innermost failing part of an expression whose evaluation fails."""
    expression = syntax.parse_expression(tree)
    path: list[Part] = []
    while True:
        step = _failing_part(expression, index_of, variables, env)
        if step is None:
            return tuple(path)
        parts, expression = step
        path += parts


def _failing_part(
    expression: syntax.Expression, index_of: dict[str, int], variables: VariableSpecs, env: Env
) -> tuple[tuple[Part, ...], syntax.Expression] | None:
    def compiled(part: syntax.Expression) -> Expr:
        return compile_parsed(part, index_of, variables)

    parts: Iterable[tuple[tuple[Part, ...], syntax.Expression]]
    match expression:
        case syntax.Object(members):
            parts = [((name,), member) for name, member in members]
        case syntax.Array(items):
            parts = [((at,), item) for at, item in enumerate(items)]
        case syntax.Coalesce(options):
            parts = [(("$coalesce", at), option) for at, option in enumerate(options)]
        case syntax.If():
            whole = compiled(syntax.If(expression.condition, syntax.Literal(True), syntax.Literal(False)))
            chosen = whole.to_json(env) == b"true"
            parts = [(("then",), expression.then)] if chosen else [(("else",), expression.otherwise)]
        case _:
            return None

    for at, part in parts:
        if isinstance(part, syntax.Literal):
            continue
        value = compiled(part).to_value(env)
        if isinstance(value, Failure):
            return at, part
        if isinstance(expression, syntax.Coalesce) and value != b"null":
            return None
    return None


__all__ = ["failing_path"]
