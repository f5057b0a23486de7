"""An MCP server over streamable HTTP: one that runs somewhere, or one that is started here and listens on a port.

Owns the HTTP side of one connection. The protocol itself (sessions, event streams, resumption) is the SDK's; what is
here stands below it, as the transport of its HTTP client, because the SDK ends a whole connection when one request
cannot be sent:

- Whatever goes wrong below HTTP becomes an error response, so it ends one request and nothing else.
- The call's `Trace` says what is known: a request that was never sent, or that a server refused because it does not
  know the session, was not executed and may be repeated; an answer that broke off leaves that open.
- The connection is lost when the server cannot be reached, when it does not know the session, or when the stream on
  which it tells of changes breaks and cannot be opened again.
- Answers are bounded. What a server is told (that a call is cancelled, that a session ends) has time limits of its
  own; calls have none here.
- Headers go to the configured origin only, and neither they nor a URL's password or query stand in any text.

`{port}` in the URL, `args` and `env` of a server that is started here is a free port, chosen anew for each launch.

Not here: eras, restarts, what results mean (`mcp_bridge`, `mcp_results`). Imports the SDK: import it late.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import socket
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx2
import mcp_types
import msgspec
from mcp.client.streamable_http import streamable_http_client

from component_host.mcp_bridge.link import MESSAGE_BYTES_MAX, SIGTERM_GRACE_S, Loss, Trace, call_trace
from component_host.supervision.process import ServerProcess
from stepflow.errors import Invalid
from stepflow.proxies import GATEWAY_STATUSES, proxy_for, through
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from types import TracebackType

    from mcp.client._transport import TransportStreams

    from component_host.supervision.process import ProcessSpec
    from stepflow.proxies import Proxy

CONNECT_TIMEOUT_S = 10.0
NOTIFICATION_TIMEOUT_S = 10.0
"""For a server to take a notification; while one is being sent, the SDK sends nothing else."""
GOODBYE_TIMEOUT_S = 1.0
"""For a server to end a session that is not needed any more."""

KEPT_IDLE_S = 3.0
"""How long an idle connection is used again: less than the 5 s after which servers close theirs, so that no request
runs into that."""
CONNECTIONS_KEPT_MAX = 256
"""Idle ones. How many are open at once is bounded by the calls that the host admits."""

PROBE_S = 0.02
"""Between two looks whether a server that was started has opened its port."""

EXIT_KNOWN_S = 0.5
"""Between a connection that breaks and the news that the process behind it has ended."""

UNREACHABLE_STATUSES = frozenset({408, 429, 502, 503, 504})
"""Statuses of servers and gateways that may soon be gone again."""

KEEP_ALIVE_OPTIONS = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    *((socket.IPPROTO_TCP, getattr(socket, name), value) for name, value in
      (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3)) if hasattr(socket, name)),
]  # fmt: skip
"""A peer that vanished is noticed within a minute; a call may be silent for hours otherwise."""

SESSION_HEADER = "mcp-session-id"
PORT = "{port}"

log = get_logger("component_host.mcp")

_ILLEGAL_IN_HEADER = re.compile(r"[^\t\x20-\x7e\x80-\xff]")


@dataclass(frozen=True, slots=True)
class HttpTarget:
    """Where a server listens, with variables substituted."""

    plugin: str
    url: str = field(repr=False)
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)


class HttpServer:
    """One connection to a server, and its process if `spec` says how to start it. See `mcp_link.Link`."""

    def __init__(
        self,
        target: HttpTarget,
        spec: ProcessSpec | None,
        on_loss: Callable[[], None],
        environ: Mapping[str, str] = os.environ,
    ) -> None:
        """`environ` names the proxies. Raises: Invalid: the URL, a header or a proxy makes no sense."""
        _check_target(target)
        self.lost = False
        self.drains = spec is None
        port = str(free_port()) if spec is not None and PORT in target.url else ""
        self._url = httpx2.URL(target.url.replace(PORT, port))
        self._proxy = proxy_for(str(self._url), environ)
        self._headers = {name: value.strip() for name, value in target.headers.items()}
        self._process: ServerProcess | None = None
        if spec is not None:
            spec = replace(
                spec,
                args=[arg.replace(PORT, port) for arg in spec.args],
                env={name: value.replace(PORT, port) for name, value in spec.env.items()},
            )
            self._process = ServerProcess(spec, on_output=_ignore, on_exit=self._handle_exit)
        self._plugin = target.plugin
        self._on_loss = on_loss
        self._how = ""
        self._ending = False
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> TransportStreams:
        """Start the process if there is one, and be ready to send. Raises: StepflowError, OSError."""
        async with contextlib.AsyncExitStack() as stack:
            if self._process is not None:
                self._process.start()
                stack.push_async_callback(self._end_process)
                await self._listening()
            client = httpx2.AsyncClient(
                transport=_Transport(self, self._proxy),
                headers=self._headers,
                timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
            )
            await stack.enter_async_context(client)
            streams = await stack.enter_async_context(
                streamable_http_client(
                    str(self._url),
                    http_client=client,
                    terminate_on_close=self._process is None,
                    max_sse_event_size=MESSAGE_BYTES_MAX,
                )
            )
            self._stack = stack.pop_all()
        return streams

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        self._ending = True
        return await self._stack.__aexit__(exc_type, exc, traceback)

    async def loss(self, trace: Trace) -> Loss | None:
        process = self._process
        if process is not None and trace.problem:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(EXIT_KNOWN_S):
                    await process.ended()
        if process is not None and self.lost:
            return Loss(f"{self.describe_end()} during the call", executed=trace.executed)
        return Loss(trace.problem, executed=trace.executed) if trace.problem else None

    def describe_end(self) -> str:
        if self._process is not None and self._process.returncode is not None:
            return self._process.exit_text()
        return self._how or "was not lost"

    def describe_stray_output(self) -> str:
        return ""

    def stderr_tail(self) -> str:
        return self._process.stderr_tail() if self._process is not None else ""

    def lose(self, how: str) -> None:
        """Note that this connection is of no use for further calls. Safe to repeat."""
        if not (self.lost or self._ending):
            self.lost = True
            self._how = how
            self._on_loss()

    def _handle_exit(self) -> None:
        self.lose("")

    async def _listening(self) -> None:
        """Wait until somebody listens on the port. Raises: ConnectionError, the process has ended."""
        host, port = self._url.host, self._url.port or (443 if self._url.scheme == "https" else 80)
        while not self.lost:
            try:
                _, writer = await asyncio.open_connection(host, port)
            except OSError:
                await asyncio.sleep(PROBE_S)
            else:
                writer.close()
                return
        raise ConnectionError("the process has ended")

    async def _end_process(self) -> None:
        assert self._process is not None
        self._ending = True
        ending = asyncio.create_task(self._process.stop(SIGTERM_GRACE_S), name=f"mcp {self._plugin} end")
        try:
            await asyncio.shield(ending)
        except asyncio.CancelledError:
            await ending  # a cancelled owner must not leave the process behind
            raise


class _Envelope(msgspec.Struct):
    """What of an outgoing message says which it is; the rest is skipped."""

    id: int | str | None = None
    method: str = ""


class _Transport(httpx2.AsyncBaseTransport):
    """Sends the SDK's requests, and raises nothing but cancellation."""

    def __init__(self, server: HttpServer, proxy: Proxy | None) -> None:
        self._server = server
        self._changes_heard = False
        """The stream on which the server tells of changes was open once."""
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
        await request.aread()  # a redirected one is a stream as yet
        exchange = _Exchange(request, call_trace.get() or Trace())
        limit_s = exchange.time_limit_s()
        try:
            async with asyncio.timeout(limit_s):
                response = await self._inner.handle_async_request(request)
                if exchange.is_stream(response):
                    self._changes_heard |= request.method == "GET"
                    return _with_stream(response, exchange.trace)
                body = await _read(response)
        except _NOT_CONNECTED as error:
            why = f"cannot be reached{self._way}: {_words(error)}"
            exchange.trace.fail(why)
            self._server.lose(why)
            return exchange.error_response(503, f"the server {why}")
        except (httpx2.HTTPError, OSError, TimeoutError) as error:
            why = f"broke off the connection during the call ({type(error).__name__})"
            exchange.trace.fail(why)
            if request.method == "GET":
                self._note_deafness(why)
            return exchange.error_response(503, f"the server {why}")
        except _TooLarge:
            return exchange.error_response(500, f"the server's answer is larger than {MESSAGE_BYTES_MAX:,} bytes")
        if response.is_redirect:  # the SDK judges whether to follow it, by a request of its own
            exchange.trace.redirect()
        if response.status_code < 400:
            return _with_body(response, body)
        return self._refused(exchange, response, body)

    def _refused(self, exchange: _Exchange, response: httpx2.Response, body: bytes) -> httpx2.Response:
        """Note what a status above 400 says of the connection and the call."""
        status, reason = response.status_code, f"HTTP {response.status_code} {response.reason_phrase}".strip()
        if status in GATEWAY_STATUSES:
            reason += self._way
        answer = _error_in(body)
        if exchange.session and status in (400, 404) and not (answer and answer.code in _ANSWERS):
            # 404 by the specification; several servers say 400. No server dispatches what it answers so.
            why = f"does not know the session any more ({reason})"
            exchange.trace.fail(why, refused=True)
            if exchange.request.method == "POST":
                self._server.lose(why)
        elif status in UNREACHABLE_STATUSES:
            exchange.trace.fail(f"answered {reason}")
        if exchange.request.method == "GET":
            self._note_deafness(f"does not go on with the stream of its messages ({reason})")
        if answer is not None:
            return _with_body(response, body)
        hint = "; check the `headers` in the configuration" if status in (401, 403) else ""
        return exchange.error_response(status, f"the server answered {reason}{hint}")

    def _note_deafness(self, how: str) -> None:
        """A server that has the stream and cannot go on with it has lost us; others never had it (405)."""
        if self._changes_heard:
            self._server.lose(how)


