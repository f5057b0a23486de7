"""The StepFlow protocol as JSON-RPC messages, for any transport.

One dialect serves every generation, because all generations ignore unknown members: each message has the members
required by any of them, and our extensions (`idempotency_key`, `timeout_ms`, `path_params`, `item`; progress, cancel,
log lines and notices of a queue when both sides announce them). Source: the behaviour of the servers' own packages,
0.2.1 to 0.7.0.

- An execute is one line: inputs are spliced in as text, never decoded here. Its id is an integer and comes back in the
  observability ids of call-backs, which attributes them; requests about the server itself have string ids.
- A reply is decoded once; an output stays text.

Not here: pipes, processes, the serving of call-backs, and the mapping of declared errors (`failures`).
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

if TYPE_CHECKING:
    from component_host.backend import HostCall

PROTOCOL_VERSION = 1

ECHOES = (
    "Received message: ",
    "Processing Received: ",
    "Sending response: ",
    "Sent outgoing message: ",
    "Resolved pending request ",
    "Executed component ",
    "Result: ",
)
"""Prefixes of the stderr lines of 0.2.1 to 0.6.0 that quote a whole message."""

# JSON-RPC error codes the host sends
NOT_FOUND = -32011
INVALID_VALUE = -32012
INVALID_PARAMS = -32602
UNKNOWN_METHOD = -32601
INTERNAL = -32603
GENERAL = -32000

# --- outgoing --------------------------------------------------------------------------------------------------


class Observability(Struct):
    trace_id: str
    span_id: str
    run_id: str
    flow_id: str
    step_id: str


class ExecuteRequest(Struct):
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
    """Encode the error reply to a request."""
    return line_of(ErrorReply(request_id, ErrorObject(code, message)))


def initialize_params(plugin: str, **capabilities: Any) -> dict[str, Any]:
    """Build parameters of `initialize` for every generation."""
    return {
        "runtime_protocol_version": PROTOCOL_VERSION,
        "runtimeProtocolVersion": PROTOCOL_VERSION,
        "protocol_prefix": plugin,
        "capabilities": {"progress": True, "queue": True, "log": True, **capabilities},
    }


class SpanIds:
    """Trace and span ids of executes, with the request id encoded in both.

    The span id is unique per execute. The trace id is the caller's, if there is one. Otherwise the trace id is
    generated and unique too: a server that exports traces sends call-backs under spans of its own and keeps only the
    trace.
    """

    __slots__ = ("_span_base", "_trace_prefix")

    def __init__(self, random_63_bits: int) -> None:
        self._span_base = random_63_bits & ~0xFFFF_FFFF | 1 << 62  # room for 2^32 executes
        self._trace_prefix = f"{random_63_bits:016x}"

    def span_id(self, request_id: int) -> str:
        return f"{self._span_base + request_id:016x}"

    def trace_id(self, request_id: int, traceparent: str) -> str:
        if traceparent and (match := _TRACEPARENT.match(traceparent)):
            return match[1]
        return f"{self._trace_prefix}{request_id:016x}"

    def request_id(self, trace_id: str | None, span_id: str | None) -> int | None:
        """Read back the request id; None if both ids are foreign."""
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
    """Encode `components/execute` for a call. `request_id` defaults to `number`, which the spans carry."""
    request = call.request
    step_id, run_id, flow_id = request.step_id, request.run_id, request.flow_id
    path_params = dict(request.path_params)

    params = ExecuteRequest(
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
    """Return the name for the server: with a leading slash, and the path pattern filled in."""
    if not component.startswith("/"):
        component = "/" + component
    if "{" in component:
        for name, value in path_params.items():
            component = component.replace(f"{{*{name}}}", value).replace(f"{{{name}}}", value)
    return component


# --- incoming ---------------------------------------------------------------------------------------------------


class Output(Struct):
    """The result of any request: the union of the members."""

    output: Raw | UnsetType = UNSET
    components: Raw | UnsetType = UNSET
    capabilities: Raw | UnsetType = UNSET


class ErrorIn(Struct):
    code: int = 0
    message: str = ""
    data: Raw | UnsetType = UNSET


class Line(Struct):
    """A reply (`id` and `result` or `error`), a request (`id` and `method`) or a notification (`method`).

    A line with an outcome and a method is a reply: some servers repeat the method of the request.
    """

    jsonrpc: str = ""
    id: int | str | None = None
    method: str | None = None
    params: Raw | UnsetType = UNSET
    result: Output | UnsetType = UNSET
    error: ErrorIn | UnsetType = UNSET

    @property
    def is_reply(self) -> bool:
        return self.method is None or self.result is not UNSET or self.error is not UNSET


class Capabilities(Struct, rename="camel"):
    """Announced by servers built with our SDK; other servers announce nothing."""

    progress: bool = False
    cancel: bool = False
    line_bytes_max: int | None = None


class ProgressParams(Struct):
    id: int | str
    done: float | None = None
    total: float | None = None
    message: str | None = None


class LogParams(Struct):
    """Lines that a component has logged or printed: time in milliseconds, level, text."""

    id: int | str
    lines: list[list[Any]] = []
    dropped: int = 0


class CallIds(Struct):
    """Parameters of the notices of a queue."""

    ids: list[int | str]


DECODE_ERRORS = (msgspec.MsgspecError, UnicodeError, RecursionError)

decode_capabilities = msgspec.json.Decoder(Capabilities).decode
decode_progress = msgspec.json.Decoder(ProgressParams).decode
decode_log = msgspec.json.Decoder(LogParams).decode
decode_call_ids = msgspec.json.Decoder(CallIds).decode
decode_line = msgspec.json.Decoder(Line).decode
decode_lines = msgspec.json.Decoder(Line).decode_lines


class _Head(Struct):
    method: str = ""
    id: Raw | UnsetType = UNSET


_decode_head = msgspec.json.Decoder(_Head).decode

PROGRESS = "components/progress"
QUEUED, BEGUN = "components/queued", "components/begun"
LOG = "components/log"
PROGRESS_BYTES_MAX = 64 * 1024
"""Longest message that is looked at before decoding; longer ones are always decoded."""


def is_progress(text: bytes) -> bool:
    """Return True for a progress report, without decoding it."""
    if len(text) > PROGRESS_BYTES_MAX or b'"components/progress"' not in text:
        return False
    try:
        head = _decode_head(text)
    except DECODE_ERRORS:
        return False
    return head.method == PROGRESS and head.id is UNSET


def is_message(line: Line) -> bool:
    """Return True unless the line is JSON that the server's code has printed."""
    if line.jsonrpc:
        return True
    replies = line.method is None and line.id is not None
    return replies and (line.error is not UNSET or (line.result is not UNSET and line.result.output is not UNSET))


def capabilities_of(reply: Line) -> Capabilities | None:
    """Return the capabilities from a reply to `initialize`; None if the server knows no capabilities."""
    try:
        return decode_capabilities(member_of(reply, "capabilities"))
    except DECODE_ERRORS:
        return None


class ServerRefusedError(Exception):
    """A server answered a question about itself with an error, or not in the protocol."""


def check_reply(method: str, reply: Line) -> None:
    """Raises: ServerRefusedError, if the reply is an error."""
    if reply.error is not UNSET:
        raise ServerRefusedError(f"answered `{method}` with error {reply.error.code}: {reply.error.message[:500]}")


def member_of(reply: Line, name: str) -> Raw:
    """Return a member of a result; `null` if it is absent."""
    value = UNSET if reply.result is UNSET else getattr(reply.result, name)
    return value if isinstance(value, Raw) else Raw(b"null")
