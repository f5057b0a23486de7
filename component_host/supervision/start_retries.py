"""Retries of failed plugin starts: after 1 s, 2 s, … up to a minute, as long as the host lives.

A server may be installed later, a remote one may come up later; the host needs no restart for either. A plugin is
retried until ready; later ends of the server are up to the backend (`restarts`). Not for `stepflow run`: users should
see the failure at once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import FailedPrecondition, StepflowError
from stepflow.retry import doubling
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import Backend
    from component_host.plugins import HostedPlugins

log = get_logger(__name__)

DELAY_S_MIN = 1.0
DELAY_S_MAX = 60.0


class StartRetries:
    """Retries the failed plugins of a host, from `begin` until `close`."""

    def __init__(
        self, plugins: HostedPlugins, make_backend: Callable[[str], Backend], changed: Callable[[], None] = lambda: None
    ) -> None:
        self._plugins = plugins
        self._make_backend = make_backend
        self._changed = changed
        self._tasks: dict[str, asyncio.Task[None]] = {}
        """By plugin."""

    def begin(self) -> None:
        """Retry each plugin with a failed start."""
        for name in self._plugins.failures:
            self.retry(name)

    def retry(self, name: str) -> None:
        """Retry a plugin until it is ready, or another start of it is under way. Idempotent."""
        before = self._tasks.get(name)
        if before is None or before.done():
            self._tasks[name] = asyncio.create_task(self._retry(name), name=f"retry start {name}")

    async def close(self) -> None:
        """Stop all retries. Idempotent."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _retry(self, name: str) -> None:
        for delay_s in doubling(DELAY_S_MIN, DELAY_S_MAX):
            await asyncio.sleep(delay_s)
            if name not in self._plugins.failures:  # started or removed meanwhile, by a change of the configuration
                return

            try:
                if await self._plugins.start_anew(name, self._make_backend(name), self._changed):
                    log.info("plugin started after retries", plugin=name)
                    return
            except FailedPrecondition:  # the host is stopping
                return
            except StepflowError as error:
                log.warning("plugin cannot be configured", plugin=name, reason=error.reason)
            except Exception as error:  # logged, not raised: the plugin would never be tried again
                log_defect(log, "plugin not started by a defect", error, plugin=name)


__all__ = ["StartRetries"]
