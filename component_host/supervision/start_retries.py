"""Plugins that failed at their start, started again: after 1 s, 2 s, … up to a minute, as long as the host lives.

A server may be installed later, a remote one may come up later; nobody should have to restart the host for it. What
was ready once mends itself (`backend.Backend`). Not for `stepflow run`, whose user wants to hear of it at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import Refused, StepflowError
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import Backend
    from component_host.host import ComponentHost

log = get_logger(__name__)

DELAY_S_MIN = 1.0
DELAY_S_MAX = 60.0


class Revival:
    """Tends to one host from `begin` until `close`."""

    def __init__(
        self, host: ComponentHost, make_backend: Callable[[str], Backend], changed: Callable[[], None] = lambda: None
    ) -> None:
        self._host = host
        self._make_backend = make_backend
        self._changed = changed
        self._tasks: list[asyncio.Task[None]] = []

    def begin(self) -> None:
        """Tend to what has failed until now."""
        self._tasks = [asyncio.create_task(self._revive(name), name=f"revive {name}") for name in self._host.failures]

    async def close(self) -> None:
        """Start nothing any more. Safe to repeat."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _revive(self, name: str) -> None:
        delay_s = DELAY_S_MIN
        while True:
            await asyncio.sleep(delay_s)
            delay_s = min(2 * delay_s, DELAY_S_MAX)
            try:
                if await self._host.start_again(name, self._make_backend(name), self._changed):
                    log.info("plugin has started after all", plugin=name)
                    return
            except Refused:
                return  # the host is being stopped
            except StepflowError as error:
                log.warning("plugin cannot be made", plugin=name, reason=error.reason)


__all__ = ["Revival"]
