"""Value expressions as a syntax tree: special forms, and the normalised spelling.

An object with a key of `FORMS` is a special form; the first key in the order of `FORMS` decides, and members unknown
to the form are not read. Promises:
- `unparse(parse_expression(tree))` is the normalised spelling: paths normalised, meaningless members left out,
  members of ordinary objects in the author's order, everything below `$literal` untouched;
- a normalised spelling parses to an equal syntax tree.

`expr.py` evaluates expressions.
"""

from __future__ import annotations

import difflib
import heapq
from typing import TYPE_CHECKING, Any, assert_never

from msgspec import Struct

from stepflow.errors import Invalid
from stepflow.flow.paths import Path, parse_path
from stepflow.flow.source import describe
from stepflow.json_problems import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from stepflow.flow.source import DocumentPath

FORMS = ("$literal", "$if", "$coalesce", "$from", "$step", "$input", "$variable")
"""The keys that make an object a special form, in order of precedence."""

_COMPANIONS = {"$if": ("then", "else"), "$step": ("path",), "$variable": ("default",)}


COMPARED_CHARS_MAX = 120
COMPARED_NAMES_MAX = 5
"""Longest name for which a similar one is searched, and the candidates that are compared exactly."""


# Structs, because eight dataclasses take 10 ms to define, at the start of every command.


class Literal(Struct, frozen=True):
    """A constant; `quoted` if written with `$literal`."""

    value: Any
    quoted: bool = False


class StepRef(Struct, frozen=True):
    step: str
    path: Path


class InputRef(Struct, frozen=True):
    path: Path


class VariableRef(Struct, frozen=True):
    """`path` begins with the variable's name; `default` is None without a default (a null default is a Literal)."""

    path: Path
    default: Expression | None


class If(Struct, frozen=True):
    condition: Expression
    then: Expression
    otherwise: Expression


class Coalesce(Struct, frozen=True):
    options: tuple[Expression, ...]


class Array(Struct, frozen=True):
    items: tuple[Expression, ...]


class Object(Struct, frozen=True):
    members: tuple[tuple[str, Expression], ...]


Expression = Literal | StepRef | InputRef | VariableRef | If | Coalesce | Array | Object

NULL = Literal(None)


class ExpressionInvalid(Exception):
    """A malformed expression and its document path, for the parser of the document to raise as `FlowInvalid`."""

    def __init__(self, doc_path: DocumentPath, problem: str) -> None:
        super().__init__(problem)
        self.doc_path = doc_path
        self.problem = problem


NOTES_MAX = 100
"""Remarks on one document; readers ignore longer lists."""

LOOKUPS_MAX = 1_000
"""Searches for similar names in one document: each takes 0.1 ms, and a document can hold a million names."""


class Notes:
    """Remarks on unread members, as (document path, sentence), and the malformed forms of expressions."""

    def __init__(self) -> None:
        self._malformed: list[ExpressionInvalid] = []
        self.items: list[tuple[DocumentPath, str]] = []
        self._lookups = 0

    def malformed(self, error: ExpressionInvalid) -> None:
        if len(self._malformed) < NOTES_MAX:
            self._malformed.append(error)

    def take_malformed(self) -> list[ExpressionInvalid]:
        """Return the malformed forms found since the last call."""
        found, self._malformed = self._malformed, []
        return found

    def unread(self, doc_path: DocumentPath, name: str, where: str, known: tuple[str, ...]) -> None:
        """Remark on member `name` of the mapping at `doc_path`, which has only the `known` members.

        `where` completes the sentence after the name.
        """
        if len(self.items) < NOTES_MAX:
            self.items.append(((*doc_path, name), f"`{shown(name)}` {where}{suggestion(name, known)}"))

    def ordinary(self, doc_path: DocumentPath, name: str) -> None:
        """Remark on an ordinary member with a name similar to the key of a special form."""
        if not name.startswith("$") or len(self.items) >= NOTES_MAX or self._lookups >= LOOKUPS_MAX:
            return
        self._lookups += 1
        if hint := suggestion(name, FORMS):
            self.items.append(((*doc_path, name), f"`{name}` is an ordinary member, not an expression{hint}"))


