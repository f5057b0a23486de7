"""The executor's side of its streams to component hosts: which call is where, and what may be routed.

Owns the call ids, one outgoing frame per host that gathers within a turn of the loop, and the routing table made of
the mesh's rules and of what the hosts offer. A result, progress or call-back finds its step through here.

- A call goes to the host that holds it already, else to the one with the fewest calls of ours.
- A call for a plugin that no live host runs waits for one, up to `queue_timeout_s`.
- Nothing is sent while the executor's lease does not count as held: frames wait, and are dropped if it is lost.

Does not decide anything about a run.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.codec import encode
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.routing import PluginComponents, RouteTable, Rule

if TYPE_CHECKING:
    from executor.drive import Drive
    from stepflow.codec import Json
    from stepflow.routing import NoRoute, Target
    from stepflow.run import Dispatch, StepRun

Send = Callable[[host_pb2.ExecutorFrame], None]

QUEUE_TIMEOUT_S = 30.0
"""What a mesh waits for a host of a plugin that none runs just now: longer than a host takes to start again."""

HELD_BACK_S = 0.05
"""Between two looks whether the lease counts as held again."""


class Peer:
    """One host. `send` takes a whole frame; the frames of one turn of the loop are gathered into one."""

    def __init__(self, host_id: str, plugins: Mapping[str, PluginComponents]) -> None:
        self.id = host_id
        self.plugins = plugins
        self.starting: frozenset[str] = frozenset()
        """Plugins whose components are not known yet."""
        self.send: Send | None = None
        self.may_send: Callable[[], bool] = lambda: True
        self.calls_in_flight = 0
        self._frame = host_pb2.ExecutorFrame()
        self._scheduled = False

    def call(self, call: host_pb2.Call) -> None:
        self._frame.calls.append(call)
        self._schedule()

    def cancel(self, call_id: int) -> None:
        self._frame.cancels.add(call_id=call_id)
        self._schedule()

    def ack(self, key: str, attempt: int) -> None:
        self._frame.acks.add(key=key, attempt=attempt)
        self._schedule()

    def attach(self, run_id: str, partition: int, epoch: int) -> None:
        if not self._frame.attaches:
            self._frame.attaches.add()
        self._frame.attaches[0].runs.add(run_id=run_id, partition=partition, epoch=epoch)
        self._schedule()

    def reply(self, reply: host_pb2.CallbackReply) -> None:
        self._frame.replies.append(reply)
        self._schedule()

    def discard(self) -> None:
        """Drop what has not been sent: whoever wrote it may not speak any more."""
        self._frame = host_pb2.ExecutorFrame()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        if not self.may_send():
            asyncio.get_running_loop().call_later(HELD_BACK_S, self._flush)
            return
        self._scheduled = False
        frame, self._frame = self._frame, host_pb2.ExecutorFrame()
        if self.send is not None:
            self.send(frame)


@dataclass(slots=True, eq=False)
class InFlight:
    """A call that a host has. Keyed by call id."""

    drive: Drive
    step: StepRun
    attempt: int
    peer: Peer


@dataclass(slots=True, eq=False)
class _Queued:
    """A call for a plugin that no host runs. `until_s` is of the loop's clock."""

    drive: Drive
    action: Dispatch
    payload: pb.Payload
    until_s: float

    @property
    def wanted(self) -> bool:
        return not self.drive.gone and self.drive.waits_for(self.action)