class _Exchange:
    """One request of the SDK."""

    def __init__(self, request: httpx2.Request, trace: Trace) -> None:
        self.request = request
        self.trace = trace
        trace.begin_request()
        request.extensions["trace"] = self._note
        self.session = SESSION_HEADER in request.headers
        self._id: int | str | None = None
        if request.method == "POST":
            with contextlib.suppress(msgspec.DecodeError):
                self._id = msgspec.json.decode(request.content, type=_Envelope).id

    async def _note(self, event: str, _info: Any) -> None:
        """Take what the HTTP library tells of its steps."""
        if event.endswith("send_request_headers.started"):
            self.trace.sent = True

    def time_limit_s(self) -> float | None:
        match self.request.method:
            case "POST":
                return None if self._id is not None else NOTIFICATION_TIMEOUT_S
            case "DELETE":
                return GOODBYE_TIMEOUT_S
            case _:
                return None

    def is_stream(self, response: httpx2.Response) -> bool:
        content_type = response.headers.get("content-type", "").partition(";")[0].strip().lower()
        return response.status_code < 300 and content_type == "text/event-stream"

    def error_response(self, status: int, message: str) -> httpx2.Response:
        """Answer in the server's place; the SDK takes the JSON-RPC error in it as the request's outcome."""
        code = mcp_types.METHOD_NOT_FOUND if status == 404 else mcp_types.INTERNAL_ERROR
        error = {"jsonrpc": "2.0", "id": self._id, "error": {"code": code, "message": message}}
        return httpx2.Response(status, json=error, request=self.request)


