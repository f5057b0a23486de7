"""The search for a sign of life of a server process after a cancelled call.

A tool that goes on after its cancel may block the server's event loop, and with it all calls, without end.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from component_host.mcp_bridge.link import CallTrace, call_trace
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from component_host.mcp_bridge.link import McpLink

SIGN_OF_LIFE_S = 60.0
"""Time for an answer. Calls that are lost may not be repeated, so a server is ended late rather than early."""

log = get_logger("component_host.mcp")


class SignOfLife:
    """Asks one server, and ends it if it answers nothing."""

    def __init__(self, plugin: str, link: McpLink) -> None:
        self._plugin = plugin
        self._link = link
        self._search: asyncio.Task[None] | None = None

    def begin(self, ask: Callable[[], Awaitable[object]], busy: Callable[[], bool]) -> None:
        """Begin a search, unless one is under way or the host did not start the server.

        `ask` ends with any answer, an error included. `busy` returns True while a call from before the search may be
        what keeps the server busy.
        """
        kill = self._link.kill
        if kill is not None and not self._link.lost and (self._search is None or self._search.done()):
            self._search = asyncio.create_task(self._look(kill, ask, busy), name=f"check mcp {self._plugin}")

    async def _look(
        self, kill: Callable[[], None], ask: Callable[[], Awaitable[object]], busy: Callable[[], bool]
    ) -> None:
        call_trace.set(CallTrace())
        while not self._link.lost:
            try:
                async with asyncio.timeout(SIGN_OF_LIFE_S):
                    await ask()
            except TimeoutError:
                if busy():
                    continue
                log.warning("MCP server does not answer; ending it", plugin=self._plugin)
                kill()
                return
            except Exception:  # an error is an answer, and a loss is found elsewhere
                return
            else:
                return

    async def stop(self) -> None:
        if self._search is not None:
            self._search.cancel()
            await asyncio.gather(self._search, return_exceptions=True)


__all__ = ["SignOfLife"]
