"""`serve(pull=…)`: a component server that fetches its calls over gRPC, from a mesh or from upstream's orchestrator.

The translator between the pull protocol and `Server`, which speaks lines: an assignment becomes the line of an execute,
an answer becomes a completion, and what a component asks for becomes a call of the orchestrator's or the blob service.

Promises:
- A task is claimed before its component sees it, and dropped when somebody else has it. While it runs it is heard of
  every few seconds; when the host wants it no more, its component is cancelled.
- A broken connection costs nothing that is claimed: tasks go on, and the same worker id connects again.
- After SIGTERM no task is begun; those that run may end within the grace, and what is left is reported as UNREACHABLE,
  which hosts try again elsewhere. The exit code is 0 then.

Numbers travel as doubles (`stepflow.pull.values`). Of a component's requests only metadata has no counterpart.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import msgspec

from stepflow.component.context import CallCancelled
from stepflow.component.pull_remote import Remote, grpc, why
from stepflow.component.registry import REGISTRY
from stepflow.component.server import Server
from stepflow.component.shapes import encode
from stepflow.component.stdio import log_level, wind_up
from stepflow.component.threads import Threads
from stepflow.component.wire import Message, decode_message
from stepflow.errors import Code, Invalid
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.pull.values import fill, tree_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stepflow.component.registry import Component

_LOG = logging.getLogger("stepflow.component")

TASKS_URL_DEFAULT = "localhost:7837"
QUEUE_DEFAULT = "python"
CONCURRENCY_DEFAULT = 16
GRACE_S_DEFAULT = 10.0

NUMBER_MAX = 1e9
"""A larger one in the environment is a slip."""

RECONNECT_S_MIN = 0.5
RECONNECT_S_MAX = 5.0

PATIENCE_S = 30.0
"""How long a worker that a runtime has started looks for it, or until its parent is gone: then nobody else stops it."""

CLAIM_TRIES = 5
CLAIM_RETRY_S = 1.0
COMPLETE_RETRIES_S = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""Pauses between tries to deliver a result, while nobody can be reached."""

_PASSING = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
"""What may be otherwise in a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PullOptions:
    """Where tasks come from, and how many at a time. Addresses are HOST:PORT."""

    tasks_url: str
    queue: str
    concurrency: int
    blob_url: str = ""
    """Empty: blobs are where the task came from."""
    grace_s: float = GRACE_S_DEFAULT
    patience_s: float | None = None
    """None: it looks for the tasks' address for ever."""


def pull_options(
    environ: Mapping[str, str], *, pull: str | None = None, queue: str | None = None, concurrency: int | None = None
) -> PullOptions:
    """Return what the arguments of `serve` say, and the environment for those that are None. Raises: Invalid."""
    if concurrency is None:
        concurrency = int(_number(environ, "STEPFLOW_MAX_CONCURRENT", CONCURRENCY_DEFAULT, at_least=1))
    elif concurrency < 1:
        raise Invalid("COMPONENT_INVALID", f"serve(concurrency={concurrency}): at least one call is needed")
    return PullOptions(
        tasks_url=_target(pull or environ.get("STEPFLOW_TASKS_URL") or TASKS_URL_DEFAULT),
        queue=queue or environ.get("STEPFLOW_QUEUE_NAME") or QUEUE_DEFAULT,
        concurrency=concurrency,
        blob_url=_target(environ.get("STEPFLOW_BLOB_URL", "")),
        grace_s=_number(environ, "STEPFLOW_SHUTDOWN_GRACE_SECS", GRACE_S_DEFAULT, at_least=0),
        patience_s=PATIENCE_S if pull is None else None,
    )


def _target(url: str) -> str:
    """Return HOST:PORT; upstream's workers in other languages are given `http://HOST:PORT`."""
    return url.removeprefix("http://").rstrip("/")


