"""The client of a StepFlow server over HTTP: JSON-RPC by POST, call-backs as events of the answer, health.

- The `Content-Type` tells the form of an answer: one JSON message, or a stream of events with a message each.
- There is no read timeout: a component that computes sends nothing, and the host enforces the timeouts of calls. TCP
  keep-alive finds a dead peer within about a minute.
- Memory for an answer is limited to `REPLY_BYTES_MAX`.
- Progress is thinned before it is decoded.
- Redirects are not followed and cookies not kept: messages go to the configured address only.

Not here: the meaning of messages. The client is aiohttp: 0.1 ms of a call to a stepflow-py server, httpx 0.8 ms.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import aclosing
from io import BytesIO
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from yarl import URL

from component_host.progress_gate import ProgressGate, paced
from component_host.retry_after import retry_after_ms
from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.loose_lines import read_lines
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Invalid
from stepflow.proxies import GATEWAY_STATUSES, proxy_for, through

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

INSTANCE_HEADER = "Stepflow-Instance-Id"

REPLY_BYTES_MAX = PAYLOAD_BYTES_MAX + 1024 * 1024
"""Largest message: any payload and its envelope."""

KEEPALIVE_S = 4.0
"""An idle connection is reused until then: servers close theirs after 5 s, even with a request in flight."""

CONNECT_TIMEOUT_S = 10.0

READ_BYTES = 256 * 1024

PIECE_BYTES_MAX = 512 * 1024
"""A larger body is written in pieces."""

THREAD_BYTES_MIN = 1024 * 1024
"""Larger messages are decoded in a thread: decoding takes more than a millisecond."""

PROBE_AFTER_S, PROBE_EVERY_S, PROBES = 30, 10, 3
"""TCP keep-alive: a peer that answers none of the probes is gone."""

_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Stepflow-Capabilities": "progress, queue, log",
}
"""`Stepflow-Capabilities` is an extension: our SDK sends these notices only to clients with it."""


class LostError(Exception):
    """The connection broke or could not be made. `refused`: no listener at the address; nothing was sent."""

    def __init__(self, reason: str, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.refused = refused


class NotProtocolError(Exception):
    """The answer is not in the StepFlow protocol."""

    def __init__(self, reason: str, status: int, retry_after_ms: int | None = None) -> None:
        super().__init__(reason)
        self.status = status
        self.retry_after_ms = retry_after_ms
        """The pause that the server, or a proxy before it, asked for."""


class TooLargeError(NotProtocolError):
    """An answer beyond `REPLY_BYTES_MAX`."""

    def __init__(self) -> None:
        super().__init__(f"answered with more than {REPLY_BYTES_MAX:,} bytes", 0)


class HttpEndpoint:
    """A client of one server. `close` ends every exchange."""

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, *, environ: Mapping[str, str] = os.environ
    ) -> None:
        """`environ` names the proxies. Raises: Invalid URL_INVALID, PROXY_UNSUPPORTED."""
        self._url = _checked(url)
        self.shown = str(self._url.with_user(None).with_query(None))
        """Address for texts, without parts that may be secret."""
        proxy = proxy_for(str(self._url), environ)
        self.way = through(proxy)
        """The proxy, for error texts; empty without a proxy."""

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEPALIVE_S, socket_factory=_socket),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S),
            headers={**(headers or {}), **_HEADERS},
            skip_auto_headers=("User-Agent", "Accept-Encoding"),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            read_bufsize=READ_BYTES,
            proxy=None if proxy is None else proxy.url,
        )

    async def close(self) -> None:
        await self._session.close()

    async def health(self) -> str:
        """Return the answering instance's id, or "" if there are none. Raises: LostError, NotProtocolError."""
        self._check_open()
        try:
            async with self._session.get(self._url / "health", allow_redirects=False) as response:
                text = await _read_body(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from None

        if response.status >= 500:
            status = response.status
            raise NotProtocolError(f"answered /health with status {status}{self._way_of(status)}", status)
        try:
            return msgspec.json.decode(text, type=_ServerHealth).instance_id
        except protocol.DECODE_ERRORS:
            return ""  # a server with another form of /health: the handshake decides

    async def tell(self, body: bytes, instance: str = "") -> None:
        """POST a notification or a reply, to an instance if given. Raises: LostError, NotProtocolError."""
        try:
            async with self._post(body, instance) as response:
                text = await _read_body(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from None

        if response.status >= 400:
            raise self._not_protocol(response.status, text)

    async def exchange(self, body: bytes, instance: str = "") -> AsyncGenerator[tuple[protocol.Line, str], None]:
        """POST a request; yield each message of the answer with the id of the sending instance.

        Raises: LostError, NotProtocolError (TooLargeError).
        """
        try:
            async with self._post(body, instance) as response:
                instance = response.headers.get(INSTANCE_HEADER, "")
                if response.content_type == "text/event-stream":
                    chunks = response.content.iter_any().__aiter__()
                    async with aclosing(paced(chunks, ThinnedEvents())) as batches:
                        async for events in batches:
                            for event in events:
                                yield await self._decode(event, response.status), instance
                else:
                    text = await _read_body(response)
                    try:
                        line = await self._decode(text, response.status)
                    except NotProtocolError as error:
                        error.retry_after_ms = retry_after_ms(response.headers)
                        raise
                    yield line, instance
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from None

    def _post(self, body: bytes, instance: str) -> Any:
        self._check_open()

        headers = {INSTANCE_HEADER: instance} if instance else None
        data = body if len(body) <= PIECE_BYTES_MAX else BytesIO(body)  # aiohttp writes a stream in pieces
        return self._session.post(self._url, data=data, headers=headers, allow_redirects=False)

    async def _decode(self, text: bytes, status: int) -> protocol.Line:
        try:
            if len(text) < THREAD_BYTES_MIN:
                line = protocol.decode_line(text)
            else:
                line = await asyncio.to_thread(protocol.decode_line, text)
        except protocol.DECODE_ERRORS:
            loose = _read_loosely(text)
            if loose is None:
                raise self._not_protocol(status, text) from None
            line = loose

        if line.method is None and line.error is msgspec.UNSET and line.result is msgspec.UNSET:
            raise self._not_protocol(status, text)
        return line

    def _not_protocol(self, status: int, text: bytes) -> NotProtocolError:
        shown = text[:200].decode("utf-8", "replace")
        reason = f"answered with status {status} outside the StepFlow protocol: {shown!r}{self._way_of(status)}"
        return NotProtocolError(reason, status)

    def _way_of(self, status: int) -> str:
        """Return the proxy for an error text, if the proxy may have answered instead of the server."""
        return self.way if status in GATEWAY_STATUSES else ""

    def _lost(self, error: BaseException) -> LostError:
        if isinstance(error, aiohttp.ClientHttpProxyError):  # its text has the URL with all secrets
            return LostError(f"no connection{self.way}, which answered with status {error.status}", refused=True)
        refused = isinstance(error, aiohttp.ClientConnectorError)
        return LostError(f"{str(error) or type(error).__name__}{self.way}", refused=refused)

    def _check_open(self) -> None:
        if self._session.closed:
            raise LostError("it was closed")


def _read_loosely(text: bytes) -> protocol.Line | None:
    """Return the message of a text that does not follow the protocol: of several, the reply."""
    lines = read_lines(text)
    return next((line for line in lines if line.method is None), lines[0] if lines else None)


class EventSplitter:
    """Finds the data of whole events in the chunks of a stream, in linear time.

    Server-sent events of WHATWG; fields other than `data` are ignored.
    """

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events completed by a chunk. Raises: TooLargeError."""
        self._size += len(chunk)

        *ends, rest = chunk.split(b"\n")
        events: list[bytes] = []
        for end in ends:
            line = b"".join((*self._line, end)) if self._line else end
            self._line.clear()
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                self._data.append(line[6 if line[5:6] == b" " else 5 :])
            elif not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data.clear()
                self._size = 0

        if rest:
            self._line.append(rest)
        if events:
            self._size = len(rest)
        if self._size > REPLY_BYTES_MAX:
            raise TooLargeError
        return events


class ThinnedEvents:
    """The events of one answer, with progress thinned before it is decoded. See `progress_gate.Thinning`."""

    def __init__(self) -> None:
        self._splitter = EventSplitter()
        self._gate: ProgressGate[bytes] = ProgressGate()

    def feed(self, chunk: bytes, now: float) -> list[bytes]:
        passed: list[bytes] = []
        for event in self._splitter.feed(chunk):
            if not protocol.is_progress(event):
                passed += [*self._gate.take_all(), event]
            elif self._gate.offer(_OWN_CALL, event, now):
                passed.append(event)
        return passed + self._gate.take_due(now)

    def wait_s(self, now: float) -> float | None:
        return self._gate.wait_s(now)

    def take_due(self, now: float) -> list[bytes]:
        return self._gate.take_due(now)

    def finish(self) -> list[bytes]:
        return self._gate.take_all()


_OWN_CALL = "the call that is answered"


class _ServerHealth(msgspec.Struct, rename="camel"):
    instance_id: str = ""


async def _read_body(response: aiohttp.ClientResponse) -> bytes:
    """Raises: TooLargeError."""
    parts: list[bytes] = []
    size = 0
    async for chunk in response.content.iter_any():
        size += len(chunk)
        if size > REPLY_BYTES_MAX:
            raise TooLargeError
        parts.append(chunk)
    return b"".join(parts)


def _checked(text: str) -> URL:
    try:
        url = URL(text)
        usable = url.scheme in ("http", "https") and bool(url.host)
    except ValueError:
        usable = False
    if not usable:
        raise Invalid("URL_INVALID", "the `url` of a StepFlow server must begin with http:// or https:// and a host")
    return url


def _socket(address: Any) -> socket.socket:
    family, kind, protocol_number, _, _ = address
    made = socket.socket(family, kind, protocol_number)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", PROBE_AFTER_S), ("TCP_KEEPINTVL", PROBE_EVERY_S), ("TCP_KEEPCNT", PROBES)):
        if hasattr(socket, name):  # not every system has all three
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
