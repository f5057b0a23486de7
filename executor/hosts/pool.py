"""All component hosts of an executor: the calls in flight, and the choice of a host for the next call.

Owns the call ids and the calls in flight, indexed by id and by caller. A result, progress or call-back finds its call
here.

- A call goes to the host that holds the call already, else to the host with the most credit.
- A call without a free host waits (`queue`); a component without any host is waited for up to `queue_timeout_s`.
- Nothing is sent while the executor's lease does not count as held: frames wait, and a lost lease drops them.

Decides nothing about a run. Knows its callers by the `Caller` protocol only.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic

from executor.hosts.caller import C, InFlight
from executor.hosts.peer import HostPeer, Send
from executor.hosts.queue import CallQueue
from executor.hosts.routes import HostRoutes
from stepflow.codec import encode
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.secrets import is_marked, marked_texts

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from stepflow.routing.table import PluginComponents, Rule
    from stepflow.run import Dispatch
    from stepflow.run.scope import Item

QUEUE_TIMEOUT_S = 30.0
"""How long a mesh waits for a host of a plugin that none runs now: longer than the restart of a host."""


SECRETS_MAX = 1_000
"""Marked values of a run that travel with each of its calls; with more of them, hosts keep no log lines."""

SECRET_CHARS_MAX = 64 * 1024
"""Length of these values together."""


class HostPool(Generic[C]):
    """The hosts by id, and the calls in flight. The callbacks `on_…` are set by the executor."""

    def __init__(
        self,
        rules: Mapping[str, Sequence[Rule]],
        builtins: Mapping[str, PluginComponents],
        *,
        queue_timeout_s: float = 0.0,
    ) -> None:
        """`builtins` need no host: plugins with components run by the engine.

        `queue_timeout_s` 0: all hosts are known, so a plugin without a host is unreachable at once.
        """
        self.routes = HostRoutes(rules, builtins, unheard_timeout_s=queue_timeout_s, on_timeout=self._rebuild)
        self.queue: CallQueue[C] = CallQueue(self.routes, self.send_call, timeout_s=queue_timeout_s)
        self.on_routes_changed: Callable[[], None] = lambda: None
        self._queue_timeout_s = queue_timeout_s
        self._peers: dict[str, HostPeer] = {}
        self._calls: dict[int, InFlight[C]] = {}
        self._by_caller: dict[C, dict[int, InFlight[C]]] = {}
        """The same calls, by caller: dropping one of ten thousand runs must not scan all calls."""
        self._serial = 0
        self._may_send: Callable[[], bool] = lambda: True

    # --- hosts --------------------------------------------------------------------------------------------------------

    def set_peer(self, peer: HostPeer, *, starting: frozenset[str] | None = None) -> None:
        """Add a host, or take over a changed offer. `starting`: plugins with components not known yet."""
        if starting is not None:
            peer.starting = starting
        peer.may_send = self._may_send
        self._peers[peer.id] = peer
        self._rebuild()

    def remove_peer(self, host_id: str) -> list[InFlight[C]]:
        """Remove a lost host; return the calls lost with the host. The callers must be told."""
        peer = self._peers.pop(host_id, None)
        if peer is None:
            return []
        lost = {number: flight for number, flight in self._calls.items() if flight.peer is peer}
        for number, flight in lost.items():
            del self._calls[number], self._by_caller[flight.caller][number]
        self._rebuild()
        return list(lost.values())

    def set_rules(self, rules: Mapping[str, Sequence[Rule]], builtins: Mapping[str, PluginComponents]) -> None:
        """Replace the mesh's routes (`HostLinks` follows them). `builtins`: see the constructor."""
        self.routes.rules = rules
        self.routes.builtins = builtins
        self._rebuild()

    def send_while(self, may_send: Callable[[], bool]) -> None:
        """Send frames only while `may_send` returns True."""
        self._may_send = may_send
        for peer in self._peers.values():
            peer.may_send = may_send

    def resume_peer(self, peer: HostPeer, send: Send) -> None:
        """Use a new stream to a host: the calls in flight there are sent again, and joined."""
        peer.resume(send, self.calls_at(peer))
        self.queue.release()

    def grant_credits(self, peer: HostPeer, credits_total: int) -> None:
        """Take over the credits of a host, and send the waiting calls that fit."""
        peer.grant_credits(credits_total)
        if self.queue.waiting:
            self.queue.release()

    def close(self) -> None:
        """Stop the timers."""
        self.queue.close()
        self.routes.close()

    def _rebuild(self) -> None:
        if self.routes.rebuild(self._peers.values()):
            self.queue.regroup()
        self.queue.release()
        self.on_routes_changed()

    # --- calls --------------------------------------------------------------------------------------------------------

    def dispatch(self, caller: C, action: Dispatch, payload: pb.Payload, *, holder: str = "") -> bool:
        """Send a call to the host holding the call (`holder`), else to the host with the most room, or queue the call.

        Return False when no host offers the component and none is waited for.
        """
        group = self.routes.group_of(action.target)
        if group not in self.routes.by_group and not self._queue_timeout_s:
            return False

        key = (group, action.step.item.scope.depth)
        peer = self._peers.get(holder) if holder else None
        if peer is None and key not in self.queue.waiting:  # else it would overtake the calls that wait
            peer = self.routes.find_room(*key)

        if peer is None:
            self.queue.add_call(key, caller, action, payload)
        else:
            self.send_call(peer, caller, action, payload)
        return True

    def send_call(self, peer: HostPeer, caller: C, action: Dispatch, payload: pb.Payload) -> None:
        """Send a call to a host under a new call id."""
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
            epoch=caller.epoch,
            partition=caller.partition,
            depth=scope.depth,
            timeout_ms=compiled.timeout_ms or 0,
            idle_timeout_ms=compiled.idle_timeout_ms or 0,
            root_run_id=caller.run_id,
            run_id=scope.run_id,
            flow_id=caller.flow_id if scope.parent is None else "",
            step_id=compiled.id,
            step_index=step.index,
            item=scope.first_item + item.index,
        )
        if is_marked(item):
            name_secrets(call, item)
        else:
            call.secrets_complete = True
        if action.target.path_params:
            call.path_params.update(action.target.path_params)
        if action.target.route_params:
            call.route_params_json = encode(action.target.route_params)

        self.keep_call(InFlight(caller, step, action.attempt, peer, call))
        peer.send_call(call)

    def keep_call(self, flight: InFlight[C]) -> None:
        """Index a call in flight."""
        call_id = flight.call.call_id
        self._calls[call_id] = flight
        calls = self._by_caller.get(flight.caller)
        if calls is None:
            calls = self._by_caller[flight.caller] = {}
        calls[call_id] = flight

    def find_call(self, call_id: int) -> InFlight[C] | None:
        return self._calls.get(call_id)

    def take_call(self, call_id: int) -> InFlight[C] | None:
        """Remove and return an ended call; None if the call was taken already or its run was dropped."""
        flight = self._calls.pop(call_id, None)
        if flight is not None:
            del self._by_caller[flight.caller][call_id]
            flight.peer.end_call(flight.call.depth)
            if self.queue.waiting:
                self.queue.release()
        return flight

    def cancel_call(self, call_id: int) -> None:
        """Ask the host to stop a call, and forget the call. Idempotent.

        A cancel lost with its stream is not sent again. The acknowledgement is, with the same meaning to the host: the
        result will not be asked for.
        """
        flight = self.take_call(call_id)
        if flight is not None:
            flight.peer.cancel_call(call_id)
            flight.peer.ack_result(flight.call.key, flight.call.attempt)

    def ack_result(self, host_id: str, key: str, attempt: int) -> None:
        """Let a host drop a held result."""
        peer = self._peers.get(host_id)
        if peer is not None:
            peer.ack_result(key, attempt)

    def ask_held(self, run_id: str, partition: int, epoch: int) -> set[str]:
        """Ask every host for the held calls of a partition; return the ids of the hosts asked."""
        for peer in self._peers.values():
            peer.ask_held(run_id, partition, epoch)
        return set(self._peers)

    def calls_at(self, peer: HostPeer) -> list[host_pb2.Call]:
        """Return the calls in flight at a host."""
        return [flight.call for flight in self._calls.values() if flight.peer is peer]

    def has_calls(self, caller: C) -> bool:
        """Return True if a call of a partition is at a host."""
        return bool(self._by_caller.get(caller))

    def drop_caller(self, caller: C, *, cancel: bool = False) -> None:
        """Drop the calls of a partition no longer driven here.

        The hosts keep the calls for the next owner, unless `cancel` is set.
        """
        calls = self._by_caller.get(caller)
        if calls is None:
            return
        for call_id in list(calls):
            if cancel:
                self.cancel_call(call_id)
            else:
                self.take_call(call_id)
        if not calls:
            del self._by_caller[caller]

    def drop_all(self) -> None:
        """Drop every call and all unsent frames: the executor has lost the right to act for its runs."""
        self._calls.clear()
        self._by_caller.clear()
        self.queue.clear()
        for peer in self._peers.values():
            peer.discard()


def name_secrets(call: host_pb2.Call, item: Item) -> None:
    """Name the marked values of a run, which the host must remove from log lines."""
    texts = marked_texts(item)
    if texts is not None and len(texts) <= SECRETS_MAX and sum(map(len, texts)) <= SECRET_CHARS_MAX:
        call.secrets.extend(sorted(texts))
        call.secrets_complete = True


__all__ = ["QUEUE_TIMEOUT_S", "HostPeer", "HostPool", "InFlight"]
