"""The executor's side of its streams to component hosts: which call is where, and what may be routed.

Owns the call ids, one outgoing frame per host that gathers within a turn of the loop, and the routing table made of
the mesh's rules and of what the hosts offer. A result, progress or call-back finds its step through here.
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


class Peer:
    """One host. `send` takes a whole frame; the frames of one turn of the loop are gathered into one."""

    def __init__(self, host_id: str, plugins: Mapping[str, PluginComponents]) -> None:
        self.id = host_id
        self.plugins = plugins
        self.send: Send | None = None
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

    def attach(self, run_id: str, epoch: int) -> None:
        if not self._frame.attaches:
            self._frame.attaches.add()
        self._frame.attaches[0].runs.add(run_id=run_id, epoch=epoch)
        self._schedule()

    def reply(self, reply: host_pb2.CallbackReply) -> None:
        self._frame.replies.append(reply)
        self._schedule()

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        frame, self._frame = self._frame, host_pb2.ExecutorFrame()
        if self.send is not None:
            self.send(frame)


@dataclass(slots=True)
class InFlight:
    """A call that a host has. Keyed by call id."""

    drive: Drive
    step: StepRun
    attempt: int
    peer: Peer


class Hosts:
    """All hosts of the mesh, as this executor knows them. Implements the engine's `Routes`."""

    def __init__(self, rules: Mapping[str, Sequence[Rule]], builtins: Mapping[str, PluginComponents]) -> None:
        self._rules = rules
        self._builtins = builtins
        """What needs no host: the plugins whose components the engine runs itself."""
        self._peers: dict[str, Peer] = {}
        self._by_plugin: dict[str, list[Peer]] = {}
        self._calls: dict[int, InFlight] = {}
        self._serial = 0
        self._starting: frozenset[str] = frozenset()
        self._table = RouteTable(rules, builtins)
        self.changed: Callable[[], None] = lambda: None

    # --- routes -------------------------------------------------------------------------------------------------------

    def set_peer(self, peer: Peer, *, starting: frozenset[str] = frozenset()) -> None:
        """A host has joined, or offers something else now. `starting`: plugins whose components are not known yet."""
        self._peers[peer.id] = peer
        self._starting = starting
        plugins = dict(self._builtins)
        self._by_plugin = {}
        for each in self._peers.values():
            for name, offered in each.plugins.items():
                plugins[name] = offered
                self._by_plugin.setdefault(name, []).append(each)
        self._table = RouteTable(self._rules, plugins)
        self.changed()

    def resolve(self, path: str, input: Json) -> Target | NoRoute | None:  # noqa: A002  the engine's word
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

    def dispatch(self, drive: Drive, action: Dispatch, payload: pb.Payload) -> str:
        """Send a call to the best host and return that host's id; empty when no host runs the plugin."""
        peers = self._by_plugin.get(action.target.plugin)
        if not peers:
            return ""
        peer = peers[0]
        step = action.step
        self._serial += 1
        step.call_id = self._serial
        self._calls[self._serial] = InFlight(drive, step, action.attempt, peer)
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
        return peer.id

    def take(self, call_id: int) -> InFlight | None:
        """The call is over: return what it was for, once."""
        return self._calls.pop(call_id, None)

    def find(self, call_id: int) -> InFlight | None:
        return self._calls.get(call_id)

    def cancel(self, step: StepRun) -> None:
        flight = self._calls.pop(step.call_id, None)
        if flight is not None:
            flight.peer.cancel(step.call_id)

    def ack(self, host_id: str, key: str, attempt: int) -> None:
        peer = self._peers.get(host_id)
        if peer is not None:
            peer.ack(key, attempt)

    def attach(self, run_id: str, epoch: int) -> int:
        """Ask every host what it holds for a run; return how many were asked."""
        for peer in self._peers.values():
            peer.attach(run_id, epoch)
        return len(self._peers)

    def forget(self, drive: Drive) -> None:
        """Drop the calls of a run that is not ours any more; the hosts keep them for its next owner."""
        for call_id in [number for number, flight in self._calls.items() if flight.drive is drive]:
            del self._calls[call_id]
