"""The HTTP transport below the SDK's client: errors become responses, and calls are traced.

The SDK ends a whole connection when one request cannot be sent, hence:

- Every failure below HTTP becomes an error response, so that it ends one request only.
- A call's `CallTrace` records what is known. A request that was never sent, or that a server refused because it lost
  the session, was not executed and may be repeated. An answer that broke off leaves it open.
- The body of a response always has the answer to its request: one that cannot be read becomes an error (`envelopes`).
  Event streams are thinned (`events`).
- Answers are bounded by `MESSAGE_BYTES_MAX`. Notifications and goodbyes have timeouts; calls have none here.

Imports the SDK: import it late.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from typing import TYPE_CHECKING, Any, Protocol

import httpx2
import mcp_types
import msgspec

from component_host.mcp_bridge.envelopes import repaired_answer
from component_host.mcp_bridge.events import EventFilter
from component_host.mcp_bridge.link import MESSAGE_BYTES_MAX, CallTrace, call_trace
from component_host.progress_gate import paced
from component_host.retry_after import retry_after_ms
from stepflow.proxies import GATEWAY_STATUSES, through

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stepflow.proxies import Proxy

NOTIFICATION_TIMEOUT_S = 10.0
"""For a server to accept a notification; meanwhile the SDK sends nothing else."""
GOODBYE_TIMEOUT_S = 1.0
"""For a server to end a session."""

KEPT_IDLE_S = 3.0
"""An idle connection is reused this long: less than the 5 s after which servers close theirs, so that no request meets
a closing connection."""
CONNECTIONS_KEPT_MAX = 256
"""Idle connections. Open ones are bounded by the calls that the host admits."""

UNREACHABLE_STATUSES = frozenset({408, 429, 502, 503, 504})
"""Statuses of servers and gateways that are often temporary."""

KEEP_ALIVE_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in
      (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)) if hasattr(socket, name)),
]  # fmt: skip
"""A vanished peer is noticed within a minute; a call may otherwise be silent for hours."""

SESSION_HEADER = "mcp-session-id"


class LosableConnection(Protocol):
    in_session: bool
    """Requests name a session."""

    def lose(self, how: str) -> None: ...


class _Envelope(msgspec.Struct):
    """The members of an outgoing message that identify it; the rest is skipped."""

    id: int | str | None = None
    method: str = ""


class McpHttpTransport(httpx2.AsyncBaseTransport):
    """Sends the SDK's requests. Raises nothing but cancellation."""

    def __init__(self, connection: LosableConnection, proxy: Proxy | None) -> None:
        self._connection = connection
        self._changes_heard = False
        """The stream of change notifications was open once."""
        self._way = through(proxy)
        self._inner = httpx2.AsyncHTTPTransport(
            limits=httpx2.Limits(
                max_connections=None, max_keepalive_connections=CONNECTIONS_KEPT_MAX, keepalive_expiry=KEPT_IDLE_S
            ),
            proxy=None if proxy is None else proxy.url,
            socket_options=KEEP_ALIVE_OPTIONS,
        )

    async def aclose(self) -> None:
        await self._inner.aclose()

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        await request.aread()  # the body of a redirected request is still a stream
        exchange = HttpExchange(request, call_trace.get() or CallTrace())
        self._connection.in_session |= exchange.session

        # 1. Send. A stream is handed on at its beginning, another answer is read whole.
        try:
            async with asyncio.timeout(exchange.time_limit_s()):
                response = await self._inner.handle_async_request(request)
                if exchange.is_stream(response):
                    self._changes_heard |= request.method == "GET"
                    return _with_stream(response, exchange)
                body = await _read(response)
        except _NOT_CONNECTED as error:
            why = f"cannot be reached{self._way}: {_words(error)}"
            exchange.trace.fail(why)
            self._connection.lose(why)
            return exchange.error_response(503, f"the server {why}")
        except (httpx2.HTTPError, OSError, TimeoutError) as error:
            why = f"broke off the connection during the call ({type(error).__name__})"
            exchange.trace.fail(why)
            if request.method == "GET":
                self._note_lost_stream(why)
            return exchange.error_response(503, f"the server {why}")
        except _TooLarge:
            return exchange.error_response(500, f"the server's answer is larger than {MESSAGE_BYTES_MAX:,} bytes")

        # 2. Judge the status.
        if response.is_redirect:  # the SDK decides whether to follow, with a new request
            exchange.trace.redirect()
        if response.status_code < 400:
            return _with_body(response, exchange.repaired(response, body))
        return self._refused(exchange, response, body)

    def _refused(self, exchange: HttpExchange, response: httpx2.Response, body: bytes) -> httpx2.Response:
        """Record what a status from 400 up means for the connection and the call."""
        status, reason = response.status_code, f"HTTP {response.status_code} {response.reason_phrase}".strip()
        if status in GATEWAY_STATUSES:
            reason += self._way
        answer = _error_in(body)
        if exchange.session and status in (400, 404, 410) and not (answer and answer.code in _ANSWERS):
            # 404 by the specification, the others by several servers. None dispatches a request that it answers so.
            why = f"does not know the session any more ({reason})"
            exchange.trace.fail(why, refused=True)
            if exchange.request.method == "POST":
                self._connection.lose(why)
        elif status in UNREACHABLE_STATUSES:
            exchange.trace.fail(f"answered {reason}")
        exchange.trace.retry_after_ms = retry_after_ms(response.headers)
        if exchange.request.method == "GET":
            self._note_lost_stream(f"does not continue the stream of its messages ({reason})")
        if answer is not None:
            return _with_body(response, body)
        hint = "; check the `headers` in the configuration" if status in (401, 403) else ""
        return exchange.error_response(status, f"the server answered {reason}{hint}")

    def _note_lost_stream(self, how: str) -> None:
        """Lose the connection if the notification stream was open before; servers without one answer 405."""
        if self._changes_heard:
            self._connection.lose(how)


