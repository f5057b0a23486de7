"""Several control planes, executors and hosts over one store in one process, with methods to kill them.

The parts are the product's own; executors call hosts by function call, as in the embedded mesh. `Work` is the backend
of each host: it records executions and answers when the test tells it to.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from component_host.backend import BackendListing, ComponentInfo, ServerHealth
from component_host.host import ComponentHost
from control_plane.admission import RunRequest
from control_plane.control_plane import ControlPlane
from executor.executor import Executor
from executor.hosts.peer import HostPeer
from stepflow.cli.display.trees import outcome_tree
from stepflow.codec import decode, encode
from stepflow.errors import Code, Failure
from stepflow.flow import flow_from_tree
from stepflow.journal import journal_entries
from stepflow.retry import Backoff
from stepflow.routing.table import ENGINE_COMPONENTS, PluginComponents, Rule
from stepflow.store import delete, keys, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.sqlite.store import SqliteStore
from support import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from component_host.backend import HostCall
    from control_plane.views import RunView
    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.store import Store

ENGINE = PluginComponents(tuple((name, name) for name in ENGINE_COMPONENTS), True, ENGINE_COMPONENTS)
RULES = {"/kit": (Rule("work"),), "/builtin": (Rule("builtin"),), "/absent": (Rule("absent"),)}
NO_WAIT = Backoff(min_delay_ms=1, max_delay_ms=1)
LONG_S = 60.0
"""A lease TTL longer than any test."""


class Work:
    """Backend of the plugin `work`: `echo` answers at once, `gated` once `release` was called, `fail` fails,
    `big` answers with as many characters as its input says, `ask` makes the call-backs of the function `asks`."""

    name = "work"

    def __init__(self) -> None:
        self.health = ServerHealth(lambda: None)
        self.executed: list[tuple[str, int]] = []
        """Key and attempt of each execution, in start order."""
        self.cancelled: list[str] = []
        self.in_flight: dict[str, HostCall] = {}
        self.in_flight_max = 0
        self.open = False
        """True: gated calls are answered at once."""
        self.asks: Callable[[HostCall], Any] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        pass

    def listing(self) -> BackendListing:
        return BackendListing(
            [ComponentInfo(f"/{name}", f"/{name}") for name in ("echo", "gated", "fail", "big", "ask")]
        )

    def execute(self, call: HostCall) -> None:
        self.executed.append((call.request.key, call.request.attempt))
        kind = call.request.component
        if kind == "/gated" and not self.open:
            self.in_flight[call.request.key] = call
            self.in_flight_max = max(self.in_flight_max, len(self.in_flight))
        elif kind == "/fail":
            call.fail(Failure(Code.COMPONENT_FAILED, "it failed", call.input))
        elif kind == "/big":
            call.succeed(encode("x" * decode(call.input)))
        elif kind == "/ask":
            task = asyncio.get_running_loop().create_task(self._ask(call))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        else:
            call.succeed(call.input)

    def cancel(self, call: HostCall) -> None:
        self.in_flight.pop(call.request.key, None)
        self.cancelled.append(call.request.key)

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for call in list(self.in_flight.values()):
            call.fail(Failure(Code.UNREACHABLE, "the host was closed"))

    def release(self, count: int | None = None) -> None:
        """Answer waiting calls, FIFO: `count` of them, or all."""
        for key in list(self.in_flight)[:count]:
            call = self.in_flight.pop(key)
            call.succeed(call.input)

    def release_all(self) -> None:
        """Answer all waiting calls, and later ones at once."""
        self.open = True
        self.release()

    def executions(self, step: str) -> list[int]:
        """Return the executed attempts of a step, over all items."""
        return [attempt for key, attempt in self.executed if key.endswith(f"/{step}")]

    async def _ask(self, call: HostCall) -> None:
        assert self.asks is not None
        try:
            call.succeed(encode(await self.asks(call)))
        except Exception as error:
            call.fail(Failure(Code.COMPONENT_FAILED, f"{type(error).__name__}: {error}"))


class World:
    """The store and the parts added to it. All methods must be called on the loop of `open`."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self.store = store
        self.blobs = blobs
        self.planes: list[ControlPlane] = []
        self.executors: list[Executor] = []
        self.hosts: list[tuple[ComponentHost, Work]] = []
        self.streams: dict[Executor, list[tuple[HostPeer, Any]]] = defaultdict(list)
        self.newest_formats = True
        """False: new runs are as the former version's."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, store: Store | None = None, executors: int = 1, hosts: int = 1, planes: int = 1, **options: Any
    ) -> AsyncIterator[World]:
        """Run a world over a store (in memory by default) until the block ends; `options` go to each executor."""
        store = store or await SqliteStore.open(":memory:")
        world = cls(store, BlobStore.open("memory://"))
        try:
            for _ in range(hosts):
                await world.add_host()
            for _ in range(planes):
                await world.add_plane()
            for _ in range(executors):
                await world.add_executor(**options)
            yield world
        finally:
            await world.close()
            await store.close()

    async def close(self) -> None:
        for executor in self.executors:
            await executor.close()
        for host, _ in self.hosts:
            await host.close()
        for control_plane in self.planes:
            await control_plane.close()

    # --- parts --------------------------------------------------------------------------------------------------------

    @property
    def control(self) -> ControlPlane:
        return self.planes[-1]

    @property
    def work(self) -> Work:
        return self.hosts[0][1]

    async def add_plane(self, *, lease_ttl_s: float = LONG_S) -> ControlPlane:
        control_plane = ControlPlane(
            self.store, self.blobs, lease_ttl_s=lease_ttl_s, newest_formats=lambda: self.newest_formats
        )
        await control_plane.start()
        self.planes.append(control_plane)
        return control_plane

    async def add_host(self) -> Work:
        work = Work()
        host = ComponentHost(f"host-{len(self.hosts)}", {"work": work}, self.blobs)
        await host.start()
        self.hosts.append((host, work))
        for executor in self.executors:
            self._connect(executor, host)
        return work

    async def add_executor(self, *, lease_ttl_s: float = LONG_S, **options: Any) -> Executor:
        executor = Executor(
            self.store,
            self.blobs,
            rules=RULES,
            builtins={"builtin": ENGINE},
            name=f"executor-{len(self.executors)}",
            lease_ttl_s=lease_ttl_s,
            **options,
        )
        for host, _ in self.hosts:
            self._connect(executor, host)
        await executor.start()
        self.executors.append(executor)
        await self.seen(executor)
        return executor

    async def seen(self, executor: Executor) -> None:
        """Wait until every control plane has the executor's session."""
        for control_plane in self.planes:
            await wait_until_async(partial(_has_seen, control_plane, executor), "the executor is seen")

    def _connect(self, executor: Executor, host: ComponentHost) -> None:
        offered = {
            name: PluginComponents(tuple((info.component, info.path) for info in listing.components), listing.complete)
            for name, listing in host.plugins.listings().items()
        }
        peer = HostPeer(host.id, offered)
        stream = host.connect(lambda frame: executor.on_frame(peer, frame))
        peer.send = stream.receive
        executor.hosts.set_peer(peer)
        self.streams[executor].append((peer, stream))

    # --- death --------------------------------------------------------------------------------------------------------

    def cut(self, executor: Executor) -> None:
        """Break the executor's streams to all hosts; frames in flight are lost."""
        for peer, stream in self.streams.pop(executor):
            stream.close()
            peer.send = lambda _: None

    async def kill(self, executor: Executor) -> str:
        """Cancel all tasks of an executor without any clean-up, as SIGKILL would. Return its id."""
        self.executors.remove(executor)
        self.cut(executor)
        session, executor._session = executor._session, None
        assert session is not None
        tasks = [*executor._watchers, *executor.takeover.adopting.values(), *executor.ownership.tasks]
        tasks += [task for task in (session.watcher, session._keeper._task, session.writer._task) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        executor.ownership.drop_all()
        return session.id

    async def bury(self, executor_id: str) -> None:
        """Delete the session of a dead executor, as the leader does once it detects the death."""
        await delete(self.store, keys.session_executor(executor_id))

    # --- runs ---------------------------------------------------------------------------------------------------------

    async def submit(self, *steps: dict[str, Any], inputs: list[Any] | None = None, **request: Any) -> str:
        return await self.control.submit(self.request(*steps, inputs=inputs, **request))

    def request(self, *steps: dict[str, Any], inputs: list[Any] | None = None, **request: Any) -> RunRequest:
        """Build a request for a flow that returns its last step's output. `schemas` become those of the flow."""
        tree: dict[str, Any] = {"steps": list(steps), "output": {"$step": steps[-1]["id"]}}
        if "schemas" in request:
            tree["schemas"] = request.pop("schemas")
        return RunRequest(
            flow=flow_from_tree(tree),
            inputs=[encode(value) for value in ([None] if inputs is None else inputs)],
            backoff=NO_WAIT,
            **request,
        )

    async def ended(self, run_id: str) -> RunView:
        view = await self.control.wait(run_id, timeout_s=20)
        assert view.terminal, view
        return view

    async def results(self, run_id: str) -> list[Any]:
        """Return the FlowResult trees of all items, None for items without a result."""
        items = await self.control.items(run_id)
        return [None if item.outcome is None else outcome_tree(item.outcome) for item in items]

    async def journal(self, run_id: str, partition: int = 0) -> list[pb.Entry]:
        return [entry async for entry in journal_entries(self.store, run_id, partition)]

    async def keys(self, prefix: str) -> list[str]:
        return [item.key async for item in range_all(self.store, prefix)]


def _has_seen(control_plane: ControlPlane, executor: Executor) -> bool:
    return executor.id in control_plane.cluster.sessions


def step(step_id: str, component: str, value: Any = None, **members: Any) -> dict[str, Any]:
    return {"id": step_id, "component": component, "input": value, **members}


def gated(step_id: str, value: Any = None, **members: Any) -> dict[str, Any]:
    return step(step_id, "/kit/gated", value, **members)


def echo(step_id: str, value: Any = None, **members: Any) -> dict[str, Any]:
    return step(step_id, "/kit/echo", value, **members)


def of(step_id: str) -> dict[str, Any]:
    return {"$step": step_id}


def kinds(journal: list[pb.Entry]) -> list[str]:
    """Return the kind of each entry."""
    return [str(entry.WhichOneof("kind")) for entry in journal]


__all__ = ["Work", "World", "echo", "gated", "kinds", "of", "step"]
