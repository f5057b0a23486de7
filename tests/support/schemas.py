"""Small JSON Schemas whose validation never ends without a bound."""

from __future__ import annotations

from typing import Any

# 3.8 KB with 10^14 paths to one keyword.
BOMB: dict[str, Any] = {
    "$ref": "#/$defs/d0",
    "$defs": {
        **{f"d{i}": {"allOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 10} for i in range(14)},
        "d14": {"type": "string", "minLength": 3},
    },
}


def branching(alternatives: str) -> dict[str, Any]:
    """Return a recursive schema whose cost doubles with each level of the value."""
    again = {"properties": {"a": {"$ref": "#/$defs/n"}}}
    return {"$ref": "#/$defs/n", "$defs": {"n": {alternatives: [again, again]}}}


def nested(depth: int, value: Any = 1) -> Any:
    for _ in range(depth):
        value = {"a": value}
    return value


def unevaluated(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"properties": {"z": {}}, "unevaluatedProperties": False}
    for _ in range(depth):
        schema = {"allOf": [schema], "unevaluatedProperties": False}
    return schema
