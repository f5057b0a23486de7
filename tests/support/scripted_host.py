"""A component host with a scripted backend, and the executor's ends of its streams."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from component_host.backend import BackendListing, ComponentInfo, ServerHealth
from component_host.host import ComponentHost
from stepflow.errors import Code, Failure, StepflowError
from stepflow.mesh.v1 import host_pb2
from stepflow.store.blobs import BlobStore
from support import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from component_host.backend import HostCall

T = TypeVar("T")

RUN = "01890a5d-ac96-774b-bcce-b302099a8057"
PLUGIN = "kit"
ECHO = "echo"
"""A component that answers at once with its input; calls to any other wait for the test."""


def run_async(main: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a test's coroutine with a timeout; an unhandled error in one of its tasks fails the test."""
    problems: list[dict[str, Any]] = []

    async def bounded() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: problems.append(context))
        async with asyncio.timeout(30):
            return await main()

    result = asyncio.run(bounded())
    assert problems == []
    return result


class Scripted:
    """A backend that records its calls. Implements `backend.Backend`."""

    def __init__(self, name: str = PLUGIN, start_error: BaseException | None = None) -> None:
        self.name = name
        self.executed: list[HostCall] = []
        self.cancelled: list[HostCall] = []
        self.health = ServerHealth(lambda: None)
        self.closed = 0
        self.starts = 0
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.start_error = start_error
        self.on_execute: Callable[[HostCall], None] = lambda call: None
        self.on_cancel: Callable[[HostCall], None] = lambda call: None
        self.fails_calls_at_close = True

    async def start(self) -> None:
        self.starts += 1
        await self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error

    def listing(self) -> BackendListing:
        return BackendListing((ComponentInfo(ECHO, f"/{ECHO}"),))

    def execute(self, call: HostCall) -> None:
        self.executed.append(call)
        if call.request.component == ECHO:
            call.succeed(call.input)
        self.on_execute(call)

    def cancel(self, call: HostCall) -> None:
        self.cancelled.append(call)
        self.on_cancel(call)
        call.fail(Failure(Code.CANCELLED, "cancelled"))

    async def close(self) -> None:
        self.closed += 1
        if self.fails_calls_at_close:
            for call in self.executed:
                call.fail(Failure(Code.UNREACHABLE, "stopped by its backend"))

    @property
    def attempts(self) -> list[tuple[str, int]]:
        """Step and attempt of each execution, in start order."""
        return [(call.request.step_id, call.request.attempt) for call in self.executed]


class ExecutorEnd:
    """The executor's end of one stream: sends frames and records those of the host."""

    def __init__(self, host: ComponentHost, epoch: int = 1, *, executor_id: str = "") -> None:
        self.epoch = epoch
        self.frames: list[host_pb2.HostFrame] = []
        self.stream = host.connect(self.frames.append, executor_id=executor_id)
        self.last_call_id = 0

    def call(self, step: str = "s", component: str = "wait", *, run: str = RUN, **fields: Any) -> int:
        """Send a call and return its id. `fields` are those of the message; `json` or `blob` is its input."""
        request = self.request(step, component, run=run, **fields)
        self.send(calls=[request])
        return request.call_id

    def request(self, step: str = "s", component: str = "wait", *, run: str = RUN, **fields: Any) -> host_pb2.Call:
        self.last_call_id += 1
        fields = {"plugin": PLUGIN, "attempt": 1, "epoch": self.epoch, "json": b"{}", **fields}
        json, blob = fields.pop("json"), fields.pop("blob", "")
        request = host_pb2.Call(
            call_id=self.last_call_id,
            component=component,
            path=f"/{component}",
            key=f"{run}/0/{step}",
            root_run_id=run,
            run_id=run,
            step_id=step,
            **fields,
        )
        if blob:
            request.input.blob = blob
        else:
            request.input.json = json
        return request

    def send(self, **lists: Any) -> None:
        """Send a frame with these lists, serialised and parsed as between processes."""
        self.stream.receive(host_pb2.ExecutorFrame.FromString(host_pb2.ExecutorFrame(**lists).SerializeToString()))

    def cancel(self, call_id: int) -> None:
        self.send(cancels=[host_pb2.Cancel(call_id=call_id)])

    def ack(self, step: str = "s", attempt: int = 1, *, run: str = RUN) -> None:
        self.send(acks=[host_pb2.Ack(key=f"{run}/0/{step}", attempt=attempt)])

    async def attach(self, *runs: str, epoch: int | None = None, partition: int = 0) -> host_pb2.Attached:
        """Send an Attach for the runs and return the answer: the calls and results that the host holds."""
        count = len(self.attached)
        asked = [
            host_pb2.AttachRun(run_id=run, epoch=self.epoch if epoch is None else epoch, partition=partition)
            for run in runs or (RUN,)
        ]
        self.send(attaches=[host_pb2.Attach(runs=asked)])
        await wait_until_async(lambda: len(self.attached) > count, "the host says what it holds")
        return self.attached[-1]

    def answer(self, callback: host_pb2.Callback, **outcome: Any) -> None:
        self.send(replies=[host_pb2.CallbackReply(callback_id=callback.callback_id, **outcome)])

    @property
    def results(self) -> list[host_pb2.CallResult]:
        return [result for frame in self.frames for result in frame.results]

    @property
    def callbacks(self) -> list[host_pb2.Callback]:
        return [callback for frame in self.frames for callback in frame.callbacks]

    @property
    def progress(self) -> list[host_pb2.Progress]:
        return [progress for frame in self.frames for progress in frame.progress]

    @property
    def attached(self) -> list[host_pb2.Attached]:
        return [attached for frame in self.frames for attached in frame.attached]

    async def result(self, call_id: int) -> host_pb2.CallResult:
        """Return the result of a call once it has arrived."""
        await wait_until_async(
            lambda: any(result.call_id == call_id for result in self.results), f"call {call_id} has a result"
        )
        return next(result for result in self.results if result.call_id == call_id)

    async def asked(self, count: int = 1) -> list[host_pb2.Callback]:
        """Return all call-backs once `count` of them have arrived."""
        await wait_until_async(lambda: len(self.callbacks) >= count, f"{count} call-backs have come")
        return self.callbacks


@asynccontextmanager
async def scripted(
    *backends: Scripted, blobs: BlobStore | None = None, start: bool = True, **bounds: Any
) -> AsyncIterator[tuple[ComponentHost, Scripted, ExecutorEnd]]:
    """Run a host with these backends (one by default); yield the host, its first backend and a stream."""
    made = backends or (Scripted(),)
    store = BlobStore.open("memory://") if blobs is None else blobs
    host = ComponentHost("h1", {backend.name: backend for backend in made}, store, **bounds)
    if start:
        await host.start()
    try:
        yield host, made[0], ExecutorEnd(host)
    finally:
        await host.close()


async def settle_down() -> None:
    """Run the callbacks that are due: enough turns of the loop for a chain of them."""
    for _ in range(20):
        await asyncio.sleep(0)


def error_of(result: host_pb2.CallResult) -> tuple[str, str]:
    """Return the failure's code and the reason in its data."""
    import msgspec

    assert result.WhichOneof("outcome") == "failure", result
    data = msgspec.json.decode(result.failure.data_json) if result.failure.data_json else {}
    return Code(result.failure.code).name, data.get("reason", "")


async def error_from(asking: asyncio.Future[Any] | Coroutine[Any, Any, Any]) -> StepflowError:
    """Await something that must fail with a StepflowError, and return the error."""
    try:
        await asking
    except StepflowError as error:
        return error
    raise AssertionError("it did not fail")
