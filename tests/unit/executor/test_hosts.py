"""What an executor tells a host of calls that it gives up."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

from executor.hosts.peer import Peer
from executor.hosts.pool import Hosts, InFlight
from stepflow.mesh.v1 import host_pb2


def test_a_call_that_is_cancelled_while_its_stream_is_away_is_let_go_with_the_next_one() -> None:
    """Cancels are not sent again: the host would work on to the end, and hold a result that nobody asks for."""

    async def main() -> None:
        hosts, peer = Hosts({}, {}), Peer("h", {}, metered=True)
        call = host_pb2.Call(call_id=1, key="run/0/a", attempt=2)
        step: Any = SimpleNamespace(call_id=1)
        drive: Any = SimpleNamespace(calls={})
        hosts._calls[1] = drive.calls[1] = InFlight(drive, step, 2, peer, call)
        hosts.cancel(step)
        assert drive.calls == {}
        sent: list[host_pb2.ExecutorFrame] = []
        hosts.resume(peer, sent.append)
        await asyncio.sleep(0)
        (frame,) = sent
        assert [(ack.key, ack.attempt) for ack in frame.acks][-1] == ("run/0/a", 2)
        assert not frame.calls

    asyncio.run(main())
