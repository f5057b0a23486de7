"""Compiled expressions: the steps to complete before an evaluation, and the entry to the evaluation.

An expression is compiled once per flow into a tree of small nodes (`nodes.py`), which evaluate themselves; constant
parts are encoded then. The rules are §2 and §6 of the flow language.

Limits: no validation (`validate.py`), and no knowledge of runs: `stepflow.run.values` evaluates the inputs of steps,
`stepflow.run.advance` the outputs of flows.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, assert_never

from stepflow.codec import decode, encode
from stepflow.errors import Code, Failure
from stepflow.flow import syntax
from stepflow.flow.nodes import CoalesceValue, Composite, Constant, Fail, IfValue
from stepflow.flow.references import InputValue, StepPart, StepValue, VariableValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stepflow.flow.nodes import Env, Inside, Node, Outcome
    from stepflow.flow.paths import Path
    from stepflow.flow.values import Value
    from stepflow.flow.variables import VariableSpecs


class Expr:
    """A compiled expression.

    `refs`: every step that some evaluation may read, once each. `lazy`: values decide how many an evaluation reads.
    `reads_input`: some evaluation may read the input. `inside`: the paths into results that some evaluation may follow.
    """

    __slots__ = ("_node", "inside", "lazy", "reads_input", "refs", "to_json", "to_value")

    def __init__(self, node: Node) -> None:
        self._node = node
        self.refs: tuple[int, ...] = node.refs
        self.lazy: bool = node.lazy
        self.reads_input: bool = node.reads_input
        self.inside: Inside = node.inside
        self.to_value: Callable[[Env], Value | Failure] = node.value
        """Evaluates without a copy of large sources; of the stored ones only those looked into must be loaded."""
        self.to_json: Callable[[Env], Outcome] = node.json
        """Evaluates to compact JSON or a failure. Bound to the outermost node, which saves a call on the hot path."""

    @property
    def constant(self) -> bytes | None:
        """The value as compact JSON if constant, else None."""
        return self._node.raw if isinstance(self._node, Constant) else None

    def needed(self, env: Env) -> list[int]:
        """Return the steps to complete before the evaluation can continue; empty if ready to finish.

        For a lazy expression, call again after the steps are complete: there may be more. Stored results must be loaded
        (see `touched`).
        """
        if not self.lazy:
            results = env.results
            return [index for index in self.refs if results[index] is None]
        found: dict[int, None] = {}
        self._node.needed(env, found)
        return list(found)

    def touched(self, env: Env) -> Iterable[int]:
        """Return the complete steps with values for `needed` or an evaluation to read."""
        results = env.results
        return [index for index in self.refs if results[index] is not None]

    def to_tree(self, env: Env) -> Any:
        """Evaluate to a plain tree, a copy for the caller to change, or to the failure."""
        raw = self.to_json(env)
        return raw if isinstance(raw, Failure) else decode(raw)


def compile_expression(tree: Any, index_of: dict[str, int], variables: VariableSpecs) -> Expr:
    """Compile a well-formed expression tree. `index_of` maps step ids to indices in `Env.results`."""
    return compile_parsed(syntax.parse_expression(tree), index_of, variables)


def compile_parsed(expression: syntax.Expression, index_of: dict[str, int], variables: VariableSpecs) -> Expr:
    """Compile a parsed expression."""
    return Expr(_Compiler(index_of, variables).node(expression))


class _Compiler:
    def __init__(self, index_of: dict[str, int], variables: VariableSpecs) -> None:
        self._index_of = index_of
        self._variables = variables

    def node(self, expression: syntax.Expression) -> Node:
        match expression:
            case syntax.Literal(value):
                return Constant(encode(value))
            case syntax.StepRef(step, path):
                return self._step(step, path)
            case syntax.InputRef(path):
                return InputValue(path)
            case syntax.VariableRef(path, default):
                return self._variable(path, default)
            case syntax.If(condition, then, otherwise):
                return IfValue(self.node(condition), self.node(then), self.node(otherwise))
            case syntax.Coalesce(options):
                return CoalesceValue([self.node(option) for option in options])
            case syntax.Array() | syntax.Object():
                pieces: list[bytes | Node] = []
                self._collect(expression, pieces)
                pieces = _joined(pieces)
                only = pieces[0]
                return Constant(only) if len(pieces) == 1 and isinstance(only, bytes) else Composite(pieces)
            case _:
                assert_never(expression)

    def _step(self, step: str, path: Path) -> Node:
        index = self._index_of.get(step)
        if index is None:
            return Fail(Code.EXPRESSION_FAILURE, f"Unknown step: {step}")
        return StepPart(index, step, path) if path.parts else StepValue(index, step)

    def _variable(self, path: Path, default: syntax.Expression | None) -> Node:
        if not path.parts:
            return Fail(Code.ORCHESTRATOR_ERROR, "Variable path is empty")

        name, *rest = path.parts
        if not isinstance(name, str):
            return Fail(Code.ORCHESTRATOR_ERROR, "Variable name must be a string")

        # A whole variable with a default in its schema always has a value, so that its own default is never read.
        schema_default = self._variables.default(name)
        fallback = None if default is None or (schema_default and not rest) else self.node(default)
        return VariableValue(name, tuple(rest), schema_default, fallback)

    def _collect(self, expression: syntax.Expression, pieces: list[bytes | Node]) -> None:
        """Append the text of `expression`, with a node for each variable part."""
        match expression:
            case syntax.Object(members):
                pieces.append(b"{")
                for at, (key, value) in enumerate(members):
                    pieces.append((b"," if at else b"") + encode(key) + b":")
                    self._collect(value, pieces)
                pieces.append(b"}")

            case syntax.Array(items):
                pieces.append(b"[")
                for at, item in enumerate(items):
                    if at:
                        pieces.append(b",")
                    self._collect(item, pieces)
                pieces.append(b"]")

            case _:
                node = self.node(expression)
                pieces.append(node.raw if isinstance(node, Constant) else node)


def _joined(pieces: Iterable[bytes | Node]) -> list[bytes | Node]:
    """Join neighbouring constant pieces."""
    joined: list[bytes | Node] = []
    constant: list[bytes] = []
    for piece in pieces:
        if isinstance(piece, bytes):
            constant.append(piece)
            continue

        if constant:
            joined.append(b"".join(constant))
            constant = []
        joined.append(piece)

    if constant:
        joined.append(b"".join(constant))
    return joined
