"""The HTTP API where stepflow-py 0.10 and 0.11 keep blobs: POST and GET, JSON and bytes.

- These servers send no credentials, so the address is the credential: an unguessable token, told to the servers of one
  plugin only. Logs and failures show the token redacted.
- Requests are served only while a call is in flight, with the blobs of calls: without a call a server has no access.
- Limits: a body is at most a payload and its envelope; `REQUESTS_MAX` requests are served at a time, more wait.

Not here: the lifetime of blobs (retention). File names sent along are not kept.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from component_host.stepflow_bridge.http.endpoint import REPLY_BYTES_MAX
from component_host.stepflow_bridge.json_values import get_json, put_json
from component_host.stepflow_bridge.protocol import DECODE_ERRORS, ErrorIn
from stepflow.codec import encode
from stepflow.errors import Invalid, NotFound, StepflowError, Unavailable
from stepflow.redaction import REDACTED, redact_values
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from component_host.backend import BlobAccess

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BINARY = "application/octet-stream"

REQUESTS_MAX = 64

log = get_logger("component_host.blob_api")


class BlobApi:
    """The listener of one plugin. `blobs` returns the blobs of a call in flight, or None."""

    def __init__(self, blobs: Callable[[], BlobAccess | None]) -> None:
        self.url = ""
        self.secret = secrets.token_urlsafe(32)
        """The token in `url`. Servers quote the addresses of failed requests in their errors."""
        self._blobs = blobs
        self._turns = asyncio.Semaphore(REQUESTS_MAX)
        self._runner: web.AppRunner | None = None

    def redact(self, error: ErrorIn) -> None:
        """Remove the token from an error before it is stored: servers quote the whole address of a missing blob."""
        error.message = redact_values(error.message, [self.secret])
        if isinstance(error.data, msgspec.Raw) and self.secret.encode() in (data := bytes(error.data)):
            error.data = msgspec.Raw(data.replace(self.secret.encode(), REDACTED.encode()))

    async def start(self, host: str) -> None:
        """Listen on an address of this machine. Raises: Unavailable BLOB_API_FAILED."""
        base = f"/{self.secret}/api/v1/blobs"
        app = web.Application(client_max_size=REPLY_BYTES_MAX, middlewares=[self._answer_errors])
        app.router.add_post(base, self._put)
        app.router.add_get(base + "/{blob_id}", self._get)

        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=0.5)
        await self._runner.setup()

        site = web.TCPSite(self._runner, host, 0)
        try:
            await site.start()
        except OSError as error:
            await self.close()
            raise Unavailable(
                "BLOB_API_FAILED", f"cannot listen on {host} for blobs of component servers: {error.strerror}"
            ) from None

        shown = f"[{host}]" if ":" in host else host
        self.url = f"http://{shown}:{self._runner.addresses[0][1]}{base}"

    async def close(self) -> None:
        """Stop listening. Idempotent."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _put(self, request: web.Request) -> web.Response:
        blobs = self._open_blobs()
        body = await request.read()
        if request.content_type == BINARY:
            blob_id = await blobs.put(body, blob_type="binary")
        else:
            put = msgspec.json.decode(body, type=_PutBody)
            blob_id = await put_json(blobs, put.data, put.blob_type)
        return _json({"blobId": blob_id})

    async def _get(self, request: web.Request) -> web.Response:
        blobs, blob_id = self._open_blobs(), request.match_info["blob_id"]
        if BINARY in request.headers.get("Accept", ""):
            content, _ = await blobs.get(blob_id)
            return web.Response(body=content, content_type=BINARY)
        text, blob_type = await get_json(blobs, blob_id)
        return _json({"data": text, "blobType": blob_type, "blobId": blob_id})

    def _open_blobs(self) -> BlobAccess:
        blobs = self._blobs()
        if blobs is None:
            raise web.HTTPForbidden(text="blobs are served while a component executes")
        return blobs

    @web.middleware
    async def _answer_errors(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            async with self._turns:
                return await handler(request)
        except StepflowError as error:
            status = 404 if isinstance(error, NotFound) else 400 if isinstance(error, Invalid) else 503
            return _json({"error": error.message}, status)
        except ConnectionResetError:  # the server was killed: no reader for the answer
            return _json({"error": "the connection was lost"}, 400)
        except DECODE_ERRORS as error:
            return _json({"error": f"the body is not {{data, blobType}}: {error}"}, 400)
        except web.HTTPException:
            raise
        except Exception as error:
            log_defect(log, "the blob API failed", error)
            return _json({"error": "failed inside the component host"}, 500)


class _PutBody(msgspec.Struct, rename="camel"):
    data: msgspec.Raw
    blob_type: str | None = None


def _json(tree: object, status: int = 200) -> web.Response:
    return web.Response(body=encode(tree), content_type="application/json", status=status)
