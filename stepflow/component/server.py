"""`ComponentServer`: the JSON-RPC protocol of a component server, independent of the transport.

Lines enter through `receive` and leave through `send`; `wire.py` has the messages, `in_flight.py` runs the calls.

Invariants:
- Each request is answered exactly once, malformed requests included; notifications never are.
- All methods belong to the loop's thread.

Hot path of an execute: one typed decode of the line, one conversion of the input, one encoding of id and output.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from stepflow.component.call import LOG
from stepflow.component.host_requests import HostRequests
from stepflow.component.in_flight import CallsInFlight
from stepflow.component.logs import LogReports
from stepflow.component.loop_inbox import LoopInbox
from stepflow.component.progress import ProgressReports
from stepflow.component.queue_notices import QueueNotices
from stepflow.component.shapes import encode
from stepflow.component.threads import Threads
from stepflow.component.wire import (
    COMPONENT_NOT_FOUND,
    EXECUTION_FAILED,
    INVALID_PARAMS,
    INVALID_REQUEST,
    LINE_BYTES_MAX,
    METHOD_NOT_FOUND,
    PROTOCOL_VERSION,
    UNREADABLE,
    CancelParams,
    ExecuteParams,
    Id,
    InfoParams,
    InitializeParams,
    Message,
    decode_execute,
    decode_message,
    error_line,
    id_in_head,
    params_of,
    why_unreadable,
)

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from stepflow.component.conversations import Conversation
    from stepflow.component.registry import Registry


class ComponentServer:
    """Answers the lines of one host.

    `send` receives single lines with their newline, on the loop's thread only. `show_tracebacks` adds the traceback of
    a failed component to the error's data.

    Over HTTP each request has a server, with a `send_event` separate from the answer, shared threads, request ids
    under a unique prefix, and the methods (`translate`) and error code of later hosts.
    """

    def __init__(
        self,
        registry: Registry,
        send: Callable[[bytes], None],
        *,
        send_event: Callable[[bytes], None] | None = None,
        threads: Threads | None = None,
        request_id_prefix: str = "c",
        translate: Callable[[Conversation[Any]], Conversation[Any]] | None = None,
        wants_progress: bool = False,
        wants_queue_notices: bool = False,
        wants_logs: bool = False,
        failed_code: int = EXECUTION_FAILED,
        show_tracebacks: bool = False,
    ) -> None:
        self._registry = registry
        self._send = send

        inbox = LoopInbox()
        threads = threads or Threads()
        send_event = send_event or send
        self._requests = HostRequests(inbox, threads, send_event, id_prefix=request_id_prefix, translate=translate)
        self._progress = ProgressReports(inbox, send_event, wanted=wants_progress)
        self._logs = LogReports(inbox, send_event, wanted=wants_logs)
        self._notices = QueueNotices(inbox, threads, send_event, wanted=wants_queue_notices)
        self._calls = CallsInFlight(
            inbox,
            threads,
            self._requests,
            self._progress,
            self._logs,
            self._notices,
            send,
            failed_code=failed_code,
            show_tracebacks=show_tracebacks,
        )

    def receive(self, line: bytes) -> None:
        """Process one line without its newline. Never raises for bad contents."""
        try:
            message = decode_execute(line)
        except UNREADABLE:
            self._receive_other(line)
            return
        self._execute(message.id, message.params)

    def refuse_line(self, head: bytes, size: int) -> None:
        """Answer a line of `size` bytes over the limit; `head`, the beginning, usually contains the id."""
        self._error(id_in_head(head), INVALID_REQUEST, f"the line has {size:,} bytes; the limit is {LINE_BYTES_MAX:,}")

    def awaits(self, request_id: str) -> bool:
        """Return True if a component's request with this id is unanswered."""
        return self._requests.awaits(request_id)

    def tasks(self) -> list[asyncio.Task[None]]:
        """Return the tasks of async calls in flight."""
        return self._calls.tasks()

    def _receive_other(self, line: bytes) -> None:
        """Process a line other than a well-formed execute."""
        if not line.strip():
            return

        try:
            message = decode_message(line)
        except UNREADABLE as error:
            self._error(*why_unreadable(line, error))
            return
        self._dispatch(message)

    def _dispatch(self, message: Message) -> None:
        method, call_id = message.method, message.id

        if method is msgspec.UNSET:
            if isinstance(call_id, str) and (message.result or message.error):
                self._requests.take_reply(call_id, message)
            elif call_id is not msgspec.UNSET and not (message.result or message.error):
                self._error(call_id, INVALID_REQUEST, "neither a request (`method`) nor a reply (`result` or `error`)")

        elif call_id is msgspec.UNSET:
            self._take_notification(str(method), message.params)
        elif call_id is None:
            self._error(None, INVALID_REQUEST, f"{method}: the id of a request must be a string or a number")
        else:
            self._answer_request(call_id, str(method), message.params)

    def _answer_request(self, call_id: Id, method: str, params: msgspec.Raw) -> None:
        try:
            match method:
                case "initialize":
                    self._initialize(call_id, params_of(params, InitializeParams))
                case "components/list":
                    self._result(call_id, {"components": [each.describe() for each in self._registry.components()]})
                case "components/info":
                    self._describe_component(call_id, params_of(params, InfoParams).component)
                case "components/execute":
                    self._execute(call_id, params_of(params, ExecuteParams))
                case _:
                    self._error(call_id, METHOD_NOT_FOUND, f"unknown method {method!r}")

        except UNREADABLE as error:
            self._error(call_id, INVALID_PARAMS, f"{method}: bad params: {error}")

    def _take_notification(self, method: str, params: msgspec.Raw) -> None:
        if method == "components/cancel":
            try:
                self._calls.cancel_call(params_of(params, CancelParams).id)
            except UNREADABLE:
                LOG.warning("a components/cancel without a proper id was ignored")

    def _initialize(self, call_id: Id, params: InitializeParams) -> None:
        capabilities = params.capabilities
        self._progress.wanted = capabilities is not None and capabilities.progress
        self._notices.wanted = capabilities is not None and capabilities.queue
        self._logs.wanted = capabilities is not None and capabilities.log

        result: dict[str, Any] = {"server_protocol_version": PROTOCOL_VERSION}
        if params.later_version is not None:  # hosts from 0.10 on read the camel-case members
            result = {**result, "serverProtocolVersion": PROTOCOL_VERSION, "supportsBlobRefs": False}
        self._result(call_id, {**result, "capabilities": {"progress": True, "cancel": True}})

    def _describe_component(self, call_id: Id, path: str) -> None:
        found = self._registry.find(path)
        if found is None:
            self._refuse_unknown(call_id, path)
        else:
            self._result(call_id, {"info": found[0].describe()})

    def _execute(self, call_id: Id, params: ExecuteParams) -> None:
        found = self._registry.find(params.component)
        if found is None:
            self._refuse_unknown(call_id, params.component)
            return

        if self._calls.has_call(call_id):
            self._error(call_id, INVALID_REQUEST, f"the id {call_id!r} is that of a call in flight")
            return

        component, matched = found
        self._calls.start_call(call_id, params, component, matched or params.path_params or {})

    def _result(self, call_id: Id, result: Any) -> None:
        self._send(encode({"jsonrpc": "2.0", "id": call_id, "result": result}) + b"\n")

    def _error(self, call_id: Any, code: int, message: str, data: dict[str, Any] | None = None) -> None:
        self._send(error_line(None if call_id is msgspec.UNSET else call_id, code, message, data or {}))

    def _refuse_unknown(self, call_id: Id, path: str) -> None:
        data = {"exception_type": "ComponentNotFound", "error_code": "COMPONENT_NOT_FOUND", "component": path}
        message = f"there is no component {path}{self._registry.suggestion_for(path)}"
        self._error(call_id, COMPONENT_NOT_FOUND, message, data)
