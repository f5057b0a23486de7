"""The plugins of a host: backends and states, starts and stops.

- Each backend is started once. A failed start is final for the backend; `start_anew` brings a new backend.
- A failed plugin fails its own calls only.
- Calls arriving during a start wait with the plugin, in FIFO order. While a plugin changes its backend, calls of
  sub-runs do not: a call that the former backend executes may wait for them.

Not here: restarts of a server after the start (`supervision.restarts`), and new backends for ready plugins
(`replacements`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from component_host.call_tasks import wait_bounded
from stepflow.errors import FailedPrecondition, NotFound, StepflowError, Unavailable
from stepflow.telemetry import get_logger, log_defect, without_hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from component_host.backend import Backend, BackendListing
    from component_host.call import Call

log = get_logger(__name__)


class PluginState(Enum):
    NOT_STARTED = "is not started"
    STARTING = "is starting"
    READY = "is ready"
    FAILED = "did not start"


@dataclass(slots=True, eq=False)
class HostedPlugin:
    """A backend with its state. Later restarts of a server belong to the backend."""

    name: str
    backend: Backend | None
    """None for a plugin that the host does not run."""
    state: PluginState = PluginState.NOT_STARTED
    starting: asyncio.Task[None] | None = None
    error: StepflowError | None = None
    waiting: dict[Call, None] = field(default_factory=dict)
    """Calls from the time of the start, in FIFO order."""
    switching: bool = False
    """The former backend still executes calls: new calls wait, except those of sub-runs."""

    def must_wait(self, depth: int) -> bool:
        """Return True if a call of this depth must wait with the plugin."""
        return self.state is PluginState.STARTING or (self.switching and not depth)


class HostedPlugins:
    """All plugins of one host."""

    def __init__(self, host_id: str, backends: Mapping[str, Backend]) -> None:
        self.backends = dict(backends)
        self.failures: dict[str, StepflowError] = {}
        """Plugins that could not start, with the reason."""
        self.stopping = False
        """Set by the host before it closes: no start from then on."""
        self.resume: Callable[[Call], None] = lambda _: None
        """Receives each call that waited for a plugin, once the start has ended; set by the host."""
        self._host_id = host_id
        self._plugins = {name: HostedPlugin(name, backend) for name, backend in backends.items()}

    def find_plugin(self, name: str) -> HostedPlugin:
        """Return a plugin, without a backend if the host does not run the plugin."""
        return self._plugins.get(name) or HostedPlugin(name, None)

    def listings(self) -> dict[str, BackendListing]:
        """Return the components of each ready plugin."""
        return {
            name: plugin.backend.listing()
            for name, plugin in self._plugins.items()
            if plugin.state is PluginState.READY and plugin.backend is not None
        }

    async def start(self, names: Iterable[str] | None, changed: Callable[[], None]) -> None:
        """See `ComponentHost.start`."""
        # 1. Check all names before anything starts.
        wanted = list(self._plugins) if names is None else list(names)
        for name in wanted:
            if name not in self._plugins:
                raise NotFound("PLUGIN_UNKNOWN", f"host {self._host_id} has no plugin {name!r}", plugin=name)
        self._check_stopping()

        # 2. Start concurrently; a start under way is joined.
        plugins = [self._plugins[name] for name in wanted]
        for plugin in plugins:
            if plugin.starting is None:
                plugin.state = PluginState.STARTING
                plugin.starting = asyncio.create_task(self._start(plugin, changed), name=f"start {plugin.name}")

        # 3. Wait. Not `gather`: the cancellation of one waiter would cancel the start for the others.
        starts = [plugin.starting for plugin in plugins if plugin.starting is not None]
        if starts:
            await asyncio.wait(starts)
        for start in starts:
            if not start.cancelled():
                start.result()

    def add_plugin(self, name: str, backend: Backend | StepflowError) -> None:
        """Add a plugin to be started later, or a failed plugin with the error."""
        if isinstance(backend, StepflowError):
            self._plugins[name] = HostedPlugin(name, None, PluginState.FAILED, error=backend)
            self.failures[name] = backend
        else:
            self.backends[name] = backend
            self._plugins[name] = HostedPlugin(name, backend)

    def swap_backend(self, name: str, backend: Backend) -> None:
        """Give a ready plugin another started backend."""
        self._plugins[name].backend = self.backends[name] = backend

    def remove_plugin(self, name: str) -> Backend | None:
        """Forget a plugin, and return its backend; the calls that waited for it fail."""
        plugin = self._plugins.pop(name)
        self.backends.pop(name, None)
        self.failures.pop(name, None)
        self.resume_waiting(plugin)
        return plugin.backend

    def resume_waiting(self, plugin: HostedPlugin) -> None:
        """Dispatch the calls that waited with a plugin: they are executed, or fail with its error."""
        waiting, plugin.waiting = plugin.waiting, {}
        for call in waiting:
            self.resume(call)

    async def start_anew(self, name: str, backend: Backend, changed: Callable[[], None] = lambda: None) -> bool:
        """Start a plugin that no server serves with a new backend; return True if it is ready. Calls wait meanwhile.

        Raises: FailedPrecondition HOST_STOPPED.
        """
        plugin = self._plugins[name]
        assert plugin.state is not PluginState.READY
        self._check_stopping()

        plugin.backend, plugin.error, plugin.starting = backend, None, None
        self.backends[name] = backend
        self.failures.pop(name, None)

        await self.start([name], changed)
        return name not in self.failures

    async def close(self) -> None:
        """Cancel the starts under way, then stop the started backends; each wait is bounded."""
        starts = [plugin.starting for plugin in self._plugins.values() if plugin.starting is not None]
        for start in starts:
            start.cancel()
        await wait_bounded(starts, "a start does not end")

        closes = [
            asyncio.create_task(plugin.backend.close(), name=plugin.name)
            for plugin in self._plugins.values()
            if plugin.backend is not None and plugin.starting is not None
        ]
        await wait_bounded(closes, "a backend does not stop")

    async def _start(self, plugin: HostedPlugin, changed: Callable[[], None]) -> None:
        """Start a backend; only `changed` can raise here. Cancelled by `close` alone."""
        assert plugin.backend is not None

        # 1. Start, and note the outcome.
        try:
            plugin.error = await start_backend(plugin.name, plugin.backend)
        except asyncio.CancelledError:
            plugin.error = Unavailable("HOST_STOPPED", "the host was stopped during the start")
        plugin.state = PluginState.READY if plugin.error is None else PluginState.FAILED
        if plugin.error is not None:
            self.failures[plugin.name] = plugin.error

        # 2. Resume the calls that waited.
        self.resume_waiting(plugin)

        # 3. Tell the caller.
        if not self.stopping:
            changed()

    def _check_stopping(self) -> None:
        if self.stopping:
            raise FailedPrecondition("HOST_STOPPED", f"host {self._host_id} was stopped")


async def start_backend(name: str, backend: Backend) -> StepflowError | None:
    """Start a backend; return why it did not start. Defects are logged."""
    try:
        await backend.start()
    except StepflowError as error:
        # The server's last words may quote its configuration.
        error.message = without_hidden(error.message)
        error.args = (error.message,)
        log.info("plugin did not start", plugin=name, reason=error.reason, error=error.message)
        return error
    except Exception as error:
        log_defect(log, "backend failed to start by a defect", error, plugin=name)
        return Unavailable(
            "PLUGIN_START_FAILED",
            f"plugin {name!r} cannot be started: {type(error).__name__} inside the host; see its log",
        )
    return None


__all__ = ["HostedPlugin", "HostedPlugins", "PluginState", "start_backend"]
