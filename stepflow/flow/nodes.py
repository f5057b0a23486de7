"""Nodes of compiled expressions: each knows the steps to complete before its evaluation, and evaluates.

- `StepValue`, `StepPart`: `$step`, without and with a path.
- `InputValue`, `VariableValue`: `$input`, `$variable`.
- `IfValue`, `CoalesceValue`: `$if`, `$coalesce`.
- `Constant`, `Composite`: constants; objects and arrays with expressions in them.
- `Fail`: an expression without a possible value.

Evaluation composes JSON *text*: a whole result is spliced in undecoded, a path decodes its source at most once and
encodes the selected part. Promises:
- evaluation never raises and never changes a source; the result is compact JSON or the first `Failure` in document
  order, the failure of a failed step unchanged;
- a composed value is measured while its parts are gathered, and never joined above `PAYLOAD_BYTES_MAX` (`TOO_LARGE`);
- `json` joins a value and needs its sources whole in memory; `value` shares them (`values`), and reads only what a path
  or a condition looks into (`inside`);
- `needed` is lazy: branches not taken and alternatives not reached contribute no steps;
- when `needed` is empty, evaluation meets no incomplete step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from stepflow.codec import PAYLOAD_BYTES_MAX, Json, decode, depth_of, encode
from stepflow.errors import Code, Failure
from stepflow.flow.paths import MISSING, Path, project
from stepflow.flow.values import PIECES_MAX, REFERENCE_BYTES_MIN, Composed, Value, is_short, part_at, unloaded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from stepflow.json_problems import Part

NULL = b"null"
FALSE = b"false"

Outcome = bytes | Failure

Inside = tuple[tuple[int, tuple["Part", ...]], ...]
"""Steps, each with a path into its result."""

TOO_LARGE = Failure(Code.EXPRESSION_FAILURE, f"it is too large; the limit is {PAYLOAD_BYTES_MAX:,} bytes")
"""The value of a `Composite` above the limit. Compare by identity."""


class Env:
    """Values for expressions to read: an environment per item.

    `results` has an element per step, by index, filled in by the owner: a value, a failure, or None until the step is
    complete. `variables` are the supplied variables. `bytes_max` bounds composed values (`Node.value`).
    """

    __slots__ = ("bytes_max", "input", "results", "variables")

    def __init__(
        self,
        input: Json,
        results: list[Json | Failure | None],
        variables: dict[str, Json],
        bytes_max: int = PAYLOAD_BYTES_MAX,
    ) -> None:
        self.input = input
        self.results = results
        self.variables = variables
        self.bytes_max = bytes_max


class Node(Protocol):
    """Part of a compiled expression. `refs`, `lazy`, `reads_input` and `inside` as in `Expr`."""

    refs: tuple[int, ...]
    lazy: bool
    reads_input: bool
    inside: Inside

    def json(self, env: Env) -> Outcome:
        """Return the value, or the first failure."""

    def value(self, env: Env) -> Value | Failure:
        """Return the value, or the first failure, without a copy of large sources."""

    def needed(self, env: Env, found: dict[int, None]) -> None:
        """Add the steps to complete, in document order."""


class Constant:
    """A constant value."""

    __slots__ = ("raw",)

    refs: tuple[int, ...] = ()
    lazy = False
    reads_input = False
    inside: Inside = ()

    def __init__(self, raw: bytes) -> None:
        self.raw = raw

    def json(self, env: Env) -> Outcome:  # noqa: ARG002  # a Node
        return self.raw

    value = json

    def needed(self, env: Env, found: dict[int, None]) -> None:
        pass


class Fail:
    """An expression without a possible value."""

    __slots__ = ("failure",)

    refs: tuple[int, ...] = ()
    lazy = False
    reads_input = False
    inside: Inside = ()

    def __init__(self, code: Code, message: str) -> None:
        self.failure = Failure(code, message)

    def json(self, env: Env) -> Outcome:  # noqa: ARG002  # a Node
        return self.failure

    value = json

    def needed(self, env: Env, found: dict[int, None]) -> None:
        pass


class Composite:
    """An object or array, nested levels included: constant pieces of text, and holes for values in between."""

    __slots__ = ("_levels", "bytes_min", "holes", "inside", "lazy", "nodes", "pieces", "reads_input", "refs")

    def __init__(self, pieces: list[bytes | Node]) -> None:
        self.nodes = [piece for piece in pieces if not isinstance(piece, bytes)]
        self.pieces = [piece if isinstance(piece, bytes) else b"" for piece in pieces]
        self.bytes_min = sum(map(len, self.pieces))
        """Length of the constant pieces."""
        self.holes = [(at, piece.json) for at, piece in enumerate(pieces) if not isinstance(piece, bytes)]
        self.refs = _union(self.nodes)
        self.lazy = any(node.lazy for node in self.nodes)
        self.reads_input = any(node.reads_input for node in self.nodes)
        self.inside = _inside(self.nodes)
        self._levels = 0

    def json(self, env: Env) -> Outcome:
        pieces = self.pieces.copy()
        size = self.bytes_min
        for at, evaluate in self.holes:
            raw = evaluate(env)
            if isinstance(raw, Failure):
                return raw

            # Measured here, because hundreds of parts may each be a copy of the largest value.
            size += len(raw)
            if size > PAYLOAD_BYTES_MAX:
                return TOO_LARGE
            pieces[at] = raw
        return b"".join(pieces)

    def value(self, env: Env) -> Value | Failure:
        pieces: list[Value] = list(self.pieces)
        size = self.bytes_min
        for (at, _), node in zip(self.holes, self.nodes, strict=True):
            value = node.value(env)
            if isinstance(value, Failure):
                return value
            size += len(value) if isinstance(value, bytes) else value.size
            if size > env.bytes_max:
                return TOO_LARGE
            pieces[at] = value

        if size <= PAYLOAD_BYTES_MAX and all(isinstance(piece, bytes) for piece in pieces):
            return b"".join(pieces)  # type: ignore[arg-type]  # just checked
        composed = Composed([piece for piece in pieces if piece != b""], self._own_levels())
        if size < REFERENCE_BYTES_MIN and not unloaded(composed):
            return composed.raw
        return TOO_LARGE if composed.count > PIECES_MAX else composed

    def _own_levels(self) -> int:
        """Return the levels of brackets of the value's own text."""
        if not self._levels:
            pieces = self.pieces.copy()
            for at, _ in self.holes:
                pieces[at] = NULL
            self._levels = depth_of(decode(b"".join(pieces)))
        return self._levels

    def needed(self, env: Env, found: dict[int, None]) -> None:
        for node in self.nodes:
            node.needed(env, found)