def parse_expression(tree: Any, doc_path: DocumentPath = (), notes: Notes | None = None) -> Expression:
    """Read the expression at `doc_path` of the document. A malformed form counts as null if `notes` take its error.

    Raises:
        ExpressionInvalid: a special form is malformed, without `notes`.
    """
    if isinstance(tree, dict):
        for key in FORMS:
            if key in tree:
                if notes is None:
                    return _FORM_PARSERS[key](tree, doc_path, None)
                _note_unread(tree, key, doc_path, notes)
                return _parse_noting(key, tree, doc_path, notes)

        if notes:
            for key in tree:
                notes.ordinary(doc_path, key)
        return Object(tuple([(key, parse_expression(value, (*doc_path, key), notes)) for key, value in tree.items()]))
    if isinstance(tree, list):
        return Array(tuple([parse_expression(value, (*doc_path, i), notes) for i, value in enumerate(tree)]))
    return Literal(tree)


def _parse_noting(form: str, tree: dict[str, Any], doc_path: DocumentPath, notes: Notes) -> Expression:
    try:
        return _FORM_PARSERS[form](tree, doc_path, notes)
    except ExpressionInvalid as error:
        notes.malformed(error)
        return NULL


def unparse(expression: Expression) -> Any:
    """Return the normalised spelling of an expression."""
    match expression:
        case Literal(value, quoted):
            return {"$literal": value} if quoted else value
        case StepRef(step, path):
            return {"$step": step, "path": path.text} if path.parts else {"$step": step}
        case InputRef(path):
            return {"$input": path.text}
        case VariableRef(path, default):
            return {"$variable": path.text} | ({} if default is None else {"default": unparse(default)})
        case If(condition, then, otherwise):
            written = {"$if": unparse(condition), "then": unparse(then)}
            return written if otherwise == NULL else {**written, "else": unparse(otherwise)}
        case Coalesce(options):
            return {"$coalesce": [unparse(option) for option in options]}
        case Array(items):
            return [unparse(item) for item in items]
        case Object(members):
            return {key: unparse(value) for key, value in members}
        case _:
            assert_never(expression)


def references(
    expression: Expression, doc_path: DocumentPath
) -> Iterator[tuple[DocumentPath, StepRef | InputRef | VariableRef]]:
    """Yield every reference within `expression` with a document path, in document order."""
    match expression:
        case StepRef() | InputRef():
            yield doc_path, expression
        case VariableRef(_, default):
            yield doc_path, expression
            if default is not None:
                yield from references(default, doc_path)
        case If(condition, then, otherwise):
            yield from references(condition, (*doc_path, "condition"))
            yield from references(then, (*doc_path, "then"))
            yield from references(otherwise, (*doc_path, "else"))
        case Coalesce(items) | Array(items):
            for index, item in enumerate(items):
                yield from references(item, (*doc_path, index))
        case Object(members):
            for key, value in members:
                yield from references(value, (*doc_path, key))
        case Literal():
            pass
        case _:
            assert_never(expression)


