"""The HTTP API through which stepflow-py 0.10 and 0.11 keep blobs: POST and GET, JSON and bytes.

- These servers send no credentials, so the address itself is one: it holds a token that nobody can guess, and it is
  told to the servers of one plugin only. Logs and failures show it redacted.
- Served only while a call is in flight, with the blobs that the call may use: outside of calls a server may nothing.
- Bodies are at most a payload and its envelope, and at most `REQUESTS_MAX` are served at a time; more wait.

Not here: a life time of blobs (retention's). The name of a file, which a server may send along, is not kept.
"""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING

import msgspec
from aiohttp import web

from component_host.stepflow_bridge.callbacks import get_json, put_json
from component_host.stepflow_bridge.http_endpoint import REPLY_BYTES_MAX
from component_host.stepflow_bridge.protocol import DECODE_ERRORS
from stepflow.codec import encode
from stepflow.errors import Invalid, NotFound, StepflowError, Unavailable
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from component_host.backend import BlobAccess

    Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

BINARY = "application/octet-stream"

REQUESTS_MAX = 64

log = get_logger("component_host.blob_api")


class BlobApi:
    """A listener of its own. `blobs` gives those of a call in flight, or None."""

    def __init__(self, blobs: Callable[[], BlobAccess | None]) -> None:
        self.url = ""
        self.secret = secrets.token_urlsafe(32)
        """What is secret in it. Servers put addresses that do not answer as they should into their errors."""
        self._blobs = blobs
        self._turns = asyncio.Semaphore(REQUESTS_MAX)
        self._runner: web.AppRunner | None = None

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
        """Safe to repeat."""
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()

    async def _put(self, request: web.Request) -> web.Response:
        blobs = self._usable()
        body = await request.read()
        if request.content_type == BINARY:
            blob_id = await blobs.put(body, blob_type="binary")
        else:
            put = msgspec.json.decode(body, type=_Put)
            blob_id = await put_json(blobs, put.data, put.blob_type)
        return _json({"blobId": blob_id})

    async def _get(self, request: web.Request) -> web.Response:
        blobs, blob_id = self._usable(), request.match_info["blob_id"]
        if BINARY in request.headers.get("Accept", ""):
            content, _ = await blobs.get(blob_id)
            return web.Response(body=content, content_type=BINARY)
        text, blob_type = await get_json(blobs, blob_id)
        return _json({"data": text, "blobType": blob_type, "blobId": blob_id})

    def _usable(self) -> BlobAccess:
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
        except ConnectionResetError:  # the server was killed; nobody reads the answer
            return _json({"error": "the connection was lost"}, 400)
        except DECODE_ERRORS as error:
            return _json({"error": f"the body is not {{data, blobType}}: {error}"}, 400)
        except web.HTTPException:
            raise
        except Exception as error:
            log.exception("the blob API failed", error=type(error).__name__)
            return _json({"error": "failed inside the component host"}, 500)


class _Put(msgspec.Struct, rename="camel"):
    data: msgspec.Raw
    blob_type: str | None = None


def _json(tree: object, status: int = 200) -> web.Response:
    return web.Response(body=encode(tree), content_type="application/json", status=status)
