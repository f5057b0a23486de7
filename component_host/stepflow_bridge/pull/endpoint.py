"""The address where pull workers fetch tasks, claim and complete them, and make their call-backs: the gRPC edge.

One door serves the queues of all plugins that name its address. Promises:
- A stream of tasks ends cleanly only to end its worker: a clean end changes how a worker takes the next failure.
- A completion is answered with success, whatever it completes: a worker repeats everything else for a minute and a half
  and keeps the task's place for so long.
- Call-backs are served in the name of the call whose task made them, and of no ended one. Blobs are what the protocol
  does not attribute; they are served as long as the door has a call in flight, and their ids are valid everywhere.

The protocol has neither TLS nor passwords: whoever reaches the door gets tasks. Hence loopback, or `insecure`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.pull.queue import ALREADY_CLAIMED, TaskQueue
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Code, Failure, Invalid, NotFound, Overloaded, Refused, Unavailable
from stepflow.pull import BLOB_SERVICE, ORCHESTRATOR_SERVICE, TASKS_SERVICE
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.rpc.server import RpcServer
from stepflow.rpc.tls import parse_address
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from component_host.backend import BlobAccess, HostCall
    from component_host.stepflow_bridge.pull.queue import Task

log = get_logger("component_host.pull")

RECEIVE_BYTES_MAX = 8 * PAYLOAD_BYTES_MAX
"""A number takes two bytes of JSON, `1,`, and eleven of a Value; what is too long as JSON is refused by the host."""

CALLBACKS_MAX = 1_000
"""Requests of components that are being served."""

BLOBS_MAX = 64
"""Of them, those that move blobs at a time, each of which may be a payload of the largest size; more wait."""

WAIT_S_DEFAULT = 300
"""How long a component waits for a flow when it does not say."""

WAIT_S_MAX = 24 * 3_600
"""And when it says more; it may ask again."""

THREAD_BYTES_MIN = 256 * 1024
"""An output from here on is read in a thread: it takes more than some milliseconds."""


@dataclass(frozen=True, slots=True)
class Entrance:
    """Through what name workers reach a queue, and what they are taken for."""

    queue: TaskQueue
    group: object
    """What the workers that come this way share their end with."""
    concurrency: int
    lends: bool


class PullDoor:
    """See the head of this module. Opened by its first entrance, closed with its last."""

    def __init__(self, listen: str, *, advertise: str = "", insecure: bool = False) -> None:
        self.address = ""
        """Where workers reach it, with the real port."""
        self._listen = listen
        self._advertise = advertise
        self._insecure = insecure
        self._entrances: dict[str, Entrance] = {}
        self._server: RpcServer | None = None
        self._opening = asyncio.Lock()
        self._callbacks = 0
        self._blobs = asyncio.Semaphore(BLOBS_MAX)
        self._settling: set[asyncio.Task[None]] = set()
        """Large outputs that are being read."""

    async def open(self, name: str, entrance: Entrance) -> str:
        """Let workers pull from a queue under `name`; return the address that they need.

        Raises: Invalid ADDRESS_INVALID, ADVERTISE_MISSING, TLS_REQUIRED; Refused LISTEN_FAILED, QUEUE_TAKEN."""
        if name in self._entrances:
            raise Refused(
                "QUEUE_TAKEN", f"two plugins have the queue {name!r} at {self._listen}; give one another `queueName`"
            )
        self._entrances[name] = entrance
        try:
            async with self._opening:
                if self._server is None:
                    await self._start()
        except BaseException:
            del self._entrances[name]
            raise
        return self.address

    async def _start(self) -> None:
        host = parse_address(self._listen)[0].strip("[]")
        if host in ("0.0.0.0", "::") and not self._advertise:  # noqa: S104  # an address that says nothing
            raise Invalid(
                "ADVERTISE_MISSING",
                f"workers cannot be told to come back to {self._listen}: give `advertise`, the HOST:PORT by which they "
                "reach it",
            )
        import grpc  # behind stepflow.rpc, which sets it up

        server = RpcServer(insecure=self._insecure, message_bytes_max=RECEIVE_BYTES_MAX)
        server.add_methods(
            TASKS_SERVICE,
            {
                "PullTasks": grpc.unary_stream_rpc_method_handler(
                    self.pull_tasks, request_deserializer=pb.PullTasksRequest.FromString
                ),
                "GetOrchestratorForRun": _unary(self.find_orchestrator, pb.GetOrchestratorForRunRequest.FromString),
            },
        )
        server.add_methods(
            ORCHESTRATOR_SERVICE,
            {
                "TaskHeartbeat": _unary(self.heartbeat, pb.TaskHeartbeatRequest.FromString),
                "CompleteTask": _unary(self.complete_task, messages.read_completion),
                "SubmitRun": _unary(self.submit_run, pb.OrchestratorSubmitRunRequest.FromString),
                "GetRun": _unary(self.get_run, pb.OrchestratorGetRunRequest.FromString),
            },
        )
        server.add_methods(
            BLOB_SERVICE,
            {
                "PutBlob": _unary(self.put_blob, pb.PutBlobRequest.FromString),
                "GetBlob": _unary(self.get_blob, pb.GetBlobRequest.FromString),
            },
        )
        listening = await server.start(self._listen)
        self.address = self._advertise or listening
        self._server = server
        log.debug("door opened", address=listening)

    async def close(self, name: str) -> None:
        """Serve a queue no longer. Safe to repeat."""
        self._entrances.pop(name, None)
        if not self._entrances and self._server is not None:
            server, self._server = self._server, None
            await server.stop()
            await asyncio.gather(*self._settling, return_exceptions=True)

    # --- tasks --------------------------------------------------------------------------------------------------

    async def pull_tasks(self, request: pb.PullTasksRequest, _: Any) -> AsyncIterator[bytes]:
        """Raises: Invalid; NotFound QUEUE_NOT_FOUND; Overloaded WORKERS_FULL; Unavailable STREAM_BROKEN."""
        if not request.queue_name:
            raise Invalid("QUEUE_MISSING", "PullTasks needs a `queue_name`")
        entrance = self._entrances.get(request.queue_name)
        if entrance is None:
            raise NotFound(
                "QUEUE_NOT_FOUND",
                f"there is no queue {request.queue_name!r} here; queues: {', '.join(sorted(self._entrances))}",
            )
        queue = entrance.queue
        worker, outbox = queue.connect(
            request.worker_id,
            group=entrance.group,
            address=self.address,
            concurrency=entrance.concurrency,
            lends=entrance.lends,
        )
        log.debug("worker connected", queue=request.queue_name, worker_id=request.worker_id)
        changed = asyncio.Event()
        outbox.changed = changed.set
        try:
            while True:
                while outbox.messages:
                    yield outbox.messages.popleft()
                if outbox.broken:
                    raise Unavailable("STREAM_BROKEN", "this stream has no tasks any more; connect again")
                if outbox.ended:
                    return
                changed.clear()
                await changed.wait()
        finally:
            log.debug("worker disconnected", queue=request.queue_name, worker_id=request.worker_id)
            queue.disconnect(worker, outbox)

    async def find_orchestrator(self, _: pb.GetOrchestratorForRunRequest) -> pb.GetOrchestratorForRunResponse:
        return pb.GetOrchestratorForRunResponse(orchestrator_service_url=self.address)

    async def heartbeat(self, request: pb.TaskHeartbeatRequest) -> pb.TaskHeartbeatResponse:
        """Raises: Invalid."""
        if not request.worker_id:
            raise Invalid("WORKER_ID_MISSING", "TaskHeartbeat needs a `worker_id`")
        for entrance in self._entrances.values():
            if (reply := entrance.queue.heartbeat(request)) is not None:
                return reply
        return ALREADY_CLAIMED  # it has ended, or was given to another one

    async def complete_task(self, request: pb.CompleteTaskRequest | pb.CompleteTaskHead) -> pb.CompleteTaskResponse:
        queues = [entrance.queue for entrance in self._entrances.values()]
        if isinstance(request, pb.CompleteTaskRequest) and request.HasField("list_components"):
            components, complete = messages.read_listing(request.list_components.components)
            for queue in queues:
                queue.listed(request.task_id, components, complete=complete)
            return pb.CompleteTaskResponse()
        call = next((call for queue in queues if (call := queue.completed(request.task_id)) is not None), None)
        if call is None:
            log.debug("late completion", task_id=request.task_id)
        elif request.ByteSize() < THREAD_BYTES_MIN:
            await _settle(call, request)
        else:  # the end of the worker's request does not end it: the queue has forgotten the call
            settling = asyncio.create_task(_settle(call, request))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
            await asyncio.shield(settling)
        return pb.CompleteTaskResponse()

    # --- call-backs ---------------------------------------------------------------------------------------------

    async def submit_run(self, request: pb.OrchestratorSubmitRunRequest) -> pb.OrchestratorRunStatus:
        """Raises: Overloaded; Refused CALL_ENDED; what the owner of the run says."""
        with self._callback():
            task = self._task(request.root_run_id)
            call, asked = task.offer.call, request.run_request
            start = messages.read_submission(request)
            wait, start.wait = start.wait, False
            report = await call.start_run(start)
            if wait:
                run_id = report.run_id
                late = await self._await_run(task, run_id, asked.timeout_secs)
                report = late or await call.get_run(run_id, wait=False)
            return messages.run_status(report, root_run_id=request.root_run_id, results=wait)

    async def get_run(self, request: pb.OrchestratorGetRunRequest) -> pb.OrchestratorRunStatus:
        """Raises: Overloaded; Refused CALL_ENDED; NotFound."""
        with self._callback():
            task = self._task(request.root_run_id)
            report = await self._await_run(task, request.run_id, request.timeout_secs) if request.wait else None
            if report is None:
                report = await task.offer.call.get_run(request.run_id, wait=False)
            return messages.run_status(report, root_run_id=request.root_run_id, results=request.include_results)

    async def _await_run(self, task: Task, run_id: str, timeout_s: int) -> Any:
        """Return the report of a run that has ended; None when the time is over first."""
        task.runs_awaited += 1
        try:
            for entrance in self._entrances.values():
                entrance.queue.dispatch()  # its place may be lent now
            async with asyncio.timeout(min(timeout_s or WAIT_S_DEFAULT, WAIT_S_MAX)):
                return await task.offer.call.get_run(run_id, wait=True)
        except TimeoutError:
            return None
        finally:
            task.runs_awaited -= 1

    async def put_blob(self, request: pb.PutBlobRequest) -> pb.PutBlobResponse:
        """Raises: Overloaded; Refused; Invalid; Unavailable."""
        async with self._blob_access() as blobs:
            content, blob_type = await _in_thread(request.ByteSize(), messages.blob_content, request)
            blob_id = await blobs.put(content, blob_type=blob_type)
            return pb.PutBlobResponse(blob_id=blob_id)

    async def get_blob(self, request: pb.GetBlobRequest) -> pb.GetBlobResponse:
        """Raises: Overloaded; Refused; Invalid; NotFound; Unavailable."""
        async with self._blob_access() as blobs:
            content, blob_type = await blobs.get(request.blob_id)
            reply: pb.GetBlobResponse = await _in_thread(
                len(content), messages.blob_reply, request.blob_id, content, blob_type
            )
            return reply

    def _task(self, call_token: str) -> Task:
        queues = [entrance.queue for entrance in self._entrances.values()]
        found = [task for queue in queues if (task := queue.task_of(call_token)) is not None]
        if found and (call_token or sum(queue.sent for queue in queues) == 1):
            return found[0]
        raise Refused("CALL_ENDED", "no call in flight has this `root_run_id`: the call that asks has ended")

    @contextmanager
    def _callback(self) -> Iterator[None]:
        if self._callbacks >= CALLBACKS_MAX:
            raise Overloaded("CALLBACKS_FULL", f"{CALLBACKS_MAX:,} requests of components are being served already")
        self._callbacks += 1
        try:
            yield
        finally:
            self._callbacks -= 1

    @asynccontextmanager
    async def _blob_access(self) -> AsyncIterator[BlobAccess]:
        with self._callback():
            async with self._blobs:
                calls = (entrance.queue.any_call() for entrance in self._entrances.values())
                call = next((call for call in calls if call is not None), None)
                if call is None:
                    raise Refused("NO_CALL", "blobs are for components that execute, and none does")
                yield call.blobs


async def _settle(call: HostCall, request: pb.CompleteTaskRequest | pb.CompleteTaskHead) -> None:
    """Give a call what its worker says. However that fails, the call is settled: nobody else knows it any more."""
    try:
        if isinstance(request, pb.CompleteTaskHead):
            call.fail(messages.unreadable_output())
        elif request.HasField("error"):
            call.fail(messages.failure_of(request.error, call))
        else:
            call.succeed(await _in_thread(request.ByteSize(), messages.output_of, request.response))
    except Invalid as error:
        call.fail(Failure(Code.COMPONENT_FAILED, error.message))
    except BaseException:
        call.fail(Failure(Code.UNREACHABLE, "the answer of the worker was lost before it was read"))
        raise


async def _in_thread(size: int, work: Any, *arguments: Any) -> Any:
    if size < THREAD_BYTES_MIN:
        return work(*arguments)
    return await asyncio.to_thread(work, *arguments)


def _unary(behaviour: Any, read: Any) -> Any:
    import grpc

    async def handle(request: Any, _: Any) -> bytes:
        reply: bytes = (await behaviour(request)).SerializeToString()
        return reply

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=read)
