"""Messages of the component protocol: shapes, error codes, and encoded lines.

Source: the StepFlow JSON-RPC protocol of stepflow-py 0.7.0 (ids in `observability`). Extensions, announced as
`capabilities` and ignored by other hosts: `idempotency_key`, `timeout_ms`, `item` and `path_params` in
`components/execute`; the notifications `components/progress`, `components/queued`, `components/begun` and
`components/log` (to hosts with the capability `progress`, `queue` or `log` at `initialize`) and `components/cancel`
(from the host).

A line is one JSON object, UTF-8, ended by a newline. Unlisted members are ignored.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from stepflow.component.errors import ComponentError, HostError
from stepflow.component.shapes import encode

LINE_BYTES_MAX = 64 * 1024 * 1024
"""Longest line, in either direction."""

HEAD_BYTES = 1024
"""Search range for the id of an undecodable line; clients write the id first."""

PARSE_ERROR = -32700
INVALID_REQUEST = -32600
METHOD_NOT_FOUND = -32601
INVALID_PARAMS = -32602
COMPONENT_NOT_FOUND = -32001
EXECUTION_FAILED = -32003
EXECUTION_FAILED_LATER = -32100
"""EXECUTION_FAILED for hosts from 0.11 on, for which -32003 is final."""

PROTOCOL_VERSION = 1

Id: TypeAlias = str | int | float

_UNSET_RAW = msgspec.Raw(b"")


class ExecuteParams(msgspec.Struct, gc=False):
    """Parameters of `components/execute`, of all generations; the ids are here or in `observability`."""

    component: str
    input: msgspec.Raw = msgspec.Raw(b"null")
    attempt: int = 1
    observability: msgspec.Raw = _UNSET_RAW
    run_id: str | None = None
    step_id: str | None = None
    flow_id: str | None = None
    item: int | None = None
    idempotency_key: str | None = None
    timeout_ms: int | None = None
    path_params: dict[str, str] | None = None


class Execute(msgspec.Struct, gc=False):
    id: Id
    method: Literal["components/execute"]
    params: ExecuteParams


class Message(msgspec.Struct):
    id: Id | msgspec.UnsetType | None = msgspec.UNSET
    method: str | msgspec.UnsetType = msgspec.UNSET
    params: msgspec.Raw = _UNSET_RAW
    result: msgspec.Raw = _UNSET_RAW
    error: msgspec.Raw = _UNSET_RAW


class HostCapabilities(msgspec.Struct, rename="camel"):
    progress: bool = False
    queue: bool = False
    log: bool = False
    blob_api_url: str | None = None


class InitializeParams(msgspec.Struct, rename={"later_version": "runtimeProtocolVersion"}):
    capabilities: HostCapabilities | None = None
    later_version: int | None = None


class InfoParams(msgspec.Struct):
    component: str


class CancelParams(msgspec.Struct):
    id: Id


class TraceIds(msgspec.Struct):
    """The readable part of `observability`."""

    run_id: str | None = None
    step_id: str | None = None
    flow_id: str | None = None


decode_execute = msgspec.json.Decoder(Execute).decode
decode_message = msgspec.json.Decoder(Message).decode

UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Raised by decoders for text that is not JSON, not of the type, or nested too deeply."""

_encode_id = msgspec.json.Encoder().encode

_ID_IN_HEAD = rb'"id"\s*:\s*("(?:[^"\\\x00-\x1f]|\\["\\/bfnrt])*"|-?\d+)\s*[,}]'

_P = TypeVar("_P")


def params_of(raw: msgspec.Raw, kind: type[_P]) -> _P:
    """Decode `params`; absent ones count as `{}`. Raises: msgspec.MsgspecError."""
    return msgspec.json.decode(raw or b"{}", type=kind)


def why_unreadable(line: bytes, error: Exception) -> tuple[Id | None, int, str]:
    """Return id, code and text of the answer to a line for which `decode_message` raised `error`."""
    try:
        tree = msgspec.json.decode(line)
    except RecursionError:
        return id_in_head(line), INVALID_REQUEST, "the line is nested too deeply"
    except UNREADABLE as syntax:
        return None, PARSE_ERROR, f"the line is not JSON: {syntax}"

    call_id = tree.get("id") if isinstance(tree, dict) else None
    usable = isinstance(call_id, str | int | float) and not isinstance(call_id, bool)
    return call_id if usable else None, INVALID_REQUEST, f"not a JSON-RPC message: {error}"


def id_in_head(line: bytes) -> Id | None:
    """Return the id near the beginning of an undecodable line."""
    found = re.compile(_ID_IN_HEAD).search(line, 0, HEAD_BYTES)  # compiled on use: rare, and slow at the start
    return msgspec.json.decode(found[1]) if found else None


def success_line(call_id: Id, output: Any) -> bytes:
    """Encode the answer of an execute. Raises: ComponentError (no JSON form, or too large)."""
    try:
        text = encode(output)
    except (TypeError, ValueError, RecursionError) as error:
        raise ComponentError(f"its output cannot be written as JSON: {error}") from None

    if len(text) >= LINE_BYTES_MAX:
        raise ComponentError(f"its output has {len(text):,} bytes; the limit is {LINE_BYTES_MAX:,}: put it in a blob")
    return b'{"jsonrpc":"2.0","id":%b,"result":{"output":%b}}\n' % (_encode_id(call_id), text)


def error_line(call_id: Id | None, code: int, message: str, data: dict[str, Any]) -> bytes:
    """Encode an error answer. Raises: TypeError (`data` has no JSON form)."""
    error = {"code": code, "message": message, "data": data}
    return encode({"jsonrpc": "2.0", "id": call_id, "error": error}) + b"\n"


def host_error(error: Any) -> HostError:
    """Convert the `error` of a reply into the component's exception."""
    match error:
        case {"code": int(code), "message": str(message)}:
            return HostError(code, message, error.get("data"))
    return HostError(-32603, "the host answered with a malformed error")
