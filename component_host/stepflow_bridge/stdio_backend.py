"""Bridge to StepFlow servers on stdio: stepflow-py 0.2.1 to 0.7.0, and servers built with our SDK.

Requests that gather within a turn of the event loop leave in one write; replies are read in large chunks, decoded once,
and an output passes through as text.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from component_host.stepflow_bridge.pool import StepflowPool
from component_host.stepflow_bridge.stdio import StdioServer, StdioServerConfig

if TYPE_CHECKING:
    from component_host.backend import BackendContext

__all__ = ["StdioServerConfig", "StepflowStdioBackend"]


class StepflowStdioBackend(StepflowPool):
    """A pool of processes that are spoken to through their pipes."""

    def __init__(self, context: BackendContext, config: StdioServerConfig) -> None:
        super().__init__(context)
        self.servers = [StdioServer(context, config, self.has_room) for _ in range(max(1, config.processes))]
