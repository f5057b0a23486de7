"""The gRPC endpoint where pull workers fetch, claim and complete tasks, and make their call-backs.

An endpoint serves the queues of all plugins with its address. Promises:
- A stream of tasks ends cleanly only to end its worker: a clean end changes the worker's reaction to the next failure.
- Each completion is answered with success, even a late or unreadable one: a worker repeats a failed completion for a
  minute and a half, and keeps the task's slot for so long.

The protocol has neither TLS nor passwords: every client of the endpoint gets tasks. Hence loopback, or `insecure`.

Not here: call-backs (`callbacks`), and the assignment of tasks (`queue`).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from component_host.stepflow_bridge.log_notices import pass_task_log
from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.pull.callbacks import PullCallbacks
from component_host.stepflow_bridge.pull.queue import ALREADY_CLAIMED, TaskQueue
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Code, FailedPrecondition, Failure, Invalid, NotFound, Unavailable
from stepflow.off_loop import INLINE_WORK_BYTES_MAX, off_loop
from stepflow.pull import BLOB_SERVICE, ORCHESTRATOR_SERVICE, TASKS_SERVICE
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.rpc.server import RpcServer
from stepflow.rpc.tls import parse_address
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from component_host.backend import HostCall

log = get_logger("component_host.pull")

RECEIVE_BYTES_MAX = 8 * PAYLOAD_BYTES_MAX
"""A number takes two bytes of JSON, `1,`, and eleven of a Value; the host refuses outputs too long as JSON."""


@dataclass(frozen=True, slots=True)
class ServedQueue:
    """A queue at an endpoint, and the properties of the workers that connect there."""

    queue: TaskQueue
    group: object
    """The process behind the workers, or their plugin."""
    concurrency: int
    lends: bool


class PullEndpoint:
    """A gRPC server, opened with its first queue and closed with its last."""

    def __init__(self, listen: str, *, advertise: str = "", insecure: bool = False) -> None:
        self.address = ""
        """Address for workers, with the real port."""
        self._listen = listen
        self._advertise = advertise
        self._insecure = insecure

        self._served: dict[str, ServedQueue] = {}
        self._server: RpcServer | None = None
        self._opening = asyncio.Lock()
        self._callbacks = PullCallbacks(self._queues)
        self._settling: set[asyncio.Task[None]] = set()
        """Conversions of large outputs."""

    def _queues(self) -> list[TaskQueue]:
        return [served.queue for served in self._served.values()]

    async def open_queue(self, name: str, served: ServedQueue) -> str:
        """Serve a queue under `name`; return the address for its workers.

        Raises: Invalid ADDRESS_INVALID, ADVERTISE_MISSING, TLS_REQUIRED; FailedPrecondition LISTEN_FAILED, QUEUE_TAKEN.
        """
        if name in self._served:
            raise FailedPrecondition(
                "QUEUE_TAKEN", f"two plugins have the queue {name!r} at {self._listen}; give one another `queueName`"
            )
        self._served[name] = served
        try:
            async with self._opening:
                if self._server is None:
                    await self._start()
        except BaseException:
            del self._served[name]
            raise
        return self.address

    async def _start(self) -> None:
        host = parse_address(self._listen)[0].strip("[]")
        if host in ("0.0.0.0", "::") and not self._advertise:  # noqa: S104  # no address for workers
            raise Invalid(
                "ADVERTISE_MISSING",
                f"workers cannot connect to the address {self._listen}: set `advertise` to the HOST:PORT by which they "
                "reach it",
            )

        server = RpcServer(insecure=self._insecure, message_bytes_max=RECEIVE_BYTES_MAX)
        self._add_methods(server)
        listening = await server.start(self._listen)
        self.address = self._advertise or listening
        self._server = server
        log.debug("endpoint opened", address=listening)

    def _add_methods(self, server: RpcServer) -> None:
        import grpc  # behind stepflow.rpc, which sets it up

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
                "SubmitRun": _unary(self._callbacks.submit_run, pb.OrchestratorSubmitRunRequest.FromString),
                "GetRun": _unary(self._callbacks.get_run, pb.OrchestratorGetRunRequest.FromString),
            },
        )
        server.add_methods(
            BLOB_SERVICE,
            {
                "PutBlob": _unary(self._callbacks.put_blob, pb.PutBlobRequest.FromString),
                "GetBlob": _unary(self._callbacks.get_blob, pb.GetBlobRequest.FromString),
            },
        )

    async def close_queue(self, name: str) -> None:
        """Stop serving a queue. Idempotent."""
        self._served.pop(name, None)
        if not self._served and self._server is not None:
            server, self._server = self._server, None
            await server.stop()
            await asyncio.gather(*self._settling, return_exceptions=True)

    # --- methods of workers -------------------------------------------------------------------------------------

    async def pull_tasks(self, request: pb.PullTasksRequest, _: Any) -> AsyncIterator[bytes]:
        """Stream tasks to a worker.

        Raises: Invalid; NotFound QUEUE_NOT_FOUND; Overloaded WORKERS_FULL; Unavailable STREAM_BROKEN.
        """
        if not request.queue_name:
            raise Invalid("QUEUE_MISSING", "PullTasks needs a `queue_name`")
        served = self._served.get(request.queue_name)
        if served is None:
            raise NotFound(
                "QUEUE_NOT_FOUND",
                f"there is no queue {request.queue_name!r} here; queues: {', '.join(sorted(self._served))}",
            )

        worker, outbox = served.queue.connect_worker(
            request.worker_id,
            group=served.group,
            address=self.address,
            concurrency=served.concurrency,
            lends=served.lends,
        )
        log.debug("worker connected", queue=request.queue_name, worker_id=request.worker_id)
        changed = asyncio.Event()
        outbox.changed = changed.set
        try:
            while True:
                while outbox.messages:
                    yield outbox.messages.popleft()
                if outbox.broken:
                    raise Unavailable("STREAM_BROKEN", "this stream gets no more tasks; connect again")
                if outbox.ended:
                    return
                changed.clear()
                await changed.wait()
        finally:
            log.debug("worker disconnected", queue=request.queue_name, worker_id=request.worker_id)
            served.queue.disconnect_worker(worker, outbox)

    async def find_orchestrator(self, _: pb.GetOrchestratorForRunRequest) -> pb.GetOrchestratorForRunResponse:
        return pb.GetOrchestratorForRunResponse(orchestrator_service_url=self.address)

    async def heartbeat(self, request: pb.TaskHeartbeatRequest) -> pb.TaskHeartbeatResponse:
        """Raises: Invalid."""
        if not request.worker_id:
            raise Invalid("WORKER_ID_MISSING", "TaskHeartbeat needs a `worker_id`")
        for queue in self._queues():
            if (reply := queue.take_heartbeat(request)) is not None:
                return reply
        return ALREADY_CLAIMED  # the task has ended, or was sent again

    async def complete_task(self, request: pb.CompleteTaskRequest | pb.CompleteTaskHead) -> pb.CompleteTaskResponse:
        # 1. An answer to a question for components.
        queues = self._queues()
        if isinstance(request, pb.CompleteTaskRequest) and request.HasField("list_components"):
            components, complete = messages.read_listing(request.list_components.components)
            for queue in queues:
                queue.take_listing(request.task_id, components, complete=complete)

        # 2. The outcome of a call, also where it is none.
        call = next((call for queue in queues if (call := queue.complete_task(request.task_id)) is not None), None)
        if call is None:
            log.debug("late completion", task_id=request.task_id)
        elif request.ByteSize() <= INLINE_WORK_BYTES_MAX:
            await _settle_call(call, request)
        else:
            # In a task: the queue has dropped the call, so a cancelled request of the worker would lose its outcome.
            settling = asyncio.create_task(_settle_call(call, request))
            self._settling.add(settling)
            settling.add_done_callback(self._settling.discard)
            await asyncio.shield(settling)
        return pb.CompleteTaskResponse()


async def _settle_call(call: HostCall, request: pb.CompleteTaskRequest | pb.CompleteTaskHead) -> None:
    """Settle a call with its worker's outcome, also after an error here: this is the last reference to the call."""
    try:
        if isinstance(request, pb.CompleteTaskRequest) and request.HasField("log"):
            pass_task_log(call, request.log)
        if isinstance(request, pb.CompleteTaskHead):
            call.fail(messages.unreadable_output())
        elif request.HasField("error"):
            call.fail(messages.failure_of(request.error, call))
        elif not request.HasField("response"):
            call.fail(messages.no_outcome(request))
        else:
            call.succeed(await off_loop(request.ByteSize(), messages.output_of, request.response))
    except Invalid as error:
        call.fail(Failure(Code.COMPONENT_FAILED, error.message))
    except BaseException:
        call.fail(Failure(Code.UNREACHABLE, "the worker's answer was lost before it was read"))
        raise


def _unary(behaviour: Any, read: Any) -> Any:
    import grpc

    async def handle(request: Any, _: Any) -> bytes:
        reply: bytes = (await behaviour(request)).SerializeToString()
        return reply

    return grpc.unary_unary_rpc_method_handler(handle, request_deserializer=read)
