"""Messages of StepFlow servers that differ from the protocol, read as far as they can be. Pure.

- Read are: a batch, a message without `jsonrpc` or with another version, an id of another type, an error that is no
  object, `error: null` next to a result.
- A reply whose outcome cannot be read becomes an error reply with its id, so that its call ends.
"""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from component_host.json_lines import BATCH_MAX, as_id, id_in
from component_host.stepflow_bridge.protocol import (
    DECODE_ERRORS,
    INTERNAL,
    ErrorIn,
    Line,
    Output,
    decode_line,
    is_message,
)
from stepflow import codec


class _LooseLine(Struct):
    jsonrpc: Raw | UnsetType = UNSET
    id: Raw | UnsetType = UNSET
    method: Raw | UnsetType = UNSET
    params: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: Raw | UnsetType = UNSET


_decode_loose = msgspec.json.Decoder(_LooseLine).decode
_decode_batch = msgspec.json.Decoder(list[Raw]).decode
_decode_output = msgspec.json.Decoder(Output).decode
_decode_error = msgspec.json.Decoder(ErrorIn).decode


def read_lines(text: bytes) -> list[Line]:
    """Read the messages in a text as far as they can be read; empty if it has none."""
    try:
        texts = _decode_batch(text)[:BATCH_MAX] if text.lstrip()[:1] == b"[" else [Raw(text)]
    except DECODE_ERRORS:
        texts = [Raw(text)]
    return [line for each in texts if (line := _read_line(bytes(each))) is not None]


def unreadable_reply(text: bytes, problem: str) -> Line | None:
    """Return an error reply for text that is no message; None if neither end has an id."""
    found = id_in(text)
    return None if found is None else Line("2.0", found, error=ErrorIn(INTERNAL, problem))


def _read_line(text: bytes) -> Line | None:
    try:
        line = decode_line(text)
    except DECODE_ERRORS:
        pass
    else:
        return line if is_message(line) else None

    try:
        loose = _decode_loose(text)
    except DECODE_ERRORS:
        return unreadable_reply(text, "the server's reply is not valid JSON") if text[:1] in (b"{", b"[") else None

    # 1. A request or notification, or JSON of the server's code.
    request_id, method = as_id(plain(loose.id)), plain(loose.method)
    if isinstance(method, str) and loose.result is UNSET and loose.error is UNSET:
        return Line("2.0", request_id, method, loose.params)
    if request_id is None or (loose.result is UNSET and loose.error is UNSET and loose.jsonrpc is UNSET):
        return None

    # 2. A reply: an error as far as it can be read, or else the result.
    if loose.error is not UNSET and (error := _loose_error(loose.error)) is not None:
        return Line("2.0", request_id, error=error)
    try:
        result = UNSET if loose.result is UNSET else _decode_output(loose.result)
    except DECODE_ERRORS:
        error = ErrorIn(INTERNAL, "the server's reply does not follow the protocol: its `result` is no object")
        return Line("2.0", request_id, error=error)
    return Line("2.0", request_id, result=result)


def _loose_error(text: Raw) -> ErrorIn | None:
    """Read an error as far as it can be read; None if there is none (`null`)."""
    try:
        return _decode_error(text)
    except DECODE_ERRORS:
        pass
    value = plain(text)
    if value is None:
        return None
    if not isinstance(value, dict):
        return ErrorIn(INTERNAL, f"the server's reply is an error outside the protocol: {_said(value)}")

    try:
        code = int(value.get("code", INTERNAL))
    except (TypeError, ValueError, OverflowError):
        code = INTERNAL
    message = value.get("message")
    data = Raw(codec.encode(value["data"])) if value.get("data") is not None else UNSET
    return ErrorIn(code, message if isinstance(message, str) else _said(value), data)


def _said(value: Any) -> str:
    return value if isinstance(value, str) else codec.encode(value).decode()


def plain(text: Raw | UnsetType) -> Any:
    """Decode a member; None if it is absent or cannot be decoded."""
    try:
        return None if text is UNSET else msgspec.json.decode(text)
    except DECODE_ERRORS:
        return None


__all__ = ["plain", "read_lines", "unreadable_reply"]
