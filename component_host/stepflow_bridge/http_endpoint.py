"""Where a StepFlow server listens: its JSON-RPC over POST, the events that carry call-backs, its health.

- What an answer is, its `Content-Type` says: one JSON message, or a stream of events of which each is one.
- There is no read timeout: a component that computes sends nothing, and the host keeps the time of calls. A peer that
  is gone without a word is found by TCP's own probes, within about a minute.
- An answer is never kept beyond `REPLY_BYTES_MAX`.
- Redirects are not followed and cookies not kept: a message goes where the configuration says, and nowhere else.

Not here: what the messages mean. The client is aiohttp: of a call to a stepflow-py server it costs 0.1 ms, httpx 0.8.
"""

from __future__ import annotations

import asyncio
import os
import socket
from io import BytesIO
from typing import TYPE_CHECKING, Any

import aiohttp
import msgspec
from yarl import URL

from component_host.stepflow_bridge import protocol
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Invalid
from stepflow.proxies import GATEWAY_STATUSES, proxy_for, through

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

INSTANCE_HEADER = "Stepflow-Instance-Id"

REPLY_BYTES_MAX = PAYLOAD_BYTES_MAX + 1024 * 1024
"""Of one message: any payload, and its envelope."""

KEEPALIVE_S = 4.0
"""An idle connection is not used again after this: the servers close theirs after 5 s, whatever is on the way."""

CONNECT_TIMEOUT_S = 10.0

READ_BYTES = 256 * 1024

PIECE_BYTES_MAX = 512 * 1024
"""A larger body is not written in one go."""

THREAD_BYTES_MIN = 1024 * 1024
"""A larger message is decoded beside the event loop: it takes more than a millisecond."""

PROBE_AFTER_S, PROBE_EVERY_S, PROBES = 30, 10, 3
"""TCP keep-alive: a peer that does not answer these is gone."""

_HEADERS = {
    "Content-Type": "application/json",
    "Accept": "application/json, text/event-stream",
    "Stepflow-Capabilities": "progress",
}
"""The last one is ours: a server with our SDK sends progress to those who can take it."""


class LostError(Exception):
    """The connection broke, or could not be made. `refused`: nobody listens there; nothing was sent."""

    def __init__(self, what: str, *, refused: bool = False) -> None:
        super().__init__(what)
        self.refused = refused


class NotProtocolError(Exception):
    """What came is not an answer of the StepFlow protocol."""

    def __init__(self, what: str, status: int) -> None:
        super().__init__(what)
        self.status = status


class TooLargeError(NotProtocolError):
    """An answer beyond `REPLY_BYTES_MAX`."""

    def __init__(self) -> None:
        super().__init__(f"answered with more than {REPLY_BYTES_MAX:,} bytes", 0)


class Endpoint:
    """A client of one server. `close` ends every exchange."""

    def __init__(
        self, url: str, headers: Mapping[str, str] | None = None, *, environ: Mapping[str, str] = os.environ
    ) -> None:
        """`environ` names the proxies. Raises: Invalid URL_INVALID, PROXY_UNSUPPORTED."""
        self._url = _checked(url)
        proxy = proxy_for(str(self._url), environ)
        self.way = through(proxy)
        """The proxy on the way to it, for errors; empty for none."""
        self.shown = str(self._url.with_user(None).with_query(None))
        """Its address, for texts: without what may be secret."""
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
        """Return the id of the instance that answers, empty where it has none. Raises: LostError, NotProtocolError."""
        self._check_open()
        try:
            async with self._session.get(self._url / "health", allow_redirects=False) as response:
                text = await _body(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from None
        if response.status >= 500:
            status = response.status
            raise NotProtocolError(f"answered /health with status {status}{self._way_of(status)}", status)
        try:
            return msgspec.json.decode(text, type=_Health).instance_id
        except protocol.DECODE_ERRORS:
            return ""  # its own server, without a /health of that form: the handshake will tell

    async def tell(self, body: bytes, instance: str = "") -> None:
        """POST a notification or a reply, to an instance if it is given. Raises: LostError, NotProtocolError."""
        try:
            async with self._post(body, instance) as response:
                text = await _body(response)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from None
        if response.status >= 400:
            raise self._not_protocol(response.status, text)

    async def exchange(self, body: bytes, instance: str = "") -> AsyncGenerator[tuple[protocol.Line, str], None]:
        """POST a request; yield each message of the answer with the id of the instance that sent it.

        Raises: LostError, NotProtocolError (TooLargeError).
        """
        try:
            async with self._post(body, instance) as response:
                instance = response.headers.get(INSTANCE_HEADER, "")
                if response.content_type == "text/event-stream":
                    splitter = EventSplitter()
                    async for chunk in response.content.iter_any():
                        for event in splitter.feed(chunk):
                            yield await self._decoded(event, response.status), instance
                else:
                    text = await _body(response)
                    yield await self._decoded(text, response.status), instance
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._lost(error) from None

    def _post(self, body: bytes, instance: str) -> Any:
        self._check_open()
        headers = {INSTANCE_HEADER: instance} if instance else None
        data = body if len(body) <= PIECE_BYTES_MAX else BytesIO(body)  # a stream leaves in pieces, between other work
        return self._session.post(self._url, data=data, headers=headers, allow_redirects=False)

    def _check_open(self) -> None:
        if self._session.closed:
            raise LostError("it was closed")

    async def _decoded(self, text: bytes, status: int) -> protocol.Line:
        try:
            if len(text) < THREAD_BYTES_MIN:
                line = protocol.decode_line(text)
            else:
                line = await asyncio.to_thread(protocol.decode_line, text)
        except protocol.DECODE_ERRORS:
            raise self._not_protocol(status, text) from None
        if line.method is None and line.error is msgspec.UNSET and line.result is msgspec.UNSET:
            raise self._not_protocol(status, text)
        return line

    def _not_protocol(self, status: int, text: bytes) -> NotProtocolError:
        shown = text[:200].decode("utf-8", "replace")
        what = f"answered with status {status} and what is no answer of the protocol: {shown!r}{self._way_of(status)}"
        return NotProtocolError(what, status)

    def _way_of(self, status: int) -> str:
        """Return the proxy that may have answered in the server's place, for an error."""
        return self.way if status in GATEWAY_STATUSES else ""

    def _lost(self, error: BaseException) -> LostError:
        if isinstance(error, aiohttp.ClientHttpProxyError):  # its text has the URL with all that is secret in it
            return LostError(f"no connection{self.way}, which answered with status {error.status}", refused=True)
        refused = isinstance(error, aiohttp.ClientConnectorError)
        return LostError(f"{str(error) or type(error).__name__}{self.way}", refused=refused)


class EventSplitter:
    """Finds the data of whole events in the chunks of a stream (WHATWG's server-sent events; other fields mean
    nothing here). Linear in what comes."""

    def __init__(self) -> None:
        self._line: list[bytes] = []
        self._data: list[bytes] = []
        self._size = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """Return the data of the events that end in this chunk. Raises: TooLargeError."""
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


class _Health(msgspec.Struct, rename="camel"):
    instance_id: str = ""


async def _body(response: aiohttp.ClientResponse) -> bytes:
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
        if hasattr(socket, name):  # not every system has each of them
            made.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return made
