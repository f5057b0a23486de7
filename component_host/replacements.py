"""New backends for the plugins of a host, while calls are under way.

The usual way, with two servers for a short time:
1. The new backend starts. If it does not, the former one serves on.
2. New calls wait until the former backend is idle, at most `IDLE_WAIT_S`; then they go to the new one. Calls of
   sub-runs go there at once: a call that the former backend executes may wait for them.
3. The former backend is closed once its calls have ended, however long they take.

A server that holds something no second one can have (a fixed port, a queue at a shared address) ends first: new calls
wait until it is idle, and then for the start of its successor. If it stays busy for `BUSY_S_MAX`, nothing is changed.

Not here: which plugins change, and why (`plugin_changes`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from component_host.call_tasks import wait_bounded
from component_host.plugins import PluginState, start_backend
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.backend import Backend
    from component_host.plugins import HostedPlugin, HostedPlugins

log = get_logger(__name__)

IDLE_WAIT_S = 5.0
"""Longest wait of new calls for the former server to become idle, while the new one is ready."""

BUSY_S_MAX = 50.0
"""Longest wait of new calls for a server that must end before its successor starts."""

FORMER_SERVERS_MAX = 8
"""Former servers of a plugin that still execute calls. With more of them, a running server is not replaced."""

IDLE_POLL_S = 0.02
RETIRE_POLL_S = 0.2
"""Interval of looks at a former server that still executes calls."""

Outcome: TypeAlias = Literal["restarted", "added", "removed", "kept", "failed", "no_server"]
"""As in `PluginChange` of the API."""


@dataclass(frozen=True, slots=True)
class PluginOutcome:
    """What was done with one plugin."""

    plugin: str
    outcome: Outcome
    detail: str = ""


class Replacements:
    """The replacements of one host. The caller makes one change of a plugin at a time."""

    def __init__(self, plugins: HostedPlugins, calls_in: Callable[[Backend], int]) -> None:
        """`calls_in` returns the number of calls that a backend executes."""
        self._plugins = plugins
        self._calls_in = calls_in
        self._retiring: dict[asyncio.Task[None], Backend] = {}

    async def replace(self, name: str, backend: Backend, changed: Callable[[], None]) -> PluginOutcome:
        """Start a new backend of a ready plugin, then switch to it."""
        plugin = self._plugins.find_plugin(name)
        former = plugin.backend
        assert former is not None
        assert plugin.state is PluginState.READY

        formers = sum(each.name == backend.name for each in self._retiring.values())
        if formers >= FORMER_SERVERS_MAX:
            await backend.close()
            return PluginOutcome(name, "kept", f"{formers} former servers still execute calls; wait for some to end")

        # 1. Start. A cancellation ends the host: the new backend must not outlive it.
        started = False
        try:
            error = await start_backend(name, backend)
            started = error is None
        finally:
            if not started:
                await backend.close()
        if error is not None:
            if not former.health.serving:
                return PluginOutcome(name, "failed", error.message)
            former.health.note_refused_restart(error.message)
            return PluginOutcome(name, "kept", error.message)

        # 2. Switch.
        backend.health.restarts = former.health.restarts + 1
        self._plugins.swap_backend(name, backend)
        self._retire(name, former)
        changed()
        calls = await self._wait_for_idle(plugin, former, IDLE_WAIT_S)
        self._plugins.resume_waiting(plugin)

        log.info("plugin restarted", plugin=name, calls_in_former=calls)
        return PluginOutcome(name, "restarted", f"the former server ends after its {_calls(calls)}" if calls else "")

    async def replace_in_place(self, name: str, backend: Backend, changed: Callable[[], None]) -> PluginOutcome:
        """End the backend of a ready plugin, then start a new one."""
        plugin = self._plugins.find_plugin(name)
        former = plugin.backend
        assert former is not None
        assert plugin.state is PluginState.READY

        # 1. Wait until it is idle.
        calls = await self._wait_for_idle(plugin, former, BUSY_S_MAX)
        if calls:
            self._plugins.resume_waiting(plugin)
            text = f"its server still executes {_calls(calls)}, and must end before another one can start"
            return PluginOutcome(name, "kept", text)

        # 2. End it. Calls wait for the start from here on.
        plugin.state = PluginState.STARTING
        changed()
        await former.close()

        # 3. Start the new one.
        ready = await self._plugins.start_anew(name, backend, changed)
        backend.health.restarts = former.health.restarts + 1
        log.info("plugin restarted in place", plugin=name, ready=ready)
        return (
            PluginOutcome(name, "restarted")
            if ready
            else PluginOutcome(name, "failed", self._plugins.failures[name].message)
        )

    def remove(self, name: str) -> PluginOutcome:
        """Take a plugin away: it gets no more calls, and ends once its calls have ended."""
        former = self._plugins.remove_plugin(name)
        calls = 0
        if former is not None:
            calls = self._calls_in(former)
            self._retire(name, former)
        return PluginOutcome(name, "removed", f"its server ends after its {_calls(calls)}" if calls else "")

    async def close(self) -> None:
        """Close the former backends; their calls fail with UNREACHABLE. Idempotent."""
        retiring = dict(self._retiring)
        for task in retiring:
            task.cancel()
        await asyncio.gather(*retiring, return_exceptions=True)
        closes = [asyncio.create_task(backend.close(), name=backend.name) for backend in retiring.values()]
        await wait_bounded(closes, "a former backend does not stop")

    async def _wait_for_idle(self, plugin: HostedPlugin, backend: Backend, limit_s: float) -> int:
        """Let new calls wait until a backend executes none, within a limit; return the number of calls left."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + limit_s
        plugin.switching = True
        try:
            while (calls := self._calls_in(backend)) and loop.time() < until_s:  # noqa: ASYNC110  # as below
                await asyncio.sleep(IDLE_POLL_S)
            return calls
        finally:
            plugin.switching = False

    def _retire(self, name: str, backend: Backend) -> None:
        """Close a backend once it executes no call."""
        task = asyncio.create_task(self._end_when_idle(name, backend), name=f"retire {name}")
        self._retiring[task] = backend
        task.add_done_callback(lambda task: self._retiring.pop(task, None))

    async def _end_when_idle(self, name: str, backend: Backend) -> None:
        while self._calls_in(backend):  # noqa: ASYNC110  # an event would cost a check for each call
            await asyncio.sleep(RETIRE_POLL_S)
        try:
            await backend.close()
        except Exception as error:
            log_defect(log, "a former backend could not be closed", error, plugin=name)


def _calls(number: int) -> str:
    return "1 call" if number == 1 else f"{number} calls"


__all__ = ["Outcome", "PluginOutcome", "Replacements"]
