"""Calls waiting for a host, by group of hosts (`HostRoutes.group_of`) and depth.

- Deepest first, FIFO within a group and depth, groups in turn: a parent must never hold up its children.
- While the group has a live host, a call waits for as long as the host lives; otherwise for `timeout_s`.
- A superseded call is dropped when its turn comes.

Does not choose hosts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeAlias

from executor.hosts.caller import C

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.hosts.peer import HostPeer
    from executor.hosts.routes import HostRoutes
    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.run import Dispatch


QueueKey: TypeAlias = tuple[str, int]
"""Group and depth. A plain tuple: one is built for every call."""


@dataclass(slots=True, eq=False)
class WaitingCall(Generic[C]):
    """A call without a free host."""

    caller: C
    action: Dispatch
    payload: pb.Payload
    until_s: float
    """Of the loop's clock; extended while the group has a live host."""

    @property
    def wanted(self) -> bool:
        return not self.caller.gone and self.caller.waits_for(self.action)


class CallQueue(Generic[C]):
    """The waiting calls of a pool, with one timer for all calls."""

    def __init__(
        self,
        routes: HostRoutes,
        send_call: Callable[[HostPeer, C, Dispatch, pb.Payload], None],
        *,
        timeout_s: float,
    ) -> None:
        """`timeout_s` 0: no call ever expires."""
        self.on_unreachable: Callable[[C, Dispatch], None] = lambda _caller, _action: None
        """Called with a call whose group has had no host for `timeout_s`."""
        self._routes = routes
        self._send_call = send_call
        self._timeout_s = timeout_s
        self.waiting: dict[QueueKey, deque[WaitingCall[C]]] = {}
        """By group and depth, in order of arrival, which is also the order of `until_s`. Never an empty queue."""
        self._timer: asyncio.TimerHandle | None = None

    def add_call(self, key: QueueKey, caller: C, action: Dispatch, payload: pb.Payload) -> None:
        until_s = asyncio.get_running_loop().time() + self._timeout_s
        self.waiting.setdefault(key, deque()).append(WaitingCall(caller, action, payload, until_s))
        if self._timer is None and self._timeout_s:
            self._timer = asyncio.get_running_loop().call_later(self._timeout_s, self._expire)

    def release(self) -> None:
        """Send every call that fits now."""
        for key in sorted(self.waiting, key=_depth, reverse=True):
            queue = self.waiting[key]
            count = len(queue)
            while queue:
                peer = self._routes.find_room(*key)
                if queue[0].wanted and peer is None:
                    break
                call = queue.popleft()
                if call.wanted and peer is not None:
                    self._send_call(peer, call.caller, call.action, call.payload)

            if len(queue) < count:
                del self.waiting[key]
                if queue:
                    self.waiting[key] = queue  # behind the other groups: hosts may be in several

    def regroup(self) -> None:
        """Move the calls to their present groups: hosts of a plugin have begun or ceased to differ."""
        calls = [(key[1], call) for key, queue in self.waiting.items() for call in queue]
        calls.sort(key=lambda waiting: waiting[1].until_s)  # stable: FIFO is kept

        self.waiting.clear()
        for depth, call in calls:
            group = self._routes.group_of(call.action.target)
            self.waiting.setdefault((group, depth), deque()).append(call)

    def hostless(self) -> list[WaitingCall[C]]:
        """Return the calls whose plugin no host runs."""
        has_host = self._routes.has_host
        queues = [queue for queue in self.waiting.values() if not has_host(queue[0].action.target.plugin)]
        return [call for queue in queues for call in queue]

    def clear(self) -> None:
        """Drop all waiting calls."""
        self.waiting.clear()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _expire(self) -> None:
        """Give up the calls whose group has had no host for `timeout_s`."""
        self._timer = None
        now_s = asyncio.get_running_loop().time()
        late: list[WaitingCall[C]] = []

        for key, queue in list(self.waiting.items()):
            hosted = key[0] in self._routes.by_group
            rest: deque[WaitingCall[C]] = deque()
            for call in queue:
                if hosted:
                    call.until_s = now_s + self._timeout_s  # a busy host is waited for as long as it lives
                if call.wanted and call.until_s > now_s:
                    rest.append(call)
                elif call.wanted:
                    late.append(call)

            if rest:
                self.waiting[key] = rest
            else:
                del self.waiting[key]

        if self.waiting:
            next_s = min(queue[0].until_s for queue in self.waiting.values())
            self._timer = asyncio.get_running_loop().call_later(max(0.001, next_s - now_s), self._expire)

        # Last: a caller that learns of its failure may dispatch again, into this queue.
        for call in late:
            self.on_unreachable(call.caller, call.action)


def _depth(key: QueueKey) -> int:
    return key[1]


__all__ = ["CallQueue", "QueueKey", "WaitingCall"]
