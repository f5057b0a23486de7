"""The whole mesh in one process: control plane, executor and host over one store.

- This is the only module of `stepflow` that imports the services.
- The parts are those of a mesh, with two differences: the store is SQLite, and frames between executor and host are
  passed by function call.
- Plugins that no run needs are not started; a plugin starts late when a step waits for it.
"""

from __future__ import annotations

import asyncio
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from component_host.backends import PullEndpoints, make_backend, make_backends
from component_host.host import ComponentHost
from component_host.logs import HostLogs
from control_plane.admission import RunRequest, check_request
from control_plane.control_plane import ControlPlane
from control_plane.inputs import InputCheck, in_parts
from control_plane.signals import signal as signal_run
from control_plane.views import ItemView, RunView
from executor.executor import Executor
from executor.hosts.peer import HostPeer
from stepflow.codec import PAYLOAD_BYTES_MAX, LargeJson, decode
from stepflow.config import BuiltinPlugin, Config, RetryConfig
from stepflow.errors import FailedPrecondition, StepflowError
from stepflow.routing.table import ENGINE_COMPONENTS, PluginComponents
from stepflow.run.entries import flow_result
from stepflow.store.blobs import BlobStore
from stepflow.store.sqlite.store import SqliteStore
from stepflow.value_budget import default_bytes

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    from component_host.backend import Backend, BackendListing, ComponentInfo
    from component_host.logged_lines import LoggedLines
    from stepflow.flow import Flow
    from stepflow.store import Store

HOST_ID = "local"


