"""Types of literals, objects and lists, and unions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow import codec

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

ANY: dict[str, Any] = {}
NEVER = False
NULL = {"type": "null"}

TYPE_NODES_MAX = 5_000
"""Nodes of one type, adopted or made; a larger one is *any*."""

UNION_MAX = 16
"""Alternatives of a made union; more are joined to their common `type`, or to *any*."""

CONST_CHARS_MAX = 200
"""Longest text that is kept in the type of a literal."""

_DEPTH_MAX = 200


ANNOTATIONS = frozenset(
    ("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "is_secret", "env_var")
)
"""Keywords that say nothing about the values of a type."""


def is_any(type_: Any) -> bool:
    """Return True for a type that every value has."""
    return type_ is True or (isinstance(type_, dict) and not type_.keys() - ANNOTATIONS)


def is_small(type_: Any) -> bool:
    """Return True if a type, seen as a tree, has at most `TYPE_NODES_MAX` nodes."""
    count, todo = 0, [(type_, 0)]
    while todo:
        node, depth = todo.pop()
        count += 1
        if count > TYPE_NODES_MAX or depth > _DEPTH_MAX:
            return False
        below = node.values() if isinstance(node, dict) else node if isinstance(node, list) else ()
        todo.extend((child, depth + 1) for child in below)
    return True


def bounded(type_: Any) -> Any:
    """Return the type, or *any* if it is too large."""
    return type_ if is_small(type_) else ANY


def object_of(members: Mapping[str, Any]) -> dict[str, Any]:
    """Return the type of objects with exactly these members."""
    return {
        "type": "object",
        "properties": dict(members),
        "required": list(members),
        "additionalProperties": False,
    }


def list_of(items: Sequence[Any], *, exact: bool) -> dict[str, Any]:
    """Return the type of a list with these items, in this order if `exact`."""
    if exact:
        return {"type": "array", "prefixItems": list(items), "items": NEVER, "minItems": len(items)}
    return {"type": "array", "items": union(items)} if items else {"type": "array"}


def literal_type(value: Any, *, exact: bool) -> Any:
    """Return the type of a constant. `exact` keeps the value of each short scalar, and the order of lists."""
    return _literal(value, exact) if is_small(value) else ANY


def _literal(value: Any, exact: bool) -> Any:
    if isinstance(value, dict):
        return object_of({str(name): _literal(member, exact) for name, member in value.items()})
    if isinstance(value, list):
        return list_of([_literal(item, exact) for item in value], exact=exact)
    if value is None:
        return NULL

    names = {bool: "boolean", int: "integer", float: "number"}
    made: dict[str, Any] = {"type": names.get(type(value), "string")}
    if exact and not (isinstance(value, str) and len(value) > CONST_CHARS_MAX):
        made["const"] = value
    return made


def union(types: Iterable[Any]) -> Any:
    """Return the union of types: *any* absorbs the others, *never* adds nothing, equal types count once."""
    options: dict[bytes, Any] = {}
    for type_ in types:
        if is_any(type_):
            return ANY
        if type_ is NEVER:
            continue
        for option in type_["anyOf"] if type_.keys() == {"anyOf"} else (type_,):
            options.setdefault(codec.encode(option), option)

    found = _absorbed(list(options.values()))
    if not found:
        return NEVER
    if len(found) == 1:
        return found[0]
    if len(found) > UNION_MAX:
        kinds = {option.get("type") for option in found if isinstance(option.get("type"), str)}
        alike = len(kinds) == 1 and all(isinstance(option.get("type"), str) for option in found)
        return {"type": kinds.pop()} if alike else ANY
    return bounded({"anyOf": found})


def _absorbed(options: list[Any]) -> list[Any]:
    """Leave out options that a plain `type` among the others contains."""
    plain = {option["type"] for option in options if option.keys() == {"type"} and isinstance(option["type"], str)}
    if "number" in plain:
        plain.add("integer")
        options = [option for option in options if option != {"type": "integer"}]
    return [
        option
        for option in options
        if not isinstance(option.get("type"), str) or option["type"] not in plain or option.keys() == {"type"}
    ]
