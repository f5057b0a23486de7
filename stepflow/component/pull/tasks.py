"""`PullTasks`: the tasks of a worker, each translated into a call of the component server.

- A task is claimed before the component sees the call, and dropped if another worker has claimed the task.
- A task that waits for a thread says so in its heartbeats: the host counts no time until the component begins.
- Heartbeats report a running task every few seconds; when the host aborts the task, the component is cancelled.
- Tasks survive a broken connection: claims and results are retried.
- `stop` reports unfinished tasks as UNREACHABLE, which hosts retry elsewhere.

Numbers travel as doubles (`stepflow.pull.values`).
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import grpc
import msgspec

from stepflow.component.call import LOG
from stepflow.component.errors import CallCancelled
from stepflow.component.logs import LINES_MAX
from stepflow.component.process import debugging
from stepflow.component.pull.messages import component_info, execute_params, task_error, write_answer
from stepflow.component.pull.options import host_port
from stepflow.component.pull.remote import RETRIED, explain
from stepflow.component.queue_notices import BEGUN, QUEUED
from stepflow.component.registry import REGISTRY
from stepflow.component.server import ComponentServer
from stepflow.component.shapes import encode
from stepflow.component.wire import INVALID_PARAMS, Message, decode_message
from stepflow.errors import Code, Invalid
from stepflow.pull.v1 import pull_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from stepflow.component.pull.remote import PullRemote
    from stepflow.component.threads import Threads

CLAIM_TRIES = 5
CLAIM_RETRY_S = 1.0

COMPLETE_RETRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Pauses between attempts to deliver a result to an unreachable orchestrator."""

_BLOB_NOT_FOUND = -32011
_REQUEST_FAILED = -32000
_JSON_RPC_CODES = {grpc.StatusCode.NOT_FOUND: _BLOB_NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT: INVALID_PARAMS}


class StopFlag(Protocol):
    """Set once the worker begins no more tasks."""

    def is_set(self) -> bool: ...


@dataclass(slots=True, eq=False)
class PullTask:
    """A claimed task. `answer` is the server's answer to the execute."""

    id: str
    address: str
    """HOST:PORT of the orchestrator."""
    call_token: str
    """Attributes the requests of the component."""
    answer: asyncio.Future[Message]
    takes_logs: bool = False
    """The host takes log lines."""
    progress: tuple[float, float, str] | None = None
    """The latest unsent report."""
    log: pb.TaskLog | None = None
    """Unsent log lines."""
    queued: bool = False
    """The component waits for a thread."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set by progress, log lines, a change of `queued`, or the answer."""

    def add_log(self, lines: list[tuple[int, str, str]], dropped: int) -> None:
        """Add log lines, at most `LINES_MAX` between two heartbeats."""
        if self.log is None:
            self.log = pb.TaskLog()
        self.log.dropped += dropped
        for at_ms, level, text in lines:
            self.log.lines.add(at_ms=at_ms, level=level, text=text)
        surplus = len(self.log.lines) - LINES_MAX
        if surplus > 0:
            del self.log.lines[:surplus]
            self.log.dropped += surplus

    def take_log(self) -> pb.TaskLog | None:
        """Remove and return the unsent log lines."""
        log, self.log = self.log, None
        return log


class _StoppedError(Exception):
    """The worker stopped before the task ended."""