class StepValue:
    """The whole result of a step."""

    __slots__ = ("incomplete", "index", "refs")

    lazy = False
    reads_input = False
    inside: Inside = ()

    def __init__(self, index: int, step: str) -> None:
        self.index = index
        self.refs: tuple[int, ...] = (index,)
        self.incomplete = Failure(Code.ORCHESTRATOR_ERROR, f"Step {step} not completed")

    def json(self, env: Env) -> Outcome:
        result = env.results[self.index]
        if isinstance(result, Json):
            return result.raw
        return self.incomplete if result is None else result

    def value(self, env: Env) -> Value | Failure:
        result = env.results[self.index]
        if result.__class__ is Json:
            return result.raw
        return self.incomplete if result is None else result

    def needed(self, env: Env, found: dict[int, None]) -> None:
        if env.results[self.index] is None:
            found[self.index] = None


class StepPart(StepValue):
    """A part of a step's result. Every path of a null result is null."""

    __slots__ = ("inside", "missing", "parts")

    def __init__(self, index: int, step: str, path: Path) -> None:
        super().__init__(index, step)
        self.parts = path.parts
        self.inside: Inside = ((index, path.parts),)
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

    def value(self, env: Env) -> Value | Failure:
        result = env.results[self.index]
        if not isinstance(result, Json):
            return self.incomplete if result is None else result
        if is_short(result, (NULL,)):
            return NULL
        found: Any = part_at(result, self.parts)
        return self.missing if found is MISSING else found


