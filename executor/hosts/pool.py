"""The executor's side of its streams to component hosts: which call is where, and what may be routed.

Owns the call ids, one outgoing frame per host that gathers within a turn of the loop, and the routing table made of
the mesh's rules and of what the hosts offer. A result, progress or call-back finds its step through here.

- A call goes to the host that holds it already, else to the one with the most credit.
- A call that no host takes now waits, the deeper ones before the others, each in the order of their coming: while a
  live host runs its plugin as long as it must, else up to `queue_timeout_s`.
- Nothing is sent while the executor's lease does not count as held: frames wait, and are dropped if it is lost.

Does not decide anything about a run.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from executor.hosts.peer import Peer, Send
from stepflow.codec import encode
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.routing.table import PluginComponents, RouteTable, Rule

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from executor.drive import Drive
    from stepflow.codec import Json
    from stepflow.routing.table import NoRoute, Target
    from stepflow.run import Dispatch, StepRun

QUEUE_TIMEOUT_S = 30.0
"""What a mesh waits for a host of a plugin that none runs just now: longer than a host takes to start again."""


@dataclass(slots=True, eq=False)
class InFlight:
    """A call that a host has. Keyed by call id."""

    drive: Drive
    step: StepRun
    attempt: int
    peer: Peer
    call: host_pb2.Call


@dataclass(slots=True, eq=False)
class _Queued:
    """A call that no host takes just now. `until_s` is of the loop's clock; it counts while no host runs the plugin."""

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
        self._queued: dict[tuple[str, int], deque[_Queued]] = {}
        """By plugin and depth, in order of time."""
        self._queue_timer: asyncio.TimerHandle | None = None
        self._known: dict[str, PluginComponents] = {}
        """What the plugins offered last, also those whose hosts are gone just now."""
        self._unheard_since: dict[str, float] = {}
        self._unheard_timer: asyncio.TimerHandle | None = None
        self._serial = 0
        self._starting: frozenset[str] = frozenset()
        self._table = RouteTable(rules, builtins)
        self._may_send: Callable[[], bool] = lambda: True
        self.changed: Callable[[], None] = lambda: None
        self.wanted: Callable[[str], None] = lambda _plugin: None
        """Called when a step waits for a plugin that is starting."""

    # --- routes -------------------------------------------------------------------------------------------------------

    def set_peer(self, peer: Peer, *, starting: frozenset[str] | None = None) -> None:
        """A host has joined, or offers something else now. `starting`: plugins whose components are not known yet."""
        if starting is not None:
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
        for number, flight in lost.items():
            del self._calls[number], flight.drive.calls[number]
        self._rebuild()
        return list(lost.values())

    def set_rules(self, rules: Mapping[str, Sequence[Rule]], builtins: Mapping[str, PluginComponents]) -> None:
        """The mesh's routes have changed (`Links` follows them). `builtins`: see the constructor."""
        self._rules = rules
        self._builtins = builtins
        self._rebuild()

    def _rebuild(self) -> None:
        ready: dict[str, list[Peer]] = {}
        failed: dict[str, list[Peer]] = {}
        starting: set[str] = set()
        for peer in self._peers.values():
            starting |= peer.starting
            for name, offered in peer.plugins.items():
                if name not in peer.failed:
                    self._known[name] = offered
                if not peer.draining:  # else nobody gets anything there: who has no other host waits as for none
                    (failed if name in peer.failed else ready).setdefault(name, []).append(peer)
        self._by_plugin = {**failed, **ready}  # who calls what failed everywhere, learns why
        unknown = {name: _FAILED for name in failed if name not in self._known}
        self._starting = frozenset((starting | self._unheard()) - set(self._by_plugin))
        self._table = RouteTable(self._rules, {**self._builtins, **unknown, **self._known})
        self._release()
        self.changed()

    def _unheard(self) -> set[str]:
        """Return the plugins of the rules that no host has offered yet, as long as one is waited for.

        What their components are called is not known: a step that was routed now might ask for the wrong one.
        """
        now_s = self._now_s() if self._queue_timeout_s else 0.0
        named = {rule.plugin for rules in self._rules.values() for rule in rules}
        unheard = named - self._known.keys() - self._builtins.keys() if self._queue_timeout_s else set()
        self._unheard_since = {name: self._unheard_since.get(name, now_s) for name in unheard}
        waited_for = {name for name, since_s in self._unheard_since.items() if now_s - since_s < self._queue_timeout_s}
        if waited_for and self._unheard_timer is None:
            self._unheard_timer = asyncio.get_running_loop().call_later(self._queue_timeout_s, self._stop_waiting)
        return waited_for

    def _stop_waiting(self) -> None:
        self._unheard_timer = None
        self._rebuild()

    def resolve(self, path: str, input: Json) -> Target | NoRoute | None:
        if self._starting and (met := self._starting & self._met(path)):
            for plugin in met:
                self.wanted(plugin)
            return None
        return self._table.resolve(path, input)

    def may_be_engine(self, path: str) -> bool:
        return self._table.may_be_engine(path)

    def _met(self, path: str) -> set[str]:
        """Return the plugins that a path may lead to."""
        prefix = "/" + path[1:].partition("/")[0]
        return {rule.plugin for rule in (*self._rules.get(prefix, ()), *self._rules.get("/", ()))}

    # --- calls --------------------------------------------------------------------------------------------------------

    def dispatch(self, drive: Drive, action: Dispatch, payload: pb.Payload, *, holder: str = "") -> bool:
        """Send a call to the host that holds it (`holder`), else to the one with most room, or let it wait for one.

        Return false when no host runs the plugin and none is waited for.
        """
        plugin = action.target.plugin
        if plugin not in self._by_plugin and not self._queue_timeout_s:
            return False
        place = (plugin, action.step.item.scope.depth)
        peer = self._peers.get(holder) if holder else None
        if peer is None and place not in self._queued:
            peer = self._with_room(*place)
        if peer is None:
            self._queue(place, _Queued(drive, action, payload, self._now_s() + self._queue_timeout_s))
        else:
            self._send(peer, drive, action, payload)
        return True

    def _with_room(self, plugin: str, depth: int) -> Peer | None:
        """Return the host that takes a call now, the one with most room if several do."""
        peers = self._by_plugin.get(plugin, ())
        if len(peers) > 1:
            return max((peer for peer in peers if peer.takes(depth)), key=_room, default=None)
        return peers[0] if peers and peers[0].takes(depth) else None

    def _send(self, peer: Peer, drive: Drive, action: Dispatch, payload: pb.Payload) -> None:
        step = action.step
        self._serial += 1
        step.note_sent(self._serial)
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
        flight = InFlight(drive, step, action.attempt, peer, call)
        self._calls[step.call_id] = drive.calls[step.call_id] = flight
        peer.call(call)

    def take(self, call_id: int) -> InFlight | None:
        """The call is over: return what it was for, once."""
        flight = self._calls.pop(call_id, None)
        if flight is not None:
            del flight.drive.calls[call_id]
            flight.peer.ended(flight.call.depth)
            if self._queued:
                self._release()
        return flight

    def find(self, call_id: int) -> InFlight | None:
        return self._calls.get(call_id)

    def cancel(self, step: StepRun) -> None:
        self._abort(step.call_id)

    def _abort(self, call_id: int) -> None:
        """Let the host stop a call.

        A cancel that is lost with its stream is not sent again; the acknowledgement is, and means the same to the host:
        nobody will ask for the result.
        """
        flight = self.take(call_id)
        if flight is not None:
            flight.peer.cancel(call_id)
            flight.peer.ack(flight.call.key, flight.call.attempt)

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
        for call_id in list(drive.calls):
            if cancel:
                self._abort(call_id)
            else:
                self.take(call_id)

    def forget_all(self) -> None:
        """Drop every call, and what has not been sent: nothing of what this executor owned is its own any more."""
        for flight in self._calls.values():
            flight.drive.calls.clear()
        self._calls.clear()
        self._queued.clear()
        for peer in self._peers.values():
            peer.discard()

    def send_while(self, may_send: Callable[[], bool]) -> None:
        """Send frames only while this holds."""
        self._may_send = may_send
        for peer in self._peers.values():
            peer.may_send = may_send

    # --- streams ------------------------------------------------------------------------------------------------------

    def calls_at(self, peer: Peer) -> list[host_pb2.Call]:
        """Return what is in flight at a host."""
        return [flight.call for flight in self._calls.values() if flight.peer is peer]

    def resume(self, peer: Peer, send: Send) -> None:
        """There is a stream to the host (again): what is in flight there is sent again, and joined."""
        peer.resume(send, self.calls_at(peer))
        self._release()

    def grant(self, peer: Peer, credits_total: int) -> None:
        """The host takes more calls."""
        peer.grant(credits_total)
        if self._queued:
            self._release()

    # --- calls that wait for a host -----------------------------------------------------------------------------------

    def _queue(self, place: tuple[str, int], queued: _Queued) -> None:
        self._queued.setdefault(place, deque()).append(queued)
        if self._queue_timer is None and self._queue_timeout_s:
            self._queue_timer = asyncio.get_running_loop().call_later(self._queue_timeout_s, self._expire)

    def _release(self) -> None:
        """Send what can be sent now."""
        for place in sorted(self._queued, key=_depth, reverse=True):
            queue = self._queued[place]
            while queue:
                peer = self._with_room(*place)
                if queue[0].wanted and peer is None:
                    break
                queued = queue.popleft()
                if queued.wanted and peer is not None:
                    self._send(peer, queued.drive, queued.action, queued.payload)
            if not queue:
                del self._queued[place]

    def _expire(self) -> None:
        """Give up the calls that have waited long enough for a host of their plugin."""
        self._queue_timer = None
        now_s = self._now_s()
        late: list[_Queued] = []
        for place, queue in list(self._queued.items()):
            hosted = place[0] in self._by_plugin
            rest: deque[_Queued] = deque()
            for queued in queue:
                if hosted:
                    queued.until_s = now_s + self._queue_timeout_s  # a busy host is waited for as long as it lives
                if queued.wanted and queued.until_s > now_s:
                    rest.append(queued)
                elif queued.wanted:
                    late.append(queued)
            if rest:
                self._queued[place] = rest
            else:
                del self._queued[place]
        if self._queued:
            next_s = min(queue[0].until_s for queue in self._queued.values())
            self._queue_timer = asyncio.get_running_loop().call_later(max(0.001, next_s - now_s), self._expire)
        for queued in late:
            queued.drive.owner.safely(queued.drive, queued.drive.unreachable, queued.action)

    def close(self) -> None:
        """Stop the timers."""
        for timer in (self._queue_timer, self._unheard_timer):
            if timer is not None:
                timer.cancel()
        self._queue_timer = self._unheard_timer = None

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()


def _room(peer: Peer) -> int:
    return peer.room


def _depth(place: tuple[str, int]) -> int:
    return place[1]


_FAILED = PluginComponents(complete=False)
"""Of a plugin that did not start anywhere: any path leads to its host, which says why."""


__all__ = ["Hosts", "InFlight", "Peer"]