class PullTasks:
    """The tasks claimed by the worker `worker_id`. `spawn` runs a coroutine in a task awaited at the worker's end."""

    def __init__(
        self,
        worker_id: str,
        remote: PullRemote,
        threads: Threads,
        stopping: StopFlag,
        spawn: Callable[[Coroutine[Any, Any, None]], None],
    ) -> None:
        self._worker_id = worker_id
        self._remote = remote
        self._stopping = stopping
        self._spawn = spawn
        self._tasks: dict[str, PullTask] = {}
        self._server = ComponentServer(REGISTRY, self._take_line, threads=threads, show_tracebacks=debugging())
        initialize = {"capabilities": {"progress": True, "queue": True, "log": True}}
        self._to_server({"id": "initialize", "method": "initialize", "params": initialize})

    def calls(self) -> list[asyncio.Task[None]]:
        """Return the tasks of async components."""
        return self._server.tasks()

    async def list_components(self, assignment: pb.TaskAssignment) -> None:
        """Answer a task that asks for the list of components."""
        components = [component_info(component) for component in REGISTRY.components()]
        completion = pb.CompleteTaskRequest(
            task_id=assignment.task_id, list_components=pb.ListComponentsResult(components=components)
        )
        await self._deliver(host_port(assignment.context.orchestrator_service_url), completion)

    async def execute(self, assignment: pb.TaskAssignment) -> None:
        """Claim a task, run the call, deliver the result."""
        task = PullTask(
            assignment.task_id,
            host_port(assignment.context.orchestrator_service_url),
            assignment.context.root_run_id,
            asyncio.get_running_loop().create_future(),
            takes_logs=assignment.execute.takes_logs,
        )

        # 1. Claim.
        if task.id in self._tasks or not await self._claim(task):
            return
        self._tasks[task.id] = task

        try:
            # 2. Run.
            completion = pb.CompleteTaskRequest(task_id=task.id, run_id=assignment.execute.observability.run_id)
            await self._run(task, assignment, completion)
            if (lines := task.take_log()) is not None:
                completion.log.CopyFrom(lines)

            # 3. Deliver.
            heartbeat = pb.TaskHeartbeatRequest(task_id=task.id, worker_id=self._worker_id)
            await self._deliver(task.address, completion, heartbeat)
        finally:
            self._tasks.pop(task.id, None)

    def wake(self) -> None:
        """Send the heartbeats of all tasks now, which reveals aborted tasks."""
        for task in self._tasks.values():
            task.news.set()

    def stop(self) -> None:
        """Cancel the unfinished calls and fail their tasks with UNREACHABLE."""
        for task in self._tasks.values():
            if not task.answer.done():
                self._cancel_call(task)
                task.answer.set_exception(_StoppedError())
                task.news.set()

    async def _claim(self, task: PullTask) -> bool:
        """Return True if the claim succeeded, False if another worker has the task or the owner is unreachable."""
        request = pb.TaskHeartbeatRequest(task_id=task.id, worker_id=self._worker_id)
        for _ in range(CLAIM_TRIES):
            try:
                return await self._remote.heartbeat(task.address, request)
            except grpc.aio.AioRpcError as error:
                if error.code() not in RETRIED:
                    LOG.warning("the task %s cannot be claimed: %s", task.id, explain(error, task.address))
                    return False
            await asyncio.sleep(CLAIM_RETRY_S)

        LOG.warning("the task %s cannot be claimed: %s does not answer", task.id, task.address)
        return False

    async def _run(self, task: PullTask, assignment: pb.TaskAssignment, completion: pb.CompleteTaskRequest) -> None:
        """Run the call, and write the outcome into `completion`."""
        try:
            if self._stopping.is_set():  # a signal arrived during the claim
                raise _StoppedError

            params = execute_params(task.id, assignment.execute)
            self._to_server({"id": task.id, "method": "components/execute", "params": params})
            await self._await_answer(task, float(assignment.heartbeat_interval_secs or 1))
            write_answer(completion, task.answer.result())

        except _StoppedError:
            message = "the worker was stopped while it worked on the call"
            completion.error.CopyFrom(task_error(Code.UNREACHABLE, message))
        except Invalid as error:  # a value without JSON form, or without form as a Value
            completion.error.CopyFrom(task_error(Code.COMPONENT_FAILED, error.message))

    async def _await_answer(self, task: PullTask, interval_s: float) -> None:
        """Wait for the answer, with a heartbeat after each interval and for each news."""
        wanted = True
        while not task.answer.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await task.news.wait()
            if task.answer.done():
                break

            task.news.clear()
            if wanted:
                wanted = await self._heartbeat(task)
                if not wanted:
                    self._cancel_call(task)

    async def _heartbeat(self, task: PullTask) -> bool:
        """Report work and the latest progress; return False if the host does not want the result any more."""
        request = pb.TaskHeartbeatRequest(task_id=task.id, worker_id=self._worker_id, queued=task.queued)
        if task.progress is not None:
            done, total, message = task.progress
            task.progress = None
            if total > 0:
                request.progress = done / total
            request.status_message = message
        if (lines := task.take_log()) is not None:
            request.log.CopyFrom(lines)

        try:
            return await self._remote.heartbeat(task.address, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            LOG.debug("a heartbeat was lost: %s", explain(error, task.address))
            return True

    def _cancel_call(self, task: PullTask) -> None:
        self._to_server({"method": "components/cancel", "params": {"id": task.id}})

    async def _deliver(
        self, address: str, completion: pb.CompleteTaskRequest, heartbeat: pb.TaskHeartbeatRequest | None = None
    ) -> None:
        """Complete a task, with retries while the orchestrator is unreachable; `heartbeat` keeps the claim."""
        for pause_s in (*COMPLETE_RETRIES_S, None):
            try:
                await self._remote.complete(address, completion)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return  # the task has ended without the result
                if pause_s is None or error.code() not in RETRIED:
                    LOG.error("the result of task %s is lost: %s", completion.task_id, explain(error, address))
                    return

            await asyncio.sleep(pause_s)
            if heartbeat is not None:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._remote.heartbeat(address, heartbeat)

    def _to_server(self, message: dict[str, Any]) -> None:
        self._server.receive(encode({"jsonrpc": "2.0", **message}))

    def _take_line(self, line: bytes) -> None:
        """Take a line of the server: progress, a log, a notice of the queue, a request of a component, or an answer."""
        message = decode_message(line)

        if message.method == "components/progress":
            params = msgspec.json.decode(message.params)
            if (task := self._tasks.get(params["id"])) is not None:
                task.progress = (params["done"], params["total"], params["message"])
                task.news.set()

        elif message.method == "components/log":
            params = msgspec.json.decode(message.params)
            _take_log(self._tasks.get(params["id"]), params["lines"], params["dropped"])

        elif message.method in (QUEUED, BEGUN):
            for task_id in msgspec.json.decode(message.params)["ids"]:
                if (task := self._tasks.get(task_id)) is not None:
                    task.queued = message.method == QUEUED
                    task.news.set()

        elif isinstance(message.method, str):
            self._spawn(self._perform_request(str(message.id), message.method, message.params))

        elif isinstance(message.id, str) and (task := self._tasks.get(message.id)) is not None:
            if not task.answer.done():
                task.answer.set_result(message)
            task.news.set()

    async def _perform_request(self, request_id: str, method: str, raw: msgspec.Raw) -> None:
        """Perform a request of a component, and give the server the reply."""
        params = msgspec.json.decode(raw)
        task = self._tasks.get((params.get("observability") or {}).get("task_id", ""))

        try:
            if task is None:
                raise CallCancelled("the call that asks has ended")
            result = await self._remote.ask(task.address, task.call_token, method, params)
        except grpc.aio.AioRpcError as error:
            code = _JSON_RPC_CODES.get(error.code(), _REQUEST_FAILED)
            message = "" if task is None else explain(error, self._remote.address_for(method, task.address))
            self._to_server({"id": request_id, "error": {"code": code, "message": message}})
        except (Invalid, CallCancelled) as error:
            self._to_server({"id": request_id, "error": {"code": INVALID_PARAMS, "message": error.message}})
        else:
            self._to_server({"id": request_id, "result": result})


def _take_log(task: PullTask | None, lines: list[tuple[int, str, str]], dropped: int) -> None:
    """Keep log lines for the next heartbeat. Other hosts find them on the stderr of a worker that they have started."""
    if task is not None and task.takes_logs:
        task.add_log(lines, dropped)
        task.news.set()
