"""One attempt of a step inside the host, from admission to acknowledgement.

- The outcome is decided once: the first `succeed` or `fail` counts, and none after the host has forgotten the call.
- An output is checked and compacted here, once. A large output is in the blob store before the executor sees the id;
  it waits while the store is full or down.
- Each call-back is answered once. A stream joining the call receives the open call-backs again; the end of the
  call ends all of them.

Does not: talk to executors (`stream`), keep the time (`deadlines`), or choose a backend (`dispatch`). The host and the
stream of a call are Protocols here; neither is imported.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from component_host.logged_call import LoggedCall
from component_host.results import (
    failed,
    inline_results,
    not_stored,
    succeeded,
    unusable,
)
from stepflow.codec import INLINE_BYTES_MAX, compact
from stepflow.errors import FailedPrecondition, Failure, Invalid, NotFound, StepflowError, Unavailable
from stepflow.log_lines import tail_bytes
from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from component_host.backend import Backend, BlobAccess
    from component_host.deadlines import Deadlines
    from component_host.held_results import HeldResults
    from stepflow.store.blobs import WaitingBlobs
    from stepflow.store.inline_bound import InlineBound
    from stepflow.value_budget import ValueBudget

LOOP_BYTES_MAX = 256 * 1024
"""A larger output is checked in a thread: the check would block the event loop for several milliseconds."""

assert LOOP_BYTES_MAX > INLINE_BYTES_MAX


ProgressReport = tuple[float, float, str]
"""Done, total, message."""


class CallStream(Protocol):
    """The stream of the last executor to ask for a call, as used by the call."""

    def expect_result(self, call: Call) -> None:
        """Register a call under the present id, for cancels by the executor."""
        ...

    def drop_call(self, call: Call) -> None: ...
    def send_result(self, result: host_pb2.CallResult) -> None: ...
    def send_progress(self, call: Call, report: ProgressReport) -> None: ...
    def send_callback(self, callback: OpenCallback) -> None: ...
    def drop_callback(self, callback: OpenCallback) -> None: ...

    @property
    def closed(self) -> bool: ...


class HostedCallOwner(Protocol):
    """The host, as used by a call."""

    blobs: WaitingBlobs
    inline_bound: InlineBound
    deadlines: Deadlines[Call]
    held_results: HeldResults[Call]
    value_budget: ValueBudget
    output_turns: ValueBudget
    """Large outputs that are checked and stored at a time."""

    def record_result(self, call: Call, result: host_pb2.CallResult, result_bytes: int) -> None: ...
    def spawn(self, call: Call, work: Callable[..., Awaitable[None]], *arguments: Any) -> None: ...


class OpenCallback:
    """A component's unanswered request to the mesh."""

    __slots__ = ("call", "message", "number", "reply")

    def __init__(self, call: Call, message: host_pb2.Callback) -> None:
        self.call = call
        self.message = message
        self.number = 0
        """Callback id on the stream that sent the request last."""
        self.reply: asyncio.Future[host_pb2.CallbackReply] = asyncio.get_running_loop().create_future()

    def end(self, error: StepflowError) -> None:
        """Answer with an error, unless the call-back has an answer."""
        if not self.reply.done():
            self.reply.set_exception(error)


