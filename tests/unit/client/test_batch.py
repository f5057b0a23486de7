"""The inputs of a batch in the client: bounded messages, and the same inputs again after a break."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, closing
from typing import TYPE_CHECKING, Any

import pytest

from stepflow.client.batch import MESSAGE_BYTES, MESSAGE_ITEMS, BatchInputs
from stepflow.codec import Json, decode
from stepflow.errors import Invalid
from stepflow.mesh.v1 import runs_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

RUN = runs_pb2.SubmitRunRequest(run_id="r")
COUNT = 2_500


def numbers() -> Iterator[int]:
    yield from range(COUNT)


async def later_numbers() -> AsyncIterator[int]:
    for number in range(COUNT):
        await asyncio.sleep(0)
        yield number


async def some(batch: BatchInputs, count: int) -> list[Any]:
    """Read the first inputs, and break off."""
    found: list[Any] = []
    async with aclosing(batch.texts()) as texts:
        async for text in texts:
            found.append(decode(text))
            if len(found) == count:
                break
    return found


@pytest.mark.parametrize("make", [lambda: list(range(COUNT)), lambda: range(COUNT), numbers, later_numbers])
def test_inputs_begin_again_after_a_break_whatever_they_come_from(make: Callable[[], Any]) -> None:
    async def work() -> list[list[Any]]:
        with closing(BatchInputs(make())) as batch:
            return [
                await some(batch, 10),
                await some(batch, 1_000),
                await some(batch, 500),
                await some(batch, COUNT + 1),
            ]

    ten, thousand, less, whole = asyncio.run(work())
    assert (ten, thousand, less, whole) == (
        list(range(10)),
        list(range(1_000)),
        list(range(500)),
        list(range(COUNT)),
    )


def test_an_iterator_is_read_once_and_only_as_far_as_needed() -> None:
    taken: list[int] = []

    def counting() -> Iterator[int]:
        for number in range(100):
            taken.append(number)
            yield number

    async def work() -> None:
        with closing(BatchInputs(counting())) as batch:
            await some(batch, 10)
            await some(batch, 10)
            assert taken == list(range(10))
            await some(batch, 101)

    asyncio.run(work())
    assert taken == list(range(100))


def test_messages_are_the_request_the_inputs_and_their_number() -> None:
    async def work(values: list[Any]) -> list[runs_pb2.SubmitBatchRequest]:
        with closing(BatchInputs(values)) as batch:
            return [message async for message in batch.messages(RUN)]

    small = asyncio.run(work(list(range(COUNT))))
    assert [message.WhichOneof("kind") for message in small] == ["run", "inputs", "inputs", "inputs", "end"]
    assert max(len(message.inputs.inputs) for message in small) == MESSAGE_ITEMS
    assert [decode(value.json) for message in small for value in message.inputs.inputs] == list(range(COUNT))
    assert small[-1].end.items_total == COUNT

    large = asyncio.run(work(["x" * 300_000] * 20))
    assert max(message.ByteSize() for message in large) < MESSAGE_BYTES + 301_000
    assert len(large) == 7


def test_a_batch_fits_one_message_or_is_none() -> None:
    async def work(bytes_max: int) -> list[bytes] | None:
        with closing(BatchInputs(numbers())) as batch:
            return await batch.up_to(bytes_max)

    assert asyncio.run(work(1_000)) is None
    assert asyncio.run(work(100_000)) == [b"%d" % number for number in range(COUNT)]


def test_checked_json_is_sent_as_it_is_and_a_bad_value_is_named() -> None:
    async def work(value: Any) -> list[bytes] | None:
        with closing(BatchInputs([1, value])) as batch:
            return await batch.up_to(1_000)

    assert asyncio.run(work(Json(b"1.10"))) == [b"1", b"1.10"]
    with pytest.raises(Invalid, match="input 1 is not JSON"):
        asyncio.run(work(object()))
