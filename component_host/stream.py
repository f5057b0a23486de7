"""The host's end of one executor's stream.

- What gathers within one turn of the loop goes out as one frame.
- A cancel reaches a call only through the stream that asked for it last: after a join elsewhere it means nothing.
- Once closed, a stream delivers nothing and keeps nothing but the call-backs that wait for whoever joins their calls,
  and those no longer than a result is held.

Does not know what carries the frames.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from component_host.call import failed
from stepflow.errors import Unavailable
from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.call import Call, OpenCallback
    from component_host.host import ComponentHost
    from stepflow.errors import Failure

PROGRESS_MAX = 1_000
"""Reports of progress in one frame; a component that sends more of them within a turn of the loop loses the rest."""


class HostStream:
    """Made by `ComponentHost.connect`. Frames come in by `receive` and go out through the function given there."""

    def __init__(
        self, host: ComponentHost, deliver: Callable[[host_pb2.HostFrame], None], hang_up: Callable[[], None]
    ) -> None:
        self.calls: dict[int, Call] = {}
        """By call id, those whose result has not been sent."""
        self.closed = False
        self.hang_up = hang_up
        """Ask whoever carries the frames to end the stream."""
        self._host = host
        self._deliver = deliver
        self._frame = host_pb2.HostFrame()
        self._flush_due = False
        self._callbacks: dict[int, OpenCallback] = {}
        self._given_up = False
        """Nobody will join the calls of this stream any more."""
        self._timer: asyncio.TimerHandle | None = None

    def receive(self, frame: host_pb2.ExecutorFrame) -> None:
        """Take in what the executor has sent. Calls come before cancels: one frame may hold both for one call."""
        if self.closed:
            return
        host = self._host
        for ack in frame.acks:
            host.acknowledge(self, ack)
        for call in frame.calls:
            host.admit(self, call)
        for cancel in frame.cancels:
            known = self.calls.get(cancel.call_id)
            if known is not None:
                host.forget(known)
        for attach in frame.attaches:
            self._attach(attach)
        for reply in frame.replies:
            callback = self._callbacks.pop(reply.callback_id, None)
            if callback is not None and not callback.reply.done():
                callback.reply.set_result(reply)

    def close(self) -> None:
        """The executor is gone. Its calls go on, and wait for whoever joins them. Safe to repeat."""
        if self.closed:
            return
        self.closed = True
        self.calls.clear()
        self._frame = host_pb2.HostFrame()  # its results are held
        if not self._given_up:
            self._timer = asyncio.get_running_loop().call_later(self._host.held_s_max, self.give_up)

    def give_up(self) -> None:
        """End the call-backs that wait for somebody to join their calls. For the host."""
        self._given_up = True
        if self._timer is not None:
            self._timer.cancel()
        for callback in list(self._callbacks.values()):
            callback.end(_ownerless())
        self._callbacks.clear()
        self._host.given_up(self)

    # --- out ------------------------------------------------------------------------------------------------------

    def result(self, result: host_pb2.CallResult) -> None:
        if not self.closed:
            self._frame.results.append(result)
            self._schedule()

    def refuse(self, request: host_pb2.Call, failure: Failure) -> None:
        """Answer a call that the host does not take."""
        self.result(failed(request, failure, 0))

    def progress(self, progress: host_pb2.Progress) -> None:
        if not self.closed and len(self._frame.progress) < PROGRESS_MAX:
            self._frame.progress.append(progress)
            self._schedule()

    def ask(self, callback: OpenCallback) -> None:
        """Send a component's request to the owner of its run; keep it for the next owner if this one is gone."""
        if self._given_up:
            callback.end(_ownerless())
            return
        # Never used twice, on no stream: an answer meant for one that broke must not answer another question.
        callback.number = next(self._host.callback_ids)
        self._callbacks[callback.number] = callback
        if not self.closed:
            message = self._frame.callbacks.add()
            message.CopyFrom(callback.message)
            message.callback_id, message.call_id = callback.number, callback.call.request.call_id
            self._schedule()

    def drop_callback(self, callback: OpenCallback) -> None:
        """An answer that comes later is for nobody. Safe to repeat."""
        if self._callbacks.get(callback.number) is callback:
            del self._callbacks[callback.number]

    def drop(self, call: Call) -> None:
        """The call is not to be cancelled through this stream any more. Safe to repeat."""
        self.calls.pop(call.request.call_id, None)

    def _attach(self, attach: host_pb2.Attach) -> None:
        attached = self._frame.attached.add()
        for run in attach.runs:
            attached.run_ids.append(run.run_id)
            attached.calls.extend(self._host.attach(run))
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


def _ownerless() -> Unavailable:
    return Unavailable("RUN_WITHOUT_OWNER", "nobody has taken over the run that makes this call")


__all__ = ["HostStream"]
