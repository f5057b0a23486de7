"""The host's end of one executor's stream.

- Messages of one turn of the event loop leave as one frame. Progress is thinned (`progress_gate`).
- A cancel counts only on the last stream to ask for the call; after a join elsewhere the cancel is ignored.
- A closed stream delivers nothing, and keeps open call-backs for the next owner of the run, no longer than results
  are held.

A frame passes here twice: incoming requests go to the host, results come back. The carrier of frames is unknown here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Protocol

from component_host.progress_gate import ProgressGate
from component_host.results import PROGRESS_CHARS_MAX, failed, readable
from stepflow.errors import Unavailable
from stepflow.mesh.v1 import host_pb2
from stepflow.telemetry import without_hidden

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from component_host.call import Call, OpenCallback, ProgressReport
    from component_host.disputes import Disputes
    from stepflow.errors import Failure

PROGRESS_MAX = 200
"""Progress reports to one executor in a period of `progress_gate`; of further ones, the latest of each call is sent in
the next period."""


class StreamOwner(Protocol):
    """The host, as used by a stream."""

    held_s_max: float
    callback_ids: Iterator[int]
    disputes: Disputes

    def acknowledge(self, stream: HostStream, ack: host_pb2.Ack) -> None: ...
    def admit(self, stream: HostStream, request: host_pb2.Call) -> None: ...
    def forget_call(self, call: Call) -> None: ...
    def attach(self, asked: host_pb2.AttachRun) -> list[host_pb2.HeldCall]: ...
    def forget_stream(self, stream: HostStream) -> None: ...


class HostStream:
    """Made by `ComponentHost.connect`. Frames enter by `receive` and leave by `deliver`.

    `hang_up` ends the stream from the side of the carrier. Implements `call.CallStream`.
    """

    def __init__(
        self,
        owner: StreamOwner,
        deliver: Callable[[host_pb2.HostFrame], None],
        hang_up: Callable[[], None],
        executor_id: str,
    ) -> None:
        self.executor_id = executor_id
        self.calls: dict[int, Call] = {}
        """Calls without a result, by call id."""
        self.closed = False
        self.hang_up = hang_up
        self._owner = owner
        self._deliver = deliver

        # Messages to send.
        self._frame = host_pb2.HostFrame()
        self._flush_due = False
        self._progress: ProgressGate[tuple[Call, ProgressReport]] = ProgressGate(PROGRESS_MAX)
        self._progress_timer: asyncio.TimerHandle | None = None

        # Questions for held calls, and call-backs.
        self._attaches: deque[host_pb2.Attach] = deque()
        """Unanswered questions for held calls."""
        self._disputing = False
        """The answers wait for the store."""
        self._callbacks: dict[int, OpenCallback] = {}
        self._given_up = False
        """True once no executor can join the calls of this stream any more."""
        self._timer: asyncio.TimerHandle | None = None

    def receive(self, frame: host_pb2.ExecutorFrame) -> None:
        """Process a frame from the executor. Calls come before cancels: one frame may hold both for one call."""
        if self.closed:
            return
        owner = self._owner

        for ack in frame.acks:
            owner.acknowledge(self, ack)

        for request in frame.calls:
            owner.admit(self, request)

        for cancel in frame.cancels:
            call = self.calls.get(cancel.call_id)
            if call is not None:
                owner.forget_call(call)

        if frame.attaches:
            self._attaches.extend(frame.attaches)
            if not self._disputing:
                self._answer_attaches()

        for reply in frame.replies:
            callback = self._callbacks.pop(reply.callback_id, None)
            if callback is not None and not callback.reply.done():
                callback.reply.set_result(reply)

    def close(self) -> None:
        """Close after the loss of the executor. The calls continue, for the next owner to join. Idempotent."""
        if self.closed:
            return
        self.closed = True
        self.calls.clear()
        self._frame = host_pb2.HostFrame()  # its results are held
        if self._progress_timer is not None:
            self._progress_timer.cancel()

        if not self._given_up:
            self._timer = asyncio.get_running_loop().call_later(self._owner.held_s_max, self.give_up)

    def give_up(self) -> None:
        """End the call-backs without an executor. For the host."""
        self._given_up = True
        if self._timer is not None:
            self._timer.cancel()

        for callback in list(self._callbacks.values()):
            callback.end(_ownerless())
        self._callbacks.clear()

        self._owner.forget_stream(self)

    def send_result(self, result: host_pb2.CallResult) -> None:
        if not self.closed:
            self._frame.results.append(result)
            self._schedule()

    def refuse_call(self, request: host_pb2.Call, failure: Failure) -> None:
        """Answer a call refused by the host."""
        self.send_result(failed(request, failure))

    def send_progress(self, call: Call, report: ProgressReport) -> None:
        if self.closed:
            return
        if self._progress.offer(call, (call, report), asyncio.get_running_loop().time()):
            _add_progress(self._frame, call, report)
            self._schedule()
        elif self._progress_timer is None:
            self._release_progress()

    def _release_progress(self) -> None:
        """Send the reports that waited for this period; wait for the next one if there are more."""
        loop = asyncio.get_running_loop()
        for call, report in self._progress.take_due(loop.time()):
            if not call.settled:
                _add_progress(self._frame, call, report)
                self._schedule()

        wait_s = self._progress.wait_s(loop.time())
        self._progress_timer = None if wait_s is None else loop.call_later(wait_s, self._release_progress)

    def send_callback(self, callback: OpenCallback) -> None:
        """Send a component's request to the run's owner; without an owner keep the request for the next."""
        if self._given_up:
            callback.end(_ownerless())
            return

        # Unique across streams: a late answer to a request of a broken stream must not answer another one.
        callback.number = next(self._owner.callback_ids)
        self._callbacks[callback.number] = callback

        if not self.closed:
            message = self._frame.callbacks.add()
            message.CopyFrom(callback.message)
            message.callback_id, message.call_id = callback.number, callback.call.request.call_id
            self._schedule()

    def drop_callback(self, callback: OpenCallback) -> None:
        """Ignore a later answer. Idempotent."""
        if self._callbacks.get(callback.number) is callback:
            del self._callbacks[callback.number]

    def expect_result(self, call: Call) -> None:
        """Register a call under the present id, for cancels by the executor."""
        self.calls[call.request.call_id] = call

    def drop_call(self, call: Call) -> None:
        """Ignore cancels of a call from now on. Idempotent."""
        self.calls.pop(call.request.call_id, None)

    def _answer_attaches(self, *, settled: bool = False) -> None:
        """Answer the questions in order: the executor takes the first answer for that of its first question.

        `settled`: after the disputes about the first one.
        """
        self._disputing = False
        while self._attaches:
            if not settled and self._owner.disputes.settle_attach(
                self, self._attaches[0], partial(self._answer_attaches, settled=True)
            ):
                self._disputing = True
                return
            settled = False

            attached = self._frame.attached.add()
            for run in self._attaches.popleft().runs:
                attached.run_ids.append(run.run_id)
                attached.calls.extend(self._owner.attach(run))
            self._schedule()

    def _schedule(self) -> None:
        if not self._flush_due:
            self._flush_due = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_due = False
        frame, self._frame = self._frame, host_pb2.HostFrame()
        if not self.closed:
            self._deliver(frame)


def _add_progress(frame: host_pb2.HostFrame, call: Call, report: ProgressReport) -> None:
    done, total, message = report
    text = readable(without_hidden(message), PROGRESS_CHARS_MAX)
    frame.progress.add(call_id=call.request.call_id, done=done, total=total, message=text)


def _ownerless() -> Unavailable:
    return Unavailable("RUN_WITHOUT_OWNER", "no executor has taken over the run of this call")


__all__ = ["HostStream", "StreamOwner"]