class InputValue:
    """The item's input, whole or in part."""

    __slots__ = ("missing", "parts")

    refs: tuple[int, ...] = ()
    lazy = False
    reads_input = True
    inside: Inside = ()

    def __init__(self, path: Path) -> None:
        self.parts = path.parts
        self.missing = Failure(Code.EXPRESSION_FAILURE, f"Input path {path} not found")

    def json(self, env: Env) -> Outcome:
        if not self.parts:
            return env.input.raw
        tree = project(env.input.tree, self.parts)
        return self.missing if tree is MISSING else encode(tree)

    def value(self, env: Env) -> Value | Failure:
        if not self.parts:
            return env.input
        found: Any = part_at(env.input, self.parts)
        return self.missing if found is MISSING else found

    def needed(self, env: Env, found: dict[int, None]) -> None:
        pass


class VariableValue:
    """A variable, whole or in part: the supplied value, else the schema's default, else the reference's own default."""

    __slots__ = ("default", "inside", "lazy", "name", "parts", "reads_input", "refs", "schema_default", "undefined")

    def __init__(self, name: str, parts: tuple[Part, ...], schema_default: Json | None, default: Node | None) -> None:
        self.name = name
        self.parts = parts
        self.schema_default = schema_default
        self.default = default
        self.refs = default.refs if default else ()
        self.lazy = bool(self.refs)
        self.reads_input = default is not None and default.reads_input
        self.inside: Inside = default.inside if default else ()
        self.undefined = Failure(Code.EXPRESSION_FAILURE, f"Undefined variable: {name}")

    def json(self, env: Env) -> Outcome:
        raw = self._found(env)
        if raw is not None:
            return raw
        return self.default.json(env) if self.default else self.undefined

    def value(self, env: Env) -> Value | Failure:
        raw = self._found(env)
        if raw is not None:
            return raw
        return self.default.value(env) if self.default else self.undefined

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
    """A condition and two branches. A failing condition counts as false, one that is only too large as true."""

    __slots__ = ("condition", "inside", "lazy", "otherwise", "reads_input", "refs", "then")

    def __init__(self, condition: Node, then: Node, otherwise: Node) -> None:
        self.condition = condition
        self.then = then
        self.otherwise = otherwise
        self.refs = _union((condition, then, otherwise))
        self.lazy = condition.lazy or bool(then.refs or otherwise.refs)
        self.reads_input = condition.reads_input or then.reads_input or otherwise.reads_input
        self.inside = _inside((condition, then, otherwise))

    def json(self, env: Env) -> Outcome:
        return self._chosen(env).json(env)

    def value(self, env: Env) -> Value | Failure:
        return self._chosen(env).value(env)

    def needed(self, env: Env, found: dict[int, None]) -> None:
        if not _adds(self.condition, env, found):
            self._chosen(env).needed(env, found)

    def _chosen(self, env: Env) -> Node:
        condition = self.condition.value(env)
        if isinstance(condition, Failure):
            return self.then if condition is TOO_LARGE else self.otherwise
        return self.otherwise if is_short(condition, (NULL, FALSE)) else self.then


class CoalesceValue:
    """The first option other than null; a failing option ends the search."""

    __slots__ = ("inside", "lazy", "options", "reads_input", "refs")

    def __init__(self, options: list[Node]) -> None:
        self.options = options
        self.refs = _union(options)
        self.lazy = any(node.lazy for node in options) or any(node.refs for node in options[1:])
        self.reads_input = any(node.reads_input for node in options)
        self.inside = _inside(options)

    def json(self, env: Env) -> Outcome:
        for option in self.options:
            value = option.json(env)
            if value != NULL:
                return value
        return NULL

    def value(self, env: Env) -> Value | Failure:
        for option in self.options:
            value = option.value(env)
            if isinstance(value, Failure) or not is_short(value, (NULL,)):
                return value
        return NULL

    def needed(self, env: Env, found: dict[int, None]) -> None:
        for option in self.options:
            if _adds(option, env, found):
                return
            value = option.value(env)
            if isinstance(value, Failure) or not is_short(value, (NULL,)):
                return


def _adds(node: Node, env: Env, found: dict[int, None]) -> bool:
    """Add the steps needed by `node`. Return True if there are any, even if all are in `found` already."""
    own: dict[int, None] = {}
    node.needed(env, own)
    found.update(own)
    return bool(own)


def _inside(nodes: Iterable[Node]) -> Inside:
    return tuple(dict.fromkeys(each for node in nodes for each in node.inside))


def _union(nodes: Iterable[Node]) -> tuple[int, ...]:
    return tuple(dict.fromkeys(index for node in nodes for index in node.refs))