def suggestion(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return `; did you mean …?` if `name` resembles a member of `known`, else an empty text.

    `cutoff` is the least similarity, from 0 to 1, of a resemblance.
    """
    close = closest(name, known, cutoff=cutoff)
    return f"; did you mean `{close}`?" if close is not None else ""


def closest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """Return the member of `known` that resembles `name` most, None if none does. See `suggestion`.

    The work is bounded, whatever the names are: an exact comparison takes the product of their lengths.
    """
    if len(name) > COMPARED_CHARS_MAX:
        return None
    matcher = difflib.SequenceMatcher(b=name)

    # 1. By the lengths, and by the letters alone, which never tell less than the exact comparison.
    near: list[tuple[float, str]] = []
    for candidate in known:
        matcher.set_seq1(candidate)
        if matcher.real_quick_ratio() >= cutoff and (letters := matcher.quick_ratio()) >= cutoff:
            near.append((letters, candidate))

    # 2. By the order of the letters.
    found: list[tuple[float, str]] = []
    for _, candidate in heapq.nlargest(COMPARED_NAMES_MAX, near):
        matcher.set_seq1(candidate)
        if (exact := matcher.ratio()) >= cutoff:
            found.append((exact, candidate))
    return max(found)[1] if found else None


# One parser a form.


def _literal(tree: dict[str, Any], _place: DocumentPath, _notes: Notes | None) -> Expression:
    return Literal(tree["$literal"], quoted=True)


def _if(tree: dict[str, Any], doc_path: DocumentPath, notes: Notes | None) -> Expression:
    if "then" not in tree:
        raise ExpressionInvalid(doc_path, "`$if` needs `then`")
    return If(
        parse_expression(tree["$if"], (*doc_path, "$if"), notes),
        parse_expression(tree["then"], (*doc_path, "then"), notes),
        parse_expression(tree.get("else"), (*doc_path, "else"), notes),
    )


def _coalesce(tree: dict[str, Any], doc_path: DocumentPath, notes: Notes | None) -> Expression:
    options, at = tree["$coalesce"], (*doc_path, "$coalesce")
    if not isinstance(options, list):
        raise ExpressionInvalid(at, f"`$coalesce` takes a list, not {describe(options)}")
    return Coalesce(tuple([parse_expression(option, (*at, i), notes) for i, option in enumerate(options)]))


def _from(_tree: dict[str, Any], doc_path: DocumentPath, _notes: Notes | None) -> Expression:
    raise ExpressionInvalid(
        (*doc_path, "$from"),
        "`$from` is the old way to refer to values; write `$step: <id>` or `$input: <path>`"
        " (or wrap it in `$literal` to use it as data)",
    )


def _step(tree: dict[str, Any], doc_path: DocumentPath, _notes: Notes | None) -> Expression:
    step = tree["$step"]
    if not isinstance(step, str):
        raise ExpressionInvalid((*doc_path, "$step"), f"`$step` takes the id of a step, not {describe(step)}")
    return StepRef(step, _path(tree.get("path"), (*doc_path, "path")))


def _input(tree: dict[str, Any], doc_path: DocumentPath, _notes: Notes | None) -> Expression:
    return InputRef(_path(tree["$input"], (*doc_path, "$input")))


def _variable(tree: dict[str, Any], doc_path: DocumentPath, notes: Notes | None) -> Expression:
    default = None
    if "default" in tree:
        default = parse_expression(tree["default"], (*doc_path, "default"), notes)
    written = tree["$variable"]
    if not isinstance(written, str):
        raise ExpressionInvalid((*doc_path, "$variable"), f"`$variable` takes a name or path, not {describe(written)}")
    return VariableRef(_path(written, (*doc_path, "$variable")), default)


_FORM_PARSERS: dict[str, Callable[[dict[str, Any], DocumentPath, Notes | None], Expression]] = {
    "$literal": _literal,
    "$if": _if,
    "$coalesce": _coalesce,
    "$from": _from,
    "$step": _step,
    "$input": _input,
    "$variable": _variable,
}
assert tuple(_FORM_PARSERS) == FORMS


def _path(written: Any, doc_path: DocumentPath) -> Path:
    if written is None:
        return Path()
    if not isinstance(written, str):
        raise ExpressionInvalid(doc_path, f"a path is a string, not {describe(written)}")
    try:
        return parse_path(written)
    except Invalid as error:
        raise ExpressionInvalid(doc_path, error.message) from None


def _note_unread(tree: dict[str, Any], form: str, doc_path: DocumentPath, notes: Notes) -> None:
    companions = _COMPANIONS.get(form, ())
    for key in tree:
        if key != form and key not in companions:
            notes.unread(doc_path, key, f"next to `{form}` is not read", companions)
