"""Bridge to StepFlow servers on stdio: stepflow-py 0.2.1 to 0.7.0, and servers built with our SDK.

Requests of one turn of the event loop leave in one write. Replies are read in large chunks and decoded once; outputs
stay text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.stepflow_bridge.pool import StepflowPool
from component_host.stepflow_bridge.stdio.config import StdioServerConfig
from component_host.stepflow_bridge.stdio.server import StepflowStdioServer

if TYPE_CHECKING:
    from component_host.backend import BackendContext

__all__ = ["StdioServerConfig", "StepflowStdioBackend"]


class StepflowStdioBackend(StepflowPool):
    """A pool of child processes, reached through their pipes."""

    def __init__(self, context: BackendContext, config: StdioServerConfig) -> None:
        super().__init__(context)
        count = max(1, config.processes)
        self.servers = [StepflowStdioServer(context, config, self.fill_server) for _ in range(count)]
