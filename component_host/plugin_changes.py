"""Changes of a host's plugins while it runs: restarts by hand, and its configuration file read again.

- One change at a time. A change goes on after the end of the request for it. Equal requests that wait are one change.
- A restart builds a new backend from the configuration in force, and `replacements` switches to it. A plugin without a
  server gets a retry of its start at once.
- A reload compares plugins by what their servers are started with. Only those that differ are replaced; new routes
  become valid after that, and plugins without a route end last. A file that cannot be read changes nothing.

Not here: which files belong to a plugin (`stepflow.dev.sources`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from component_host.plugins import PluginState
from component_host.replacements import Outcome, PluginOutcome
from stepflow.config import reload_config
from stepflow.config.restart_ways import overlaps, why_no_server
from stepflow.errors import FailedPrecondition, NotFound, StepflowError
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from component_host.backend import Backend
    from component_host.host import ComponentHost
    from component_host.supervision.start_retries import StartRetries
    from stepflow.config import Config

ResultT = TypeVar("ResultT")

PORT_TAKEN = "address already in use"
"""What programs of every language print when another process has their port: the system's own words."""

log = get_logger(__name__)


class RouteWriter(Protocol):
    """The registration of the host, as used by changes."""

    def changed(self) -> None: ...

    async def prepare_config(self, config: Config) -> None:
        """Check the routes, and list the plugins. Raises: FailedPrecondition ROUTES_CLAIMED, TOO_MANY_ROUTES;
        Unavailable."""
        ...

    async def apply_routes(self, config: Config) -> None:
        """Replace the routes of the host. Raises: as `prepare_config`; Conflict."""
        ...


@dataclass(frozen=True, slots=True)
class Reload:
    """What a new configuration has changed."""

    changes: tuple[PluginOutcome, ...] = ()
    routes_added: tuple[str, ...] = ()
    routes_removed: tuple[str, ...] = ()
    routes_changed: tuple[str, ...] = ()


