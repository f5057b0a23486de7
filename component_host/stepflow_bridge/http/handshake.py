"""The handshake with an HTTP server: wait for health, initialize, list components."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from msgspec import UNSET

from component_host.stepflow_bridge import protocol
from component_host.stepflow_bridge.http.endpoint import LostError, NotProtocolError
from component_host.stepflow_bridge.listing import components_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from component_host.backend import ComponentInfo
    from component_host.stepflow_bridge.http.blob_api import BlobApi
    from component_host.stepflow_bridge.http.endpoint import HttpEndpoint

READY_POLL_S = 0.05
READY_WAIT_S = 1.0
"""For one reply of `/health` while a server starts."""


@dataclass(frozen=True, slots=True)
class Introduction:
    """The server's part of a handshake."""

    components: list[ComponentInfo]
    lists_all: bool
    """False for servers without our SDK: from 0.9 on, components with a path pattern are not listed."""
    cancels: bool
    """The server stops an execute on `components/cancel`."""


async def await_health(endpoint: HttpEndpoint, on_failure: Callable[[Exception], None]) -> str:
    """Poll `/health` until the server answers; return its instance id. `on_failure` gets each failure and may raise."""
    while True:
        try:
            async with asyncio.timeout(READY_WAIT_S):  # a foreign process may have taken the port and stay silent
                return await endpoint.health()
        except (LostError, NotProtocolError, TimeoutError) as error:
            on_failure(error)
            await asyncio.sleep(READY_POLL_S)


class HttpHandshake:
    """Greets the instances of one server. `id_prefix` makes request ids unique among hosts."""

    def __init__(self, plugin: str, api: BlobApi, blob_threshold: int, id_prefix: str) -> None:
        self._plugin = plugin
        self._api = api
        self._blob_threshold = blob_threshold
        self._id_prefix = id_prefix
        self._last_id = 0

    async def greet(self, endpoint: HttpEndpoint, instance: str = "") -> Introduction:
        """Shake hands. The caller limits the time. Raises: LostError, NotProtocolError, ServerRefusedError."""
        # 1. Initialize.
        blobs: dict[str, Any] = {"blobApiUrl": self._api.url}
        if self._blob_threshold:
            blobs["blobThreshold"] = self._blob_threshold
        reply = await self._ask(endpoint, "initialize", protocol.initialize_params(self._plugin, **blobs), instance)
        capabilities = protocol.capabilities_of(reply)
        await endpoint.tell(protocol.line_of(protocol.Notification("initialized", {})), instance)

        # 2. List.
        reply = await self._ask(endpoint, "components/list", {}, instance)
        return Introduction(
            components_of(reply, self._plugin),
            lists_all=capabilities is not None,
            cancels=capabilities is not None and capabilities.cancel,
        )

    async def _ask(
        self, endpoint: HttpEndpoint, method: str, params: Mapping[str, Any], instance: str
    ) -> protocol.Line:
        self._last_id += 1

        body = protocol.line_of(protocol.Request(f"{self._id_prefix}-q{self._last_id}", method, params))
        async with aclosing(endpoint.exchange(body, instance)) as messages:
            async for reply, _ in messages:
                if reply.error is not UNSET:
                    self._api.redact(reply.error)
                protocol.check_reply(method, reply)
                return reply

        raise LostError("it closed the connection without an answer")
