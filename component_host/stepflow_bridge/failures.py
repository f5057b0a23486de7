"""The outcome of a call from a server's reply; above all, the failure from a declared error."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import msgspec
from msgspec import UNSET, Raw, Struct

from component_host.stepflow_bridge.protocol import DECODE_ERRORS, ErrorIn, Line
from stepflow.errors import Code, Failure
from stepflow.failure_data import trace_bytes, with_stderr

if TYPE_CHECKING:
    from component_host.backend import HostCall
    from component_host.supervision.report import ProcessReport

DATA_BYTES_MAX = 64 * 1024
"""Larger details of a failure are dropped; the message stays."""

MESSAGE_CHARS_MAX = 16 * 1024

_CODES = {
    -32001: Code.COMPONENT_NOT_FOUND,
    -32003: Code.COMPONENT_FAILED,
    -32100: Code.COMPONENT_FAILED,
    -32602: Code.INVALID_INPUT,
    -32101: Code.INVALID_INPUT,
    -32102: Code.RESOURCE_UNAVAILABLE,
}
"""Error codes of all generations. Any other is a protocol fault: WORKER_ERROR."""

_EXECUTION_PREFIX = "Component execution failed: "
_NOT_FOUND_TWICE = re.compile(r"^Component '(Component '.*' not found)' not found$", re.DOTALL)


def settle_call(call: HostCall, reply: Line, plugin: str, process: ProcessReport | None) -> None:
    """End a call with its server's reply. `process`: that of the server, if it was started here."""
    if reply.error is not UNSET:
        failure = failure_of(reply.error)
        if process is not None and failure.code is not Code.COMPONENT_NOT_FOUND and not trace_bytes(failure.data):
            data = with_stderr(failure.data, process.stderr_of_call())
            failure = Failure(failure.code, failure.message, data)
        call.fail(failure)
    elif reply.result is not UNSET and reply.result.output is not UNSET:
        call.succeed(bytes(reply.result.output))
    else:
        call.fail(Failure(Code.WORKER_ERROR, f"server {plugin!r} answered without a result or an error"))


class _DeclaredCode(Struct):
    error_code: str = ""


def failure_of(error: ErrorIn) -> Failure:
    """Map a declared error; the text is the component's own, without the server's wrapping.

    A code by name in `data.error_code`, sent by our SDK, overrides the number.
    """
    data = bytes(error.data) if isinstance(error.data, Raw) else b""
    code = _CODES.get(error.code, Code.WORKER_ERROR)
    if data in (b"{}", b"null") or len(data) > DATA_BYTES_MAX:
        data = b""

    if data:
        try:
            declared = msgspec.json.decode(data, type=_DeclaredCode).error_code
        except DECODE_ERRORS:
            declared = ""
        code = Code.__members__.get(declared, code) or code

    message = error.message.removeprefix(_EXECUTION_PREFIX)
    if code is Code.COMPONENT_NOT_FOUND:
        message = _NOT_FOUND_TWICE.sub(r"\1", message)
        if b"Component '" in data:
            data = b""  # older servers repeat the message there
    return Failure(code, message[:MESSAGE_CHARS_MAX], data)
