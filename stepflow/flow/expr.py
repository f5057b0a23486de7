"""Compiled expressions: what has to be complete before one can be evaluated, and its value.

An expression is compiled once per flow into a tree of small nodes; everything constant in it is encoded then.
Evaluation composes JSON *text*: a whole result is spliced in undecoded, a path decodes its source at most once and
encodes what it finds. Promises:
- evaluation never raises and never changes what it reads; it yields compact JSON or the first `Failure` in document
  order, a failed step's failure unchanged;
- `needed` is lazy: branches not taken and alternatives not reached contribute nothing;
- when `needed` is empty, evaluation does not meet an incomplete step.

The rules are those of §2 and §6 of the flow language. Deliberately absent: validation (`validate.py`), and any idea
of what a run is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from stepflow.codec import Json, decode, encode
from stepflow.errors import Code, Failure
from stepflow.flow import syntax
from stepflow.flow.paths import MISSING, Part, Path, project

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from stepflow.flow.variables import VariableSpecs

NULL = b"null"
FALSE = b"false"

Outcome = bytes | Failure


class Env:
    """What an expression is evaluated in: one per item.

    `results` has one place per step, by index, and is filled by the owner: a value, a failure, or None while the step
    is not complete. `variables` are those that the run supplied.
    """

    __slots__ = ("input", "results", "variables")

    def __init__(self, input: Json, results: list[Json | Failure | None], variables: dict[str, Json]) -> None:
        self.input = input
        self.results = results
        self.variables = variables


class Expr:
    """A compiled expression.

    `refs`: every step that any evaluation may touch, once each. `lazy`: which of them does depends on values.
    """

    __slots__ = ("_node", "lazy", "refs", "to_json")

    def __init__(self, node: Node) -> None:
        self._node = node
        self.refs: tuple[int, ...] = node.refs
        self.lazy: bool = node.lazy
        self.to_json: Callable[[Env], Outcome] = node.json
        """Evaluate: compact JSON, or the failure. Bound to the outermost node: a call less on the hot path."""

    @property
    def constant(self) -> bytes | None:
        """The value as compact JSON when it does not depend on anything, else None."""
        return self._node.raw if isinstance(self._node, Constant) else None

    def needed(self, env: Env) -> list[int]:
        """Return the steps that must still complete before the next thing about this expression can be known.

        Empty: it can be evaluated. When lazy, ask again after they are complete: there may be more. Results must
        have their text (see `touched`).
        """
        if not self.lazy:
            results = env.results
            return [index for index in self.refs if results[index] is None]
        found: dict[int, None] = {}
        self._node.needed(env, found)
        return list(found)

    def touched(self, env: Env) -> Iterable[int]:
        """Return the complete steps whose values `needed` or an evaluation may read."""
        results = env.results
        return [index for index in self.refs if results[index] is not None]

    def to_tree(self, env: Env) -> Any:
        """Evaluate to a plain tree of the caller's own, or to the failure."""
        raw = self.to_json(env)
        return raw if isinstance(raw, Failure) else decode(raw)


def compile_expression(tree: Any, index_of: dict[str, int], variables: VariableSpecs) -> Expr:
    """Compile a well-formed expression tree. `index_of` maps step ids to their place in `Env.results`."""
    return Expr(_Compiler(index_of, variables).node(syntax.parse_expression(tree)))


# --- nodes -------------------------------------------------------------------------------------------------------


class Node(Protocol):
    """A part of a compiled expression."""

    refs: tuple[int, ...]
    lazy: bool

    def json(self, env: Env) -> Outcome:
        """Evaluate."""

    def needed(self, env: Env, found: dict[int, None]) -> None:
        """Add the steps that must still complete, in document order."""


class Constant:
    __slots__ = ("raw",)

    refs: tuple[int, ...] = ()
    lazy = False

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def json(self, env: Env) -> Outcome:  # noqa: ARG002  # a Node
        return self.raw

    def needed(self, env: Env, found: dict[int, None]) -> None:
        pass


class Fail:
    """An expression that cannot have a value."""

    __slots__ = ("failure",)

    refs: tuple[int, ...] = ()
    lazy = False

    def __init__(self, code: Code, message: str) -> None:
        self.failure = Failure(code, message)

    def json(self, env: Env) -> Outcome:  # noqa: ARG002  # a Node
        return self.failure

    def needed(self, env: Env, found: dict[int, None]) -> None:
        pass


class Composite:
    """An object or array: its text in pieces, with holes for what is not constant. Nested ones are part of it."""

    __slots__ = ("holes", "lazy", "nodes", "pieces", "refs")

    def __init__(self, pieces: list[bytes | Node]) -> None:
        self.nodes = [piece for piece in pieces if not isinstance(piece, bytes)]
        self.pieces = [piece if isinstance(piece, bytes) else b"" for piece in pieces]
        self.holes = [(at, piece.json) for at, piece in enumerate(pieces) if not isinstance(piece, bytes)]
        self.refs = _union(self.nodes)
        self.lazy = any(node.lazy for node in self.nodes)

    def json(self, env: Env) -> Outcome:
        pieces = self.pieces.copy()
        for at, evaluate in self.holes:
            raw = evaluate(env)
            if isinstance(raw, Failure):
                return raw
            pieces[at] = raw
        return b"".join(pieces)

    def needed(self, env: Env, found: dict[int, None]) -> None:
        for node in self.nodes:
            node.needed(env, found)


