"""Bridge to StepFlow servers that pull their work over gRPC: stepflow-py 0.12 and later, and servers with our SDK.

Two ways, which one plugin may have together: workers that the plugin starts (`command`), and workers that connect by
themselves (`listen`). Promises:
- Each process that is started has a door of its own, unless `listen` names one; so whatever pulls there is that
  process, and its calls fail as UNREACHABLE the moment it ends. At `listen` nobody can tell whose a worker is: all are
  taken for workers that connect by themselves.
- A process that ends, with whatever code (workers that give up say 0), is started again after 0.1 s, 0.2 s, … up to
  30 s while it does not stay up.
- A worker is stopped by SIGTERM and the end of its stream, which idle workers of 0.12 and 0.13 wait for; calls in
  flight may complete within the grace.
- A process whose worker stops answering after a cancel is ended: code that blocks its event loop blocks all its calls.

Not here: which worker gets which call (`pull_queue`), and the wire (`pull_door`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from component_host.backend import Health
from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.pull.endpoint import Entrance, PullDoor
from component_host.stepflow_bridge.pull.queue import TaskQueue
from component_host.supervision.process import ProcessSpec, ServerProcess
from component_host.supervision.restarts import keep_up
from stepflow.codec import encode
from stepflow.errors import Code, Failure, Invalid, StepflowError, Unavailable
from stepflow.proxies import no_grpc_proxy_with_loopback
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from component_host.backend import BackendContext, HostCall, Listing
    from component_host.stepflow_bridge.pull.queue import Task

log = get_logger("component_host.pull")

LOOPBACK = "127.0.0.1:0"

CONCURRENCY_STARTED = 32
"""Calls at a time in a worker that we start, unless configured."""

CONCURRENCY_OTHERS = 4
"""The same for one that connects by itself: it does not tell its limit, and this is stepflow-py's default."""

PLACES_MIN = 1_000
PLACES_EACH = 8
"""What a worker that we start is told as its own limit, at least and for each call of ours: we keep to our limit, and
it has places left for the children of calls that wait for flows."""

TICK_S = 1.0
THREAD_BYTES_MIN = 256 * 1024
"""An input from here on is encoded in a thread: it takes more than some milliseconds."""

IDLE_GRACE_S = 1.0
"""For a worker to end that has nothing to do but what nobody wants any more."""

END_POLL_S = 0.02


@dataclass(frozen=True, slots=True, kw_only=True)
class PullConfig:
    """How workers are started and reached. Substitution in `args` and `env` is done."""

    queue_name: str
    command: str = ""
    args: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    inherit_env: bool = True
    processes: int = 1
    concurrency: int | None = None
    queue_timeout_s: float = 30.0
    execution_timeout_s: float | None = None
    start_timeout_s: float = 30.0
    request_timeout_s: float = 30.0
    """For a worker to answer when it is asked whether it still reads."""
    stop_grace_s: float = 5.0
    """For calls in flight to complete when the plugin is stopped."""


