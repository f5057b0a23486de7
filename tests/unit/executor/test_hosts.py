"""Messages from an executor to a host about calls that it gives up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from executor.hosts.caller import InFlight
from executor.hosts.peer import HostPeer
from executor.hosts.pool import HostPool
from stepflow.mesh.v1 import host_pb2


class _Caller:
    """A partition; the pool asks nothing of it here."""


def test_a_call_that_is_cancelled_while_its_stream_is_away_is_let_go_with_the_next_one() -> None:
    """Cancels are not resent: the host would finish the call and hold a result without an acknowledgement."""

    async def main() -> None:
        hosts: HostPool[Any] = HostPool({}, {})
        peer = HostPeer("h", {}, metered=True)
        call = host_pb2.Call(call_id=1, key="run/0/a", attempt=2)
        step: Any = SimpleNamespace(call_id=1)
        caller: Any = _Caller()
        hosts.keep_call(InFlight(caller, step, 2, peer, call))
        hosts.cancel_call(step.call_id)
        assert hosts._by_caller[caller] == {}
        sent: list[host_pb2.ExecutorFrame] = []
        hosts.resume_peer(peer, sent.append)
        await asyncio.sleep(0)
        (frame,) = sent
        assert [(ack.key, ack.attempt) for ack in frame.acks][-1] == ("run/0/a", 2)
        assert not frame.calls

    asyncio.run(main())


def test_dropping_a_caller_leaves_nothing_of_it_in_the_pool() -> None:
    async def main() -> None:
        hosts: HostPool[Any] = HostPool({}, {})
        peer = HostPeer("h", {}, metered=True)
        callers: list[Any] = [_Caller(), _Caller()]
        step: Any = SimpleNamespace()
        for call_id, caller in enumerate([callers[0], callers[1], callers[0]], start=1):
            hosts.keep_call(InFlight(caller, step, 1, peer, host_pb2.Call(call_id=call_id)))
        hosts.drop_caller(callers[0])
        hosts.drop_caller(callers[0])
        assert list(hosts._by_caller) == [callers[1]]
        assert [call.call_id for call in hosts.calls_at(peer)] == [2]

    asyncio.run(main())
