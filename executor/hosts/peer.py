"""A component host as seen by the executor: its stream, its offer, its credits.

- All messages of a turn of the loop are gathered into a single frame.
- Without a stream, calls wait to be sent again on the next stream (`resume`); acknowledgements and questions about
  held calls are kept; cancels and replies are dropped, because the host repeats open call-backs.
- The last acknowledgements are sent again with a new stream: the broken stream may have lost them, and the host would
  hold the results in vain. Acknowledgements are idempotent.
- Nothing is sent while the executor's lease does not count as held (`may_send`).
- A call needs a credit. A call of depth > 0 may go without: one for each call of the depth above in flight here, and
  one in any case. A parent must never hold the credit of its child.

Does not know the reason for a call, nor the transport of frames. A host in the same process gives no credits and needs
none (`metered`).
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING

from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from stepflow.routing.table import PluginComponents

Send = Callable[[host_pb2.ExecutorFrame], None]

ACKS_KEPT = 2_000
"""More than go out between a write and the notice that its stream is broken."""

HELD_BACK_S = 0.05
"""Polling interval while the lease does not count as held."""


class HostPeer:
    """A host. `send` takes a whole frame; None while there is no stream."""

    def __init__(self, host_id: str, plugins: Mapping[str, PluginComponents], *, metered: bool = False) -> None:
        self.id = host_id
        self.plugins = plugins
        """Plugins that are ready or failed to start: this host can answer their calls."""
        self.failed: frozenset[str] = frozenset()
        """Plugins that failed to start: their calls fail here with the reason."""
        self.starting: frozenset[str] = frozenset()
        """Plugins whose components are not known yet."""

        self.draining = False
        self.calls_in_flight = 0
        self.send: Send | None = None
        self.may_send: Callable[[], bool] = lambda: True

        self._metered = metered
        self._granted = 0
        """Calls that this stream may have sent in total."""
        self._sent = 0
        """Calls that this stream has sent."""
        self._depths: Counter[int] = Counter()
        """Calls in flight by depth; counted for metered hosts only."""
        self._beyond: Counter[int] = Counter()
        """Calls in flight without credit, by depth. Not tied to single calls: any call that ends makes room."""

        self._acks: deque[host_pb2.Ack] = deque(maxlen=ACKS_KEPT)
        self._frame = host_pb2.ExecutorFrame()
        self._scheduled = False

    # --- credit -------------------------------------------------------------------------------------------------------

    @property
    def room(self) -> int:
        """Rank among hosts: credits left; for hosts without credits, fewer calls in flight first."""
        return self._granted - self._sent if self._metered else -self.calls_in_flight

    def grant_credits(self, credits_total: int) -> None:
        """Set the total number of calls that may be sent on the stream."""
        self._granted = credits_total

    def can_take(self, depth: int) -> bool:
        """Return True if a call of this depth can be sent now."""
        if self.send is None or self.draining:
            return False
        if not self._metered or self._granted > self._sent:
            return True
        return depth > 0 and self._beyond[depth] < max(1, self._depths[depth - 1])

    def send_call(self, call: host_pb2.Call) -> None:
        """Send a call. Requires `can_take`, or a call held by the host."""
        self.calls_in_flight += 1
        if self._metered:
            depth = call.depth
            self._depths[depth] += 1
            self._beyond[depth] += self._granted <= self._sent
            self._sent += 1
        self._frame.calls.append(call)
        self._schedule()

    def end_call(self, depth: int) -> None:
        """Count a sent call as over, or as handed to another owner."""
        self.calls_in_flight -= 1
        if self._metered:
            self._depths[depth] -= 1
            if self._beyond[depth]:
                self._beyond[depth] -= 1

    # --- the stream ---------------------------------------------------------------------------------------------------

    def resume(self, send: Send, calls: Iterable[host_pb2.Call]) -> None:
        """Use a new stream. `calls`: all calls in flight here; the host joins known calls."""
        frame, self._frame = self._frame, host_pb2.ExecutorFrame()
        self._frame.acks.extend(self._acks)
        self._frame.acks.extend(frame.acks)
        self._frame.attaches.extend(frame.attaches)
        self._frame.calls.extend(calls)

        self._granted, self._sent = 0, len(self._frame.calls)
        self.send = send
        self._schedule()

    def interrupt(self) -> None:
        """Note the end of the stream."""
        self.send = None
        self._granted = self._sent = 0

    def discard(self) -> None:
        """Forget all calls and drop unsent frames: without a session, the executor must not send them."""
        self._frame = host_pb2.ExecutorFrame()
        self._acks.clear()
        self.calls_in_flight = 0
        self._depths.clear()
        self._beyond.clear()

    def cancel_call(self, call_id: int) -> None:
        self._frame.cancels.add(call_id=call_id)
        self._schedule()

    def ack_result(self, key: str, attempt: int) -> None:
        ack = host_pb2.Ack(key=key, attempt=attempt)
        self._frame.acks.append(ack)
        if self._metered:
            self._acks.append(ack)
        self._schedule()

    def ask_held(self, run_id: str, partition: int, epoch: int) -> None:
        if not self._frame.attaches:
            self._frame.attaches.add()
        self._frame.attaches[0].runs.add(run_id=run_id, partition=partition, epoch=epoch)
        self._schedule()

    def reply(self, reply: host_pb2.CallbackReply) -> None:
        self._frame.replies.append(reply)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled and self.send is not None:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if self.send is None:
            self._scheduled = False  # the kept part of the frame goes with the next stream
        elif not self.may_send():
            asyncio.get_running_loop().call_later(HELD_BACK_S, self._flush)
        else:
            self._scheduled = False
            frame, self._frame = self._frame, host_pb2.ExecutorFrame()
            self.send(frame)


__all__ = ["HostPeer", "Send"]
