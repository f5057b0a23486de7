"""The StepFlow protocol as JSON-RPC messages, whatever carries them.

One dialect serves every generation, because all of them ignore members that they do not know: each message has what
any generation requires, and our own extensions (`idempotency_key`, `timeout_ms`, `path_params`, `item`; progress and
cancel when both sides announce them). Source: the servers' own packages, 0.2.1 to 0.7.0, as they behave.

- An execute is one line: inputs are spliced in as text, never decoded here. Its id is an integer and comes back in
  the observability ids of call-backs, so that a call-back can be attributed; requests about the server itself have
  string ids.
- An answer is decoded once; an output stays text.

Not here: pipes, processes, and the serving of call-backs.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from component_host.backend import ComponentInfo
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from component_host.backend import HostCall

PROTOCOL_VERSION = 1

FAILURE_DATA_BYTES_MAX = 64 * 1024
"""Details of a failure beyond this are dropped; its message stays."""

FAILURE_MESSAGE_CHARS_MAX = 16 * 1024

ECHOES = (
    "Received message: ",
    "Processing Received: ",
    "Sending response: ",
    "Sent outgoing message: ",
    "Resolved pending request ",
    "Executed component ",
    "Result: ",
)
"""What 0.2.1 to 0.6.0 write to stderr for each message, with all of the payload."""

# JSON-RPC error codes that we send
NOT_FOUND = -32011
INVALID_VALUE = -32012
INVALID_PARAMS = -32602
UNKNOWN_METHOD = -32601
INTERNAL = -32603
GENERAL = -32000

# --- what we send --------------------------------------------------------------------------------------------------


class Observability(Struct):
    trace_id: str
    span_id: str
    run_id: str
    flow_id: str
    step_id: str


class ExecuteParams(Struct):
    component: str
    input: Raw
    step_id: str
    run_id: str
    flow_id: str
    attempt: int
    observability: Observability
    idempotency_key: str
    timeout_ms: int | None
    path_params: dict[str, str]
    item: int


class Request(Struct):
    id: int | str
    method: str
    params: Any
    jsonrpc: str = "2.0"


class Notification(Struct):
    method: str
    params: Any
    jsonrpc: str = "2.0"


class Result(Struct):
    id: int | str
    result: Any
    jsonrpc: str = "2.0"


class ErrorObject(Struct):
    code: int
    message: str


class ErrorReply(Struct):
    id: int | str
    error: ErrorObject
    jsonrpc: str = "2.0"


_encode = msgspec.json.Encoder().encode


def line_of(message: Struct) -> bytes:
    """Encode a message as one line."""
    return _encode(message) + b"\n"


def error_line(request_id: int | str, code: int, message: str) -> bytes:
    """Encode the reply to a request that failed."""
    return line_of(ErrorReply(request_id, ErrorObject(code, message)))


def initialize_params(plugin: str, **capabilities: Any) -> dict[str, Any]:
    """Build the parameters of `initialize` that every generation accepts."""
    return {
        "runtime_protocol_version": PROTOCOL_VERSION,
        "runtimeProtocolVersion": PROTOCOL_VERSION,
        "protocol_prefix": plugin,
        "capabilities": {"progress": True, **capabilities},
    }


class SpanIds:
    """Gives each execute trace and span ids from which its request id can be read again.

    The span id is unique per execute. The trace id is the caller's when it brings one; otherwise it is ours and
    unique too, because a server that exports traces sends call-backs under spans of its own and keeps only the trace.
    """

    __slots__ = ("_span_base", "_trace_prefix")

    def __init__(self, random_63_bits: int) -> None:
        self._span_base = random_63_bits & ~0xFFFF_FFFF | 1 << 62  # room for four thousand million executes
        self._trace_prefix = f"{random_63_bits:016x}"

    def span_id(self, request_id: int) -> str:
        return f"{self._span_base + request_id:016x}"

    def trace_id(self, request_id: int, traceparent: str) -> str:
        if traceparent and (match := _TRACEPARENT.match(traceparent)):
            return match[1]
        return f"{self._trace_prefix}{request_id:016x}"

    def request_id(self, trace_id: str | None, span_id: str | None) -> int | None:
        """Read back the request id; None when neither id is one of ours."""
        try:
            if span_id and 0 < (found := int(span_id, 16) - self._span_base) <= 0xFFFF_FFFF:
                return found
            if trace_id and trace_id.startswith(self._trace_prefix):
                return int(trace_id[16:], 16)
        except ValueError:
            return None
        return None


_TRACEPARENT = re.compile(r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}")


def execute_line(call: HostCall, number: int, spans: SpanIds, request_id: int | str | None = None) -> bytes:
    """Encode `components/execute` for a call; its id is the number that the spans carry, unless it is given."""
    request = call.request
    step_id, run_id, flow_id = request.step_id, request.run_id, request.flow_id
    path_params = dict(request.path_params)
    params = ExecuteParams(
        component=concrete_component(request.component, path_params),
        input=Raw(call.input),
        step_id=step_id,
        run_id=run_id,
        flow_id=flow_id,
        attempt=request.attempt,
        observability=Observability(
            spans.trace_id(number, request.traceparent), spans.span_id(number), run_id, flow_id, step_id
        ),
        idempotency_key=request.key,
        timeout_ms=request.timeout_ms or None,
        path_params=path_params,
        item=request.item,
    )
    return _encode(Request(request_id or number, "components/execute", params)) + b"\n"


def concrete_component(component: str, path_params: dict[str, str]) -> str:
    """Return the name a server knows: with a slash in front, and its path pattern filled in."""
    if not component.startswith("/"):
        component = "/" + component
    if "{" in component:
        for name, value in path_params.items():
            component = component.replace(f"{{*{name}}}", value).replace(f"{{{name}}}", value)
    return component


# --- what we get ---------------------------------------------------------------------------------------------------


class Output(Struct):
    """The result of any request of ours, with the members that one of them may have."""

    output: Raw | UnsetType = UNSET
    components: Raw | UnsetType = UNSET
    capabilities: Raw | UnsetType = UNSET


class ErrorIn(Struct):
    code: int = 0
    message: str = ""
    data: Raw | UnsetType = UNSET


class Line(Struct):
    """A reply (`id` and `result` or `error`), a request (`id` and `method`) or a notification (`method`)."""

    jsonrpc: str = ""
    id: int | str | None = None
    method: str | None = None
    params: Raw | UnsetType = UNSET
    result: Output | UnsetType = UNSET
    error: ErrorIn | UnsetType = UNSET


class Capabilities(Struct, rename="camel"):
    """What a server built with our SDK announces; others announce nothing."""

    progress: bool = False
    cancel: bool = False
    line_bytes_max: int | None = None


class ProgressParams(Struct):
    id: int | str
    done: float | None = None
    total: float | None = None
    message: str | None = None


class _ListedComponent(Struct):
    component: str
    path: str | None = None
    description: str | None = None
    input_schema: Any = None
    output_schema: Any = None


DECODE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)

decode_capabilities = msgspec.json.Decoder(Capabilities).decode
decode_progress = msgspec.json.Decoder(ProgressParams).decode
decode_line = msgspec.json.Decoder(Line).decode
_decode_lines = msgspec.json.Decoder(Line).decode_lines
_decode_listing = msgspec.json.Decoder(list[_ListedComponent]).decode


def decode_listing(components: Raw) -> list[ComponentInfo]:
    """Decode the members of a `components/list` result. Raises one of `DECODE_ERRORS`."""
    infos = []
    for listed in _decode_listing(components):
        path = listed.path or listed.component
        path = path if path.startswith("/") else "/" + path
        infos.append(
            ComponentInfo(listed.component, path, listed.description, listed.input_schema, listed.output_schema)
        )
    return infos


def capabilities_of(reply: Line) -> Capabilities | None:
    """Return what a server announces in its reply to `initialize`; None from one that knows no capabilities."""
    try:
        return decode_capabilities(_member(reply, "capabilities"))
    except DECODE_ERRORS:
        return None


def listing_of(reply: Line) -> list[ComponentInfo]:
    """Decode the reply to `components/list`. Raises one of `DECODE_ERRORS`."""
    return decode_listing(_member(reply, "components"))


def _member(reply: Line, name: str) -> Raw:
    value = UNSET if reply.result is UNSET else getattr(reply.result, name)
    return value if isinstance(value, Raw) else Raw(b"null")


def settle(call: HostCall, reply: Line, plugin: str) -> None:
    """End a call with what its server has answered."""
    if reply.error is not UNSET:
        call.fail(failure_of(reply.error))
    elif reply.result is not UNSET and reply.result.output is not UNSET:
        call.succeed(bytes(reply.result.output))
    else:
        call.fail(Failure(Code.WORKER_ERROR, f"server {plugin!r} answered without a result or an error"))


def decode_lines(text: bytes) -> tuple[list[Line], list[bytes]]:
    """Decode whole lines: the messages, and the lines that are none (what user code printed).

    A message behind a printed text without a newline is found. A reply that is one in name only becomes an error reply,
    so that whoever waits for it is told.
    """
    try:
        return _decode_lines(text), []
    except DECODE_ERRORS:
        pass
    lines: list[Line] = []
    noise: list[bytes] = []
    for piece in text.split(b"\n"):
        line = _salvage(piece)
        if line is not None:
            lines.append(line)
        elif piece.strip():
            noise.append(piece)
    return lines, noise


def _salvage(piece: bytes) -> Line | None:
    for start in (0, piece.find(b'{"jsonrpc"', 1), piece.find(b'{"id"', 1)):
        if start < 0:
            continue
        try:
            return decode_line(piece[start:])
        except DECODE_ERRORS:
            pass
        try:
            tree = msgspec.json.decode(piece[start:])
        except DECODE_ERRORS:
            continue
        if isinstance(tree, dict) and tree.get("jsonrpc") == "2.0" and isinstance(tree.get("id"), (int, str)):
            if isinstance(tree.get("method"), str):
                return Line("2.0", tree["id"], tree["method"])
            return Line("2.0", tree["id"], error=ErrorIn(INTERNAL, "the server's reply does not follow the protocol"))
    return None


_HEAD_ID = re.compile(rb'"id"\s*:\s*(\d{1,18})\b')


def id_in_head(head: bytes) -> int | None:
    """Find the request id in the beginning of a reply that is too long to read."""
    match = _HEAD_ID.search(head)
    return int(match[1]) if match else None


# --- failures ------------------------------------------------------------------------------------------------------

_CODES = {
    -32001: Code.COMPONENT_NOT_FOUND,
    -32003: Code.COMPONENT_FAILED,
    -32100: Code.COMPONENT_FAILED,
    -32602: Code.INVALID_INPUT,
    -32101: Code.INVALID_INPUT,
    -32102: Code.RESOURCE_UNAVAILABLE,
}
"""Error codes of all generations. What is not here is a fault of the protocol: WORKER_ERROR."""

_EXECUTION_PREFIX = "Component execution failed: "
_NOT_FOUND_TWICE = re.compile(r"^Component '(Component '.*' not found)' not found$", re.DOTALL)


class _DeclaredCode(Struct):
    error_code: str = ""


def failure_of(error: ErrorIn) -> Failure:
    """Map an error that a server declared; the text is the component's own, without the server's wrapping.

    A code by name in `data.error_code` (our SDK sends it) goes before the number.
    """
    data = bytes(error.data) if isinstance(error.data, Raw) else b""
    code = _CODES.get(error.code, Code.WORKER_ERROR)
    if data in (b"{}", b"null") or len(data) > FAILURE_DATA_BYTES_MAX:
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
            data = b""  # the older servers repeat the message there
    return Failure(code, message[:FAILURE_MESSAGE_CHARS_MAX], data)