class Call(LoggedCall):
    """See the head of this module. Implements `backend.HostCall`."""

    __slots__ = (
        "_keyless",
        "_owner",
        "backend",
        "backend_state",
        "blobs",
        "callbacks",
        "forgotten",
        "input",
        "input_bytes",
        "result",
        "stream",
    )

    def __init__(self, owner: HostedCallOwner, stream: CallStream, request: host_pb2.Call) -> None:
        super().__init__(request, owner.deadlines)
        self._owner = owner
        self.stream = stream
        """Stream of the last executor to ask; may be closed."""
        self.input = b""
        self.input_bytes = 0
        """Memory taken for the input from the budget for large values."""

        self.backend: Backend | None = None
        """Backend that executes the call; None until dispatched."""
        self.forgotten = False
        """True once the host has dropped the call."""
        self.result: host_pb2.CallResult | None = None
        """Set when the result is held; later than `settled` while a blob is written."""

        self.callbacks: Sequence[OpenCallback] = ()
        self.backend_state: Any = None
        self.blobs: BlobAccess = owner.blobs
        self._keyless = 0
        """Sub-runs started without a key by this attempt."""

    def succeed(self, output: bytes) -> None:
        if self.settled:
            return
        self.settle()

        if len(output) > LOOP_BYTES_MAX:
            self._owner.spawn(self, self._succeed_large, output)
            return

        try:
            text = _compact(self.request, output)
        except Invalid as error:
            self.end_with(unusable(error))
            return

        if len(text) > self._owner.inline_bound.bytes_max:
            self._owner.spawn(self, self._succeed_with_blob, text)
        else:
            self._succeed_inline(text)

    def fail(self, failure: Failure) -> None:
        if not self.settled:
            self.settle()
            self.end_with(failure)

    def settle(self) -> None:
        """Stop the clocks, end the open call-backs, and ignore later outcomes."""
        self.settled = True
        self.end_time()
        self.end_log()

        for callback in self.callbacks:
            callback.end(_call_ended())

    def end_with(self, failure: Failure) -> None:
        """Fail a settled call without a result."""
        result = failed(self.request, failure, self.started_at_ms, self.duration_ms)
        result.log_tail.extend(self.log_tail())
        size = len(result.failure.data_json) + len(result.failure.message) + tail_bytes(result.log_tail)
        self._owner.record_result(self, result, size)

    def break_off(self, failure: Failure) -> None:
        """Fail the call unless a result exists; also a settled call during the storing of an output."""
        if self.result is None and not self.forgotten:
            if not self.settled:
                self.settle()
            self.end_with(failure)

    def progress(self, done: float = 0.0, total: float = 0.0, message: str = "") -> None:
        if self.settled:
            return
        self.note_sign_of_life()
        self.stream.send_progress(self, (done, total, message))

    async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
        """Run a flow as a sub-run. Large inputs travel as a blob of the run, a large flow inline.

        The run's owner looks for flow ids among shared blobs, which may expire before the run ends; an inline flow is
        stored with the run.

        Raises: FailedPrecondition CALL_ENDED; NotFound, Invalid with the reasons of the run's owner; Unavailable.
        """
        if not request.key:
            request.key = f"#{self._keyless}"
            self._keyless += 1

        if len(request.inputs.json) > self._owner.inline_bound.bytes_max:
            size = len(request.inputs.json)
            request.inputs.blob = await self._owner.blobs.put(request.inputs.json, scope=self.request.root_run_id)
            request.inputs.blob_bytes = size

        reply = await self._ask(host_pb2.Callback(start_run=request), "report")
        return await inline_results(reply.report, self._owner.blobs, self.request.root_run_id)

    async def get_run(self, run_id: str, *, wait: bool) -> host_pb2.RunReport:
        get_run = host_pb2.GetRun(run_id=run_id, wait=wait)
        reply = await self._ask(host_pb2.Callback(get_run=get_run), "report")
        return await inline_results(reply.report, self._owner.blobs, self.request.root_run_id)

    async def get_flow(self, flow_id: str) -> bytes:
        reply = await self._ask(host_pb2.Callback(get_flow=host_pb2.GetFlow(flow_id=flow_id)), "flow_json")
        return reply.flow_json

    def join(self, stream: CallStream, request: host_pb2.Call) -> None:
        """Move the call to another stream with a request for the same attempt; also to the same stream.

        Open call-backs are sent again even on the same stream: an executor adopting the run a second time has
        no record of the former ones.
        """
        # 1. Detach from the former stream, under the former id.
        before, self.stream = self.stream, stream
        before.drop_call(self)
        self.request.call_id, self.request.epoch = request.call_id, request.epoch

        # 2. Answer from the held result, if there is one.
        if self.result is not None:
            self.result.call_id = request.call_id
            stream.send_result(self.result)
            return

        # 3. Otherwise register under the new id and repeat the open call-backs.
        stream.expect_result(self)
        for callback in self.callbacks:
            before.drop_callback(callback)
            stream.send_callback(callback)

    async def _succeed_large(self, output: bytes) -> None:
        # 1. Count the output in place of the input: further inputs wait until it is stored.
        owner, size = self._owner, len(output)
        owner.value_budget.add(size)
        self.input = b""
        release_memory(self, owner.value_budget)

        # 2. Check and store it in its turn. The turn waits for no memory: holders of turns always go on.
        try:
            await owner.output_turns.take(size)
            try:
                if self.forgotten:
                    return
                text = await asyncio.to_thread(_compact, self.request, output)
                if len(text) > owner.inline_bound.bytes_max:
                    await self._succeed_with_blob(text)
                else:
                    self._succeed_inline(text)
            except Invalid as error:
                self.end_with(unusable(error))
            finally:
                owner.output_turns.release(size)
        finally:
            owner.value_budget.release(size)

    async def _succeed_with_blob(self, text: bytes) -> None:
        self._owner.value_budget.add(len(text))
        # Paid for: it waits while the store is full or down, and the component is not executed again.
        try:
            blob = await self._owner.blobs.put(
                text,
                scope=self.request.root_run_id,
                on_wait=lambda: self._owner.held_results.hold_unstored(self, len(text) + len(self.input)),
                wanted=lambda: self.result is None and not self.forgotten,
            )
        except StepflowError as error:
            self.end_with(not_stored(error))
            return
        finally:
            self._owner.value_budget.release(len(text))

        # After the await: a join meanwhile has changed the call id.
        result = succeeded(self.request, self.started_at_ms, self.duration_ms)
        result.result.blob, result.result.blob_bytes = blob, len(text)
        self._owner.record_result(self, result, 0)

    def _succeed_inline(self, text: bytes) -> None:
        result = succeeded(self.request, self.started_at_ms, self.duration_ms)
        result.result.json = text
        self._owner.record_result(self, result, len(text))

    async def _ask(self, message: host_pb2.Callback, outcome: str) -> host_pb2.CallbackReply:
        """Send a call-back and return the answer. `outcome` is the expected kind."""
        if self.settled:
            raise _call_ended()

        # 1. Register and send. The calls of the sub-run may need the memory that this one holds.
        release_memory(self, self._owner.value_budget)
        callback = OpenCallback(self, message)
        self.callbacks = (*self.callbacks, callback)
        self.stream.send_callback(callback)

        # 2. Wait. The idle clock restarts with the answer: only now can the component continue.
        try:
            reply = await callback.reply
        finally:
            self.callbacks = tuple(each for each in self.callbacks if each is not callback)
            self.stream.drop_callback(callback)
            self.note_sign_of_life()

        # 3. Turn errors of the run's owner into exceptions.
        if reply.HasField("error"):
            family = NotFound if reply.error.not_found else Invalid
            raise family(reply.error.reason, reply.error.message)
        if reply.WhichOneof("outcome") != outcome:
            raise Unavailable("REPLY_UNUSABLE", "the run's owner answered a different question")

        return reply


def release_memory(call: Call, budget: ValueBudget) -> None:
    """Give back the memory taken for the input of a call. Idempotent."""
    if call.input_bytes:
        budget.release(call.input_bytes)
        call.input_bytes = 0


def _compact(request: host_pb2.Call, output: bytes) -> bytes:
    return compact(output, what=f"the output of {request.path or request.component}")


def _call_ended() -> FailedPrecondition:
    return FailedPrecondition("CALL_ENDED", "the call that asked has ended")


__all__ = ["Call", "CallStream", "HostedCallOwner", "OpenCallback", "ProgressReport", "release_memory"]
