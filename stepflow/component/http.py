"""A component server over HTTP, as stepflow 0.9 to 0.11 have it: JSON-RPC over POST, events where the host is asked.

- A request is answered with JSON; with a stream of events as soon as its component asks the host for something, or
  reports progress to a host that said it can take it (`Stepflow-Capabilities: progress`). The last event is the answer.
- The host answers with a POST of its own. Ids of requests to the host are unique in the process.
- Who goes away before the answer has cancelled the call.
- Where the host keeps blobs behind an HTTP API, which it tells at `initialize`, that is used.
- The port stands on stdout once it listens, `{"port": N}`. It ends with SIGTERM or SIGINT (128 + signal).

There is no authentication in this protocol. A page in a browser cannot call: it may not send JSON across origins.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
from datetime import UTC, datetime
from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, web

from stepflow.component.later_words import LaterWords
from stepflow.component.registry import REGISTRY
from stepflow.component.server import Server
from stepflow.component.shapes import encode
from stepflow.component.stdio import log_level, wind_up
from stepflow.component.threads import Threads
from stepflow.component.wire import (
    EXECUTION_FAILED_LATER,
    INVALID_REQUEST,
    LINE_BYTES_MAX,
    UNREADABLE,
    CancelParams,
    InitializeParams,
    Message,
    Trace,
    decode_message,
    params_of,
    why_unreadable,
)

if TYPE_CHECKING:
    from collections.abc import Callable

INSTANCE_HEADER = "Stepflow-Instance-Id"

KEEPALIVE_S = 75.0
"""Longer than any client keeps a connection: none is closed while a request is on its way."""

BLOB_TIMEOUT_S = 30.0

_LOG = logging.getLogger("stepflow.component")


async def serve(host: str, port: int, fd_out: int, threads: int | None) -> tuple[int, bool]:
    """Serve until a signal; return the exit code, and whether threads are stuck in components."""
    ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    def end(code: int) -> None:
        if not ended.done():
            ended.set_result(code)

    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, end, 128 + number)
    server = HttpServer(threads)
    try:
        await server.start(host, port)
    except OSError as error:
        _LOG.error("cannot listen on %s:%d: %s", host, port, error.strerror)
        return 1, False
    os.write(fd_out, b'{"port": %d}\n' % server.port)
    code = await ended
    return code, await server.stop()


class HttpServer:
    """One server process's listener, and the exchanges that are under way."""

    def __init__(self, threads: int | None) -> None:
        self.port = 0
        self._instance = secrets.token_hex(8)
        self._threads = Threads(threads)
        self._exchanges: dict[str, _Exchange] = {}
        """By what the ids of its requests to the host begin with."""
        self._by_call: dict[Any, _Exchange] = {}
        """By the id of the execute, for cancelling."""
        self._count = 0
        self._blob_url = ""
        self._session: ClientSession | None = None
        self._runner: web.AppRunner | None = None

    async def start(self, host: str, port: int) -> None:
        """Listen. Raises: OSError."""
        app = web.Application(client_max_size=LINE_BYTES_MAX)
        app.router.add_post("/", self._post)
        app.router.add_get("/health", self._health)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            handle_signals=False,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_S,
            shutdown_timeout=0.1,
        )
        await self._runner.setup()
        await web.TCPSite(self._runner, host, port).start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> bool:
        """Drop what is in flight; return whether threads are stuck in components."""
        tasks = [task for exchange in self._exchanges.values() for task in exchange.server.tasks()]
        stuck = await wind_up(tasks, self._threads)
        if self._session is not None:
            await self._session.close()
        assert self._runner is not None
        await self._runner.cleanup()
        return stuck

    async def _health(self, request: web.Request) -> web.Response:
        del request
        return _json(
            {
                "status": "healthy",
                "instanceId": self._instance,
                "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
                "service": "stepflow-component",
            }
        )

    async def _post(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return _json({"error": "Content-Type must be application/json"}, 415)
        accept = request.headers.get("Accept", "")
        if "application/json" not in accept or "text/event-stream" not in accept:
            return _json({"error": "Accept must include application/json and text/event-stream"}, 406)
        body = await request.read()
        try:
            message = decode_message(body)
        except UNREADABLE as error:
            call_id, code, text = why_unreadable(body, error)
            return _refusal(code, text, call_id)
        if message.method is msgspec.UNSET:
            return self._take_answer(message, body)
        if message.id is msgspec.UNSET:
            self._take_note(message, body)
            return _accepted()
        if message.method == "initialize":
            self._note_host(message)
        return await self._answer(request, message, body)

    def _take_answer(self, message: Message, body: bytes) -> web.Response:
        request_id = message.id if isinstance(message.id, str) else ""
        exchange = self._exchanges.get(request_id.partition(".")[0])
        if exchange is None or not exchange.server.awaits(request_id):
            return _refusal(INVALID_REQUEST, f"Response with id {request_id!r} has no pending request")
        exchange.server.receive(body)
        return _accepted()

    def _take_note(self, message: Message, body: bytes) -> None:
        if message.method == "components/cancel":
            try:
                exchange = self._by_call.get(params_of(message.params, CancelParams).id)
            except UNREADABLE:
                return
            if exchange is not None:
                exchange.server.receive(body)

    def _note_host(self, message: Message) -> None:
        """Note where a host has its blobs. One that can take progress serves them on the way of call-backs."""
        try:
            capabilities = params_of(message.params, InitializeParams).capabilities
        except UNREADABLE:
            return  # the answer will tell
        if capabilities is not None:
            self._blob_url = "" if capabilities.progress else capabilities.blob_api_url or ""

    async def _answer(self, request: web.Request, message: Message, body: bytes) -> web.StreamResponse:
        self._count += 1
        prefix = f"{self._instance}-{self._count}"
        progress = "progress" in request.headers.get("Stepflow-Capabilities", "")
        exchange = _Exchange(self, message, f"{prefix}.", progress, self._threads)
        self._exchanges[prefix] = self._by_call[message.id] = exchange
        try:
            exchange.server.receive(body)
            return await self._respond(request, exchange)
        except (asyncio.CancelledError, ConnectionError):
            exchange.cancel()
            raise
        finally:
            del self._exchanges[prefix]
            if self._by_call.get(message.id) is exchange:
                del self._by_call[message.id]

    async def _respond(self, request: web.Request, exchange: _Exchange) -> web.StreamResponse:
        await exchange.changed.wait()
        if exchange.answer and not exchange.events:
            return web.Response(body=exchange.answer, content_type="application/json")
        response = web.StreamResponse(headers={INSTANCE_HEADER: self._instance, "Cache-Control": "no-store"})
        response.content_type = "text/event-stream"
        await response.prepare(request)
        while True:
            exchange.changed.clear()
            events, exchange.events = exchange.events, []
            lines = [*events, exchange.answer] if exchange.answer else events
            await response.write(b"".join(b"data: " + line + b"\n" for line in lines))  # a line has one end already
            if exchange.answer:
                await response.write_eof()
                return response
            await exchange.changed.wait()

    async def fetch(self, exchange: _Exchange, request_id: str, method: str, params: dict[str, Any]) -> None:
        """Answer a request for a blob from the host's HTTP API."""
        try:
            answer: dict[str, Any] = {"result": await self._blob(method, params)}
        except (ClientError, TimeoutError, OSError, *UNREADABLE) as error:
            answer = {"error": {"code": -32000, "message": f"the host's blobs cannot be reached: {error}"}}
        if exchange.server.awaits(request_id):
            exchange.server.receive(encode({"jsonrpc": "2.0", "id": request_id, **answer}))

    async def _blob(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=BLOB_TIMEOUT_S))
        if method == "blobs/put":
            put = encode({"data": params["data"], "blobType": params.get("blob_type") or "data"})
            headers = {"Content-Type": "application/json"}
            async with self._session.post(self._blob_url, data=BytesIO(put), headers=headers) as response:
                response.raise_for_status()
                return {"blob_id": msgspec.json.decode(await response.read())["blobId"]}
        async with self._session.get(f"{self._blob_url}/{quote(params['blob_id'], safe='')}") as response:
            response.raise_for_status()
            found = msgspec.json.decode(await response.read())
            return {"data": found["data"], "blob_type": found.get("blobType") or "data"}

    @property
    def blobs_elsewhere(self) -> bool:
        """Whether the host keeps blobs behind an HTTP API."""
        return bool(self._blob_url)


