"""Nodes of compiled expressions: each knows the steps to complete before its evaluation, and evaluates.

- `Constant`, `Composite`: constants; objects and arrays with expressions in them.
- `IfValue`, `CoalesceValue`: `$if`, `$coalesce`.
- `Fail`: an expression without a possible value.
- `references`: the nodes that read steps, the input and variables.

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

from stepflow.codec import PAYLOAD_BYTES_MAX, Json, decode, depth_of
from stepflow.errors import Code, Failure
from stepflow.flow.values import PIECES_MAX, REFERENCE_BYTES_MIN, Composed, Value, is_short, unloaded

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

    __slots__ = (
        "_levels",
        "_value_holes",
        "bytes_min",
        "holes",
        "inside",
        "lazy",
        "nodes",
        "pieces",
        "reads_input",
        "refs",
    )

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
        self._value_holes = [(at, piece.value) for at, piece in enumerate(pieces) if not isinstance(piece, bytes)]
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
        pieces: list[Any] = self.pieces.copy()
        size = self.bytes_min
        shared = False
        for at, evaluate in self._value_holes:
            value = evaluate(env)
            if isinstance(value, bytes):
                size += len(value)
            elif isinstance(value, Failure):
                return value
            else:
                size += value.size
                shared = True

            if size > env.bytes_max:
                return TOO_LARGE
            pieces[at] = value

        if not shared and size <= PAYLOAD_BYTES_MAX:
            return b"".join(pieces)
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
