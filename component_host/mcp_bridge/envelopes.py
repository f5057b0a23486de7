"""JSON-RPC envelopes as servers write them, and as the SDK accepts them.

The SDK's strict models lose a message that differs in its envelope, and a lost answer leaves its call open. Here a
message that can be understood becomes a sound one, and an answer that cannot becomes an error with its id.

| written | read as |
|---|---|
| no `jsonrpc`, or another version | the same message |
| `id` as text or as a double | the id |
| `error` that is no object; `code` that is no integer; `message` that is no text | the error, as far as readable |
| `error: null` next to a result | the result |
| a `result` that is no object; neither result nor error | an error of the answer |
| a batch | its messages |

Pure. Imports the SDK: import it late.
"""

from __future__ import annotations

from typing import Any

import mcp_types
import msgspec
from pydantic import ValidationError

from component_host.json_lines import BATCH_MAX, as_id, id_in
from component_host.mcp_bridge.link import MESSAGE_BYTES_MAX
from stepflow import codec
from stepflow.errors import Invalid

_MEMBERS = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
_validate = mcp_types.jsonrpc_message_adapter.validate_python


def read_messages(text: bytes, default_id: int | str | None = None) -> list[mcp_types.JSONRPCMessage]:
    """Read the messages in a JSON text; an unusable answer becomes an error with its id. Empty: the text has none.

    `default_id`: of an answer that has no id.
    """
    try:
        tree = codec.parse(text, what="the server's reply", bytes_max=MESSAGE_BYTES_MAX)
    except Invalid as error:
        answer = bad_answer(text, error.message)
        return [] if answer is None else [answer]
    try:
        return [_validate(_without_method(tree), by_name=False)]
    except ValidationError:
        return _repaired(tree, default_id)


def _without_method(tree: Any) -> Any:
    """Return an answer without the method that some servers repeat in it; any other tree as it is."""
    if isinstance(tree, dict) and "method" in tree and ("result" in tree or "error" in tree):
        return {name: member for name, member in tree.items() if name != "method"}
    return tree


def bad_answer(text: bytes, problem: str) -> mcp_types.JSONRPCError | None:
    """Turn an unreadable answer into an error; None if neither end of the text has an id."""
    found = id_in(text)
    return None if found is None else _error(found, mcp_types.INTERNAL_ERROR, problem)


def repaired_answer(text: bytes, request_id: int | str, *, whole: bool = False) -> bytes | None:
    """Return the answer to `request_id` in a message of its own response; None if the message is as it should be.

    `whole`: the response has nothing else, so that without an answer in it the request is answered with an error.
    """
    if _is_sound(text, request_id):
        return None

    answers = [message for message in read_messages(text, request_id) if isinstance(message, _ANSWERS)]
    if answers:
        answer = next((each for each in answers if each.id == request_id), answers[0])
        answer.id = request_id
    elif whole:
        answer = _error(request_id, mcp_types.PARSE_ERROR, "the server's answer is no JSON-RPC message")
    else:
        return None
    return answer.model_dump_json(by_alias=True, exclude_unset=True).encode()


_ANSWERS = (mcp_types.JSONRPCResponse, mcp_types.JSONRPCError)


def answered_id(message: mcp_types.JSONRPCMessage) -> int | str | None:
    """Return the id of the request that a message answers; None if it answers none."""
    return message.id if isinstance(message, _ANSWERS) else None


class _ErrorIn(msgspec.Struct):
    code: int
    message: str


class _Answer(msgspec.Struct):
    jsonrpc: str = ""
    id: int | str | None = None
    method: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    result: dict[str, msgspec.Raw] | msgspec.UnsetType = msgspec.UNSET
    error: _ErrorIn | msgspec.UnsetType = msgspec.UNSET


_decode_answer = msgspec.json.Decoder(_Answer).decode


def _is_sound(text: bytes, request_id: int | str) -> bool:
    try:
        answer = _decode_answer(text)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return False
    has_outcome = (answer.result is msgspec.UNSET) != (answer.error is msgspec.UNSET)
    return answer.jsonrpc == "2.0" and answer.id == request_id and has_outcome and answer.method is msgspec.UNSET


def _repaired(tree: Any, default_id: int | str | None) -> list[mcp_types.JSONRPCMessage]:
    """Read the messages of a tree that is not a sound message: one, or a batch."""
    batch = tree[:BATCH_MAX] if isinstance(tree, list) else [tree]
    return [message for each in batch if isinstance(each, dict) and (message := _repair(each, default_id)) is not None]


def _repair(tree: dict[str, Any], default_id: int | str | None) -> mcp_types.JSONRPCMessage | None:
    """Read one message as far as it can be read; None if it is no message."""
    tree = _without_method(tree)
    if "jsonrpc" not in tree and not _MEMBERS.issuperset(tree):
        return None  # JSON of the server's code

    # 1. A request or notification.
    if isinstance(tree.get("method"), str):
        try:
            return _validate({**tree, "jsonrpc": "2.0"}, by_name=False)
        except ValidationError:
            return None

    # 2. An answer: its id, then its outcome.
    request_id = as_id(tree.get("id"))
    if request_id is None:
        request_id = default_id
    if request_id is None:
        return None
    error, result = tree.get("error"), tree.get("result")
    if error is not None:
        return _read_error(request_id, error)
    if isinstance(result, dict):
        return mcp_types.JSONRPCResponse(jsonrpc="2.0", id=request_id, result=result)
    problem = "whose `result` is no object" if "result" in tree else "without a result or an error"
    return _error(request_id, mcp_types.INTERNAL_ERROR, f"the server sent an answer {problem}")


def _read_error(request_id: int | str, error: Any) -> mcp_types.JSONRPCError:
    members = error if isinstance(error, dict) else {"message": error}

    code = members.get("code")
    try:
        number = int(code) if isinstance(code, int | float | str) else mcp_types.INTERNAL_ERROR
    except (ValueError, OverflowError):
        number = mcp_types.INTERNAL_ERROR

    message = members.get("message")
    if not isinstance(message, str):
        said = members if message is None else message
        message = codec.encode(said).decode() if said else "the server sent an error without a message"
    return _error(request_id, number, message, members.get("data"))


def _error(request_id: int | str, code: int, message: str, data: Any = None) -> mcp_types.JSONRPCError:
    error = mcp_types.ErrorData(code=code, message=message)
    if data is not None:
        error.data = data
    return mcp_types.JSONRPCError(jsonrpc="2.0", id=request_id, error=error)


__all__ = ["answered_id", "bad_answer", "read_messages", "repaired_answer"]