class _Exchange:
    """One request, what its component says meanwhile, and the answer."""

    def __init__(self, owner: HttpServer, message: Message, prefix: str, progress: bool, threads: Threads) -> None:
        self.events: list[bytes] = []
        self.answer = b""
        self.changed = asyncio.Event()
        self._owner = owner
        self._call_id = message.id
        self._tasks: set[asyncio.Task[None]] = set()
        self.server = Server(
            REGISTRY,
            self._take_answer,
            send_event=self._take_event,
            threads=threads,
            ask_prefix=prefix,
            words=_words(message),
            wants_progress=progress,
            failed_code=EXECUTION_FAILED_LATER,
            show_tracebacks=log_level() <= logging.DEBUG,
        )

    def cancel(self) -> None:
        """Nobody waits for the answer any more."""
        note = {"jsonrpc": "2.0", "method": "components/cancel", "params": {"id": self._call_id}}
        self.server.receive(encode(note))

    def _take_answer(self, line: bytes) -> None:
        self.answer = line
        self.changed.set()

    def _take_event(self, line: bytes) -> None:
        if self._owner.blobs_elsewhere:
            asked = msgspec.json.decode(line)
            if asked["method"].startswith("blobs/"):
                fetch = self._owner.fetch(self, asked["id"], asked["method"], asked["params"])
                task = asyncio.ensure_future(fetch)
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)
                return
        self.events.append(line)
        self.changed.set()


class _Ids(msgspec.Struct):
    observability: Trace | None = None
    run_id: str | None = None


def _words(message: Message) -> Callable[[Any], Any]:
    try:
        ids = params_of(message.params, _Ids)
    except UNREADABLE:
        ids = _Ids()
    run_id = ids.run_id or (ids.observability.run_id if ids.observability is not None else None)
    return LaterWords(run_id).translate


def _json(tree: Any, status: int = 200) -> web.Response:
    return web.Response(body=encode(tree), content_type="application/json", status=status)


def _accepted() -> web.Response:
    return _json("", 202)


def _refusal(code: int, text: str, call_id: Any = None) -> web.Response:
    error = {"error": {"code": code, "message": text}}
    return _json(error if call_id is None else {"jsonrpc": "2.0", "id": call_id, **error}, 400)


__all__ = ["HttpServer", "serve"]
