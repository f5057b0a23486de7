"""Requests as they arrive: decoded, or refused as malformed.

- A request that is no message of its type is refused: REQUEST_MALFORMED.
- A request of the mesh's own API whose enum has an unknown number is refused: ENUM_UNKNOWN. Later versions may know the
  number; the default in its place would be a wrong answer. Enums inside nested messages are checked by their readers,
  and foreign protocols by their bridges.

Not here: what a request asks for.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError, Message

from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Callable

    from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

CHECKED_PACKAGE = "stepflow.mesh.v1."


class MalformedRequest(Invalid):
    """A request that no client of this version sends."""


def decode_request(method: str, decode: Callable[[bytes], Any] | None, data: bytes) -> Any:
    """Decode a request with the method's own decoder. Raises: MalformedRequest REQUEST_MALFORMED, ENUM_UNKNOWN."""
    if decode is None:
        return data
    try:
        request = decode(data)
    except DecodeError:  # without its text, which may quote the request
        raise MalformedRequest(
            "REQUEST_MALFORMED", f"a request of {method} is not a message of its type; check the client's version"
        ) from None
    if isinstance(request, Message):
        _check_enums(request)
    return request


def _check_enums(request: Message) -> None:
    for field, kind in _enums_of(request.DESCRIPTOR):
        value = getattr(request, field.name)
        for number in (value,) if isinstance(value, int) else value:
            if number not in kind.values_by_number:
                raise MalformedRequest(
                    "ENUM_UNKNOWN",
                    f"`{field.name}` is {number}, which is no {kind.name} of this version",
                    field=field.name,
                )


@cache
def _enums_of(message: Descriptor) -> tuple[tuple[FieldDescriptor, EnumDescriptor], ...]:
    """Return the enum fields to check, with their types."""
    if not message.full_name.startswith(CHECKED_PACKAGE):
        return ()
    return tuple((field, field.enum_type) for field in message.fields if field.enum_type is not None)


__all__ = ["MalformedRequest", "decode_request"]
