"""The component host: takes calls from executors, gives them to backends, holds results until they are journaled.

Promises:
- One (idempotency key, attempt) is executed once, whoever asks for it and how often: the same attempt joins the call
  in flight or gets the held result, a higher one supersedes the older, a lower one is refused.
- A call goes on when its executor's stream breaks; the result waits for whoever joins.
- Every result is checked and compacted here, once; a large one is in the blob store before its id is told.
- For one run, whoever has the smaller epoch than the host has seen is refused.

Bounds: `HELD_BYTES_MAX` and `HELD_S_MAX` for results that nobody acknowledges.
Does not: retry, route, or know what a flow is. Streams are given as plain callables, so that one process and gRPC
look the same from here.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from stepflow.codec import INLINE_BYTES_MAX, compact
from stepflow.errors import Code, Failure, Invalid, NotFound, Refused, StepflowError, Unavailable
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from component_host.backend import Backend, BlobAccess, Listing
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

HELD_BYTES_MAX = 256 * 1024 * 1024
"""Results that wait for an acknowledgement; above it the oldest go."""

HELD_S_MAX = 900.0
"""And after this time: longer than any take-over."""

SWEEP_INTERVAL_S = 30.0
EPOCHS_MAX = 100_000
"""Runs whose newest epoch is remembered."""

Deliver = Callable[[host_pb2.HostFrame], None]


class ComponentHost:
    """All backends of one process, and the calls in them."""

    def __init__(self, host_id: str, backends: Mapping[str, Backend], blobs: BlobStore) -> None:
        self.id = host_id
        self.backends = backends
        self.blobs = blobs
        self.failures: dict[str, StepflowError] = {}
        """Plugins that could not start, with the reason."""
        self._started: set[str] = set()
        self._calls: dict[str, _Call] = {}
        self._by_run: dict[str, dict[str, _Call]] = {}
        self._epochs: OrderedDict[str, int] = OrderedDict()
        self._held: OrderedDict[str, _Call] = OrderedDict()
        self._held_bytes = 0
        self._deadlines: list[tuple[float, int, _Call]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._serial = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._waiting: dict[str, list[_Call]] = {}
        self.closing = False

    # --- life ---------------------------------------------------------------------------------------------------

    async def start(self, names: Iterable[str] | None = None, changed: Callable[[], None] = lambda: None) -> None:
        """Start the named backends (all by default) side by side; return when each is ready or has failed.

        `changed` is called whenever one has become ready or has failed. A failure is kept in `failures`, for whoever
        started the host to report; it fails the calls for that plugin and nothing else.
        """
        wanted = [name for name in (self.backends if names is None else names) if name not in self._started]
        await asyncio.gather(*(self._start_one(name, changed) for name in wanted))

    async def _start_one(self, name: str, changed: Callable[[], None]) -> None:
        self._started.add(name)
        try:
            await self.backends[name].start()
        except StepflowError as error:
            self.failures[name] = error
            log.info("plugin did not start", plugin=name, reason=error.reason, error=error.message)
        else:
            self.failures.pop(name, None)
        for call in self._waiting.pop(name, ()):
            self._execute(call)
        self._waiting[name] = _READY
        changed()

    def listings(self) -> dict[str, Listing]:
        """Return what each started backend offers."""
        return {
            name: self.backends[name].listing()
            for name in self._started
            if self._waiting.get(name) is _READY and name not in self.failures
        }

    async def close(self) -> None:
        """Stop everything. Calls in flight fail with UNREACHABLE. Safe to repeat."""
        self.closing = True
        for timer in (self._timer, self._sweeper):
            if timer is not None:
                timer.cancel()
        await asyncio.gather(*(self.backends[name].close() for name in self._started), return_exceptions=False)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- streams ------------------------------------------------------------------------------------------------

    def connect(self, deliver: Deliver) -> HostStream:
        """Open an executor's stream; `deliver` gets the frames for it, on the event loop."""
        return HostStream(self, deliver)

    def spawn(self, work: Any) -> None:
        """Run a coroutine for a call; only for what leaves the hot path (blobs, call-backs)."""
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- calls --------------------------------------------------------------------------------------------------

    def admit(self, stream: HostStream, request: host_pb2.Call) -> None:
        run = request.root_run_id
        epoch = self._epochs.get(run, 0)
        if request.epoch < epoch:
            stream.refuse(request, Failure(Code.UNREACHABLE, "the run has a newer owner"))
            return
        if request.epoch > epoch:
            self._note_epoch(run, request.epoch)
        known = self._calls.get(request.key)
        if known is not None:
            if known.request.attempt == request.attempt:
                known.join(stream, request)
                return
            if known.request.attempt > request.attempt:
                stream.refuse(request, Failure(Code.UNREACHABLE, "a later attempt is under way"))
                return
            self.forget(known)
        call = _Call(self, stream, request)
        self._calls[request.key] = call
        self._by_run.setdefault(run, {})[request.key] = call
        if request.timeout_ms or request.idle_timeout_ms:
            self._watch_time(call)
        if request.input.blob:
            self.spawn(self._fetch_input(call))
        else:
            call.input = request.input.json
            self._execute(call)

    def _note_epoch(self, run: str, epoch: int) -> None:
        self._epochs[run] = epoch
        self._epochs.move_to_end(run)
        if len(self._epochs) > EPOCHS_MAX:
            self._epochs.popitem(last=False)

    def _execute(self, call: _Call) -> None:
        plugin = call.request.plugin
        backend = self.backends.get(plugin)
        waiting = self._waiting.get(plugin)
        if backend is None:
            call.fail(Failure(Code.UNREACHABLE, f"host {self.id} does not run plugin {plugin!r}"))
        elif waiting is not _READY:
            self._waiting.setdefault(plugin, []).append(call)
        elif plugin in self.failures:
            call.fail(Failure(Code.UNREACHABLE, f"plugin {plugin!r} did not start: {self.failures[plugin].message}"))
        elif not call.settled:
            backend.execute(call)

    async def _fetch_input(self, call: _Call) -> None:
        blob = call.request.input.blob
        try:
            call.input = await fetch_blob(self.blobs, blob, call.request.root_run_id)
        except StepflowError as error:
            call.fail(Failure(Code.UNREACHABLE, f"the step's input could not be read: {error.message}"))
        else:
            self._execute(call)

    def settled(self, call: _Call, result: host_pb2.CallResult) -> None:
        """A call has its outcome: hold it, and tell whoever listens."""
        call.result = result
        call.held_since = time.monotonic()
        call.input = b""
        self._held[call.request.key] = call
        self._held_bytes += len(result.result.json)
        if self._held_bytes > HELD_BYTES_MAX or self._sweeper is None:
            self._sweep()
        if call.stream is not None:
            call.stream.result(result)

    def ack(self, ack: host_pb2.Ack) -> None:
        call = self._calls.get(ack.key)
        if call is not None and call.request.attempt <= ack.attempt:
            self.forget(call)

    def forget(self, call: _Call) -> None:
        """Drop a call: cancelled if it is in flight, no longer held if it has ended."""
        key = call.request.key
        if self._calls.get(key) is call:
            del self._calls[key]
            of_run = self._by_run.get(call.request.root_run_id)
            if of_run is not None:
                of_run.pop(key, None)
                if not of_run:
                    del self._by_run[call.request.root_run_id]
        if self._held.pop(key, None) is not None and call.result is not None:
            self._held_bytes -= len(call.result.result.json)
        if not call.settled:
            call.settled = True
            call.drop_callbacks()
            backend = self.backends.get(call.request.plugin)
            if backend is not None:
                backend.cancel(call)

    def attach(self, stream: HostStream, run: host_pb2.AttachRun) -> list[host_pb2.HeldCall]:
        """Say what is held for a run that has a new owner."""
        if run.epoch < self._epochs.get(run.run_id, 0):
            return []
        self._note_epoch(run.run_id, run.epoch)
        return [
            host_pb2.HeldCall(run_id=run.run_id, key=call.request.key, attempt=call.request.attempt)
            for call in self._by_run.get(run.run_id, {}).values()
        ]

    def _sweep(self) -> None:
        horizon = time.monotonic() - HELD_S_MAX
        while self._held:
            call = next(iter(self._held.values()))
            if call.held_since > horizon and self._held_bytes <= HELD_BYTES_MAX:
                break
            self.forget(call)
        if not self.closing:
            self._sweeper = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_S, self._sweep)

    # --- time limits ----------------------------------------------------------------------------------------------

    def _watch_time(self, call: _Call) -> None:
        self._serial += 1
        heappush(self._deadlines, (call.deadline(), self._serial, call))
        if self._deadlines[0][2] is call:
            self._arm()

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._deadlines and not self.closing:
            delay = max(0.0, self._deadlines[0][0] - time.monotonic())
            self._timer = asyncio.get_running_loop().call_later(delay, self._check_time)

    def _check_time(self) -> None:
        now = time.monotonic()
        self._timer = None
        while self._deadlines and self._deadlines[0][0] <= now:
            call = heappop(self._deadlines)[2]
            if call.settled:
                continue
            if call.deadline() > now:  # progress has moved the idle limit
                self._watch_time(call)
                continue
            message = call.overdue(now)
            backend = self.backends.get(call.request.plugin)
            call.fail(Failure(Code.TIMEOUT, message))
            if backend is not None:
                backend.cancel(call)
        self._arm()


