"""The component host: takes calls from executors, gives them to backends, holds results until they are journaled.

Promises:
- One (idempotency key, attempt) is executed once, whoever asks for it and how often: the same attempt joins the call
  in flight or gets the held result, a higher one supersedes the older, a lower one is refused.
- Each call that is not cancelled, superseded or acknowledged gets one result, whatever its backend does.
- A call goes on when its executor's stream breaks; the result waits for whoever joins.
- Every result is checked and compacted here, once; a large one is in the blob store before its id is told.
- For one partition of a run, whoever has a smaller epoch than the host has seen is refused.
- Nothing begins while the host does not count as registered (`may_begin`), and what had not begun when its session
  ended never does (`lost`): by then its executors have given such a call up, and another host may have done it.
- Calls wait while their plugin starts; their time limits run from the moment the backend has them.
- Nothing stays of a call that was forgotten: acknowledged, cancelled, superseded, or held too long (`holds`).

Does not: retry, route, or know what a flow is. Streams are given as plain callables, so that one process and gRPC
look the same from here.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import count
from typing import TYPE_CHECKING, Any

from component_host.call import Call, fetch_blob
from component_host.deadlines import TimeLimits
from component_host.held_results import HELD_BYTES_MAX, HELD_S_MAX, Holds
from component_host.stream import HostStream
from stepflow.codec import INLINE_BYTES_MAX, encode
from stepflow.errors import Code, DataLoss, Failure, Invalid, NotFound, Refused, StepflowError, Unavailable
from stepflow.mesh.v1 import host_pb2
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Iterable, Mapping

    from component_host.backend import Backend, Listing
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

RUNS_MAX = 100_000
"""Partitions whose newest epoch is remembered beyond their last call here. One forgotten too early costs nothing but
the refusal of an owner that is fenced anyway."""

CLOSE_WAIT_S = 30.0
"""For a backend to stop its server; longer than any of them gives one."""

HELD_BACK_S = 0.05
"""Between two looks whether calls may begin again."""

Deliver = Callable[[host_pb2.HostFrame], None]


class PluginState(Enum):
    NOT_STARTED = "is not started"
    STARTING = "is starting"
    READY = "is ready"
    FAILED = "did not start"


@dataclass(slots=True, eq=False)
class Plugin:
    """One backend and how far it has come. There is no way back from READY: a backend mends itself."""

    name: str
    backend: Backend | None
    """None for a plugin that this host does not run."""
    state: PluginState = PluginState.NOT_STARTED
    starting: asyncio.Task[None] | None = None
    error: StepflowError | None = None
    waiting: dict[Call, None] = field(default_factory=dict)
    """Calls that came while it was starting, in their order."""


@dataclass(slots=True, eq=False)
class RunCalls:
    """One partition of a run, as far as this host has heard of it."""

    epoch: int = 0
    calls: dict[str, Call] = field(default_factory=dict)
    """By key: in flight or held."""


class ComponentHost:
    """All backends of one process, and the calls in them."""

    def __init__(
        self,
        host_id: str,
        backends: Mapping[str, Backend],
        blobs: BlobStore,
        *,
        held_bytes_max: int = HELD_BYTES_MAX,
        held_s_max: float = HELD_S_MAX,
    ) -> None:
        self.id = host_id
        self.backends = dict(backends)
        self.blobs = blobs
        self.held_s_max = held_s_max
        self.callback_ids = count(1)
        self.may_begin: Callable[[], bool] = lambda: True
        """Whether the executors still count on this host; `Registration` knows."""
        self.failures: dict[str, StepflowError] = {}
        """Plugins that could not start, with the reason."""
        self.limits = TimeLimits(self._expire)
        self.holds = Holds(self.forget, bytes_max=held_bytes_max, age_s_max=held_s_max)
        self._plugins = {name: Plugin(name, backend) for name, backend in backends.items()}
        self._calls: dict[str, Call] = {}
        self._runs: OrderedDict[tuple[str, int], RunCalls] = OrderedDict()
        self._held_back: dict[Call, None] = {}
        """Calls that come to their backend when they may begin, in their order."""
        self._streams: set[HostStream] = set()
        """The open ones, and closed ones with call-backs that somebody may still take over."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing: asyncio.Task[None] | None = None

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self, names: Iterable[str] | None = None, changed: Callable[[], None] = lambda: None) -> None:
        """Start the named backends (all by default) side by side; return when each is ready or has failed.

        `changed` is called whenever one has become ready or has failed. A failure is kept in `failures`, for whoever
        started the host to report; it fails the calls for that plugin and nothing else. Each backend is started once:
        naming it again waits for that start.

        Raises:
            NotFound: PLUGIN_UNKNOWN; nothing is started then.
            Refused: HOST_STOPPED.
        """
        wanted = list(self._plugins) if names is None else list(names)
        for name in wanted:
            if name not in self._plugins:
                raise NotFound("PLUGIN_UNKNOWN", f"host {self.id} has no plugin {name!r}", plugin=name)
        if self._closing is not None:
            raise Refused("HOST_STOPPED", f"host {self.id} was stopped")
        plugins = [self._plugins[name] for name in wanted]
        for plugin in plugins:
            if plugin.starting is None:
                plugin.state = PluginState.STARTING
                plugin.starting = asyncio.create_task(self._start(plugin, changed), name=f"start {plugin.name}")
        starts = [plugin.starting for plugin in plugins if plugin.starting is not None]
        if starts:
            await asyncio.wait(starts)  # not gather: who stops waiting does not stop the start for the others
        for start in starts:
            if not start.cancelled():
                start.result()

    def add(self, name: str, backend: Backend | StepflowError) -> None:
        """Have one more plugin, to be started; or one that never can be, for that reason."""
        if isinstance(backend, StepflowError):
            self._plugins[name] = Plugin(name, None, PluginState.FAILED, error=backend)
            self.failures[name] = backend
        else:
            self.backends[name] = backend
            self._plugins[name] = Plugin(name, backend)

    async def start_again(self, name: str, backend: Backend, changed: Callable[[], None] = lambda: None) -> bool:
        """Start a plugin that has failed, with a new backend; say whether it is ready now. Its calls wait meanwhile.

        Raises: Refused HOST_STOPPED.
        """
        plugin = self._plugins[name]
        assert plugin.state is PluginState.FAILED
        if self._closing is not None:
            raise Refused("HOST_STOPPED", f"host {self.id} was stopped")
        plugin.backend, plugin.error, plugin.starting = backend, None, None
        self.backends[name] = backend
        del self.failures[name]
        await self.start([name], changed)
        return name not in self.failures

    async def _start(self, plugin: Plugin, changed: Callable[[], None]) -> None:
        """Start a backend; only `changed` can raise here. Cancelled by `close` alone."""
        assert plugin.backend is not None
        try:
            await plugin.backend.start()
        except StepflowError as error:
            plugin.error = error
            log.info("plugin did not start", plugin=plugin.name, reason=error.reason, error=error.message)
        except asyncio.CancelledError:
            plugin.error = Unavailable("HOST_STOPPED", "the host was stopped meanwhile")
        except Exception as error:
            log_defect(log, "a backend failed to start by mistake", error, plugin=plugin.name)
            plugin.error = Unavailable(
                "PLUGIN_START_FAILED",
                f"plugin {plugin.name!r} cannot be started: {type(error).__name__} inside the host; see its log",
            )
        plugin.state = PluginState.READY if plugin.error is None else PluginState.FAILED
        if plugin.error is not None:
            self.failures[plugin.name] = plugin.error
        waiting, plugin.waiting = plugin.waiting, {}
        for call in waiting:
            self._go_on(call)
        if self._closing is None:
            changed()

    @property
    def calls_held(self) -> int:
        """How many calls the host has, in flight or with a result that is not acknowledged."""
        return len(self._calls)

    @property
    def calls_in_flight(self) -> int:
        """How many of them have no result yet."""
        return len(self._calls) - len(self.holds)

    def listings(self) -> dict[str, Listing]:
        """Return what each backend that is ready offers."""
        return {
            name: plugin.backend.listing()
            for name, plugin in self._plugins.items()
            if plugin.state is PluginState.READY and plugin.backend is not None
        }

    async def close(self) -> None:
        """Stop everything, starts under way included. Calls in flight fail with UNREACHABLE; streams get these
        results before this returns. Safe to repeat; also while another one is at it, which is waited for."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close(), name=f"close host {self.id}")
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        self.limits.close()
        self.holds.close()
        starts = [plugin.starting for plugin in self._plugins.values() if plugin.starting is not None]
        for start in starts:
            start.cancel()
        await self._wait_bounded(starts, "a start does not end")
        closes = [
            asyncio.create_task(plugin.backend.close(), name=plugin.name)
            for plugin in self._plugins.values()
            if plugin.backend is not None and plugin.starting is not None
        ]
        await self._wait_bounded(closes, "a backend does not stop")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await self._wait_bounded(tasks, "work for a call does not end")
        for call in list(self._calls.values()):
            call.break_off(self._stopped())
        for stream in list(self._streams):
            stream.give_up()

    async def _wait_bounded(self, tasks: list[asyncio.Task[None]], complaint: str) -> None:
        """Wait for tasks to end, however they do, but not for ever: one that hangs must not keep the others."""
        if not tasks:
            return
        done, hanging = await asyncio.wait(tasks, timeout=CLOSE_WAIT_S)
        for task in done:
            if not task.cancelled() and (error := task.exception()) is not None:
                log.warning("something failed while the host was stopped", what=task.get_name(), error=_name(error))
        for task in hanging:
            log.warning(complaint, what=task.get_name())

    # --- streams ------------------------------------------------------------------------------------------------

    def connect(self, deliver: Deliver, hang_up: Callable[[], None] = lambda: None) -> HostStream:
        """Open an executor's stream; `deliver` gets the frames for it, on the event loop. `hang_up` is called when
        nothing that is on the way in it counts any more."""
        stream = HostStream(self, deliver, hang_up)
        self._streams.add(stream)
        return stream

    def given_up(self, stream: HostStream) -> None:
        """A closed stream has nothing left that anybody could take over."""
        self._streams.discard(stream)

    def lost(self) -> None:
        """The session has ended: drop what has not begun, and what is still on its way in the streams with them.

        Calls that have begun go on, and are held for whoever still joins them.
        """
        for call in list(self._calls.values()):
            if not call.given and call.result is None:
                self.forget(call)
        for stream in list(self._streams):
            stream.hang_up()

    # --- calls: how they come -----------------------------------------------------------------------------------

    def admit(self, stream: HostStream, request: host_pb2.Call) -> None:
        """Take a call: join it, supersede an older attempt, or begin it. A call that is not taken is answered."""
        run = self._run(request.root_run_id, request.partition)
        if request.epoch < run.epoch:
            stream.refuse(request, _unreachable("STALE_EPOCH", "the run has a newer owner"))
            return
        run.epoch = request.epoch
        known = self._calls.get(request.key)
        if known is not None:
            if known.request.attempt == request.attempt:
                known.join(stream, request)
                return
            if known.request.attempt > request.attempt:
                stream.refuse(request, _unreachable("STALE_ATTEMPT", "a later attempt is under way"))
                return
            self.forget(known)
        if self._closing is not None:
            stream.refuse(request, self._stopped())
            return
        plugin = self._plugins.get(request.plugin) or Plugin(request.plugin, None)
        call = Call(self, stream, request, plugin, run)
        self._calls[request.key] = run.calls[request.key] = stream.calls[request.call_id] = call
        self._go_on(call)

    def _go_on(self, call: Call) -> None:
        """Do what comes next for a call that its backend has not got."""
        plugin = call.plugin
        if call.settled:
            return  # forgotten while it waited
        if plugin.state is PluginState.READY:
            payload = call.request.input
            if payload.blob:
                self.spawn(call, self._fetch_input, call)
            elif len(payload.json) > INLINE_BYTES_MAX:
                message = (
                    f"an inline input of {len(payload.json):,} bytes; above {INLINE_BYTES_MAX:,} it must be a blob"
                )
                call.fail(Failure(Code.ORCHESTRATOR_ERROR, message, encode({"reason": "INPUT_NOT_A_BLOB"})))
            else:
                call.input = payload.json
                self._give(call)
        elif plugin.state is PluginState.STARTING:
            plugin.waiting[call] = None
        else:
            call.fail(self._not_running(plugin))

    def _give(self, call: Call) -> None:
        if not self.may_begin():
            self._hold_back(call)
            return
        backend = call.plugin.backend
        assert backend is not None
        call.given = True
        call.started_at_ms = time.time_ns() // 1_000_000
        if call.request.timeout_ms or call.request.idle_timeout_ms:
            self.limits.watch(call)
        try:
            backend.execute(call)
        except Exception as error:  # one backend's mistake must not take the other calls of the frame with it
            log_defect(log, "a backend failed on a call by mistake", error, plugin=call.plugin.name)
            call.fail(_mistake(call, error))
            self._cancel_in_backend(call)

    def _hold_back(self, call: Call) -> None:
        if not self._held_back:
            asyncio.get_running_loop().call_later(HELD_BACK_S, self._look_again)
        self._held_back[call] = None

    def _look_again(self) -> None:
        held_back, self._held_back = self._held_back, {}
        for call in held_back:
            if not call.settled:
                self._give(call)

    async def _fetch_input(self, call: Call) -> None:
        try:
            call.input = await fetch_blob(self.blobs, call.request.input.blob, call.request.root_run_id)
        except StepflowError as error:
            lost = isinstance(error, (NotFound, DataLoss, Invalid))  # another attempt would not find it either
            code = Code.ORCHESTRATOR_ERROR if lost else Code.UNREACHABLE
            message = f"the step's input could not be read: {error.message}"
            call.fail(Failure(code, message, encode({"reason": error.reason})))
        else:
            if not call.settled:
                self._give(call)

    def _not_running(self, plugin: Plugin) -> Failure:
        if plugin.error is not None:
            return _unreachable(plugin.error.reason, f"plugin {plugin.name!r} did not start: {plugin.error.message}")
        if plugin.backend is None:
            return _unreachable("PLUGIN_UNKNOWN", f"host {self.id} does not run plugin {plugin.name!r}")
        return _unreachable("PLUGIN_NOT_STARTED", f"plugin {plugin.name!r} is not started on host {self.id}")

    def _stopped(self) -> Failure:
        return _unreachable("HOST_STOPPED", f"component host {self.id} was stopped")

    # --- calls: how they end ------------------------------------------------------------------------------------

    def record(self, call: Call, result: host_pb2.CallResult, result_bytes: int) -> None:
        """A call has its result: tell whoever listens, and hold it. Too late for a call that was forgotten."""
        if call.forgotten:
            return
        call.result = result
        stream = call.stream
        stream.drop(call)
        stream.result(result)
        self.holds.add(call, result_bytes + len(call.input))
        call.input = b""

    def acknowledge(self, stream: HostStream, ack: host_pb2.Ack) -> None:
        """The attempt's result is never needed again.

        Unless another living stream has joined the call: then the acknowledgement is that of a former owner, who does
        not know what the present one still needs.
        """
        call = self._calls.get(ack.key)
        if call is None or call.request.attempt > ack.attempt:
            return
        if call.stream is stream or call.stream.closed:
            self.forget(call)

    def forget(self, call: Call) -> None:
        """Drop a call: cancelled if it is in flight, no longer held if it has ended. Safe to repeat."""
        if call.forgotten:
            return
        call.forgotten = True
        key = call.request.key
        del self._calls[key]
        del call.run.calls[key]
        if call.result is not None:
            self.holds.remove(call)
            return
        call.stream.drop(call)
        if not call.settled:
            call.settle()
            call.plugin.waiting.pop(call, None)
            self._cancel_in_backend(call)

    def _cancel_in_backend(self, call: Call) -> None:
        if not call.given or call.plugin.backend is None:
            return
        try:
            call.plugin.backend.cancel(call)
        except Exception as error:
            log_defect(log, "a backend failed to cancel a call by mistake", error, plugin=call.plugin.name)

    def _expire(self, call: Call, message: str) -> None:
        if not call.settled:
            call.fail(Failure(Code.TIMEOUT, message))
            self._cancel_in_backend(call)

    def spawn(self, call: Call, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Do something for a call in a task of its own; only for what leaves the hot path (blobs, large outputs)."""
        task = asyncio.get_running_loop().create_task(self._attend(call, partial(work, *arguments)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _attend(self, call: Call, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:  # whatever happens, the call gets its result
            log_defect(log, "the host failed on a call by mistake", error, plugin=call.plugin.name)
            call.break_off(Failure(Code.ORCHESTRATOR_ERROR, f"component host {self.id}: {_name(error)}"))

    # --- runs ---------------------------------------------------------------------------------------------------

    def attach(self, asked: host_pb2.AttachRun) -> list[host_pb2.HeldCall]:
        """Say what the host has, in flight or held, of a partition with a new owner. Nothing for a former owner."""
        run = self._run(asked.run_id, asked.partition)
        if asked.epoch < run.epoch:
            return []
        run.epoch = asked.epoch
        return [
            host_pb2.HeldCall(run_id=asked.run_id, key=key, attempt=call.request.attempt)
            for key, call in run.calls.items()
        ]

    def _run(self, run_id: str, partition: int) -> RunCalls:
        place = (run_id, partition)
        run = self._runs.get(place)
        if run is None:
            run = self._runs[place] = RunCalls()
            if len(self._runs) > RUNS_MAX:
                self._trim_runs()
        return run

    def _trim_runs(self) -> None:
        """Forget the oldest runs without calls. Two are looked at for each that comes, so the table shrinks again
        once the calls that kept it large are gone."""
        for _ in range(2):
            place, run = self._runs.popitem(last=False)
            if run.calls:
                self._runs[place] = run
            if len(self._runs) <= RUNS_MAX:
                return


def _unreachable(reason: str, message: str) -> Failure:
    return Failure(Code.UNREACHABLE, message, encode({"reason": reason}))


def _mistake(call: Call, error: Exception) -> Failure:
    message = f"plugin {call.plugin.name!r} failed on the call: {_name(error)} inside the host; see its log"
    return Failure(Code.WORKER_ERROR, message)


def _name(error: BaseException) -> str:
    return type(error).__name__


__all__ = ["ComponentHost", "HostStream", "fetch_blob"]