class Hosts:
    """All hosts of the mesh, as this executor knows them. Implements the engine's `Routes`."""

    def __init__(
        self,
        rules: Mapping[str, Sequence[Rule]],
        builtins: Mapping[str, PluginComponents],
        *,
        queue_timeout_s: float = 0.0,
    ) -> None:
        """`builtins` need no host: plugins whose components the engine runs itself. `queue_timeout_s` 0: all hosts are
        known, so what none of them runs is unreachable at once."""
        self._rules = rules
        self._builtins = builtins
        self._queue_timeout_s = queue_timeout_s
        self._peers: dict[str, Peer] = {}
        self._by_plugin: dict[str, list[Peer]] = {}
        self._calls: dict[int, InFlight] = {}
        self._queued: dict[str, list[_Queued]] = {}
        """By plugin, in order of time."""
        self._queue_timer: asyncio.TimerHandle | None = None
        self._serial = 0
        self._starting: frozenset[str] = frozenset()
        self._table = RouteTable(rules, builtins)
        self._may_send: Callable[[], bool] = lambda: True
        self.changed: Callable[[], None] = lambda: None

    # --- routes -------------------------------------------------------------------------------------------------------

    def set_peer(self, peer: Peer, *, starting: frozenset[str] = frozenset()) -> None:
        """A host has joined, or offers something else now. `starting`: plugins whose components are not known yet."""
        peer.starting = starting
        peer.may_send = self._may_send
        self._peers[peer.id] = peer
        self._rebuild()

    def remove_peer(self, host_id: str) -> list[InFlight]:
        """A host is gone for good. Return the calls that are lost with it: whose they were must be told."""
        peer = self._peers.pop(host_id, None)
        if peer is None:
            return []
        lost = {number: flight for number, flight in self._calls.items() if flight.peer is peer}
        for number in lost:
            del self._calls[number]
        self._rebuild()
        return list(lost.values())

    def set_rules(self, rules: Mapping[str, Sequence[Rule]]) -> None:
        """The mesh's routes have changed."""
        self._rules = rules
        self._rebuild()

    def _rebuild(self) -> None:
        plugins = dict(self._builtins)
        self._by_plugin = {}
        starting: set[str] = set()
        for peer in self._peers.values():
            starting |= peer.starting
            for name, offered in peer.plugins.items():
                plugins[name] = offered
                self._by_plugin.setdefault(name, []).append(peer)
        self._starting = frozenset(starting - set(self._by_plugin))
        self._table = RouteTable(self._rules, plugins)
        for plugin in [name for name in self._queued if name in self._by_plugin]:
            for queued in self._queued.pop(plugin):
                if queued.wanted:
                    self._send(self._least_busy(plugin), queued.drive, queued.action, queued.payload)
        self.changed()

    def resolve(self, path: str, input: Json) -> Target | NoRoute | None:
        if self._starting and self._meets_starting(path):
            return None
        return self._table.resolve(path, input)

    def may_be_engine(self, path: str) -> bool:
        return self._table.may_be_engine(path)

    def _meets_starting(self, path: str) -> bool:
        prefix = "/" + path[1:].partition("/")[0]
        rules = (*self._rules.get(prefix, ()), *self._rules.get("/", ()))
        return any(rule.plugin in self._starting for rule in rules)

    # --- calls --------------------------------------------------------------------------------------------------------

    def dispatch(self, drive: Drive, action: Dispatch, payload: pb.Payload, *, holder: str = "") -> bool:
        """Send a call to the host that holds it (`holder`), else to the least busy one, or let it wait for one.

        Return false when no host runs the plugin and none is waited for.
        """
        plugin = action.target.plugin
        peers = self._by_plugin.get(plugin)
        if not peers:
            if self._queue_timeout_s:
                self._queue(_Queued(drive, action, payload, self._now_s() + self._queue_timeout_s))
                return True
            return False
        peer = self._peers.get(holder) if holder else None
        self._send(peer or self._least_busy(plugin), drive, action, payload)
        return True

    def _least_busy(self, plugin: str) -> Peer:
        peers = self._by_plugin[plugin]
        return peers[0] if len(peers) == 1 else min(peers, key=_calls_in_flight)

    def _send(self, peer: Peer, drive: Drive, action: Dispatch, payload: pb.Payload) -> None:
        step = action.step
        self._serial += 1
        step.call_id = self._serial
        self._calls[self._serial] = InFlight(drive, step, action.attempt, peer)
        peer.calls_in_flight += 1
        item = step.item
        scope = item.scope
        compiled = scope.plan.steps[step.index]
        call = host_pb2.Call(
            call_id=self._serial,
            plugin=action.target.plugin,
            component=action.target.component,
            path=compiled.component,
            input=payload,
            key=step.key,
            attempt=action.attempt,
            epoch=drive.epoch,
            partition=drive.partition,
            depth=scope.depth,
            timeout_ms=compiled.timeout_ms or 0,
            idle_timeout_ms=compiled.idle_timeout_ms or 0,
            root_run_id=drive.run_id,
            run_id=scope.run_id,
            flow_id=drive.flow_id if scope.parent is None else "",
            step_id=compiled.id,
            item=scope.first_item + item.index,
        )
        if action.target.path_params:
            call.path_params.update(action.target.path_params)
        if action.target.route_params:
            call.route_params_json = encode(action.target.route_params)
        peer.call(call)

    def take(self, call_id: int) -> InFlight | None:
        """The call is over: return what it was for, once."""
        flight = self._calls.pop(call_id, None)
        if flight is not None:
            flight.peer.calls_in_flight -= 1
        return flight

    def find(self, call_id: int) -> InFlight | None:
        return self._calls.get(call_id)

    def cancel(self, step: StepRun) -> None:
        flight = self.take(step.call_id)
        if flight is not None:
            flight.peer.cancel(step.call_id)

    def ack(self, host_id: str, key: str, attempt: int) -> None:
        peer = self._peers.get(host_id)
        if peer is not None:
            peer.ack(key, attempt)

    def attach(self, run_id: str, partition: int, epoch: int) -> set[str]:
        """Ask every host what it holds for a partition; return the ids of those that were asked."""
        for peer in self._peers.values():
            peer.attach(run_id, partition, epoch)
        return set(self._peers)

    def forget(self, drive: Drive, *, cancel: bool = False) -> None:
        """Drop the calls of a run that is not driven here any more.

        The hosts keep them for its next owner, unless they are to be cancelled.
        """
        for call_id in [number for number, flight in self._calls.items() if flight.drive is drive]:
            flight = self.take(call_id)
            if cancel and flight is not None:
                flight.peer.cancel(call_id)

    def forget_all(self) -> None:
        """Drop every call, and what has not been sent: nothing of what this executor owned is its own any more."""
        self._calls.clear()
        self._queued.clear()
        for peer in self._peers.values():
            peer.calls_in_flight = 0
            peer.discard()

    def send_while(self, may_send: Callable[[], bool]) -> None:
        """Send frames only while this holds."""
        self._may_send = may_send
        for peer in self._peers.values():
            peer.may_send = may_send

    # --- calls that wait for a host -----------------------------------------------------------------------------------

    def _queue(self, queued: _Queued) -> None:
        self._queued.setdefault(queued.action.target.plugin, []).append(queued)
        if self._queue_timer is None:
            self._queue_timer = asyncio.get_running_loop().call_later(self._queue_timeout_s, self._expire)

    def _expire(self) -> None:
        """Give up the calls that have waited long enough."""
        now_s = self._now_s()
        late: list[_Queued] = []
        for plugin, queue in list(self._queued.items()):
            rest = [queued for queued in queue if queued.wanted]
            late += [queued for queued in rest if queued.until_s <= now_s]
            self._queued[plugin] = [queued for queued in rest if queued.until_s > now_s]
            if not self._queued[plugin]:
                del self._queued[plugin]
        self._queue_timer = None
        if self._queued:
            next_s = min(queue[0].until_s for queue in self._queued.values())
            self._queue_timer = asyncio.get_running_loop().call_later(max(0.001, next_s - now_s), self._expire)
        for queued in late:
            queued.drive.owner.safely(queued.drive, queued.drive.unreachable, queued.action)

    def close(self) -> None:
        """Stop the timer."""
        if self._queue_timer is not None:
            self._queue_timer.cancel()
            self._queue_timer = None

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _calls_in_flight(peer: Peer) -> int:
    return peer.calls_in_flight
