"""Types as short texts for people: `{ messages: ChatMessage[], name?: string }`.

A member with `?` may be missing. `any` is an unknown type. ` [secret]` marks the type of a secret value.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.flow.types.make import is_any
from stepflow.json_problems import shown

if TYPE_CHECKING:
    from stepflow.flow.types.scope import TypeScope

TEXT_CHARS_MAX = 300

_DEPTH_MAX = 6
_MEMBERS_MAX = 12


def type_text(type_: Any, scope: TypeScope | None = None) -> str:
    """Return a type as text, at most `TEXT_CHARS_MAX` characters. `scope` tells which references are secret."""
    text = _text(type_, 0)
    if len(text) > TEXT_CHARS_MAX:
        text = text[: TEXT_CHARS_MAX - 1] + "…"
    target = scope.target(type_) if scope else type_
    return text + " [secret]" if isinstance(target, dict) and target.get("is_secret") is True else text


def _text(type_: Any, depth: int) -> str:
    if type_ is False:
        return "never"
    if is_any(type_):
        return "any"
    if "$ref" in type_:
        return shown(type_["$ref"].rpartition("/")[2])
    if depth > _DEPTH_MAX:
        return "…"

    for keyword, mark in (("anyOf", " | "), ("oneOf", " | "), ("allOf", " & ")):
        if keyword in type_:
            return mark.join(dict.fromkeys(_text(option, depth + 1) for option in type_[keyword][:_MEMBERS_MAX]))

    kind = type_.get("type")
    if isinstance(kind, list):
        return " | ".join(_text({**type_, "type": one}, depth) for one in kind)
    if kind == "array" or (kind is None and "items" in type_):
        return _list_text(type_, depth)
    if kind == "object" or (kind is None and "properties" in type_):
        return _object_text(type_, depth)
    return kind if isinstance(kind, str) else "any"


def _list_text(type_: dict[str, Any], depth: int) -> str:
    options = [*type_.get("prefixItems", ())]
    if type_.get("items", True) is not False:
        options.append(type_.get("items", True))
    texts = list(dict.fromkeys(_text(option, depth + 1) for option in options[:_MEMBERS_MAX])) or ["never"]
    text = " | ".join(texts)
    return f"({text})[]" if " " in text and not text.startswith("{") else f"{text}[]"


def _object_text(type_: dict[str, Any], depth: int) -> str:
    properties, required = type_.get("properties", {}), type_.get("required", ())
    if not properties:
        return "object"
    members = [
        f"{shown(name)}{'' if name in required else '?'}: {_text(member, depth + 1)}"
        for name, member in list(properties.items())[:_MEMBERS_MAX]
    ]
    return "{ " + ", ".join(members) + (", …" if len(properties) > _MEMBERS_MAX else "") + " }"