class HttpExchange:
    """One request of the SDK and its answer."""

    def __init__(self, request: httpx2.Request, trace: CallTrace) -> None:
        self.request = request
        self.trace = trace
        trace.begin_request()
        request.extensions["trace"] = self._note
        self.session = SESSION_HEADER in request.headers
        self.id: int | str | None = None
        """Id of the request sent; None: the message is not a request."""
        if request.method == "POST":
            with contextlib.suppress(msgspec.DecodeError):
                self.id = msgspec.json.decode(request.content, type=_Envelope).id

    async def _note(self, event: str, _info: Any) -> None:
        """Handle a progress event of the HTTP library."""
        if event.endswith("send_request_headers.started"):
            self.trace.sent = True

    def time_limit_s(self) -> float | None:
        match self.request.method:
            case "POST":
                return None if self.id is not None else NOTIFICATION_TIMEOUT_S
            case "DELETE":
                return GOODBYE_TIMEOUT_S
            case _:
                return None

    def is_stream(self, response: httpx2.Response) -> bool:
        return response.status_code < 300 and _content_type(response) == "text/event-stream"

    def repaired(self, response: httpx2.Response, body: bytes) -> bytes:
        """Return the body with an answer to the request: the SDK waits for one without end."""
        if self.id is None or response.status_code != 200 or _content_type(response) != "application/json":
            return body  # no answer is due, or the SDK refuses the response
        return repaired_answer(body, self.id, whole=True) or body

    def error_response(self, status: int, message: str) -> httpx2.Response:
        """Answer in the server's place: the SDK takes the JSON-RPC error as the request's outcome."""
        code = mcp_types.METHOD_NOT_FOUND if status == 404 else mcp_types.INTERNAL_ERROR
        error = {"jsonrpc": "2.0", "id": self.id, "error": {"code": code, "message": message}}
        return httpx2.Response(status, json=error, request=self.request)


class _WatchedStream(httpx2.AsyncByteStream):
    """An event stream, thinned and repaired, that records its end. A consumer that has its answer stops before."""

    def __init__(self, response: httpx2.Response, exchange: HttpExchange) -> None:
        self._response = response
        self._request_id = exchange.id
        self._trace = exchange.trace

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async with contextlib.aclosing(paced(self._response.aiter_bytes(), EventFilter(self._request_id))) as texts:
                async for text in texts:
                    yield text
        except (httpx2.HTTPError, OSError) as error:
            self._trace.fail(f"broke off its answer ({type(error).__name__})")
            raise
        self._trace.fail("ended its answer before the result")

    async def aclose(self) -> None:
        await self._response.aclose()


class _TooLarge(Exception):  # a signal within this module
    """An answer exceeds MESSAGE_BYTES_MAX."""


_NOT_CONNECTED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol)
_ANSWERS = (mcp_types.INVALID_PARAMS, mcp_types.METHOD_NOT_FOUND)
"""Errors of a server that has read the request."""


async def _read(response: httpx2.Response) -> bytes:
    """Read an answer that is not a stream. Raises: _TooLarge, httpx2.HTTPError."""
    body = bytearray()
    try:
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) > MESSAGE_BYTES_MAX:
                raise _TooLarge
    finally:
        await response.aclose()
    return bytes(body)


def _with_body(response: httpx2.Response, body: bytes) -> httpx2.Response:
    return httpx2.Response(response.status_code, headers=_headers_of_decoded(response), content=body)


def _with_stream(response: httpx2.Response, exchange: HttpExchange) -> httpx2.Response:
    stream = _WatchedStream(response, exchange)
    return httpx2.Response(response.status_code, headers=_headers_of_decoded(response), stream=stream)


def _headers_of_decoded(response: httpx2.Response) -> list[tuple[str, str]]:
    encoded = ("content-encoding", "content-length", "transfer-encoding")
    return [(name, value) for name, value in response.headers.multi_items() if name.lower() not in encoded]


def _content_type(response: httpx2.Response) -> str:
    text: str = response.headers.get("content-type", "")
    return text.partition(";")[0].strip().lower()


def _error_in(body: bytes) -> mcp_types.ErrorData | None:
    """Return the JSON-RPC error in a response's body, if it is one."""
    try:
        tree = json.loads(body)
        return mcp_types.ErrorData.model_validate(tree["error"])
    except (ValueError, KeyError, TypeError, RecursionError):  # pydantic's error is a ValueError
        return None


def _words(error: Exception) -> str:
    """Describe an error of connecting. (Other errors may quote the request.)"""
    return str(error) or type(error).__name__


__all__ = ["LosableConnection", "McpHttpTransport"]