class Mesh:
    """A mesh in this process. Clients call `control`."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        config: Config,
        environ: Mapping[str, str] = os.environ,
        *,
        plugins: Iterable[str] | None = None,
        on_log: Callable[[LoggedLines], None] | None = None,
    ) -> None:
        """Build the parts and start nothing. `on_log` gets the log lines of all components.

        The named plugins (all by default) start with the mesh. Any other plugin starts when a step waits for it: a
        component may run a flow that was unknown at the start.

        Raises: StepflowError, the configuration of a plugin is invalid.
        """
        self.config = config
        self._environ = environ
        self.store = store
        self.control = ControlPlane(store, blobs, newest_formats=lambda: True)
        self._endpoints: PullEndpoints = {}

        self._logs = HostLogs(sink=on_log)
        backends = make_backends(config, environ, self._listing_changed, plugins, self._endpoints, self._logs)
        value_bytes_max = default_bytes() // 2  # executor and host share the process
        self.host = ComponentHost(HOST_ID, backends, blobs, value_bytes_max=value_bytes_max, logs=self._logs)

        engine = {
            name: PluginComponents(complete=True, engine=ENGINE_COMPONENTS)
            for name, plugin in config.plugins.items()
            if isinstance(plugin, BuiltinPlugin)
        }
        self.executor = Executor(
            store, blobs, rules=config.routes, builtins=engine, name="local", value_bytes_max=value_bytes_max
        )
        self.executor.hosts.routes.on_wanted = self._start_late

        routed = {rule.plugin for rules in config.routes.values() for rule in rules}
        self._idle = routed & config.plugins.keys() - self.host.plugins.backends.keys()
        """Routed plugins that are not started."""
        self._late: dict[str, asyncio.Task[None]] = {}
        self.starting: frozenset[str] = frozenset()
        """Plugins whose start has begun, and neither succeeded nor failed."""
        self._peer: HostPeer | None = None

    async def start(self) -> None:
        """Start all parts; return when every plugin is ready or has failed to start (`host.plugins.failures`)."""
        await self.start_plugins()
        await self.start_services()

    async def start_plugins(self) -> dict[str, StepflowError]:
        """Start the component servers, before any run continues. Return the plugins that failed, with their errors."""
        self.starting = frozenset(self.host.plugins.backends)
        self._show_listings()
        await self.host.start(changed=self._listing_changed)
        return self.host.plugins.failures

    async def start_services(self) -> None:
        """Start control plane and executor. Unfinished runs in the store continue at once."""
        await self.control.start()
        await self.executor.start()

    def leave_out(self, paused_ms: int) -> None:
        """Note how long no process drove the run of the store, before `start_services`."""
        self.executor.ownership.paused_ms = paused_ms

    async def submit(self, request: RunRequest, inputs: Iterable[bytes]) -> str:
        """Submit a request with inputs of any size; the request has none itself. Raises as `ControlPlane.submit`."""
        return await self.control.submit(await self.control.admission.stage(request, _parts(inputs)))

    async def close(self) -> None:
        """Stop all parts, component servers included. Unfinished runs can be resumed."""
        await self.executor.close()
        for task in self._late.values():
            task.cancel()
        await asyncio.gather(*self._late.values(), return_exceptions=True)
        await self.host.close()
        await self.control.close()

    def _start_late(self, name: str) -> None:
        if name in self._idle:
            self._idle.discard(name)
            self.starting |= {name}
            self._late[name] = asyncio.create_task(self._start_one(name), name=f"start {name}")

    async def _start_one(self, name: str) -> None:
        try:
            backend: Backend | StepflowError = make_backend(
                name, self.config, self._environ, self._listing_changed, self._endpoints, self._logs
            )
        except StepflowError as error:
            backend = error
        self.host.plugins.add_plugin(name, backend)
        if isinstance(backend, StepflowError):
            self._listing_changed()
        else:
            await self.host.start([name], changed=self._listing_changed)

    def _listing_changed(self) -> None:
        self.starting -= set(self.host.plugins.listings()) | set(self.host.plugins.failures)
        self._show_listings()

    def _show_listings(self) -> None:
        """Tell the executor which components can be called."""
        plugins = {
            name: _components(self.config, name, listing) for name, listing in self.host.plugins.listings().items()
        }
        for (
            name
        ) in self.host.plugins.failures:  # calls of a failed plugin fail with its error instead of waiting for a host
            plugins[name] = PluginComponents(complete=False)

        if self._peer is None:
            peer = self._peer = HostPeer(HOST_ID, plugins)
            stream = self.host.connect(lambda frame: self.executor.on_frame(peer, frame))
            peer.send = stream.receive

        self._peer.plugins = plugins
        self.executor.hosts.set_peer(self._peer, starting=self.starting | self._idle)


async def _parts(inputs: Iterable[bytes]) -> AsyncIterator[list[bytes]]:
    for part in in_parts(inputs):
        yield part


def check_inputs(flow: Flow, inputs: Iterable[bytes], *, schema: bool) -> None:
    """Refuse inputs with which the flow can never run. `schema`: check against its input schema. Raises: Invalid."""
    check = InputCheck(flow, schema=schema)
    for part in in_parts(inputs):
        check.check(part)


def _components(config: Config, name: str, listing: BackendListing) -> PluginComponents:
    engine = ENGINE_COMPONENTS if isinstance(config.plugins[name], BuiltinPlugin) else frozenset[str]()
    return PluginComponents(tuple((info.component, info.path) for info in listing.components), listing.complete, engine)


def plugins_for(config: Config, flow: Flow) -> set[str]:
    """Return the plugins on the routes of a flow's steps, or all plugins if a step runs a flow built at run time."""
    used: set[str] = set()
    for step in flow.steps:
        prefix = "/" + step.component[1:].partition("/")[0]
        rules = (*config.routes.get(prefix, ()), *config.routes.get("/", ()))
        used |= {rule.plugin for rule in rules}
        if "/" + step.component.rpartition("/")[2] in ENGINE_COMPONENTS - {"/sleep", "/wait_for_signal"}:
            return set(config.plugins)
    return used


