"""One attempt of a step inside the host, from its admission until nobody needs it any more.

- Its outcome is decided once: the first `succeed` or `fail` counts, and after `forget` none.
- An output is checked and compacted here, and is in the blob store before its id is told when it is large.
- A failure is cut to a size that frames and journals bear, whatever a server has sent.
- A call-back is answered once. Who joins the call gets the open ones asked again; when the call ends they end.

Does not: talk to executors (`streams`), keep the time (`time_limits`), or decide who gets a call (`host`).
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, compact, encode
from stepflow.errors import Code, Failure, Invalid, NotFound, Refused, StepflowError, Unavailable
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Sequence

    from component_host.backend import BlobAccess
    from component_host.deadlines import Limit
    from component_host.host import ComponentHost, Plugin, RunCalls
    from component_host.stream import HostStream
    from stepflow.store.blobs import BlobStore

LOOP_BYTES_MAX = 256 * 1024
"""A larger output is checked in a thread: it takes more than some milliseconds."""

REPORT_BYTES_MAX = 4 * PAYLOAD_BYTES_MAX
"""All results together that a component gets in one report."""

MESSAGE_CHARS_MAX = 8 * 1024
"""Of a failure, and of a report of progress a sixteenth of it."""

assert LOOP_BYTES_MAX > INLINE_BYTES_MAX


class OpenCallback:
    """A request of a component that has no answer yet."""

    __slots__ = ("call", "message", "number", "reply")

    def __init__(self, call: Call, message: host_pb2.Callback) -> None:
        self.call = call
        self.message = message
        self.number = 0
        """Its id on the stream through which it was asked last."""
        self.reply: asyncio.Future[host_pb2.CallbackReply] = asyncio.get_running_loop().create_future()

    def end(self, error: StepflowError) -> None:
        """Answer it with an error, unless it is answered."""
        if not self.reply.done():
            self.reply.set_exception(error)


class Call:
    """See the head of this module. Implements `backend.HostCall`."""

    __slots__ = (
        "_host",
        "_keyless",
        "backend_state",
        "blobs",
        "callbacks",
        "forgotten",
        "given",
        "input",
        "limit",
        "plugin",
        "request",
        "result",
        "run",
        "settled",
        "started_at_ms",
        "stream",
    )

    def __init__(
        self, host: ComponentHost, stream: HostStream, request: host_pb2.Call, plugin: Plugin, run: RunCalls
    ) -> None:
        self._host = host
        self.stream = stream
        """Of whoever asked last; it may be closed."""
        self.request = request
        self.plugin = plugin
        self.run = run
        self.input = b""
        self.given = False
        """Its backend has it."""
        self.settled = False
        """Its outcome is decided, or nobody wants one."""
        self.forgotten = False
        """The host does not know it any more."""
        self.result: host_pb2.CallResult | None = None
        """Once it is held; a little after `settled` where a blob is written."""
        self.started_at_ms = 0
        """When its backend got it; 0 = not yet."""
        self.limit: Limit | None = None
        self.callbacks: Sequence[OpenCallback] = ()
        self.backend_state: Any = None
        self.blobs: BlobAccess = host.blobs
        self._keyless = 0

    # --- for the backend: how it ends ----------------------------------------------------------------------------

    def succeed(self, output: bytes) -> None:
        if self.settled:
            return
        self.settle()
        if len(output) > LOOP_BYTES_MAX:
            self._host.spawn(self, self._succeed_large, output)
            return
        try:
            text = self._compact(output)
        except Invalid as error:
            self.end_with(_unusable(error))
            return
        if len(text) > INLINE_BYTES_MAX:
            self._host.spawn(self, self._succeed_with_blob, text)
        else:
            self._succeed_inline(text)

    def fail(self, failure: Failure) -> None:
        if not self.settled:
            self.settle()
            self.end_with(failure)

    def settle(self) -> None:
        """Decide that nothing which comes later counts: stop its clock, and end what it waits for."""
        self.settled = True
        if self.limit is not None:
            self._host.limits.drop(self)
        for callback in self.callbacks:
            callback.end(Refused("CALL_ENDED", "the call that asked has ended"))

    def end_with(self, failure: Failure) -> None:
        """Make a failure the result of a settled call that has none yet."""
        result = failed(self.request, failure, self.started_at_ms)
        self._host.record(self, result, len(result.failure.data_json) + len(result.failure.message))

    def break_off(self, failure: Failure) -> None:
        """Make sure that the call has a result, also where it is settled and its output was on the way."""
        if self.result is None and not self.forgotten:
            if not self.settled:
                self.settle()
            self.end_with(failure)

    async def _succeed_large(self, output: bytes) -> None:
        try:
            text = await asyncio.to_thread(self._compact, output)
        except Invalid as error:
            self.end_with(_unusable(error))
            return
        if len(text) > INLINE_BYTES_MAX:
            await self._succeed_with_blob(text)
        else:
            self._succeed_inline(text)

    async def _succeed_with_blob(self, text: bytes) -> None:
        try:
            blob = await self._host.blobs.put(text, scope=self.request.root_run_id)
        except StepflowError as error:
            message = f"the step's output could not be stored: {error.message}"
            self.end_with(Failure(Code.UNREACHABLE, message, encode({"reason": error.reason})))
            return
        result = self._new_result()  # only now: the call may have been joined under another id meanwhile
        result.result.blob = blob
        self._host.record(self, result, 0)

    def _succeed_inline(self, text: bytes) -> None:
        result = self._new_result()
        result.result.json = text
        self._host.record(self, result, len(text))

    def _compact(self, output: bytes) -> bytes:
        return compact(output, what=f"the output of {self.request.path or self.request.component}")

    def _new_result(self) -> host_pb2.CallResult:
        request = self.request
        return host_pb2.CallResult(
            call_id=request.call_id, key=request.key, attempt=request.attempt, started_at_ms=self.started_at_ms
        )

    # --- for the backend: while it runs --------------------------------------------------------------------------

    def progress(self, done: float = 0.0, total: float = 0.0, message: str = "") -> None:
        if self.settled:
            return
        if self.limit is not None:
            self.limit.active_at = time.monotonic()
        message = readable(message, MESSAGE_CHARS_MAX // 16)
        self.stream.progress(host_pb2.Progress(call_id=self.request.call_id, done=done, total=total, message=message))

    async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
        """Raises: Refused CALL_ENDED; NotFound, Invalid with the reasons of whoever owns the run; Unavailable.

        Large inputs travel as a blob of the run. A large flow does not: its owner looks for flows among shared blobs,
        which do not live as long as a run may, and stores it with the run itself.
        """
        if not request.key:
            request.key = f"#{self._keyless}"
            self._keyless += 1
        if len(request.inputs.json) > INLINE_BYTES_MAX:
            request.inputs.blob = await self._host.blobs.put(request.inputs.json, scope=self.request.root_run_id)
        reply = await self._ask(host_pb2.Callback(start_run=request), "report")
        return await self._with_results(reply.report)

    async def get_run(self, run_id: str, *, wait: bool) -> host_pb2.RunReport:
        get_run = host_pb2.GetRun(run_id=run_id, wait=wait)
        reply = await self._ask(host_pb2.Callback(get_run=get_run), "report")
        return await self._with_results(reply.report)

    async def get_flow(self, flow_id: str) -> bytes:
        reply = await self._ask(host_pb2.Callback(get_flow=host_pb2.GetFlow(flow_id=flow_id)), "flow_json")
        return reply.flow_json

    async def _ask(self, message: host_pb2.Callback, outcome: str) -> host_pb2.CallbackReply:
        if self.settled:
            raise Refused("CALL_ENDED", "the call that asked has ended")
        callback = OpenCallback(self, message)
        self.callbacks = (*self.callbacks, callback)
        self.stream.ask(callback)
        try:
            reply = await callback.reply
        finally:
            self.callbacks = tuple(each for each in self.callbacks if each is not callback)
            self.stream.drop_callback(callback)
            if self.limit is not None:
                self.limit.active_at = time.monotonic()  # its idle time begins anew: it can go on only now
        if reply.HasField("error"):
            family = NotFound if reply.error.not_found else Invalid
            raise family(reply.error.reason, reply.error.message)
        if reply.WhichOneof("outcome") != outcome:
            raise Unavailable("REPLY_UNUSABLE", "the run's owner answered something else than was asked")
        return reply

    async def _with_results(self, report: host_pb2.RunReport) -> host_pb2.RunReport:
        """Put the results that travelled as blobs into the report itself: their ids mean nothing to a component."""
        size = 0
        for item in report.items:
            if item.flow_result.blob:
                content = await fetch_blob(self._host.blobs, item.flow_result.blob, self.request.root_run_id)
                item.flow_result.json = content
                size += len(content)
            if size > REPORT_BYTES_MAX:
                raise Invalid(
                    "REPORT_TOO_LARGE",
                    f"the results of run {report.run_id} are more than {REPORT_BYTES_MAX:,} bytes together; "
                    "run fewer items at once, or return less from each",
                )
        return report

    # --- for the host --------------------------------------------------------------------------------------------

    def join(self, stream: HostStream, request: host_pb2.Call) -> None:
        """Another stream, or the same one again, asks for this very attempt: from now on it gets all of it.

        Open call-backs are asked again also on the same stream: an executor that has adopted the run anew, knows
        nothing of what it was asked before.
        """
        before, self.stream = self.stream, stream
        before.drop(self)
        self.request.call_id, self.request.epoch = request.call_id, request.epoch
        if self.result is not None:
            self.result.call_id = request.call_id
            stream.result(self.result)
            return
        stream.calls[request.call_id] = self
        for callback in self.callbacks:
            before.drop_callback(callback)
            stream.ask(callback)


async def fetch_blob(blobs: BlobStore, blob: str, run_id: str) -> bytes:
    """Read a value of a run: its own, or one that a client or a component put for all. Raises: StepflowError."""
    try:
        return (await blobs.get(blob, scope=run_id))[0]
    except NotFound:
        return (await blobs.get(blob))[0]


def failed(request: host_pb2.Call, failure: Failure, started_at_ms: int) -> host_pb2.CallResult:
    """Build the result of a failed call. `started_at_ms` is 0 if its backend never had it."""
    early = failure.code is Code.UNREACHABLE or not started_at_ms
    data = failure.data
    if len(data) > INLINE_BYTES_MAX:
        data = encode({"reason": "DETAILS_TOO_LARGE", "bytes": len(data), "bytes_max": INLINE_BYTES_MAX})
    return host_pb2.CallResult(
        call_id=request.call_id,
        key=request.key,
        attempt=request.attempt,
        started_at_ms=started_at_ms,
        failure=pb.Failure(
            code=f"FAILURE_CODE_{failure.code.name}",
            message=readable(failure.message, MESSAGE_CHARS_MAX),
            data_json=data,
            origin=pb.ORIGIN_DISPATCH if early else pb.ORIGIN_COMPONENT,
        ),
    )


def readable(text: str, chars_max: int) -> str:
    """Cut a text of somebody else, and make it one that protobuf takes (no lone surrogates)."""
    if len(text) > chars_max:
        text = text[: chars_max - 1] + "…"
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _unusable(error: Invalid) -> Failure:
    return Failure(Code.COMPONENT_FAILED, error.message, encode({"reason": error.reason}))


__all__ = ["Call", "OpenCallback", "failed", "fetch_blob"]
