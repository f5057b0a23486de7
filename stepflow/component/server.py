"""A component server without its transport: lines in, lines out, calls in between; `wire.py` has the messages.

Invariants:
- Each request is answered exactly once, also a bad one; a notification never.
- Everything but the functions of sync components runs on the loop's thread; other threads hand their results over
  with `_post`, and the loop is woken once for all that has gathered.
- A call is in `_calls` from its line until its answer.

On the hot path: one typed decode of the line, one conversion of the input, one encoding of the output; the id is the
only other thing that is encoded.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

import msgspec

from stepflow.component.context import (
    CallCancelled,
    ComponentError,
    Conversation,
    HostError,
    Reply,
    ResourceUnavailable,
)
from stepflow.component.shapes import encode
from stepflow.component.threads import Threads
from stepflow.component.wire import (
    COMPONENT_NOT_FOUND,
    EXECUTION_FAILED,
    INVALID_PARAMS,
    INVALID_REQUEST,
    LINE_BYTES_MAX,
    METHOD_NOT_FOUND,
    PARSE_ERROR,
    PROTOCOL_VERSION,
    UNREADABLE,
    CancelParams,
    ExecuteParams,
    Id,
    InfoParams,
    InitializeParams,
    Message,
    Trace,
    decode_execute,
    decode_message,
    error_line,
    host_error,
    id_in_head,
    params_of,
    success_line,
    why_unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from stepflow.component.registry import Component, Registry

T = TypeVar("T")

_LOG = logging.getLogger("stepflow.component")

PROGRESS_INTERVAL_S = 0.05
"""At most one progress message a call in this time: a loop over a million rows must not flood the host."""

MESSAGE_CHARS_MAX = 16 * 1024
"""Of the text of a failure, which is stored with the run."""

Progress: TypeAlias = tuple[float, float, str]
"""Done, total, message."""


class Call:
    """One execute in flight: what `Context` shows, and the way back to the server."""

    __slots__ = (
        "_trace",
        "cancelled",
        "component",
        "conversations",
        "id",
        "params",
        "path_params",
        "progress",
        "progress_noted",
        "progress_sent_at",
        "received_at",
        "server",
        "task",
    )

    def __init__(
        self, server: Server, call_id: Id, params: ExecuteParams, component: Component, path_params: Mapping[str, str]
    ) -> None:
        self.server = server
        self.id = call_id
        self.params = params
        self.component = component
        self.path_params = path_params
        self.cancelled = False
        self.received_at = time.monotonic()
        self.task: asyncio.Task[None] | None = None
        self.progress: deque[Progress] | None = None
        """The latest that was not sent, if any; a deque because threads put and the loop takes."""
        self.progress_noted = False
        self.progress_sent_at = 0.0
        self.conversations: set[str] | None = None
        self._trace: Trace | None = None

    def trace(self, name: Literal["run_id", "step_id", "flow_id"]) -> str | None:
        """Return an id from the parameters, or else from `observability`."""
        value: str | None = getattr(self.params, name)
        if value is not None:
            return value
        if self._trace is None:
            try:
                self._trace = msgspec.json.decode(self.params.observability, type=Trace)
            except UNREADABLE:  # absent, null, or of a shape that is not ours to judge
                self._trace = Trace()
        found: str | None = getattr(self._trace, name)
        return found

    def ask(self, conversation: Conversation[T]) -> Reply[T]:
        return self.server.ask(self, conversation)

    def report_progress(self, done: float, total: float, message: str) -> None:
        self.server.report_progress(self, (done, total, message))

    def log(self) -> logging.LoggerAdapter[logging.Logger]:
        where = f"{self.component.path} step={self.trace('step_id')} run={self.trace('run_id')}"
        return _CallLog(_LOG, {"where": where})


class _CallLog(logging.LoggerAdapter[logging.Logger]):
    """Puts the component and the step in front of each line."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        where = self.extra["where"] if self.extra else ""
        return f"[{where}] {msg}", kwargs


class _Asked:
    """A conversation with the host that waits for an answer."""

    __slots__ = ("call", "conversation", "future")

    def __init__(self, call: Call, conversation: Conversation[Any], future: Future[Any]) -> None:
        self.call = call
        self.conversation = conversation
        self.future = future