_READY: list[Any] = []
"""Stands in `_waiting` for a plugin whose start is over."""


async def fetch_blob(blobs: BlobStore, blob: str, run_id: str) -> bytes:
    """Read a value of a run: its own, or one that a client or a component put for all. Raises: StepflowError."""
    try:
        return (await blobs.get(blob, scope=run_id))[0]
    except NotFound:
        return (await blobs.get(blob))[0]


class HostStream:
    """The host's end of one executor's stream. What gathers within one turn of the loop goes out as one frame."""

    def __init__(self, host: ComponentHost, deliver: Deliver) -> None:
        self._host = host
        self._deliver = deliver
        self._frame = host_pb2.HostFrame()
        self._scheduled = False
        self._callbacks: dict[int, tuple[_Call, host_pb2.Callback, asyncio.Future[host_pb2.CallbackReply]]] = {}
        self._callback_serial = 0
        self.closed = False

    def receive(self, frame: host_pb2.ExecutorFrame) -> None:
        host = self._host
        for ack in frame.acks:
            host.ack(ack)
        for call in frame.calls:
            host.admit(self, call)
        for cancel in frame.cancels:
            self._cancel(cancel)
        if frame.attaches:
            self._attach(frame.attaches)
        for reply in frame.replies:
            pending = self._callbacks.pop(reply.callback_id, None)
            if pending is not None and not pending[2].done():
                pending[2].set_result(reply)

    def close(self) -> None:
        """The executor is gone. Its calls go on and wait for whoever joins them."""
        self.closed = True

    def result(self, result: host_pb2.CallResult) -> None:
        self._frame.results.append(result)
        self._schedule()

    def progress(self, progress: host_pb2.Progress) -> None:
        self._frame.progress.append(progress)
        self._schedule()

    def refuse(self, request: host_pb2.Call, failure: Failure) -> None:
        self.result(_failed(request, failure, 0))

    async def ask(self, call: _Call, callback: host_pb2.Callback) -> host_pb2.CallbackReply:
        """Send a component's request to the owner of its run and wait for the answer."""
        self._callback_serial += 1
        callback.callback_id = self._callback_serial
        callback.call_id = call.request.call_id
        future: asyncio.Future[host_pb2.CallbackReply] = asyncio.get_running_loop().create_future()
        self._callbacks[callback.callback_id] = (call, callback, future)
        self._frame.callbacks.append(callback)
        self._schedule()
        return await future

    def drop_callbacks(self, call: _Call) -> None:
        for number, (owner, _, future) in list(self._callbacks.items()):
            if owner is call:
                del self._callbacks[number]
                if not future.done():
                    future.set_exception(Refused("CALL_ENDED", "the call that asked has ended"))

    def move_callbacks(self, call: _Call, to: HostStream) -> None:
        """A call has been joined through another stream: ask its open questions there again."""
        for number, (owner, callback, future) in list(self._callbacks.items()):
            if owner is call:
                del self._callbacks[number]
                to._callback_serial += 1
                again = host_pb2.Callback()
                again.CopyFrom(callback)
                again.callback_id, again.call_id = to._callback_serial, call.request.call_id
                to._callbacks[again.callback_id] = (call, again, future)
                to._frame.callbacks.append(again)
                to._schedule()

    def _cancel(self, cancel: host_pb2.Cancel) -> None:
        for call in list(self._host._calls.values()):
            if call.stream is self and call.request.call_id == cancel.call_id:
                self._host.forget(call)
                return

    def _attach(self, attaches: Any) -> None:
        for attach in attaches:
            attached = self._frame.attached.add()
            for run in attach.runs:
                attached.run_ids.append(run.run_id)
                attached.calls.extend(self._host.attach(self, run))
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        frame, self._frame = self._frame, host_pb2.HostFrame()
        if not self.closed:
            self._deliver(frame)


