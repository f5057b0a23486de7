"""Outgoing frames: merged, split, bounded."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async

from stepflow.errors import Overloaded
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.rpc import frames
from stepflow.rpc.frames import FRAME_BYTES_MAX, FrameQueue, pump, split

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 10))


def acks(*keys: str) -> host_pb2.ExecutorFrame:
    return host_pb2.ExecutorFrame(acks=[host_pb2.Ack(key=key, attempt=1) for key in keys])


def call(number: int, size: int) -> host_pb2.Call:
    return host_pb2.Call(call_id=number, input=pb.Payload(json=b"1" * size))


def read(encoded: bytes) -> host_pb2.ExecutorFrame:
    return host_pb2.ExecutorFrame.FromString(encoded)


def test_frames_that_gather_go_out_as_one_in_their_order() -> None:
    async def scenario() -> None:
        queue = FrameQueue()
        queue.put(acks("a"))
        queue.put(acks("b", "c"))
        queue.put(host_pb2.ExecutorFrame(calls=[call(1, 10)]))
        frame = read(await queue.take_frame())
        assert [ack.key for ack in frame.acks] == ["a", "b", "c"]
        assert [each.call_id for each in frame.calls] == [1]

    run(scenario())


def test_of_scalars_that_grow_the_last_one_counts_in_a_joined_frame() -> None:
    async def scenario() -> None:
        queue = FrameQueue()
        queue.put(host_pb2.HostFrame(hello=host_pb2.HostHello(host_id="h")))
        queue.put(host_pb2.HostFrame(credits=3))
        queue.put(host_pb2.HostFrame(credits=8))
        queue.put(host_pb2.HostFrame(results=[host_pb2.CallResult(call_id=1)]))
        frame = host_pb2.HostFrame.FromString(await queue.take_frame())
        assert (frame.hello.host_id, frame.credits, len(frame.results)) == ("h", 8, 1)

    run(scenario())


def test_a_joined_frame_is_not_larger_than_the_limit() -> None:
    async def scenario() -> None:
        queue = FrameQueue()
        for number in range(100):
            queue.put(host_pb2.ExecutorFrame(calls=[call(number, 30_000)]))
        numbers: list[int] = []
        while len(numbers) < 100:
            encoded = await queue.take_frame()
            assert len(encoded) <= FRAME_BYTES_MAX
            numbers += [each.call_id for each in read(encoded).calls]
        assert numbers == list(range(100))

    run(scenario())


def test_a_large_frame_is_split_between_its_elements_and_nothing_is_lost() -> None:
    frame = host_pb2.ExecutorFrame(hello=host_pb2.Hello(executor_id="e"), calls=[call(n, 30_000) for n in range(100)])
    frame.acks.extend(acks("a", "b").acks)
    pieces = split(frame)
    assert len(pieces) > 2
    assert all(len(piece) <= FRAME_BYTES_MAX for piece in pieces)
    assert read(b"".join(pieces)) == frame
    assert read(pieces[0]).hello.executor_id == "e"
    assert not any(read(piece).HasField("hello") for piece in pieces[1:])


def test_a_single_element_above_the_limit_goes_alone() -> None:
    frame = host_pb2.ExecutorFrame(calls=[call(1, 2 * FRAME_BYTES_MAX), call(2, 10)])
    pieces = [read(piece) for piece in split(frame)]
    assert [[each.call_id for each in piece.calls] for piece in pieces] == [[1], [2]]


def test_a_frame_may_be_changed_after_it_was_put() -> None:
    async def scenario() -> None:
        queue = FrameQueue()
        frame = acks("a")
        queue.put(frame)
        frame.Clear()
        assert [ack.key for ack in read(await queue.take_frame()).acks] == ["a"]

    run(scenario())


def test_while_one_frame_is_written_the_next_gathers() -> None:
    async def scenario() -> None:
        queue = FrameQueue()
        written: list[list[str]] = []
        may_go_on = asyncio.Event()

        async def write(encoded: bytes) -> None:
            written.append([ack.key for ack in read(encoded).acks])
            await may_go_on.wait()

        pumping = asyncio.create_task(pump(queue, write))
        queue.put(acks("a"))
        await wait_until_async(lambda: len(written) == 1, "the first frame is being written")
        queue.put(acks("b"))
        queue.put(acks("c"))
        may_go_on.set()
        await wait_until_async(lambda: len(written) == 2, "the next frame is being written")
        assert written == [["a"], ["b", "c"]]
        pumping.cancel()

    run(scenario())


def test_a_queue_that_nobody_reads_is_broken_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "QUEUE_BYTES_MAX", 1_000)

    async def scenario() -> None:
        queue = FrameQueue()
        for _ in range(20):
            queue.put(host_pb2.ExecutorFrame(calls=[call(1, 100)]))
        assert queue.overrun
        with pytest.raises(Overloaded):
            await queue.take_frame()

    run(scenario())


def test_a_queue_that_is_read_never_overruns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "QUEUE_BYTES_MAX", 1_000)

    async def scenario() -> None:
        queue = FrameQueue()
        for _ in range(100):
            queue.put(host_pb2.ExecutorFrame(calls=[call(1, 400)]))
            await queue.take_frame()
        assert not queue.overrun

    run(scenario())
