"""Bridge to StepFlow servers that pull work over gRPC: stepflow-py 0.12 and later, and servers with our SDK.

One plugin may have both kinds of workers: processes started here (`command`), and remote workers (`listen`). After its
end a process is started again, whatever the exit code (workers that give up exit with 0): after 0.1 s, 0.2 s, … up to
30 s.

Not here: the assignment of calls (`queue`), the wire (`endpoint`), the life of a process (`process`).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING

from component_host.backend import ServerHealth
from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.pull.config import CONCURRENCY_OTHERS, PullConfig
from component_host.stepflow_bridge.pull.endpoint import PullEndpoint, ServedQueue
from component_host.stepflow_bridge.pull.process import WorkerProcess
from component_host.stepflow_bridge.pull.queue import TaskQueue
from component_host.stepflow_bridge.pull.timeouts import QueueTimeouts
from component_host.supervision.restarts import supervise
from stepflow.codec import encode
from stepflow.errors import Code, Failure, Invalid, StepflowError
from stepflow.off_loop import INLINE_WORK_BYTES_MAX
from stepflow.telemetry import get_logger, log_defect
from stepflow.vital import keep_running

if TYPE_CHECKING:
    from collections.abc import Sequence

    from component_host.backend import BackendContext, BackendListing, HostCall

__all__ = ["PullConfig", "StepflowPullBackend"]

TICK_S = 1.0

END_POLL_S = 0.02

log = get_logger("component_host.pull")


class StepflowPullBackend:
    """One plugin: its queue and its processes. Implements `backend.Backend`."""

    def __init__(self, context: BackendContext, config: PullConfig, endpoint: PullEndpoint | None = None) -> None:
        """`endpoint` is the endpoint of `listen`; None: an own endpoint for every process."""
        self.name = context.name
        self.endpoint = endpoint
        self._context = context
        self._config = config
        self._published: BackendListing | None = None

        self._queue = TaskQueue(
            context.name,
            on_listing=self._handle_listing,
            on_send=lambda group, call: _note_run(self._processes, self._queue, group, call),
        )
        self._timeouts = QueueTimeouts(
            self._queue,
            queue_timeout_s=config.queue_timeout_s,
            execution_timeout_s=config.execution_timeout_s,
        )

        count = config.processes if config.command else 0
        self._processes = [WorkerProcess(context, config, self._queue, endpoint) for _ in range(count)]
        self.health = ServerHealth(context.listing_changed, max(1, count))

        self._supervisors: list[asyncio.Task[None]] = []
        self._encoding: set[asyncio.Task[None]] = set()
        self._queue_open = False
        """`endpoint` serves the queue."""
        self._started = False

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the endpoints and start the processes, without waiting for remote workers.

        Raises: Invalid COMMAND_NOT_FOUND, ADDRESS_INVALID, TLS_REQUIRED; FailedPrecondition LISTEN_FAILED, QUEUE_TAKEN;
            Unavailable SERVER_START_FAILED, SERVER_EXITED, SERVER_NOT_RESPONDING.
        """
        # 1. Open.
        try:
            if self.endpoint is not None:
                concurrency = self._config.concurrency or CONCURRENCY_OTHERS
                served = ServedQueue(self._queue, self, concurrency, lends=False)
                await self.endpoint.open_queue(self._config.queue_name, served)
                self._queue_open = True

            # 2. Start.
            starts = await asyncio.gather(*(each.start() for each in self._processes), return_exceptions=True)
            for error in starts:
                if error is not None:
                    raise error
        except BaseException:
            await self.close()
            raise

        # 3. Supervise.
        self._started = True
        self._published = self._queue.listing
        self._supervisors = [
            asyncio.create_task(self._supervise(process), name=f"supervise {self.name}") for process in self._processes
        ]
        self._supervisors.append(
            asyncio.create_task(
                keep_running(log, "the clock", self._keep_time, plugin=self.name),
                name=f"time of {self.name}",
            )
        )

    async def _supervise(self, process: WorkerProcess) -> None:
        await supervise(
            process,
            self.health,
            plugin=self.name,
            on_up=self._queue.dispatch,
            on_hopeless=self._handle_hopeless,
        )

    async def _keep_time(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._timeouts.tick()
            for process in self._processes:
                process.tick()

    def _handle_hopeless(self, error: StepflowError) -> None:
        if not self._queue.workers:
            self._queue.down = Failure(Code.UNREACHABLE, error.message)
            self._queue.fail_waiting(self._queue.down)

    async def close(self) -> None:
        queue = self._queue
        queue.closing = True

        # 1. End the own tasks; fail the calls without a worker.
        for task in (*self._supervisors, *self._encoding):
            task.cancel()
        await asyncio.gather(*self._supervisors, *self._encoding, return_exceptions=True)
        queue.fail_waiting(self._stopped())

        # 2. Let workers complete their calls, within the grace.
        await asyncio.gather(*(process.stop() for process in self._processes))
        if self.endpoint is not None and self._started:
            await self._wait_for_calls()
        queue.fail_all(self._stopped())

        # 3. Leave the endpoint, unless another plugin has the queue of this name there.
        if self.endpoint is not None and self._queue_open:
            self._queue_open = False
            await self.endpoint.close_queue(self._config.queue_name)

    async def _wait_for_calls(self) -> None:
        """Wait for the calls of remote workers, within the grace."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._config.stop_grace_s):
                while self._queue.tasks.busy:  # noqa: ASYNC110  # an event would cost a check for each call
                    await asyncio.sleep(END_POLL_S)

    def _stopped(self) -> Failure:
        return Failure(Code.UNREACHABLE, f"plugin {self.name!r} was stopped")

    def process_ids(self) -> list[int]:
        """Return the ids of the present or last processes."""
        return [process.pid for process in self._processes]

    # --- listing ------------------------------------------------------------------------------------------------

    def listing(self) -> BackendListing:
        return self._queue.listing

    def _handle_listing(self) -> None:
        for process in self._processes:
            process.handle_listing()
        if self._started and self._queue.listing != self._published:
            self._published = self._queue.listing
            self._context.listing_changed()

    # --- calls --------------------------------------------------------------------------------------------------

    def execute(self, call: HostCall) -> None:
        if len(call.input) > INLINE_WORK_BYTES_MAX:
            task = asyncio.create_task(self._execute_large(call), name=f"encode for {self.name}")
            self._encoding.add(task)
            task.add_done_callback(functools.partial(self._handle_encoded, call))
            return
        try:
            input_part = messages.encode_input(call)
        except Invalid as error:
            call.fail(_invalid_input(error))
        else:
            self._queue.offer_call(call, input_part)

    async def _execute_large(self, call: HostCall) -> None:
        try:
            input_part = await asyncio.to_thread(messages.encode_input, call)
        except Invalid as error:
            call.fail(_invalid_input(error))
            return
        if not call.settled:
            self._queue.offer_call(call, input_part)

    def _handle_encoded(self, call: HostCall, task: asyncio.Task[None]) -> None:
        self._encoding.discard(task)
        if task.cancelled():
            call.fail(self._stopped())
        elif (error := task.exception()) is not None:
            log_defect(log, "an input could not be encoded", error, plugin=self.name)
            call.fail(Failure(Code.UNREACHABLE, f"the call was lost before a worker of plugin {self.name!r} had it"))

    def cancel(self, call: HostCall) -> None:
        task = self._queue.abort_call(call)
        call.fail(Failure(Code.CANCELLED, "cancelled"))
        if task is not None and isinstance(task.worker.group, WorkerProcess):
            task.worker.group.check_aborted(task)


def _invalid_input(error: Invalid) -> Failure:
    return Failure(Code.INVALID_INPUT, error.message, encode({"reason": error.reason}))


def _note_run(processes: Sequence[WorkerProcess], queue: TaskQueue, group: object, call: HostCall) -> None:
    """Tell the process that gets a call; at a shared endpoint, each process that may be behind the worker."""
    idle = not len(queue.tasks)
    for process in [group] if isinstance(group, WorkerProcess) else processes:
        process.serve_run(call.request.root_run_id, idle=idle)