def _number(environ: Mapping[str, str], name: str, default: float, *, at_least: float) -> float:
    text = environ.get(name, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = float("nan")
    if not at_least <= number < NUMBER_MAX:
        raise Invalid("COMPONENT_INVALID", f"the environment variable {name} is {text!r}, which is not a usable number")
    return number


async def serve(options: PullOptions, threads: int | None) -> tuple[int, bool]:
    """Fetch and execute until SIGTERM or SIGINT; return the exit code, and whether threads are stuck in components."""
    pool = Threads(threads)
    worker = _Worker(options, pool)
    code = await worker.run()
    return code, await wind_up(list(worker.server.tasks()), pool)


@dataclass(slots=True, eq=False)
class _Task:
    """A task that is ours. `answer` is what the server says to the execute."""

    id: str
    address: str
    call_token: str
    answer: asyncio.Future[Message]
    progress: tuple[float, float, str] | None = None
    """The latest that was not sent."""
    news: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when there is progress or an answer."""


class _Worker:
    def __init__(self, options: PullOptions, threads: Threads) -> None:
        debug = log_level() <= logging.DEBUG
        self.server = Server(REGISTRY, self._from_server, threads=threads, show_tracebacks=debug)
        self._options = options
        self._id = str(uuid4())
        self._loop = asyncio.get_running_loop()
        self._room = asyncio.Semaphore(options.concurrency)
        self._tasks: dict[str, _Task] = {}
        self._work: set[asyncio.Task[None]] = set()
        self._remote = Remote(options.blob_url)
        self._stop = asyncio.Event()
        self._stopped_at_once = asyncio.Event()
        initialize = {"capabilities": {"progress": True}}
        self._to_server({"id": "initialize", "method": "initialize", "params": initialize})

    # --- life ---------------------------------------------------------------------------------------------------

    async def run(self) -> int:
        for number in (signal.SIGTERM, signal.SIGINT):
            self._loop.add_signal_handler(number, self._signalled)
        pulling = asyncio.create_task(self._pull(), name="pull")
        stopping = asyncio.create_task(self._stop.wait(), name="stop")
        try:
            await asyncio.wait((pulling, stopping), return_when=asyncio.FIRST_COMPLETED)
            failed = pulling.done() and not pulling.cancelled() and pulling.exception() is not None
        finally:
            for task in (pulling, stopping):
                task.cancel()
            await asyncio.gather(pulling, stopping, return_exceptions=True)
        if failed:
            _LOG.error("the worker fails by a defect", exc_info=pulling.exception())
        await self._finish()
        await self._remote.close()
        return 1 if failed else 0

    def _signalled(self) -> None:
        if self._stop.is_set():
            self._stopped_at_once.set()
        self._stop.set()

    async def _finish(self) -> None:
        """Let what runs end within the grace; then cancel it, and report it."""
        if self._work:
            _LOG.info("stopping; %d calls may end within %g s", len(self._work), self._options.grace_s)
            for task in self._tasks.values():
                task.news.set()  # asks at once which of them somebody still wants
            at_once = asyncio.create_task(self._stopped_at_once.wait())
            ending = asyncio.gather(*self._work, return_exceptions=True)
            await asyncio.wait((at_once, ending), timeout=self._options.grace_s, return_when=asyncio.FIRST_COMPLETED)
            at_once.cancel()
        for task in self._tasks.values():
            if not task.answer.done():
                self._cancel(task)
                task.answer.set_exception(_StoppedError())
                task.news.set()
        if self._work:
            await asyncio.wait(set(self._work), timeout=CLAIM_RETRY_S)

    async def _pull(self) -> None:
        pause_s = RECONNECT_S_MIN
        lost_at = self._loop.time()
        parent = os.getppid()
        request = pb.PullTasksRequest(queue_name=self._options.queue, worker_id=self._id)
        while True:
            was_open = False
            try:
                async for assignment in self._remote.pull(self._options.tasks_url, request):
                    was_open = True
                    pause_s = RECONNECT_S_MIN
                    await self._take(assignment)
                was_open = True
                reason = "it has ended the stream"
            except grpc.aio.AioRpcError as error:
                reason = why(error, self._options.tasks_url)
            if was_open:  # it was there until now, with tasks for us or without
                lost_at = self._loop.time()
            if pause_s == RECONNECT_S_MIN:  # once for each time that it is lost
                _LOG.warning("no tasks from %s: %s; trying again", self._options.tasks_url, reason)
            patience_s = self._options.patience_s
            lost_s = self._loop.time() - lost_at
            if patience_s is not None and (lost_s > patience_s or os.getppid() != parent):
                _LOG.warning("whoever has started this worker is gone; ending")
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, RECONNECT_S_MAX)

    async def _take(self, assignment: pb.TaskAssignment) -> None:
        """Begin with a task as soon as there is room; nothing more is read from the stream before."""
        if assignment.HasField("list_components"):
            self._spawn(self._tell_components(assignment))
            return
        await self._room.acquire()
        self._spawn(self._execute(assignment))

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._work.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._work.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            _LOG.error("a task failed by a defect", exc_info=error)

    # --- tasks --------------------------------------------------------------------------------------------------

    async def _tell_components(self, assignment: pb.TaskAssignment) -> None:
        components = [_info(component) for component in REGISTRY.components()]
        completion = pb.CompleteTaskRequest(
            task_id=assignment.task_id, list_components=pb.ListComponentsResult(components=components)
        )
        await self._deliver(_target(assignment.context.orchestrator_service_url), completion)

    async def _execute(self, assignment: pb.TaskAssignment) -> None:
        task = _Task(
            assignment.task_id,
            _target(assignment.context.orchestrator_service_url),
            assignment.context.root_run_id,
            self._loop.create_future(),
        )
        interval_s = float(assignment.heartbeat_interval_secs or 1)
        try:
            if task.id in self._tasks or not await self._claim(task):
                return
            self._tasks[task.id] = task
            completion = pb.CompleteTaskRequest(task_id=task.id, run_id=assignment.execute.observability.run_id)
            try:
                if self._stop.is_set():  # told to stop while it was claimed
                    raise _StoppedError
                self._begin(task, assignment.execute)
                await self._await_answer(task, interval_s)
                _write_answer(completion, task.answer.result())
            except _StoppedError:
                completion.error.CopyFrom(
                    _error(Code.UNREACHABLE, "the worker was stopped while it worked on the call")
                )
            except Invalid as error:  # a value without JSON form, or without form as a Value
                completion.error.CopyFrom(_error(Code.COMPONENT_FAILED, error.message))
            await self._deliver(
                task.address, completion, heartbeat=pb.TaskHeartbeatRequest(task_id=task.id, worker_id=self._id)
            )
        finally:
            self._tasks.pop(task.id, None)
            self._room.release()

    async def _claim(self, task: _Task) -> bool:
        """Ask for the task; False when it is somebody else's, or its owner cannot be reached."""
        request = pb.TaskHeartbeatRequest(task_id=task.id, worker_id=self._id)
        for _ in range(CLAIM_TRIES):
            try:
                return await self._remote.heartbeat(task.address, request)
            except grpc.aio.AioRpcError as error:
                if error.code() not in _PASSING:
                    _LOG.warning("the task %s cannot be claimed: %s", task.id, why(error, task.address))
                    return False
            await asyncio.sleep(CLAIM_RETRY_S)
        _LOG.warning("the task %s cannot be claimed: %s does not answer", task.id, task.address)
        return False

    def _begin(self, task: _Task, execute: pb.ComponentExecuteRequest) -> None:
        """Give the execute to the server. Raises: Invalid (the input has no JSON form)."""
        ids = execute.observability
        params = {
            "component": "/" + execute.component_id.lstrip("/"),
            "input": tree_of(execute.input, "the input"),
            "attempt": execute.attempt or 1,
            "run_id": ids.run_id or None,
            "flow_id": ids.flow_id or None,
            "step_id": ids.step_id or None,
            "item": execute.item if execute.HasField("item") else None,
            "idempotency_key": execute.idempotency_key or None,
            "timeout_ms": execute.timeout_ms or None,
            "path_params": dict(execute.path_params),
            "observability": {"task_id": task.id},  # comes back with what the component asks for
        }
        self._to_server({"id": task.id, "method": "components/execute", "params": params})

    async def _await_answer(self, task: _Task, interval_s: float) -> None:
        """Wait for the answer, and be heard of meanwhile. Raises: _StoppedError."""
        wanted = True
        while not task.answer.done():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(interval_s):
                    await task.news.wait()
            if task.answer.done():
                break
            task.news.clear()
            if wanted:
                wanted = await self._report(task)
                if not wanted:
                    self._cancel(task)

    async def _report(self, task: _Task) -> bool:
        """Send a heartbeat, with the latest progress; False when the host does not want the result any more."""
        request = pb.TaskHeartbeatRequest(task_id=task.id, worker_id=self._id)
        if task.progress is not None:
            done, total, message = task.progress
            task.progress = None
            if total > 0:
                request.progress = done / total
            request.status_message = message
        try:
            return await self._remote.heartbeat(task.address, request)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                return False
            _LOG.debug("a heartbeat was not heard: %s", why(error, task.address))
            return True

    def _cancel(self, task: _Task) -> None:
        self._to_server({"method": "components/cancel", "params": {"id": task.id}})

    async def _deliver(
        self, address: str, completion: pb.CompleteTaskRequest, heartbeat: pb.TaskHeartbeatRequest | None = None
    ) -> None:
        """Complete a task, and try again while nobody can be reached."""
        for pause_s in (*COMPLETE_RETRIES_S, None):
            try:
                await self._remote.complete(address, completion)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return  # nobody waits for it any more
                if pause_s is None or error.code() not in _PASSING:
                    _LOG.error("the result of task %s is lost: %s", completion.task_id, why(error, address))
                    return
            await asyncio.sleep(pause_s)
            if heartbeat is not None:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    await self._remote.heartbeat(address, heartbeat)

    # --- lines to and from the server ----------------------------------------------------------------------------

    def _to_server(self, message: dict[str, Any]) -> None:
        self.server.receive(encode({"jsonrpc": "2.0", **message}))

    def _from_server(self, line: bytes) -> None:
        message = decode_message(line)
        if message.method == "components/progress":
            params = msgspec.json.decode(message.params)
            if (task := self._tasks.get(params["id"])) is not None:
                task.progress = (params["done"], params["total"], params["message"])
                task.news.set()
        elif isinstance(message.method, str):
            self._spawn(self._serve(str(message.id), message.method, message.params))
        elif isinstance(message.id, str) and (task := self._tasks.get(message.id)) is not None:
            if not task.answer.done():
                task.answer.set_result(message)
            task.news.set()

    async def _serve(self, request_id: str, method: str, raw: msgspec.Raw) -> None:
        """Answer what a component asks for."""
        params = msgspec.json.decode(raw)
        task = self._tasks.get((params.get("observability") or {}).get("task_id", ""))
        try:
            if task is None:
                raise CallCancelled("the call that asks has ended")
            result = await self._remote.ask(task.address, task.call_token, method, params)
        except grpc.aio.AioRpcError as error:
            code = _JSON_RPC_CODES.get(error.code(), -32000)
            message = why(error, self._remote.address_for(method, task.address)) if task is not None else ""
            self._to_server({"id": request_id, "error": {"code": code, "message": message}})
        except (Invalid, CallCancelled) as error:
            self._to_server({"id": request_id, "error": {"code": -32602, "message": error.message}})
        else:
            self._to_server({"id": request_id, "result": result})


_JSON_RPC_CODES = {grpc.StatusCode.NOT_FOUND: -32011, grpc.StatusCode.INVALID_ARGUMENT: -32602}


class _StoppedError(Exception):
    """The worker was told to stop, and the task had no time left."""


def _info(component: Component) -> pb.ComponentInfo:
    """Describe a component. Its id is its path without the slash, as 0.13 has it; patterns are matched by the host."""
    info = component.describe()
    schemas = {
        name: encode(info[name]).decode() for name in ("input_schema", "output_schema") if info.get(name) is not None
    }
    return pb.ComponentInfo(
        component_id=component.path[1:], path=component.path, description=info.get("description"), **schemas
    )


def _write_answer(completion: pb.CompleteTaskRequest, answer: Message) -> None:
    """Raises: Invalid (the output has no form as a Value)."""
    if answer.error and bytes(answer.error) != b"null":
        error = msgspec.json.decode(answer.error)
        data = dict(error.get("data") or {})
        code = Code.__members__.get(data.pop("error_code", ""), Code.COMPONENT_FAILED)
        completion.error.CopyFrom(_error(code, error["message"]))
        with contextlib.suppress(Invalid):  # the message is there without the details
            details = pb.TaskError()
            for name, value in data.items():
                fill(details.data.fields[name], value, "the details")
            completion.error.data.CopyFrom(details.data)
    else:
        output = msgspec.json.decode(answer.result)["output"]
        response = pb.ComponentExecuteResponse()
        fill(response.output, output, "the output")
        completion.response.CopyFrom(response)


def _error(code: Code, message: str) -> pb.TaskError:
    return pb.TaskError(code=f"TASK_ERROR_CODE_{code.name}", message=message)