class StepflowPullBackend:
    """One plugin. Implements `backend.Backend`."""

    def __init__(self, context: BackendContext, config: PullConfig, door: PullDoor | None = None) -> None:
        """`door` is that of `listen`; without it every process gets its own."""
        self.name = context.name
        self.door = door
        self._context = context
        self._config = config
        self._listing_before: Listing | None = None
        self._queue = TaskQueue(
            context.name,
            queue_timeout_s=config.queue_timeout_s,
            execution_timeout_s=config.execution_timeout_s,
            on_listing=self._listed,
        )
        count = config.processes if config.command else 0
        self._processes = [_Process(context, config, self._queue, door) for _ in range(count)]
        self.health = Health(context.listing_changed, max(1, count))
        self._supervisors: list[asyncio.Task[None]] = []
        self._encoding: set[asyncio.Task[None]] = set()
        self._entered = False
        """Our queue is served at `door`."""
        self._started = False

    async def start(self) -> None:
        """Open the doors and start the processes; workers that connect by themselves are not waited for.

        Raises: Invalid COMMAND_NOT_FOUND, ADDRESS_INVALID, TLS_REQUIRED; Refused LISTEN_FAILED, QUEUE_TAKEN;
        Unavailable SERVER_START_FAILED, SERVER_EXITED, SERVER_NOT_RESPONDING."""
        try:
            if self.door is not None:
                concurrency = self._config.concurrency or CONCURRENCY_OTHERS
                await self.door.open(self._config.queue_name, Entrance(self._queue, self, concurrency, lends=False))
                self._entered = True
            starts = await asyncio.gather(*(each.start() for each in self._processes), return_exceptions=True)
            for error in starts:
                if error is not None:
                    raise error
        except BaseException:
            await self.close()
            raise
        self._started = True
        self._listing_before = self._queue.listing
        self._supervisors = [
            asyncio.create_task(
                keep_up(
                    process,
                    self.health,
                    plugin=self.name,
                    on_up=self._queue.dispatch,
                    on_hopeless=self._is_hopeless,
                ),
                name=f"supervise {self.name}",
            )
            for process in self._processes
        ]
        self._supervisors.append(asyncio.create_task(self._keep_time(), name=f"time of {self.name}"))

    def listing(self) -> Listing:
        return self._queue.listing

    def execute(self, call: HostCall) -> None:
        if len(call.input) < THREAD_BYTES_MIN:
            try:
                input_part = messages.encode_input(call)
            except Invalid as error:
                call.fail(_refused(error))
            else:
                self._queue.offer(call, input_part)
        else:
            task = asyncio.create_task(self._execute_large(call), name=f"encode for {self.name}")
            self._encoding.add(task)
            task.add_done_callback(functools.partial(self._handle_encoded, call))

    async def _execute_large(self, call: HostCall) -> None:
        try:
            input_part = await asyncio.to_thread(messages.encode_input, call)
        except Invalid as error:
            call.fail(_refused(error))
            return
        if not call.settled:
            self._queue.offer(call, input_part)

    def _handle_encoded(self, call: HostCall, task: asyncio.Task[None]) -> None:
        self._encoding.discard(task)
        if task.cancelled():
            call.fail(self._stopped())
        elif (error := task.exception()) is not None:
            log.error("an input could not be encoded", plugin=self.name, exc_info=error)
            call.fail(Failure(Code.UNREACHABLE, f"the call was lost before a worker of plugin {self.name!r} had it"))

    def _stopped(self) -> Failure:
        return Failure(Code.UNREACHABLE, f"plugin {self.name!r} was stopped")

    def cancel(self, call: HostCall) -> None:
        task = self._queue.abort(call)
        call.fail(Failure(Code.CANCELLED, "cancelled"))
        if task is not None and isinstance(task.worker.group, _Process):
            task.worker.group.check(task)

    async def close(self) -> None:
        queue = self._queue
        queue.closing = True
        for task in (*self._supervisors, *self._encoding):
            task.cancel()
        await asyncio.gather(*self._supervisors, *self._encoding, return_exceptions=True)
        queue.fail_waiting(self._stopped())
        await asyncio.gather(*(process.stop() for process in self._processes))
        if self.door is not None and self._started:
            await self._wait_for_calls()
        queue.fail_all(self._stopped())
        if self.door is not None and self._entered:  # the queue of this name may be another plugin's
            self._entered = False
            await self.door.close(self._config.queue_name)

    async def _wait_for_calls(self) -> None:
        """Let workers that are not ours complete what they have, within the grace."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.stop_grace_s):
                while self._queue.busy:  # noqa: ASYNC110  # an event would cost every call a look
                    await asyncio.sleep(END_POLL_S)

    def process_ids(self) -> list[int]:
        """Return the processes as they were last started."""
        return [process.pid for process in self._processes]

    def _listed(self) -> None:
        for process in self._processes:
            process.look_for_worker()
        if self._started and self._queue.listing != self._listing_before:
            self._listing_before = self._queue.listing
            self._context.listing_changed()

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._queue.tick()
            for process in self._processes:
                process.tick()

    def _is_hopeless(self, error: StepflowError) -> None:
        if not self._queue.workers:
            self._queue.down = Failure(Code.UNREACHABLE, error.message)
            self._queue.fail_waiting(self._queue.down)


class _Process:
    """One process that we start; what its workers have in common (`Worker.group`). Implements `Restartable`."""

    def __init__(self, context: BackendContext, config: PullConfig, queue: TaskQueue, door: PullDoor | None) -> None:
        self.end_was_wanted = False
        self.how_it_ended = ""
        self._context = context
        self._config = config
        self._queue = queue
        self._own_door = PullDoor(LOOPBACK) if door is None else None
        self._door = door
        self._address = ""
        self._process: ServerProcess | None = None
        self._ready: asyncio.Event = asyncio.Event()

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def stderr_tail(self) -> str:
        return "" if self._process is None else self._process.stderr_tail()

    async def start(self) -> None:
        """Start it and wait until its worker has said what it offers. Raises as `StepflowPullBackend.start`."""
        config = self._config
        if self._own_door is not None and not self._address:
            concurrency = config.concurrency or CONCURRENCY_STARTED
            self._address = await self._own_door.open(
                config.queue_name, Entrance(self._queue, self, concurrency, lends=True)
            )
        elif self._door is not None:
            self._address = self._door.address
        self._ready.clear()
        self.end_was_wanted = False
        self._process = process = ServerProcess(self._spec(), on_output=_ignore, on_exit=self._handle_exit)
        process.start()
        try:
            async with asyncio.timeout(config.start_timeout_s):
                await self._until_ready(process)
        except TimeoutError:
            await process.stop(0.0)
            raise self._start_error(
                "SERVER_NOT_RESPONDING",
                f"did not connect to {self._address} and tell its components within {config.start_timeout_s:g} s",
            ) from None
        except BaseException:
            await process.stop(0.0)
            raise

    async def _until_ready(self, process: ServerProcess) -> None:
        ready = asyncio.ensure_future(self._ready.wait())
        ended = asyncio.ensure_future(process.ended())
        try:
            await asyncio.wait((ready, ended), return_when=asyncio.FIRST_COMPLETED)
        finally:
            ready.cancel()
            ended.cancel()
        if not self._ready.is_set():
            await process.stop(0.0)
            raise self._start_error("SERVER_EXITED", f"{process.exit_text()} before it was ready")

    def _spec(self) -> ProcessSpec:
        config = self._config
        places = config.concurrency or CONCURRENCY_OTHERS
        if self._own_door is not None:
            places = max(PLACES_MIN, PLACES_EACH * (config.concurrency or CONCURRENCY_STARTED))
        env = {
            "STEPFLOW_TRANSPORT": "grpc",
            "STEPFLOW_TASKS_URL": self._address,
            "STEPFLOW_BLOB_URL": self._address,
            "STEPFLOW_QUEUE_NAME": config.queue_name,
            "STEPFLOW_MAX_CONCURRENT": str(places),
            "STEPFLOW_SHUTDOWN_GRACE_SECS": f"{max(1.0, config.stop_grace_s - 1):g}",
            "no_grpc_proxy": no_grpc_proxy_with_loopback(self._context.environ),
        }
        return ProcessSpec.of(self._context, config, env={**env, **config.env})

    def look_for_worker(self) -> None:
        """A worker has told its components. At a door of our own it is this process that has."""
        group = self if self._own_door is not None else None
        if any(worker.listed and group in (None, worker.group) for worker in self._queue.workers.values()):
            self._ready.set()

    def check(self, task: Task) -> None:
        """A task was aborted: end a process that has no room left but for abandoned work; else see if it answers."""
        worker = task.worker
        if worker.room <= 0 and all(each.aborted for each in worker.tasks.values()):
            self._kill()
        else:
            self._queue.ask(worker)

    def tick(self) -> None:
        """End a process whose worker does not answer."""
        now = time.monotonic()
        for worker in self._queue.workers.values():
            asked_long_ago = worker.question and now - worker.asked_at > self._config.request_timeout_s
            if worker.group is self and asked_long_ago and any(task.aborted for task in worker.tasks.values()):
                log.warning("worker does not answer; ending it", plugin=self._context.name)
                self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self.end_was_wanted = True
            self._process.kill()

    async def ended(self) -> None:
        assert self._process is not None
        await self._process.ended()

    async def stop(self) -> None:
        """End it: SIGTERM, the end of its streams, time for calls in flight, SIGKILL. Safe to repeat."""
        if self._process is not None:
            grace_s = self._config.stop_grace_s if self._queue.busy else min(IDLE_GRACE_S, self._config.stop_grace_s)
            stopping = asyncio.ensure_future(self._process.stop(grace_s))
            await asyncio.sleep(0)  # until the signal is sent: a worker that sees its stream end first, comes back
            self._queue.end_streams(self if self._own_door is not None else None)
            await stopping
        if self._own_door is not None:
            await self._own_door.close(self._config.queue_name)

    def _handle_exit(self) -> None:
        process = self._process
        assert process is not None
        self.how_it_ended = process.exit_text()
        details = encode({"exit_code": process.returncode, "stderr": process.stderr_tail()})
        text = f"the worker of plugin {self._context.name!r} {self.how_it_ended} while the call was in flight"
        self._queue.lose(self, Failure(Code.UNREACHABLE, text, details))

    def _start_error(self, reason: str, what: str) -> Unavailable:
        process = self._process
        assert process is not None
        name = self._context.name
        text = f"plugin {name!r}: the worker {what}. It was started as `{process.command_line()}`"
        tail = process.stderr_tail()
        text += f"; the end of its stderr:\n{tail}" if tail else "; it wrote nothing to stderr"
        return Unavailable(reason, text, plugin=name)


def _ignore(chunk: bytes) -> None:
    """What a worker prints is not protocol."""


def _refused(error: Invalid) -> Failure:
    return Failure(Code.INVALID_INPUT, error.message, encode({"reason": error.reason}))
