"""JSON in `google.protobuf.Value`, the form of all values in StepFlow's gRPC protocol.

A Value has a single kind of number, the double. Consequences:
- out, an integer beyond 2**53, not exact as a double, is refused rather than silently changed;
- in, a double without a fraction becomes an integer, up to 2**53; 1.0 and 1 are indistinguishable, -0.0 is kept;
- NaN and infinities have no JSON form and are refused.

Members of a Struct have no order: protobuf's maps are hashed with a seed of the process. They are sorted by name, so
that equal values have equal texts, and equal blob ids, in every process.

Nesting counts differently too: an object takes three levels of messages, an array two, and protobuf's decoders stop at
a hundred. Values too deep for the receiver are refused before sending.

Pure, for hosts and workers alike.
"""

from __future__ import annotations

from math import copysign, isfinite
from typing import Any

from google.protobuf import struct_pb2

from stepflow.errors import Invalid

EXACT_MAX = 2**53
"""Integers up to here, of either sign, are exact as doubles."""

DEPTH_MAX = 96
"""Levels of messages in one Value: a decoder's hundred, less the enclosing messages."""

OBJECT_LEVELS = 3
ARRAY_LEVELS = 2


def fill(value: struct_pb2.Value, tree: Any, subject: str) -> None:
    """Write a JSON tree into `value`. Raises: Invalid NUMBER_TOO_LARGE, VALUE_TOO_DEEP; the text names `subject`."""
    _fill(value, tree, subject, 0)


def _fill(value: struct_pb2.Value, tree: Any, subject: str, depth: int) -> None:
    if isinstance(tree, str):
        value.string_value = tree
    elif isinstance(tree, bool):
        value.bool_value = tree
    elif tree is None:
        value.null_value = struct_pb2.NULL_VALUE
    elif isinstance(tree, float):
        value.number_value = tree
    elif isinstance(tree, int):
        if not -EXACT_MAX <= tree <= EXACT_MAX:
            raise Invalid(
                "NUMBER_TOO_LARGE",
                f"{subject} has the integer {_shown(tree)}: StepFlow over gRPC carries numbers as doubles, which are "
                "exact up to 2**53; pass the number as a text",
            )
        value.number_value = tree

    elif depth > DEPTH_MAX - OBJECT_LEVELS:
        raise Invalid("VALUE_TOO_DEEP", f"{subject} is nested deeper than messages of StepFlow over gRPC can be")
    elif isinstance(tree, dict):
        value.struct_value.SetInParent()
        fields = value.struct_value.fields
        for name, below in tree.items():
            _fill(fields[name], below, subject, depth + OBJECT_LEVELS)
    else:
        value.list_value.SetInParent()
        add = value.list_value.values.add
        for below in tree:
            _fill(add(), below, subject, depth + ARRAY_LEVELS)


def tree_of(value: struct_pb2.Value, subject: str) -> Any:
    """Return a Value as a JSON tree. Raises: Invalid NUMBER_INVALID; the text names `subject`."""
    kind = value.WhichOneof("kind")

    if kind == "string_value":
        return value.string_value
    if kind == "number_value":
        number = value.number_value
        if number.is_integer() and -EXACT_MAX <= number <= EXACT_MAX:
            return int(number) or (0 if copysign(1, number) > 0 else -0.0)
        if not isfinite(number):
            raise Invalid("NUMBER_INVALID", f"{subject} has the number {number}, which JSON cannot carry")
        return number
    if kind == "struct_value":
        return struct_tree(value.struct_value, subject)
    if kind == "list_value":
        return [tree_of(below, subject) for below in value.list_value.values]
    return value.bool_value if kind == "bool_value" else None


def struct_tree(struct: struct_pb2.Struct, subject: str) -> dict[str, Any]:
    """Return a Struct as a JSON object, its members sorted by name. Raises: Invalid NUMBER_INVALID."""
    return {name: tree_of(below, subject) for name, below in sorted(struct.fields.items())}


def _shown(number: int) -> str:
    """Return an integer for an error text, by its length if the decimal form would be too long."""
    return str(number) if number.bit_length() < 256 else f"of {number.bit_length()} bits"