class _Call:
    """One attempt of a step, from its admission until it is acknowledged. Implements `backend.HostCall`."""

    __slots__ = (
        "_host",
        "active_at",
        "backend_state",
        "blobs",
        "held_since",
        "input",
        "keyless_callbacks",
        "request",
        "result",
        "settled",
        "started_at",
        "started_at_ms",
        "stream",
    )

    def __init__(self, host: ComponentHost, stream: HostStream, request: host_pb2.Call) -> None:
        self._host = host
        self.stream: HostStream | None = stream
        self.request = request
        self.input = b""
        self.settled = False
        self.result: host_pb2.CallResult | None = None
        self.backend_state: Any = None
        self.blobs: BlobAccess = host.blobs
        self.started_at = self.active_at = time.monotonic()
        self.started_at_ms = time.time_ns() // 1_000_000
        self.held_since = 0.0
        self.keyless_callbacks = 0

    # --- for the backend -------------------------------------------------------------------------------------------

    def succeed(self, output: bytes) -> None:
        if self.settled:
            return
        try:
            text = compact(output, what=f"the output of {self.request.path or self.request.component}")
        except Invalid as error:
            self.fail(Failure(Code.COMPONENT_FAILED, error.message))
            return
        self._settle()
        if len(text) > INLINE_BYTES_MAX:
            self._host.spawn(self._succeed_with_blob(text))
        else:
            result = self._new_result()
            result.result.json = text
            self._host.settled(self, result)

    async def _succeed_with_blob(self, text: bytes) -> None:
        result = self._new_result()
        try:
            result.result.blob = await self._host.blobs.put(text, scope=self.request.root_run_id)
        except StepflowError as error:
            failure = Failure(Code.UNREACHABLE, f"the step's output could not be stored: {error.message}")
            result = _failed(self.request, failure, self.started_at_ms)
        self._host.settled(self, result)

    def fail(self, failure: Failure) -> None:
        if not self.settled:
            self._settle()
            self._host.settled(self, _failed(self.request, failure, self.started_at_ms))

    def progress(self, done: float = 0.0, total: float = 0.0, message: str = "") -> None:
        self.active_at = time.monotonic()
        if self.stream is not None and not self.settled:
            self.stream.progress(
                host_pb2.Progress(call_id=self.request.call_id, done=done, total=total, message=message[:500])
            )

    async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
        if not request.key:
            request.key = f"#{self.keyless_callbacks}"
            self.keyless_callbacks += 1
        reply = await self._ask(host_pb2.Callback(start_run=request))
        return reply.report

    async def get_run(self, run_id: str, *, wait: bool) -> host_pb2.RunReport:
        reply = await self._ask(host_pb2.Callback(get_run=host_pb2.GetRun(run_id=run_id, wait=wait)))
        return reply.report

    async def get_flow(self, flow_id: str) -> bytes:
        reply = await self._ask(host_pb2.Callback(get_flow=host_pb2.GetFlow(flow_id=flow_id)))
        return reply.flow_json

    async def _ask(self, callback: host_pb2.Callback) -> host_pb2.CallbackReply:
        if self.settled or self.stream is None:
            raise Refused("CALL_ENDED", "the call that asked has ended")
        reply = await self.stream.ask(self, callback)
        if reply.HasField("error"):
            family = NotFound if reply.error.not_found else Invalid
            raise family(reply.error.reason, reply.error.message)
        return reply

    # --- for the host ----------------------------------------------------------------------------------------------

    def join(self, stream: HostStream, request: host_pb2.Call) -> None:
        """Another stream (or the same one again) asks for this very attempt."""
        before, self.stream = self.stream, stream
        self.request.call_id, self.request.epoch = request.call_id, request.epoch
        if self.result is not None:
            self.result.call_id = request.call_id
            stream.result(self.result)
        elif before is not None and before is not stream:
            before.move_callbacks(self, stream)

    def drop_callbacks(self) -> None:
        if self.stream is not None:
            self.stream.drop_callbacks(self)

    def deadline(self) -> float:
        """Return when (monotonic clock) the call is overdue if nothing happens."""
        limits = []
        if self.request.timeout_ms:
            limits.append(self.started_at + self.request.timeout_ms / 1000)
        if self.request.idle_timeout_ms:
            limits.append(self.active_at + self.request.idle_timeout_ms / 1000)
        return min(limits)

    def overdue(self, now: float) -> str:
        if self.request.timeout_ms and now >= self.started_at + self.request.timeout_ms / 1000:
            return f"the component did not answer within its timeout of {self.request.timeout_ms} ms"
        return f"the component showed no sign of life for its idle timeout of {self.request.idle_timeout_ms} ms"

    def _settle(self) -> None:
        self.settled = True
        if self.stream is not None and self.stream._callbacks:
            self.stream.drop_callbacks(self)

    def _new_result(self) -> host_pb2.CallResult:
        request = self.request
        return host_pb2.CallResult(
            call_id=request.call_id, key=request.key, attempt=request.attempt, started_at_ms=self.started_at_ms
        )


def _failed(request: host_pb2.Call, failure: Failure, started_at_ms: int) -> host_pb2.CallResult:
    origin = pb.ORIGIN_DISPATCH if failure.code is Code.UNREACHABLE else pb.ORIGIN_COMPONENT
    return host_pb2.CallResult(
        call_id=request.call_id,
        key=request.key,
        attempt=request.attempt,
        started_at_ms=started_at_ms,
        failure=pb.Failure(
            code=f"FAILURE_CODE_{failure.code.name}",
            message=failure.message,
            data_json=failure.data,
            origin=origin,
        ),
    )


__all__ = ["ComponentHost", "HostStream", "Unavailable", "fetch_blob"]
