"""One worker process started here, through all its restarts.

- Without `listen`, each process has its own endpoint: every worker there belongs to the process, and at the exit all
  calls fail as UNREACHABLE. At `listen` the workers of a process and other workers are indistinguishable.
- SIGTERM and the end of the stream stop a process: idle workers of 0.12 and 0.13 wait for the latter. Calls in flight
  may complete within the grace.
- A process is killed if its worker stops answering after a cancel: code that blocks the event loop blocks all calls.
- A process that keeps running aborted tasks is retired (see `stepflow_bridge.retirement`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from component_host.stepflow_bridge.pull.config import CONCURRENCY_OTHERS, CONCURRENCY_STARTED
from component_host.stepflow_bridge.pull.endpoint import PullEndpoint, ServedQueue
from component_host.stepflow_bridge.retirement import ABANDONED_S, LIVE_S, abandoned_max
from component_host.supervision.process import ServerProcess
from component_host.supervision.spec import ProcessSpec
from stepflow.codec import encode
from stepflow.errors import Code, Failure
from stepflow.proxies import no_grpc_proxy_with_loopback
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from component_host.backend import BackendContext
    from component_host.stepflow_bridge.pull.config import PullConfig
    from component_host.stepflow_bridge.pull.queue import TaskQueue
    from component_host.stepflow_bridge.pull.records import Task, Worker
    from stepflow.errors import Unavailable

LOOPBACK = "127.0.0.1:0"

SLOTS_MIN = 1_000
SLOTS_PER_CALL = 8
"""The limit told to a worker started here: at least `SLOTS_MIN`, and so many for each call of `concurrency`. The queue
enforces `concurrency` itself; the further slots are for children of calls that wait for flows."""

IDLE_GRACE_S = 1.0
"""Grace of a worker without calls, or with cancelled calls only."""

log = get_logger("component_host.pull")


class WorkerProcess:
    """A process and its endpoint; also the `Worker.group` of its workers. Implements `Restartable`."""

    def __init__(
        self, context: BackendContext, config: PullConfig, queue: TaskQueue, endpoint: PullEndpoint | None
    ) -> None:
        self.stopping = False
        self.exit_reason = ""

        self._context = context
        self._config = config
        self._queue = queue
        self._own_endpoint = PullEndpoint(LOOPBACK) if endpoint is None else None
        self._shared_endpoint = endpoint
        self._address = ""
        self._process: ServerProcess | None = None
        self._ready: asyncio.Event = asyncio.Event()

    @property
    def pid(self) -> int:
        return 0 if self._process is None else self._process.pid

    def stderr_tail(self) -> str:
        return "" if self._process is None else self._process.stderr_tail()

    def serve_run(self, run_id: str, *, idle: bool) -> None:
        """See `ServerProcess.serve_run`."""
        if self._process is not None:
            self._process.serve_run(run_id, idle=idle)

    # --- start --------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Start the process and wait for the list of components. Raises as `StepflowPullBackend.start`."""
        # 1. Endpoint.
        config = self._config
        if self._own_endpoint is not None and not self._address:
            concurrency = config.concurrency or CONCURRENCY_STARTED
            served = ServedQueue(self._queue, self, concurrency, lends=True)
            self._address = await self._own_endpoint.open_queue(config.queue_name, served)
        elif self._shared_endpoint is not None:
            self._address = self._shared_endpoint.address

        # 2. Process.
        self._ready.clear()
        self.stopping = False
        self._process = process = ServerProcess(self._spec(), on_output=_ignore_output, on_exit=self._handle_exit)
        process.start()

        # 3. Worker.
        try:
            async with asyncio.timeout(config.start_timeout_s):
                await self._wait_until_ready(process)
        except TimeoutError:
            await process.stop(0.0)
            raise self._start_error(
                "SERVER_NOT_RESPONDING",
                f"did not connect to {self._address} and tell its components within {config.start_timeout_s:g} s",
            ) from None
        except BaseException:
            await process.stop(0.0)
            raise

    async def _wait_until_ready(self, process: ServerProcess) -> None:
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

    def handle_listing(self) -> None:
        """Become ready if a worker of the process has listed; at a shared endpoint, if any worker has."""
        group = self if self._own_endpoint is not None else None
        if any(worker.listed and group in (None, worker.group) for worker in self._queue.workers):
            self._ready.set()

    def _spec(self) -> ProcessSpec:
        config = self._config
        slots = config.concurrency or CONCURRENCY_OTHERS
        if self._own_endpoint is not None:
            slots = max(SLOTS_MIN, SLOTS_PER_CALL * (config.concurrency or CONCURRENCY_STARTED))

        env = {
            "STEPFLOW_TRANSPORT": "grpc",
            "STEPFLOW_TASKS_URL": self._address,
            "STEPFLOW_BLOB_URL": self._address,
            "STEPFLOW_QUEUE_NAME": config.queue_name,
            "STEPFLOW_MAX_CONCURRENT": str(slots),
            "STEPFLOW_SHUTDOWN_GRACE_SECS": f"{max(1.0, config.stop_grace_s - 1):g}",
            "no_grpc_proxy": no_grpc_proxy_with_loopback(self._context.environ),
        }
        return ProcessSpec.of(self._context, config, env={**env, **config.env})

    def _start_error(self, reason: str, what: str) -> Unavailable:
        process = self._process
        assert process is not None
        return process.start_error(reason, what)

    # --- checks -------------------------------------------------------------------------------------------------

    def check_aborted(self, task: Task) -> None:
        """After an abort: kill the process if aborted tasks take up all the room, otherwise test the worker."""
        worker = task.worker
        if worker.room <= 0 and all(each.aborted for each in worker.tasks.values()):
            self._kill()
        else:
            self._queue.ask_worker(worker)

    def tick(self) -> None:
        """Kill the process if a worker with an aborted task has not answered within `request_timeout_s`."""
        now = time.monotonic()
        for worker in self._queue.workers:
            overdue = worker.question and now - worker.asked_at > self._config.request_timeout_s
            if worker.group is self and overdue and any(task.aborted for task in worker.tasks.values()):
                log.warning("worker does not answer; ending it", plugin=self._context.name)
                self._kill()
            elif worker.group is self and must_end(worker, now, self._context.name):
                self._kill()

    def _kill(self) -> None:
        if self._process is not None:
            self.stopping = True
            self._process.kill()

    # --- end ----------------------------------------------------------------------------------------------------

    async def ended(self) -> None:
        assert self._process is not None
        await self._process.ended()

    async def stop(self) -> None:
        """End the process: SIGTERM, end of the streams, grace for calls in flight, SIGKILL. Idempotent."""
        if self._process is not None:
            busy = self._queue.tasks.busy
            grace_s = self._config.stop_grace_s if busy else min(IDLE_GRACE_S, self._config.stop_grace_s)
            stopping = asyncio.ensure_future(self._process.stop(grace_s))
            await asyncio.sleep(0)  # the signal goes first: a worker whose stream ends first connects again
            self._queue.workers.end_streams(self if self._own_endpoint is not None else None)
            await stopping
        if self._own_endpoint is not None:
            await self._own_endpoint.close_queue(self._config.queue_name)

    def _handle_exit(self) -> None:
        process = self._process
        assert process is not None
        self.exit_reason = process.exit_text()
        details = encode({"exit_code": process.returncode, "stderr": process.stderr_of_run()})
        text = f"the worker of plugin {self._context.name!r} {self.exit_reason} while the call was in flight"
        self._queue.lose_group(self, Failure(Code.UNREACHABLE, text, details))


def must_end(worker: Worker, now: float, plugin: str) -> bool:
    """Retire a worker full of aborted tasks; return True once its live tasks have ended, or have no more time."""
    if worker.retired_at is None:
        stuck = worker.aborted_before(now - ABANDONED_S)
        if not stuck or len(stuck) < abandoned_max(worker.concurrency):
            return False
        log.warning("worker is busy with aborted calls; starting it again", plugin=plugin, aborted=len(stuck))
        worker.retired_at = now

    return now - worker.retired_at >= LIVE_S or not any(task.executing for task in worker.tasks.values())


def _ignore_output(chunk: bytes) -> None:
    """Ignore the output of a worker: stdout is not part of the protocol."""
