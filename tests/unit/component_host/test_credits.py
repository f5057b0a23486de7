"""Credits: the host's side alone, then with executors' peers that obey its grants."""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

import pytest

from component_host.credits import Account, Credits
from executor.hosts.peer import HostPeer
from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from collections.abc import Callable


def none() -> int:
    return 0


def test_a_single_stream_gets_half_of_the_capacity_ahead_and_all_of_it_under_load() -> None:
    credit = Credits(10)
    account = credit.open_account(lambda: 10)
    credit.share(0)
    assert account.granted == 5
    account.received = 5
    credit.share(5)
    assert account.granted == 10
    account.received = 10
    assert credit.share(10) == []
    assert account.granted == 10


def test_what_ends_is_given_again() -> None:
    credit = Credits(4)
    account = credit.open_account(lambda: 4)
    credit.share(0)
    account.received = 2
    credit.share(2)
    account.received = 4
    credit.share(4)
    assert account.unused == 0
    credit.share(3)
    assert account.unused == 1


def test_an_idle_stream_has_a_credit_although_another_one_uses_all_of_the_capacity() -> None:
    credit = Credits(1)
    busy, idle = credit.open_account(lambda: 1), credit.open_account(none)
    credit.share(0)
    busy.received = 1
    credit.share(1)
    assert idle.unused == 1
    assert busy.unused == 0


def test_credits_of_a_stream_that_closed_are_free_again() -> None:
    credit = Credits(4)
    gone, stays = credit.open_account(none), credit.open_account(none)
    credit.share(0)
    assert (gone.unused, stays.unused) == (1, 1)
    credit.close_account(gone)
    credit.share(0)
    assert stays.unused == 2


def test_calls_that_are_joined_again_are_counted_but_take_nothing_from_what_follows() -> None:
    credit = Credits(10)
    account = credit.open_account(lambda: 7)
    account.received = 7  # before anything was granted: an executor came back with what it had in flight
    credit.share(7)
    assert account.granted == 10
    assert account.unused == 3


@pytest.mark.parametrize("seed", range(20))
def test_never_more_calls_than_the_capacity_are_in_flight_and_all_are_made(seed: int) -> None:
    """Peers and credits play against each other in a random order; what is told may arrive late."""

    async def scenario() -> None:
        chance = random.Random(seed)
        capacity = chance.randint(1, 20)
        credit = Credits(capacity)
        streams = [_Stream(credit) for _ in range(chance.randint(1, 4))]
        waiting = {stream: chance.randint(0, 60) for stream in streams}
        for _ in range(100_000):
            if not any(waiting.values()) and not any(stream.on_the_way or stream.running for stream in streams):
                break
            stream = chance.choice(streams)
            chance.choice(_moves(stream, waiting, lambda: sum(each.running for each in streams)))()
            busy = sum(each.running for each in streams)
            assert busy <= capacity + len(streams) - 1
        assert not any(waiting.values())

    asyncio.run(scenario())


class _Stream:
    def __init__(self, credit: Credits) -> None:
        self.credit = credit
        self.running = 0
        self.on_the_way = 0
        self.told = 0
        self.account: Account = credit.open_account(lambda: self.running)
        self.peer = HostPeer("h", {}, metered=True)
        self.peer.send = lambda _: None


def _moves(stream: _Stream, waiting: dict[_Stream, int], busy: Callable[[], int]) -> list[Callable[[], None]]:
    def send() -> None:
        if waiting[stream] and stream.peer.can_take(0):
            waiting[stream] -= 1
            stream.on_the_way += 1
            stream.peer.send_call(host_pb2.Call())

    def arrive() -> None:
        if stream.on_the_way:
            stream.on_the_way -= 1
            stream.running += 1
            stream.account.received += 1
            stream.credit.share(busy())

    def end() -> None:
        if stream.running:
            stream.running -= 1
            stream.peer.end_call(0)
            stream.credit.share(busy())

    def tell() -> None:
        stream.credit.share(busy())
        stream.peer.grant_credits(stream.account.granted)

    return [send, arrive, end, tell]


# --- the executor's side ----------------------------------------------------------------------------------------------


def peer(granted: int) -> HostPeer:
    made = HostPeer("h", {}, metered=True)
    made.send = lambda _: None
    made.grant_credits(granted)
    return made


def test_a_peer_takes_as_many_calls_as_it_was_granted() -> None:
    async def scenario() -> None:
        host = peer(2)
        host.send_call(host_pb2.Call())
        assert host.can_take(0)
        host.send_call(host_pb2.Call())
        assert not host.can_take(0)
        host.end_call(0)
        assert not host.can_take(0)  # the host says when there is room again
        host.grant_credits(3)
        assert host.can_take(0)

    asyncio.run(scenario())


def test_a_full_peer_takes_one_deeper_call_for_each_call_above_it() -> None:
    async def scenario() -> None:
        host = peer(2)
        for _ in range(2):
            host.send_call(host_pb2.Call())
        for _ in range(2):
            assert host.can_take(1)
            host.send_call(host_pb2.Call(depth=1))
        assert not host.can_take(1)
        assert host.can_take(2)
        host.end_call(1)
        assert host.can_take(1)

    asyncio.run(scenario())


def test_a_full_peer_takes_one_deeper_call_also_when_its_parent_is_elsewhere() -> None:
    async def scenario() -> None:
        host = peer(0)
        assert host.can_take(3)
        host.send_call(host_pb2.Call(depth=3))
        assert not host.can_take(3)

    asyncio.run(scenario())


def test_a_peer_without_a_stream_or_that_drains_takes_nothing() -> None:
    host = peer(5)
    host.draining = True
    assert not host.can_take(0)
    host.draining = False
    assert host.can_take(0)
    host.interrupt()
    assert not host.can_take(0)


def test_acknowledgements_and_questions_wait_for_the_stream_and_calls_in_flight_are_sent_again() -> None:
    async def scenario() -> None:
        host = HostPeer("h", {}, metered=True)
        host.ack_result("k", 1)
        host.ask_held("run", 0, 5)
        host.reply(host_pb2.CallbackReply(callback_id=9))
        host.send_call(host_pb2.Call(call_id=3))
        frames: list[host_pb2.ExecutorFrame] = []
        host.resume(frames.append, [host_pb2.Call(call_id=3)])
        await asyncio.sleep(0)
        (frame,) = frames
        assert {ack.key for ack in frame.acks} == {"k"}
        assert frame.attaches[0].runs[0].run_id == "run"
        assert [call.call_id for call in frame.calls] == [3]
        assert not frame.replies

    asyncio.run(scenario())


def test_acknowledgements_on_the_way_when_the_stream_broke_are_sent_again() -> None:
    async def scenario() -> None:
        host = peer(5)
        host.ack_result("k", 2)
        await asyncio.sleep(0)
        host.interrupt()
        frames: list[host_pb2.ExecutorFrame] = []
        host.resume(frames.append, [])
        await asyncio.sleep(0)
        assert [(ack.key, ack.attempt) for ack in frames[0].acks] == [("k", 2)]

    asyncio.run(scenario())