class StepValue:
    """A step's whole result."""

    __slots__ = ("incomplete", "index", "refs")

    lazy = False

    def __init__(self, index: int, step: str) -> None:
        self.index = index
        self.refs: tuple[int, ...] = (index,)
        self.incomplete = Failure(Code.ORCHESTRATOR_ERROR, f"Step {step} not completed")

    def json(self, env: Env) -> Outcome:
        result = env.results[self.index]
        if isinstance(result, Json):
            return result.raw
        return self.incomplete if result is None else result

    def needed(self, env: Env, found: dict[int, None]) -> None:
        if env.results[self.index] is None:
            found[self.index] = None


class StepPart(StepValue):
    """A part of a step's result. A null result is null, whatever the path."""

    __slots__ = ("missing", "parts")

    def __init__(self, index: int, step: str, path: Path) -> None:
        super().__init__(index, step)
        self.parts = path.parts
        self.missing = Failure(Code.EXPRESSION_FAILURE, f"Path {path} not found")

    def json(self, env: Env) -> Outcome:
        result = env.results[self.index]
        if not isinstance(result, Json):
            return self.incomplete if result is None else result
        tree = result.tree
        if tree is None:
            return NULL
        tree = project(tree, self.parts)
        return self.missing if tree is MISSING else encode(tree)


class InputValue:
    """The item's input, or a part of it."""

    __slots__ = ("missing", "parts")

    refs: tuple[int, ...] = ()
    lazy = False

    def __init__(self, path: Path) -> None:
        self.parts = path.parts
        self.missing = Failure(Code.EXPRESSION_FAILURE, f"Input path {path} not found")

    def json(self, env: Env) -> Outcome:
        if not self.parts:
            return env.input.raw
        tree = project(env.input.tree, self.parts)
        return self.missing if tree is MISSING else encode(tree)

    def needed(self, env: Env, found: dict[int, None]) -> None:
        pass


class VariableValue:
    """A variable or a part of it: supplied, else by its schema, else the reference's own default."""

    __slots__ = ("default", "lazy", "name", "parts", "refs", "schema_default", "undefined")

    def __init__(self, name: str, parts: tuple[Part, ...], schema_default: Json | None, default: Node | None) -> None:
        self.name = name
        self.parts = parts
        self.schema_default = schema_default
        self.default = default
        self.refs = default.refs if default else ()
        self.lazy = bool(self.refs)
        self.undefined = Failure(Code.EXPRESSION_FAILURE, f"Undefined variable: {name}")

    def json(self, env: Env) -> Outcome:
        raw = self._found(env)
        if raw is not None:
            return raw
        return self.default.json(env) if self.default else self.undefined

    def needed(self, env: Env, found: dict[int, None]) -> None:
        if self.default and self.lazy and self._found(env) is None:
            self.default.needed(env, found)

    def _found(self, env: Env) -> bytes | None:
        value = env.variables.get(self.name, self.schema_default)
        if value is None or not self.parts:
            return value.raw if value else None
        tree = project(value.tree, self.parts)
        return None if tree is MISSING else encode(tree)


class IfValue:
    """A condition and two branches. A condition that fails counts as false."""

    __slots__ = ("condition", "lazy", "otherwise", "refs", "then")

    def __init__(self, condition: Node, then: Node, otherwise: Node) -> None:
        self.condition = condition
        self.then = then
        self.otherwise = otherwise
        self.refs = _union((condition, then, otherwise))
        self.lazy = condition.lazy or bool(then.refs or otherwise.refs)

    def json(self, env: Env) -> Outcome:
        return self._chosen(env).json(env)

    def needed(self, env: Env, found: dict[int, None]) -> None:
        if not _adds(self.condition, env, found):
            self._chosen(env).needed(env, found)

    def _chosen(self, env: Env) -> Node:
        condition = self.condition.json(env)
        falsy = isinstance(condition, Failure) or condition in (NULL, FALSE)
        return self.otherwise if falsy else self.then


class CoalesceValue:
    """The first option that is not null; one that fails ends the search."""

    __slots__ = ("lazy", "options", "refs")

    def __init__(self, options: list[Node]) -> None:
        self.options = options
        self.refs = _union(options)
        self.lazy = any(node.lazy for node in options) or any(node.refs for node in options[1:])

    def json(self, env: Env) -> Outcome:
        for option in self.options:
            value = option.json(env)
            if value != NULL:
                return value
        return NULL

    def needed(self, env: Env, found: dict[int, None]) -> None:
        for option in self.options:
            if _adds(option, env, found) or option.json(env) != NULL:
                return


def _adds(node: Node, env: Env, found: dict[int, None]) -> bool:
    """Add what `node` needs, and say whether that was anything (be it already in `found`)."""
    own: dict[int, None] = {}
    node.needed(env, own)
    found.update(own)
    return bool(own)


def _union(nodes: Iterable[Node]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(index for node in nodes for index in node.refs))


# --- compiler ----------------------------------------------------------------------------------------------------


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
        schema_default = self._variables.default(name)
        # A whole variable with a default in its schema always has a value: its own default is never looked at.
        fallback = None if default is None or (schema_default and not rest) else self.node(default)
        return VariableValue(name, tuple(rest), schema_default, fallback)

    def _collect(self, expression: syntax.Expression, pieces: list[bytes | Node]) -> None:
        """Add the text of `expression` in order, with nodes for what is not constant."""
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