class PluginChanges:
    """The changes of one host, from the start of its plugins to `close`."""

    def __init__(
        self,
        host: ComponentHost,
        config: Config,
        make: Callable[[str, Config], Backend],
        registration: RouteWriter,
        retries: StartRetries,
    ) -> None:
        """`make` builds the backend of a plugin. Raises: StepflowError."""
        self.config = config
        self._host = host
        self._make = make
        self._registration = registration
        self._retries = retries
        self._made_of = {name: _parts(config, name) for name in _routed(config)}
        """By plugin: what its backend was made of."""
        self._turn = asyncio.Lock()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._waiting: dict[str, asyncio.Task[Any]] = {}
        """Changes that have not begun: by plugin, and under "" a reload."""

    async def restart(self, plugin: str) -> PluginOutcome:
        """Start the servers of a plugin again. Raises: NotFound PLUGIN_UNKNOWN; FailedPrecondition."""
        return await self._run(plugin, partial(self._restart, plugin))

    async def reload(self) -> Reload:
        """Read the configuration file again, and apply what has changed.

        Raises: ConfigInvalid; NotFound CONFIG_NOT_FOUND; FailedPrecondition CONFIG_MISSING, ROUTES_CLAIMED,
            TOO_MANY_ROUTES; Conflict; Unavailable.
        """
        return await self._run("", self._reload)

    async def close(self) -> None:
        """Break off the change under way. Idempotent."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run(self, name: str, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        """Do the work in its turn, also if its caller goes away. `name`: equal for equal work."""
        task: asyncio.Task[ResultT] | None = self._waiting.get(name)
        if task is None:
            task = asyncio.create_task(self._in_turn(name, work), name="change plugins")
            self._waiting[name] = task
            self._tasks.add(task)
            task.add_done_callback(self._forget)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if not task.cancelled():
                raise
            raise FailedPrecondition("SERVICE_STOPPING", f"host {self._host.id} is being stopped") from None

    def _forget(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # seen, also if its caller has gone

    async def _in_turn(self, name: str, work: Callable[[], Awaitable[ResultT]]) -> ResultT:
        try:
            await self._turn.acquire()
        finally:
            del self._waiting[name]
        try:
            return await work()
        finally:
            self._turn.release()

    # --- restarts -----------------------------------------------------------------------------------------------------

    async def _restart(self, name: str) -> PluginOutcome:
        if name not in self._made_of or name not in self.config.plugins:
            raise NotFound("PLUGIN_UNKNOWN", f"host {self._host.id} has no plugin {name!r}", plugin=name)
        without_server = why_no_server(self.config.plugins[name])
        if without_server:
            return PluginOutcome(name, "no_server", without_server)
        return await self._renew(name, "restarted")

    async def _renew(self, name: str, outcome: Outcome) -> PluginOutcome:
        """Replace the backend of a plugin, or start one where none serves. `outcome` is that of a success."""
        plugins, config = self._host.plugins, self.config
        plugin = plugins.find_plugin(name)
        if plugin.starting is not None:
            await asyncio.wait([plugin.starting])

        # 1. A ready plugin: the former server serves on if the new one does not start.
        changed = self._registration.changed
        if plugin.state is PluginState.READY:
            replacements, before = self._host.replacements, self._made_of[name][0]
            try:
                if overlaps(before) and overlaps(config.plugins[name]):
                    change = await replacements.replace(name, self._make(name, config), changed)
                else:
                    change = await replacements.replace_in_place(name, self._make(name, config), changed)
                if change.outcome == "kept" and PORT_TAKEN in change.detail.lower():
                    # The program insists on a port, and the former server has it.
                    change = await replacements.replace_in_place(name, self._make(name, config), changed)
            except StepflowError as error:  # a variable is not set
                change = PluginOutcome(name, "kept", error.message)

        # 2. No server serves: there is nothing to lose.
        else:
            change = await self._start(name, outcome)

        # 3. A backend that did not start is retried; a ready one starts its server again by itself.
        not_started = plugins.find_plugin(name).state is PluginState.FAILED
        if not_started or change.outcome == outcome:
            self._made_of[name] = _parts(config, name)
        if not_started:
            self._retries.retry(name)
        return change

    async def _start(self, name: str, outcome: Outcome) -> PluginOutcome:
        """Start a plugin that is new, or did not start before."""
        plugins = self._host.plugins
        try:
            backend = self._make(name, self.config)
        except StepflowError as error:
            plugins.add_plugin(name, error)
            self._registration.changed()
            return PluginOutcome(name, "failed", error.message)

        if plugins.find_plugin(name).state is PluginState.FAILED:
            ready = await plugins.start_anew(name, backend, self._registration.changed)
        else:
            plugins.add_plugin(name, backend)
            await plugins.start([name], self._registration.changed)
            ready = name not in plugins.failures
        return PluginOutcome(name, outcome) if ready else PluginOutcome(name, "failed", plugins.failures[name].message)

    # --- the configuration --------------------------------------------------------------------------------------------

    async def _reload(self) -> Reload:
        # 1. Read and check.
        if self.config.source is None:
            raise FailedPrecondition("CONFIG_MISSING", f"host {self._host.id} was started without --config")
        former, config = self.config, await asyncio.to_thread(reload_config, self.config.source)
        await self._registration.prepare_config(config)

        # 2. Bring up what is new or differs. From here on retries use the new configuration.
        self.config = config
        wanted = _routed(config)
        differing = [name for name in wanted if self._made_of.get(name) != _parts(config, name)]
        renewals = (self._renew(name, "restarted" if name in self._made_of else "added") for name in differing)
        changes = list(await asyncio.gather(*renewals))

        # 3. Routes; then the plugins that no route leads to.
        await self._registration.apply_routes(config)
        for name in [name for name in self._made_of if name not in wanted]:
            changes.append(self._host.replacements.remove(name))
            del self._made_of[name]
        self._registration.changed()

        log.info("configuration reloaded", changes={change.plugin: change.outcome for change in changes})
        before, after = former.routes, config.routes
        return Reload(
            tuple(changes),
            routes_added=tuple(prefix for prefix in after if prefix not in before),
            routes_removed=tuple(prefix for prefix in before if prefix not in after),
            routes_changed=tuple(prefix for prefix in after if prefix in before and after[prefix] != before[prefix]),
        )


def _routed(config: Config) -> list[str]:
    """Return the plugins with a route, in the order of the configuration."""
    routed = {rule.plugin for rules in config.routes.values() for rule in rules}
    return [name for name in config.plugins if name in routed]


def _parts(config: Config, name: str) -> tuple[Any, ...]:
    """Return what the backend of a plugin is made of."""
    return config.plugins[name], config.working_directory, config.allowed_paths


__all__ = ["PluginChanges", "Reload", "RouteWriter"]
