"""The HTTP transport of stepflow 0.9 to 0.11: JSON-RPC over POST, with server-sent events for requests to the host.

- The answer to a request is JSON. Once the component sends the host a request, reports progress to a host with
  `Stepflow-Capabilities: progress`, waits for a thread while the host has `queue` there, or logs while the host has
  `log` there, the response becomes a stream of events with the answer as the last.
- The host replies with a POST of its own. Ids of requests to the host are unique in the process.
- A client that disconnects before the answer cancels the call.
- Hosts with an HTTP blob API, announced at `initialize`, get blob requests there (`host_blobs`).
- The listening port is announced on stdout: `{"port": N}`. SIGTERM, SIGINT or SIGHUP ends the server
  (128 + signal).

Limit: the protocol has no authentication. Pages in a browser cannot call, as JSON may not be sent across origins.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from datetime import UTC, datetime
from typing import Any

import msgspec
from aiohttp import web

from stepflow.component.call import LOG
from stepflow.component.http.host_blobs import HostBlobs
from stepflow.component.http.served_request import ServedRequest
from stepflow.component.process import (
    cancel_calls,
    exit_code_on_signal,
    run_and_leave,
    take_descriptors,
)
from stepflow.component.shapes import encode
from stepflow.component.threads import Threads
from stepflow.component.wire import (
    INVALID_REQUEST,
    LINE_BYTES_MAX,
    UNREADABLE,
    CancelParams,
    InitializeParams,
    Message,
    decode_message,
    params_of,
    why_unreadable,
)

INSTANCE_HEADER = "Stepflow-Instance-Id"

KEEPALIVE_S = 75.0
"""Longer than clients keep idle connections: the server never closes one with a request in transit."""


def run_http(host: str, port: int, threads: int | None) -> None:
    """Serve until a signal, with at most `threads` threads. Raises: SystemExit."""
    fd_in, fd_out = take_descriptors()
    os.close(fd_in)  # the end of stdin has no meaning here
    run_and_leave(_serve(host, port, fd_out, threads))


async def _serve(host: str, port: int, fd_out: int, threads: int | None) -> tuple[int, bool]:
    """Return the exit code, and True if threads are stuck in components."""
    with exit_code_on_signal() as ended:
        server = ComponentHttpServer(threads)
        try:
            await server.start(host, port)
        except OSError as error:
            LOG.error("cannot listen on %s:%d: %s", host, port, error.strerror)
            return 1, False

        try:
            os.write(fd_out, b'{"port": %d}\n' % server.port)
        except OSError as error:
            LOG.warning("cannot write the port to stdout: %s; listening on port %d", error.strerror, server.port)
        code = await ended
        return code, await server.stop()


class ComponentHttpServer:
    """The listener of a server process, and the requests in flight."""

    def __init__(self, threads: int | None) -> None:
        self.port = 0
        self._instance = secrets.token_hex(8)
        self._threads = Threads(threads)
        self._blobs = HostBlobs()
        self._by_prefix: dict[str, ServedRequest] = {}
        """By the prefix of ids of requests to the host."""
        self._by_call: dict[Any, ServedRequest] = {}
        """By the id of the execute, for cancellation."""
        self._count = 0
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
        """Drop the calls in flight; return True if threads are stuck in components."""
        tasks = [task for served in self._by_prefix.values() for task in served.server.tasks()]
        stuck = await cancel_calls(tasks, self._threads)

        await self._blobs.close()
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
        # 1. Check the headers.
        if request.content_type != "application/json":
            return _json({"error": "Content-Type must be application/json"}, 415)
        accept = request.headers.get("Accept", "")
        if "application/json" not in accept or "text/event-stream" not in accept:
            return _json({"error": "Accept must include application/json and text/event-stream"}, 406)

        # 2. Read the message.
        body = await request.read()
        try:
            message = decode_message(body)
        except UNREADABLE as error:
            call_id, code, text = why_unreadable(body, error)
            return _refusal(code, text, call_id)

        # 3. A reply, a notification, or a request.
        if message.method is msgspec.UNSET:
            return self._take_reply(message, body)
        if message.id is msgspec.UNSET:
            self._take_notification(message, body)
            return _accepted()
        if message.method == "initialize":
            self._note_host(message)
        return await self._answer(request, message, body)

    def _take_reply(self, message: Message, body: bytes) -> web.Response:
        request_id = message.id if isinstance(message.id, str) else ""
        served = self._by_prefix.get(request_id.partition(".")[0])
        if served is None or not served.server.awaits(request_id):
            return _refusal(INVALID_REQUEST, f"Response with id {request_id!r} has no pending request")

        served.server.receive(body)
        return _accepted()

    def _take_notification(self, message: Message, body: bytes) -> None:
        if message.method != "components/cancel":
            return

        try:
            served = self._by_call.get(params_of(message.params, CancelParams).id)
        except UNREADABLE:
            return
        if served is not None:
            served.server.receive(body)

    def _note_host(self, message: Message) -> None:
        try:
            capabilities = params_of(message.params, InitializeParams).capabilities
        except UNREADABLE:
            return  # the server's answer reports the error

        if capabilities is not None:
            self._blobs.note_host(capabilities)

    async def _answer(self, request: web.Request, message: Message, body: bytes) -> web.StreamResponse:
        self._count += 1
        prefix = f"{self._instance}-{self._count}"
        capabilities = request.headers.get("Stepflow-Capabilities", "")
        served = ServedRequest(message, f"{prefix}.", self._threads, self._blobs, capabilities=capabilities)
        self._by_prefix[prefix] = self._by_call[message.id] = served

        try:
            served.server.receive(body)
            return await self._respond(request, served)
        except (asyncio.CancelledError, ConnectionError):  # the client has disconnected
            served.cancel()
            raise
        finally:
            del self._by_prefix[prefix]
            if self._by_call.get(message.id) is served:
                del self._by_call[message.id]

    async def _respond(self, request: web.Request, served: ServedRequest) -> web.StreamResponse:
        await served.changed.wait()
        if served.answer and not served.events:
            return web.Response(body=served.answer, content_type="application/json")

        response = web.StreamResponse(headers={INSTANCE_HEADER: self._instance, "Cache-Control": "no-store"})
        response.content_type = "text/event-stream"
        await response.prepare(request)

        while True:
            served.changed.clear()
            lines = served.take_lines()
            # A line ends with a newline; the second newline ends the event.
            await response.write(b"".join(b"data: " + line + b"\n" for line in lines))
            if served.answer:
                await response.write_eof()
                return response
            await served.changed.wait()


def _json(tree: Any, status: int = 200) -> web.Response:
    return web.Response(body=encode(tree), content_type="application/json", status=status)


def _accepted() -> web.Response:
    return _json("", 202)


def _refusal(code: int, text: str, call_id: Any = None) -> web.Response:
    error = {"error": {"code": code, "message": text}}
    return _json(error if call_id is None else {"jsonrpc": "2.0", "id": call_id, **error}, 400)
