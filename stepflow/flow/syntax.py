"""Value expressions as a syntax tree: which objects are special forms, and how they are written.

An object is a special form when it has one of the keys of `FORMS`; the first of them in that order decides, and
members that the form does not know are not read. Promises:
- `unparse(parse_expression(tree))` is the one normalised spelling: paths normalised, what means nothing left out,
  members of ordinary objects in the author's order, everything below `$literal` untouched;
- a normalised spelling parses to an equal syntax tree.

What an expression evaluates to is the matter of `expr.py`.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

from msgspec import Struct

from stepflow.errors import Invalid
from stepflow.flow.document import Place, describe
from stepflow.flow.paths import Path, parse_path, shown

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

FORMS = ("$literal", "$if", "$coalesce", "$from", "$step", "$input", "$variable")
"""The keys that make an object a special form, in order of precedence."""

_COMPANIONS = {"$if": ("then", "else"), "$step": ("path",), "$variable": ("default",)}


# Structs, not dataclasses: eight of those take 10 ms to define, which every command would pay at its start.


class Literal(Struct, frozen=True):
    """A value that stands for itself; `quoted` when it was written with `$literal`."""

    value: Any
    quoted: bool = False


class StepRef(Struct, frozen=True):
    step: str
    path: Path


class InputRef(Struct, frozen=True):
    path: Path


class VariableRef(Struct, frozen=True):
    """`path` begins with the variable's name; `default` is None when there is none (a null default is a Literal)."""

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
    """Tells the parser of the document what is wrong and where; becomes a `FlowInvalid` there."""

    def __init__(self, place: Place, problem: str) -> None:
        super().__init__(problem)
        self.place = place
        self.problem = problem


NOTES_MAX = 100
"""Remarks on one document; more help nobody."""

LOOKUPS_MAX = 1_000
"""Searches for similar names in one document: each takes 0.1 ms, and a document can hold a million names."""


class Notes:
    """Remarks on members that are not read, as (place, sentence)."""

    def __init__(self) -> None:
        self.items: list[tuple[Place, str]] = []
        self._lookups = 0

    def unread(self, place: Place, name: str, where: str, known: tuple[str, ...]) -> None:
        """Remark on member `name` at `place`, which is none of the `known` ones `where` it stands."""
        if len(self.items) < NOTES_MAX:
            self.items.append(((*place, name), f"`{shown(name)}` {where}{suggestion(name, known)}"))

    def ordinary(self, place: Place, name: str) -> None:
        """Remark on an ordinary member when its name looks like that of a special form."""
        if not name.startswith("$") or len(self.items) >= NOTES_MAX or self._lookups >= LOOKUPS_MAX:
            return
        self._lookups += 1
        if hint := suggestion(name, FORMS):
            self.items.append(((*place, name), f"`{name}` is an ordinary member, not an expression{hint}"))


def parse_expression(tree: Any, place: Place = (), notes: Notes | None = None) -> Expression:
    """Read an expression that stands at `place` of its document.

    Raises:
        ExpressionInvalid: a special form that is not well-formed.
    """
    if isinstance(tree, dict):
        for key in FORMS:
            if key in tree:
                if notes:
                    _note_unread(tree, key, place, notes)
                return _FORM_PARSERS[key](tree, place, notes)
        if notes:
            for key in tree:
                notes.ordinary(place, key)
        return Object(tuple([(key, parse_expression(value, (*place, key), notes)) for key, value in tree.items()]))
    if isinstance(tree, list):
        return Array(tuple([parse_expression(value, (*place, i), notes) for i, value in enumerate(tree)]))
    return Literal(tree)


def unparse(expression: Expression) -> Any:
    """Write an expression in its normalised spelling."""
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