class Server:
    """Answers the lines of one host.

    `send` takes one line with its newline; it is called on the loop's thread only. `show_tracebacks` puts the
    traceback of a failed component into the error's data.

    Over HTTP there is one for each request, and what it asks the host goes another way than its answer: hence
    `send_event`, threads that are shared, ids that begin with `ask_prefix`, and a host with later words and numbers.
    """

    def __init__(
        self,
        registry: Registry,
        send: Callable[[bytes], None],
        *,
        send_event: Callable[[bytes], None] | None = None,
        threads: Threads | None = None,
        ask_prefix: str = "c",
        words: Callable[[Conversation[Any]], Conversation[Any]] | None = None,
        wants_progress: bool = False,
        failed_code: int = EXECUTION_FAILED,
        show_tracebacks: bool = False,
    ) -> None:
        self._registry = registry
        self._send = send
        self._send_event = send_event or send
        self._ask_prefix = ask_prefix
        self._words = words
        self._failed_code = failed_code
        self._show_tracebacks = show_tracebacks
        self._loop = asyncio.get_running_loop()
        self._thread_id = threading.get_ident()
        self._threads = threads or Threads()
        self._calls: dict[Id, Call] = {}
        self._asked: dict[str, _Asked] = {}
        self._asked_count = 0
        self._posted: deque[Callable[[], None]] = deque()
        self._woken = False
        self._wants_progress = wants_progress
        self._progress_due: dict[Id, Call] = {}
        self._progress_timer: asyncio.TimerHandle | None = None

    # Lines from the host

    def receive(self, line: bytes) -> None:
        """Take one line without its newline. Never raises for what it holds."""
        try:
            message = decode_execute(line)
        except UNREADABLE:
            self._receive_other(line)
            return
        self._execute(message.id, message.params)

    def refuse_line(self, head: bytes, size: int) -> None:
        """Answer a line that was too long to be kept; `head` is its beginning, where the id usually stands."""
        self._error(id_in_head(head), INVALID_REQUEST, f"the line has {size:,} bytes; the limit is {LINE_BYTES_MAX:,}")

    def _receive_other(self, line: bytes) -> None:
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
                self._answered(call_id, message)
            elif call_id is not msgspec.UNSET and not (message.result or message.error):
                self._error(call_id, INVALID_REQUEST, "neither a request (`method`) nor a reply (`result` or `error`)")
        elif call_id is msgspec.UNSET:
            self._notified(str(method), message.params)
        elif call_id is None:
            self._error(None, INVALID_REQUEST, f"{method}: the id of a request must be a string or a number")
        else:
            self._requested(call_id, str(method), message.params)

    def _requested(self, call_id: Id, method: str, params: msgspec.Raw) -> None:
        try:
            match method:
                case "initialize":
                    self._initialize(call_id, params_of(params, InitializeParams))
                case "components/list":
                    self._result(call_id, {"components": [each.describe() for each in self._registry.components()]})
                case "components/info":
                    self._info(call_id, params_of(params, InfoParams).component)
                case "components/execute":
                    self._execute(call_id, params_of(params, ExecuteParams))
                case _:
                    self._error(call_id, METHOD_NOT_FOUND, f"unknown method {method!r}")
        except UNREADABLE as error:
            self._error(call_id, INVALID_PARAMS, f"{method}: bad params: {error}")

    def _notified(self, method: str, params: msgspec.Raw) -> None:
        if method == "components/cancel":
            try:
                self._cancel(params_of(params, CancelParams).id)
            except UNREADABLE:
                _LOG.warning("a components/cancel without a proper id was ignored")

    def _initialize(self, call_id: Id, params: InitializeParams) -> None:
        self._wants_progress = params.capabilities is not None and params.capabilities.progress
        result: dict[str, Any] = {"server_protocol_version": PROTOCOL_VERSION}
        if params.later_version is not None:  # from 0.10 on hosts want the other spelling
            result = {**result, "serverProtocolVersion": PROTOCOL_VERSION, "supportsBlobRefs": False}
        self._result(call_id, {**result, "capabilities": {"progress": True, "cancel": True}})

    def _info(self, call_id: Id, path: str) -> None:
        found = self._registry.find(path)
        if found is None:
            self._not_found(call_id, path)
        else:
            self._result(call_id, {"info": found[0].describe()})

    # Calls

    def _execute(self, call_id: Id, params: ExecuteParams) -> None:
        found = self._registry.find(params.component)
        if found is None:
            self._not_found(call_id, params.component)
            return
        if call_id in self._calls:
            self._error(call_id, INVALID_REQUEST, f"the id {call_id!r} is that of a call in flight")
            return
        component, matched = found
        call = Call(self, call_id, params, component, matched or params.path_params or {})
        self._calls[call_id] = call
        if component.mode == "async":
            call.task = self._loop.create_task(self._run_async(call))
        elif component.mode == "thread":
            self._threads.submit(call)
        else:
            self._settle(call, self._run_inline(call))

    def _run_inline(self, call: Call) -> bytes:
        try:
            return success_line(call.id, call.component.function(**call.component.arguments(call)))
        except BaseException as error:  # whatever a component does, its call is answered
            return self._failure(call, error)

    async def _run_async(self, call: Call) -> None:
        try:
            line = success_line(call.id, await call.component.function(**call.component.arguments(call)))
        except BaseException as error:  # the same; a cancelled call is answered too
            line = self._failure(call, error)
        self._settle(call, line)

    def run_sync(self, call: Call) -> None:
        """Runs in a thread of the pool."""
        if call.cancelled:
            line = self._failure(call, CallCancelled("the call was cancelled before it began"))
        else:
            line = self._run_inline(call)
        self._post(lambda: self._settle_thread(call, line))

    def _settle_thread(self, call: Call, line: bytes) -> None:
        self._threads.finished()
        self._settle(call, line)

    def _settle(self, call: Call, line: bytes) -> None:
        if call.progress:  # the last word on progress comes before the result
            self._send_progress(call)
        self._progress_due.pop(call.id, None)
        del self._calls[call.id]
        self._send(line)

    def _cancel(self, call_id: Id) -> None:
        call = self._calls.get(call_id)
        if call is None or call.cancelled:
            return
        call.cancelled = True
        if call.task is not None:
            # not at once: a task that is cancelled before its first step never runs, and would not answer
            self._loop.call_soon(call.task.cancel)
        for request_id in tuple(call.conversations or ()):  # a thread that waits for the host must not wait on
            asked = self._asked.pop(request_id)
            self._fail(asked, CallCancelled("the call was cancelled while it waited for the host"))

    def _failure(self, call: Call, error: BaseException) -> bytes:
        """Return the error line of a failed call; from any thread. Never raises, whatever the author's exception is."""
        message, data = _described(call, error)
        if self._show_tracebacks:
            import traceback

            data["traceback"] = _clean("".join(traceback.format_exception(error)))
        _LOG.debug("component %s failed: %s", call.component.path, data["exception_type"], exc_info=error)
        try:
            line = error_line(call.id, self._failed_code, message, data)
            if len(line) <= LINE_BYTES_MAX:
                return line
        except Exception:  # the details have no JSON form
            _LOG.debug("the data of a ComponentError could not be written as JSON", exc_info=True)
        data.pop("details", None)
        return error_line(call.id, self._failed_code, message, data)

    # Progress

    def report_progress(self, call: Call, progress: Progress) -> None:
        """From any thread. Keeps the latest of each call and sends it when its moment has come."""
        if not self._wants_progress:
            return
        if call.progress is None:
            call.progress = deque(maxlen=1)
        call.progress.append(progress)
        if not call.progress_noted:  # after the append, as the loop clears it before it takes: none stays behind
            call.progress_noted = True
            self._on_loop(lambda: self._progress_noted(call))

    def _progress_noted(self, call: Call) -> None:
        if self._calls.get(call.id) is not call:
            return
        if self._loop.time() - call.progress_sent_at >= PROGRESS_INTERVAL_S:
            self._send_progress(call)
            return
        self._progress_due[call.id] = call
        if self._progress_timer is None:
            self._progress_timer = self._loop.call_later(PROGRESS_INTERVAL_S, self._send_due_progress)

    def _send_due_progress(self) -> None:
        self._progress_timer = None
        due = list(self._progress_due.values())
        self._progress_due.clear()
        for call in due:
            self._send_progress(call)

    def _send_progress(self, call: Call) -> None:
        call.progress_noted = False
        if not call.progress:
            return
        done, total, message = call.progress.pop()
        call.progress_sent_at = self._loop.time()
        params = {"id": call.id, "done": done, "total": total, "message": message}
        self._send_event(encode({"jsonrpc": "2.0", "method": "components/progress", "params": params}) + b"\n")

    # Requests to the host

    def ask(self, call: Call, conversation: Conversation[T]) -> Reply[T]:
        """From any thread. Start a conversation; its first request leaves at once."""
        future: Future[T] = Future()
        asked = _Asked(call, self._words(conversation) if self._words else conversation, future)
        self._on_loop(lambda: self._advance(asked, None))
        return Reply(future, self._is_loop_thread, lambda: self._threads.lent(self._post))

    def _advance(self, asked: _Asked, result: Any, error: HostError | None = None) -> None:
        """Give the conversation what the host said; send its next request or settle it."""
        if asked.call.cancelled:
            self._fail(asked, CallCancelled("the call was cancelled"))
            return
        try:
            method, params = asked.conversation.throw(error) if error else asked.conversation.send(result)
            self._request(asked, method, params)
        except StopIteration as end:
            if asked.future.set_running_or_notify_cancel():
                asked.future.set_result(end.value)
        except Exception as problem:  # it belongs to the component that asked
            self._fail(asked, problem)

    def _request(self, asked: _Asked, method: str, params: dict[str, Any]) -> None:
        self._asked_count += 1
        request_id = f"{self._ask_prefix}{self._asked_count}"
        observability = asked.call.params.observability
        if observability:
            params["observability"] = observability
        line = encode({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
        if len(line) >= LINE_BYTES_MAX:
            raise HostError(INVALID_PARAMS, f"{method}: {len(line):,} bytes; the limit is {LINE_BYTES_MAX:,}")
        self._asked[request_id] = asked
        if asked.call.conversations is None:
            asked.call.conversations = set()
        asked.call.conversations.add(request_id)
        self._send_event(line + b"\n")

    def awaits(self, request_id: str) -> bool:
        """Say whether the answer to a request with this id would be for somebody."""
        return request_id in self._asked

    def _answered(self, request_id: str, message: Message) -> None:
        asked = self._asked.pop(request_id, None)
        if asked is None:  # of a call that was cancelled, or none of ours
            return
        assert asked.call.conversations is not None
        asked.call.conversations.discard(request_id)
        try:
            if message.error and bytes(message.error) != b"null":
                self._advance(asked, None, host_error(msgspec.json.decode(message.error)))
            else:
                self._advance(asked, msgspec.json.decode(message.result))
        except UNREADABLE as error:
            self._advance(asked, None, HostError(PARSE_ERROR, f"the host's reply cannot be read: {error}"))

    @staticmethod
    def _fail(asked: _Asked, error: Exception) -> None:
        asked.conversation.close()
        if asked.future.set_running_or_notify_cancel():
            asked.future.set_exception(error)

    # Threads

    def _is_loop_thread(self) -> bool:
        return threading.get_ident() == self._thread_id

    def _on_loop(self, action: Callable[[], None]) -> None:
        if self._is_loop_thread():
            action()
        else:
            self._post(action)

    def _post(self, action: Callable[[], None]) -> None:
        """Have the loop do it. Append, then look at the flag; the loop clears the flag, then pops: none is missed."""
        self._posted.append(action)
        if not self._woken:
            self._woken = True
            try:
                self._loop.call_soon_threadsafe(self._do_posted)
            except RuntimeError:  # the loop is closed: the server has ended, nobody waits
                return

    def _do_posted(self) -> None:
        self._woken = False
        posted = self._posted
        while posted:
            posted.popleft()()

    # The end

    def tasks(self) -> Iterable[asyncio.Task[None]]:
        """The async calls in flight."""
        return [call.task for call in self._calls.values() if call.task is not None]

    # Answers

    def _result(self, call_id: Id, result: Any) -> None:
        self._send(encode({"jsonrpc": "2.0", "id": call_id, "result": result}) + b"\n")

    def _error(self, call_id: Any, code: int, message: str, data: dict[str, Any] | None = None) -> None:
        self._send(error_line(None if call_id is msgspec.UNSET else call_id, code, message, data or {}))

    def _not_found(self, call_id: Id, path: str) -> None:
        hint = did_you_mean(path, [each.path for each in self._registry.components()])
        data = {"exception_type": "ComponentNotFound", "error_code": "COMPONENT_NOT_FOUND", "component": path}
        self._error(call_id, COMPONENT_NOT_FOUND, f"there is no component {path}{hint}", data)


def did_you_mean(name: str, known: list[str]) -> str:
    """Return `; did you mean …?`, or what there is, or nothing."""
    import difflib

    close = difflib.get_close_matches(name, known, n=1) or [each for each in known if each == f"/{name}"]
    if close:
        return f"; did you mean {close[0]}?"
    return f"; there are {', '.join(known)}" if 0 < len(known) <= 10 else ""


def _described(call: Call, error: BaseException) -> tuple[str, dict[str, Any]]:
    """Return message and data of a failed call."""
    name = type(error).__name__
    data: dict[str, Any] = {"exception_type": name, "error_code": ComponentError.error_code}
    try:
        text = _clean(str(error))
    except Exception:  # the author's own `__str__`
        text = ""
    if isinstance(error, ComponentError):
        data["error_code"] = error.error_code
        if (details := getattr(error, "data", None)) is not None:  # a subclass may not have called our __init__
            data["details"] = details
        return text or name, data
    if isinstance(error, asyncio.CancelledError) and call.cancelled:
        data["error_code"] = CallCancelled.error_code
        return "the call was cancelled", data
    if isinstance(error, OSError):  # connections, time-outs, missing files
        data["error_code"] = ResourceUnavailable.error_code
    return f"{name}: {text}" if text else name, data


def _clean(text: str) -> str:
    """Return a text that JSON can carry: bounded, without lone surrogates (undecodable file names have them)."""
    return text[:MESSAGE_CHARS_MAX].encode("utf-8", "replace").decode()