class _WatchedStream(httpx2.AsyncByteStream):
    """An event stream that notes when it ends; a consumer that has its answer stops before."""

    def __init__(self, inner: httpx2.AsyncByteStream, trace: Trace) -> None:
        self._inner = inner
        self._trace = trace

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                yield chunk
        except (httpx2.HTTPError, OSError) as error:
            self._trace.fail(f"broke off its answer ({type(error).__name__})")
            raise
        self._trace.fail("ended its answer before the result")

    async def aclose(self) -> None:
        await self._inner.aclose()


class _TooLarge(Exception):  # a signal within this module
    """The server sends more than it may."""


_NOT_CONNECTED = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.ProxyError, httpx2.UnsupportedProtocol)
_ANSWERS = (mcp_types.INVALID_PARAMS, mcp_types.METHOD_NOT_FOUND)
"""Errors of a server that has looked at the request."""


async def _read(response: httpx2.Response) -> bytes:
    """Read an answer that is no stream. Raises: _TooLarge, httpx2.HTTPError."""
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
    encoded = ("content-encoding", "content-length", "transfer-encoding")
    headers = [(name, value) for name, value in response.headers.multi_items() if name.lower() not in encoded]
    return httpx2.Response(response.status_code, headers=headers, content=body)


def _with_stream(response: httpx2.Response, trace: Trace) -> httpx2.Response:
    assert isinstance(response.stream, httpx2.AsyncByteStream)
    return httpx2.Response(
        response.status_code, headers=response.headers.raw, stream=_WatchedStream(response.stream, trace)
    )


def _error_in(body: bytes) -> mcp_types.ErrorData | None:
    """Return the JSON-RPC error that a response's body is."""
    try:
        tree = json.loads(body)
        return mcp_types.ErrorData.model_validate(tree["error"])
    except (ValueError, KeyError, TypeError, RecursionError):  # pydantic's error is a ValueError
        return None


def _words(error: Exception) -> str:
    """Word an error of connecting. (Others may quote what was being sent.)"""
    return str(error) or type(error).__name__


def _check_target(target: HttpTarget) -> None:
    """Refuse what could not be sent; the library's own errors would quote the values."""
    where = f"plugin {target.plugin!r}"
    try:
        httpx2.URL(text := target.url.replace(PORT, "1"))
        parts = urlsplit(text)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname)
    except (httpx2.InvalidURL, ValueError):
        usable = False
    if not usable:
        raise Invalid("URL_INVALID", f"{where}: `url` must be like https://host/mcp", plugin=target.plugin)
    for name, value in target.headers.items():
        if not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or _ILLEGAL_IN_HEADER.search(value.strip()):
            raise Invalid(
                "HEADER_INVALID",
                f"{where}: the header {name!r} has characters that HTTP does not allow (its value is not shown); "
                "is there a line break in the variable that it is made of?",
                plugin=target.plugin,
                header=name,
            )


def free_port() -> int:
    """Return a port that nobody listens on. If somebody is quicker, the server ends and is launched on another one."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _ignore(_chunk: bytes) -> None:
    """stdout carries no messages here; it is read so that the server does not stop."""
