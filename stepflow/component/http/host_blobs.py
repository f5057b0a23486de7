"""`HostBlobs`: the HTTP API in which some hosts keep blobs; its address arrives at `initialize`.

Other hosts serve blobs as requests of the component (`blobs/put`, `blobs/get`); `available` is False for them.
"""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout

from stepflow.component.shapes import encode
from stepflow.component.wire import UNREADABLE

if TYPE_CHECKING:
    from stepflow.component.wire import HostCapabilities

BLOB_TIMEOUT_S = 30.0


class HostBlobs:
    """One HTTP session to the host's blob API, opened at the first request."""

    def __init__(self) -> None:
        self._url = ""
        self._session: ClientSession | None = None

    @property
    def available(self) -> bool:
        return bool(self._url)

    def note_host(self, capabilities: HostCapabilities) -> None:
        """Take the address from a host's capabilities; hosts with progress serve blobs as requests instead."""
        self._url = "" if capabilities.progress else capabilities.blob_api_url or ""

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def reply_line(self, request_id: str, method: str, params: dict[str, Any]) -> bytes:
        """Perform a `blobs/*` request; return the host's reply as a line. Never raises for a failing API."""
        try:
            reply: dict[str, Any] = {"result": await self._perform(method, params)}
        except (ClientError, TimeoutError, OSError, *UNREADABLE) as error:
            reply = {"error": {"code": -32000, "message": f"the host's blobs cannot be reached: {error}"}}

        return encode({"jsonrpc": "2.0", "id": request_id, **reply})

    async def _perform(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if self._session is None:
            self._session = ClientSession(timeout=ClientTimeout(total=BLOB_TIMEOUT_S))

        if method == "blobs/put":
            blob = encode({"data": params["data"], "blobType": params.get("blob_type") or "data"})
            headers = {"Content-Type": "application/json"}
            async with self._session.post(self._url, data=BytesIO(blob), headers=headers) as response:
                response.raise_for_status()
                return {"blob_id": msgspec.json.decode(await response.read())["blobId"]}

        async with self._session.get(f"{self._url}/{quote(params['blob_id'], safe='')}") as response:
            response.raise_for_status()
            found = msgspec.json.decode(await response.read())
            return {"data": found["data"], "blob_type": found.get("blobType") or "data"}
