"""Type hints as JSON Schemas, decoders and encoders.

A `Shape` is the schema of a type and the decoder of JSON text. msgspec handles dataclasses, TypedDicts, Structs and
plain types; pydantic is loaded only for types with pydantic models. Unknown members of objects are ignored, as in the
whole protocol.

Error texts name the field (`$.items[0].price`) and the expected type, never the offending value.
"""

from __future__ import annotations

import contextlib
import sys
import typing
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from stepflow.component.errors import InvalidInput
from stepflow.component.reply import HostReply

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

PROBLEMS_MAX = 5
"""Pydantic findings listed in one message."""


class UnsupportedHintError(Exception):
    """A type hint has no JSON form; the text names the type."""


class Shape(Protocol):
    """`schema` is a JSON Schema tree. `decode` raises InvalidInput."""

    schema: dict[str, Any]

    def decode(self, text: bytes | msgspec.Raw) -> Any: ...


def shape_of(hint: Any) -> Shape:
    """Return the shape of a type hint. Raises: UnsupportedHintError."""
    if _contains_pydantic(hint):
        return _PydanticShape(hint)
    try:
        return _MsgspecShape(hint)
    except _PydanticInsideError:
        return _PydanticShape(hint)


def object_of(name: str, members: Mapping[str, Any], defaults: Mapping[str, Any]) -> Shape:
    """Return the shape of an object with the given members; decoding returns a dict of the members present.

    Members with a default may be absent. Raises: UnsupportedHintError.
    """
    hints = {member: typing.NotRequired[hint] if member in defaults else hint for member, hint in members.items()}
    shape = shape_of(_typed_dict(name, hints))

    for member, default in defaults.items():
        with contextlib.suppress(TypeError, msgspec.MsgspecError, KeyError):
            shape.schema["properties"][member].setdefault("default", msgspec.json.decode(encode(default)))

    return shape


def output_schema_of(hint: Any) -> dict[str, Any]:
    """Return the schema of a return type. Raises: UnsupportedHintError."""
    shape = shape_of(hint)
    if isinstance(shape, _PydanticShape):
        return shape.output_schema()
    return shape.schema


class _PydanticInsideError(Exception):
    """A type that msgspec supports contains a pydantic model."""


class _MsgspecShape:
    __slots__ = ("_decode", "schema")

    def __init__(self, hint: Any) -> None:
        try:
            self.schema = _inlined(msgspec.json.schema(hint, schema_hook=_refuse))
            self._decode: Callable[[bytes | msgspec.Raw], Any] = msgspec.json.Decoder(hint).decode
        except (TypeError, ValueError) as error:
            raise UnsupportedHintError(str(error).splitlines()[-1]) from None

    def decode(self, text: bytes | msgspec.Raw) -> Any:
        try:
            return self._decode(text)
        except msgspec.ValidationError as error:
            message, _, path = str(error).partition(" - at `")
            raise InvalidInput(f"invalid input at {path.rstrip('`') or '$'}: {message}") from None
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise InvalidInput(f"the input is not valid JSON: {error}") from None


class _PydanticShape:
    __slots__ = ("_adapter", "schema")

    def __init__(self, hint: Any) -> None:
        import pydantic

        try:
            self._adapter = pydantic.TypeAdapter(hint)
            self.schema = self._adapter.json_schema()
        except pydantic.PydanticUserError as error:
            raise UnsupportedHintError(str(error).splitlines()[0]) from None

    def output_schema(self) -> dict[str, Any]:
        return self._adapter.json_schema(mode="serialization")

    def decode(self, text: bytes | msgspec.Raw) -> Any:
        import pydantic

        try:
            return self._adapter.validate_json(bytes(text))
        except pydantic.ValidationError as error:
            found = error.errors(include_url=False, include_context=False, include_input=False)
            listed = "; ".join(f"{_json_path(problem['loc'])}: {problem['msg']}" for problem in found[:PROBLEMS_MAX])
            more = f"; and {len(found) - PROBLEMS_MAX} more" if len(found) > PROBLEMS_MAX else ""
            raise InvalidInput(f"invalid input at {listed}{more}") from None


def _typed_dict(name: str, hints: dict[str, Any]) -> Any:
    make: Any = typing.TypedDict
    if "pydantic" in sys.modules and sys.version_info < (3, 12):
        # Below 3.12 pydantic refuses the standard library's TypedDict; typing_extensions is a dependency of pydantic.
        import typing_extensions

        make = typing_extensions.TypedDict
    return make(name, hints)


def _contains_pydantic(hint: Any) -> bool:
    if hasattr(hint, "__pydantic_core_schema__"):
        return True
    return any(map(_contains_pydantic, typing.get_args(hint)))


def _refuse(cls: Any) -> dict[str, Any]:
    if hasattr(cls, "__pydantic_core_schema__"):
        raise _PydanticInsideError
    raise TypeError(f"{getattr(cls, '__name__', cls)} has no JSON form")


def _inlined(schema: dict[str, Any]) -> dict[str, Any]:
    """Replace a root `$ref` by the definition: readers expect `type` at the root. Recursive types keep the `$ref`."""
    reference = schema.get("$ref")
    if reference is None or not isinstance(reference, str):
        return schema

    definitions = dict(schema["$defs"])
    root = definitions.pop(reference.removeprefix("#/$defs/"), None)

    if root is None or f'"{reference}"'.encode() in msgspec.json.encode([root, definitions]):
        return schema
    return {**root, "$defs": definitions} if definitions else dict(root)


def _json_path(location: tuple[int | str, ...]) -> str:
    return "$" + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)


def _encode_other(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if dump is not None and hasattr(value, "__pydantic_core_schema__"):
        return dump(mode="json", by_alias=True)
    if isinstance(value, HostReply):
        raise TypeError("a Reply is not a value: `await` it, or call `.result()` on it in a sync component")
    raise TypeError(f"{type(value).__name__} has no JSON form")


_encode = msgspec.json.Encoder(enc_hook=_encode_other).encode


def encode(value: Any) -> bytes:
    """Return compact JSON on one line. Raises: TypeError (no JSON form)."""
    text = _encode(value)
    if b"\n" in text:  # from an author's `msgspec.Raw`: a newline would end the protocol's line
        text = msgspec.json.encode(msgspec.json.decode(text))
    return text
