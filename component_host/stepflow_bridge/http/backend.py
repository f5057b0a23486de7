"""Bridge to StepFlow servers over HTTP: stepflow-py 0.9 to 0.11, 0.2 to 0.7 with `--http`, and servers with our SDK."""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.stepflow_bridge.http.blob_api import BlobApi
from component_host.stepflow_bridge.http.config import HttpServerConfig
from component_host.stepflow_bridge.http.server import StepflowHttpServer
from component_host.stepflow_bridge.pool import StepflowPool

if TYPE_CHECKING:
    from component_host.backend import BackendContext, BlobAccess

__all__ = ["HttpServerConfig", "StepflowHttpBackend"]


class StepflowHttpBackend(StepflowPool):
    """A pool of processes on loopback, or one remote server."""

    def __init__(self, context: BackendContext, config: HttpServerConfig) -> None:
        super().__init__(context)
        self._config = config
        self._api = BlobApi(self._blobs)
        count = config.processes if config.command else 1
        self._http_servers = [StepflowHttpServer(context, config, self, self._api) for _ in range(count)]
        self.servers = self._http_servers

    async def start(self) -> None:
        await self._api.start(self._config.blob_host)
        await super().start()

    async def close(self) -> None:
        await super().close()
        await self._api.close()

    def _blobs(self) -> BlobAccess | None:
        """Return the blobs of any call in flight: all calls of a host share them."""
        return next((call.blobs for server in self._http_servers for call in server.calls()), None)
