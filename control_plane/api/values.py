"""Values at the edge of the API: from the client's form to compact JSON, and back.

- Inside, every value is compact, checked JSON text (`stepflow.codec`).
- A number of `google.protobuf.Value` is a double. A double without a fraction, within 64 bits, is read as an
  integer; -0.0 stays.
- Members of a `Struct` have no order and are sorted by name.
- Large values are converted in a thread, off the event loop.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from stepflow.codec import Json, LargeJson, compact, composed_problem, decode, encode
from stepflow.errors import Failure, Invalid
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import runs_pb2, values_pb2
from stepflow.off_loop import off_loop
from stepflow.rpc import call_memory

if TYPE_CHECKING:
    from google.protobuf import struct_pb2

    from stepflow.store.blobs import BlobStore

VALUE_DEPTH_MAX = 30
"""Protobuf parsers stop at 100 nested messages, and each level of a `Value` takes three."""

INTEGER_MAX = 2**63
"""A double without a fraction below this bound converts to a 64-bit integer."""


class Values:
    """Decodes and encodes values; values given as blobs are shared blobs."""

    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs

    async def read(self, value: values_pb2.Value, what: str) -> bytes:
        """Return compact JSON; `what` names the value in errors.

        Raises: Invalid (VALUE_MISSING, NUMBER_NOT_FINITE, JSON_INVALID, JSON_TOO_DEEP, PAYLOAD_TOO_LARGE), NotFound.
        """
        kind = value.WhichOneof("kind")
        match kind:
            case "json":
                return await off_loop(len(value.json), compact, value.json, what=what)
            case "value":
                return await off_loop(value.value.ByteSize(), _compact_struct, value.value, what=what)
            case "blob_id":
                held = await call_memory.hold()
                content = (await self._blobs.get(value.blob_id))[0]
                call_memory.give_back(held - len(content))
                return await off_loop(len(content), compact, content, what=what)
            case _:
                raise Invalid("VALUE_MISSING", f"{what} has no value: set one of value, json and blob_id")

    async def write(self, text: bytes, form: values_pb2.ValueForm) -> values_pb2.Value:
        """Encode compact JSON in the given form. Raises: Invalid (VALUE_TOO_DEEP, NUMBER_TOO_LARGE)."""
        if form == values_pb2.VALUE_FORM_JSON:
            return values_pb2.Value(json=text)
        if form == values_pb2.VALUE_FORM_BLOB_ID:
            return values_pb2.Value(blob_id=await self._blobs.put(text))
        return await off_loop(len(text), _struct_value, text)

    async def outcome(
        self, outcome: Json | Failure | LargeJson, form: values_pb2.ValueForm, *, with_result: bool = True
    ) -> runs_pb2.Outcome | None:
        """Encode the outcome of an item or a step; None for a result without `with_result`."""
        if isinstance(outcome, Failure):
            return runs_pb2.Outcome(failure=await self.failure(outcome, form))
        if isinstance(outcome, LargeJson):
            return runs_pb2.Outcome(result_bytes=outcome.text_bytes) if with_result else None
        return runs_pb2.Outcome(result=await self.write(outcome.raw, form)) if with_result else None

    async def failure(self, failure: Failure, form: values_pb2.ValueForm) -> runs_pb2.FailedOutcome:
        return runs_pb2.FailedOutcome(
            code=pb.FailureCode.Name(failure.code),
            message=failure.message,
            data=await self.write(failure.data, form) if failure.data else None,
        )


def _compact_struct(value: struct_pb2.Value, *, what: str) -> bytes:
    text = encode(_tree(value, what))
    problem = composed_problem(text)
    if problem is not None:
        raise Invalid("PAYLOAD_TOO_LARGE", f"{what} is not accepted: {problem}")
    return text


def _tree(value: struct_pb2.Value, what: str) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            return _number(value.number_value, what)
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return {name: _tree(member, what) for name, member in sorted(value.struct_value.fields.items())}
        case "list_value":
            return [_tree(element, what) for element in value.list_value.values]
        case _:
            return None


def _number(number: float, what: str) -> int | float:
    if not math.isfinite(number):
        raise Invalid("NUMBER_NOT_FINITE", f"{what} has a number that JSON cannot hold: {number}")
    if number.is_integer() and abs(number) < INTEGER_MAX:
        return int(number) or (0 if math.copysign(1, number) > 0 else -0.0)
    return number


def struct_tree(labels: struct_pb2.Struct, what: str) -> dict[str, Any]:
    """Return the members of a `Struct` as a tree, decoded like values."""
    return {name: _tree(member, what) for name, member in sorted(labels.fields.items())}


def fill_struct(labels: struct_pb2.Struct, tree: dict[str, Any]) -> None:
    """Write the members of a tree into a `Struct`. Raises: Invalid `VALUE_TOO_DEEP`."""
    for name, member in tree.items():
        _fill(labels.fields[name], member, 1)


def _struct_value(text: bytes) -> values_pb2.Value:
    value = values_pb2.Value()
    _fill(value.value, decode(text), 0)
    return value


def _fill(value: struct_pb2.Value, tree: Any, depth: int) -> None:
    if depth > VALUE_DEPTH_MAX:
        raise Invalid(
            "VALUE_TOO_DEEP", f"a value is nested deeper than {VALUE_DEPTH_MAX} levels: ask for it as JSON (value_form)"
        )

    if tree is None:
        value.null_value = 0  # type: ignore[assignment]  # the number of the enum's only member
    elif isinstance(tree, bool):
        value.bool_value = tree
    elif isinstance(tree, (int, float)):
        value.number_value = _double(tree)
    elif isinstance(tree, str):
        value.string_value = tree
    elif isinstance(tree, list):
        value.list_value.SetInParent()
        for element in tree:
            _fill(value.list_value.values.add(), element, depth + 1)
    else:
        value.struct_value.SetInParent()
        for name, member in tree.items():
            _fill(value.struct_value.fields[name], member, depth + 1)


def _double(number: float) -> float:
    try:
        return float(number)
    except OverflowError:
        raise Invalid(
            "NUMBER_TOO_LARGE", "a value has an integer that no double can hold: ask for it as JSON (value_form)"
        ) from None


__all__ = ["Values", "fill_struct", "struct_tree"]