def references(expression: Expression, place: Place) -> Iterator[tuple[Place, StepRef | InputRef | VariableRef]]:
    """Yield every reference within `expression` with its place, in document order."""
    match expression:
        case StepRef() | InputRef():
            yield place, expression
        case VariableRef(_, default):
            yield place, expression
            if default is not None:
                yield from references(default, place)
        case If(condition, then, otherwise):
            yield from references(condition, (*place, "condition"))
            yield from references(then, (*place, "then"))
            yield from references(otherwise, (*place, "else"))
        case Coalesce(items) | Array(items):
            for index, item in enumerate(items):
                yield from references(item, (*place, index))
        case Object(members):
            for key, value in members:
                yield from references(value, (*place, key))
        case Literal():
            pass


def suggestion(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return `; did you mean …?` if `name` resembles one of `known`, else an empty text.

    `cutoff` is the least similarity, from 0 to 1, that counts as a resemblance.
    """
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=cutoff)
    return f"; did you mean `{close[0]}`?" if close else ""


# --- the forms ---------------------------------------------------------------------------------------------------


def _literal(tree: dict[str, Any], _place: Place, _notes: Notes | None) -> Expression:
    return Literal(tree["$literal"], quoted=True)


def _if(tree: dict[str, Any], place: Place, notes: Notes | None) -> Expression:
    if "then" not in tree:
        raise ExpressionInvalid(place, "`$if` needs `then`")
    return If(
        parse_expression(tree["$if"], (*place, "$if"), notes),
        parse_expression(tree["then"], (*place, "then"), notes),
        parse_expression(tree.get("else"), (*place, "else"), notes),
    )


def _coalesce(tree: dict[str, Any], place: Place, notes: Notes | None) -> Expression:
    options, at = tree["$coalesce"], (*place, "$coalesce")
    if not isinstance(options, list):
        raise ExpressionInvalid(at, f"`$coalesce` takes a list, not {describe(options)}")
    return Coalesce(tuple([parse_expression(option, (*at, i), notes) for i, option in enumerate(options)]))


def _from(_tree: dict[str, Any], place: Place, _notes: Notes | None) -> Expression:
    raise ExpressionInvalid(
        (*place, "$from"),
        "`$from` is the old way to refer to values; write `$step: <id>` or `$input: <path>`"
        " (or wrap it in `$literal` to use it as data)",
    )


def _step(tree: dict[str, Any], place: Place, _notes: Notes | None) -> Expression:
    step = tree["$step"]
    if not isinstance(step, str):
        raise ExpressionInvalid((*place, "$step"), f"`$step` takes the id of a step, not {describe(step)}")
    return StepRef(step, _path(tree.get("path"), (*place, "path")))


def _input(tree: dict[str, Any], place: Place, _notes: Notes | None) -> Expression:
    return InputRef(_path(tree["$input"], (*place, "$input")))


def _variable(tree: dict[str, Any], place: Place, notes: Notes | None) -> Expression:
    default = None
    if "default" in tree:
        default = parse_expression(tree["default"], (*place, "default"), notes)
    written = tree["$variable"]
    if not isinstance(written, str):
        raise ExpressionInvalid((*place, "$variable"), f"`$variable` takes a name or path, not {describe(written)}")
    return VariableRef(_path(written, (*place, "$variable")), default)


_FORM_PARSERS: dict[str, Callable[[dict[str, Any], Place, Notes | None], Expression]] = {
    "$literal": _literal,
    "$if": _if,
    "$coalesce": _coalesce,
    "$from": _from,
    "$step": _step,
    "$input": _input,
    "$variable": _variable,
}
assert tuple(_FORM_PARSERS) == FORMS


def _path(written: Any, place: Place) -> Path:
    if written is None:
        return Path()
    if not isinstance(written, str):
        raise ExpressionInvalid(place, f"a path is a string, not {describe(written)}")
    try:
        return parse_path(written)
    except Invalid as error:
        raise ExpressionInvalid(place, error.message) from None


def _note_unread(tree: dict[str, Any], form: str, place: Place, notes: Notes) -> None:
    companions = _COMPANIONS.get(form, ())
    for key in tree:
        if key != form and key not in companions:
            notes.unread(place, key, f"beside `{form}` is not read", companions)