@asynccontextmanager
async def open_mesh(
    config: Config,
    *,
    store: Store,
    blobs: BlobStore,
    plugins: Iterable[str] | None = None,
    environ: Mapping[str, str] = os.environ,
) -> AsyncIterator[Mesh]:
    """Run a mesh for the duration of the block. The caller closes the store."""
    mesh = Mesh(store, blobs, config, environ, plugins=plugins)
    try:
        await mesh.start()
        yield mesh
    finally:
        await mesh.close()


async def run_flow_once(
    flow: Flow,
    inputs: Sequence[bytes],
    *,
    config: Config,
    max_concurrency: int | None = None,
    variables: Mapping[str, Any] | None = None,
    overrides: Any = None,
    check_input: bool = True,
    environ: Mapping[str, str] = os.environ,
) -> list[dict[str, Any]]:
    """Run a flow in a temporary mesh over a store in memory; return the FlowResults in the order of the inputs.

    `inputs` are compact JSON texts.

    Raises: StepflowError, also if a component server of the flow fails to start.
    """
    store = await SqliteStore.open(":memory:")
    try:
        async with open_mesh(
            config, store=store, blobs=BlobStore.open("memory://"), plugins=plugins_for(config, flow), environ=environ
        ) as mesh:
            for error in mesh.host.plugins.failures.values():
                raise error

            request = run_request(
                flow,
                inputs,
                config=config,
                concurrency_max=max_concurrency,
                variables=variables or {},
                overrides=overrides,
                check_input=check_input,
            )

            run_id = await mesh.control.submit(request)
            await mesh.control.wait(run_id)
            items = await mesh.control.items(run_id)
            return [_tree_of(item) for item in items if item.outcome is not None]
    finally:
        await store.close()


def _tree_of(item: ItemView) -> dict[str, Any]:
    """Return the FlowResult of an ended item. Raises: FailedPrecondition `RESULT_TOO_LARGE`."""
    assert item.outcome is not None
    if isinstance(item.outcome, LargeJson):
        raise FailedPrecondition(
            "RESULT_TOO_LARGE",
            f"the result of item {item.item} is {item.outcome.text_bytes:,} bytes, more than the "
            f"{PAYLOAD_BYTES_MAX:,} that are returned whole; run the flow with `stepflow run`",
        )
    tree: dict[str, Any] = decode(flow_result(item.outcome))
    return tree


def run_request(flow: Flow | str, inputs: Sequence[bytes], *, config: Config, **options: Any) -> RunRequest:
    """Build a request with the retry policy of the config; `options` are further members of RunRequest."""
    retry = config.retry or RetryConfig()
    return RunRequest(
        flow=flow, inputs=inputs, transport_retries_max=retry.transport_max_retries, backoff=retry.backoff, **options
    )


def reader(store: Store, blobs: BlobStore) -> ControlPlane:
    """Return a control plane for reading the runs in a store; the store may be read-only."""
    return ControlPlane(store, blobs)


async def list_components(
    config: Config, *, environ: Mapping[str, str] = os.environ
) -> tuple[list[tuple[str, ComponentInfo]], dict[str, StepflowError]]:
    """Start every plugin. Return the components with their plugins, and the errors of failed plugins."""
    listings, failures = await ask_servers(config, environ=environ)
    return [(name, info) for name, listing in listings.items() for info in listing.components], failures


async def ask_servers(
    config: Config, *, environ: Mapping[str, str] = os.environ
) -> tuple[dict[str, BackendListing], dict[str, StepflowError]]:
    """Start every plugin, and stop it. Return their lists of components, and the errors of failed plugins."""
    host = ComponentHost(HOST_ID, make_backends(config, environ), BlobStore.open("memory://"))
    try:
        await host.start()
        return dict(host.plugins.listings()), dict(host.plugins.failures)
    finally:
        await host.close()


__all__ = [
    "ItemView",
    "Mesh",
    "RunRequest",
    "RunView",
    "ask_servers",
    "check_inputs",
    "check_request",
    "flow_result",
    "list_components",
    "open_mesh",
    "plugins_for",
    "reader",
    "run_flow_once",
    "run_request",
    "signal_run",
]
