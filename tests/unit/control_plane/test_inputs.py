"""The inputs of a run: in parts they become the same record as at once, and memory holds one partition."""

from __future__ import annotations

import asyncio
import hashlib
from typing import TYPE_CHECKING

import pytest

from control_plane import inputs as module
from control_plane.inputs import GivenInputs, InputCheck, RunInputs, StagedInputs, hash_inputs, in_parts, partition_size
from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import Invalid
from stepflow.flow import flow_from_tree
from stepflow.mesh.v1 import state_pb2
from stepflow.store.blobs import BlobStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.flow import Flow

RUN_ID = "0198f3c2-0000-7000-8000-000000000000"
MIB = 1024 * 1024


def text_of(size: int, letter: str = "x") -> bytes:
    return b'"' + letter.encode() * (size - 2) + b'"'


def numbered(count: int, size: int) -> list[bytes]:
    return [b'"%05d' % number + b"x" * (size - 7) + b'"' for number in range(count)]


SHAPES = {
    "none": [],
    "one": [b"1"],
    "many that fit the record": [b"%d" % number for number in range(5_000)],
    "more than the record": numbered(1_000, 1_000),
    "a partition exactly": numbered(64, 10_000),
    "a partition and one": numbered(65, 10_000),
    "small ones, then one that makes them too many": [*numbered(200, 100), text_of(300_000)],
    "halved partitions": numbered(70, MIB),
    "one as large as a value may be": [b"1", text_of(PAYLOAD_BYTES_MAX), b"2"],
    "one as large as a blob's array may hold": [b"1", text_of(PAYLOAD_BYTES_MAX - 2), b"2"],
}


async def stored(inputs: RunInputs) -> tuple[str, str]:
    """Store inputs as admission does; return the record, readable, and the hash."""
    record = state_pb2.RunRecord(items_per_partition=partition_size(inputs.lengths), items_total=len(inputs.lengths))
    digest = hashlib.sha256()
    await hash_inputs(digest, inputs)
    await inputs.store(record)
    return str(record), digest.hexdigest()


async def staged(blobs: BlobStore, texts: Sequence[bytes], part: int) -> StagedInputs:
    inputs = StagedInputs(blobs, RUN_ID)
    for start in range(0, len(texts), part):
        await inputs.add(texts[start : start + part])
    await inputs.finish()
    return inputs


@pytest.mark.parametrize("part", [1, 50, 10_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_inputs_in_parts_become_the_record_and_the_hash_of_inputs_given_at_once(shape: str, part: int) -> None:
    async def both() -> tuple[tuple[str, str], tuple[str, str]]:
        texts = SHAPES[shape]
        given = GivenInputs(BlobStore.open("memory://"), RUN_ID, texts)
        return await stored(given), await stored(await staged(BlobStore.open("memory://"), texts, part))

    given, in_parts_ = asyncio.run(both())
    assert in_parts_ == given


def test_memory_holds_one_partition_of_inputs_that_arrive_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    async def work() -> None:
        inputs = StagedInputs(BlobStore.open("memory://"), RUN_ID)
        for text in numbered(1_000, 50_000):
            await inputs.add([text])
            held.append(sum(map(len, inputs._waiting)))

    asyncio.run(work())
    assert max(held) <= 64 * 50_000


def test_the_record_names_the_blobs_of_partitions_that_were_staged() -> None:
    """The blobs that arrived are the partitions: nothing is written twice."""

    async def work() -> tuple[set[str], list[str]]:
        blobs = BlobStore.open("memory://")
        inputs = await staged(blobs, numbered(1_000, 10_000), 10)
        record = state_pb2.RunRecord(items_per_partition=64)
        await inputs.store(record)
        return set(await blobs.dates(RUN_ID)), list(record.partition_inputs)

    kept, named = asyncio.run(work())
    assert len(named) == 16
    assert kept == set(named)


def test_a_batch_that_mixes_many_items_with_large_ones_is_refused() -> None:
    lengths = [100] * 50_000 + [9 * MIB, 9 * MIB]
    with pytest.raises(Invalid, match="submit the large inputs as a batch of their own") as refused:
        partition_size(lengths)
    assert refused.value.reason == "TOO_MANY_ITEMS"


def flow_with_number() -> Flow:
    schema = {"type": "object", "properties": {"input": {"type": "integer"}}}
    return flow_from_tree({"schemas": schema, "output": {"$input": ""}})


def test_a_misfit_in_a_later_part_is_named_by_its_place_in_the_batch() -> None:
    check = InputCheck(flow_with_number(), schema=True)
    check.check([b"1", b"2"])
    with pytest.raises(Invalid, match="input 3 does not fit") as refused:
        check.check([b"3", b'"four"'])
    assert refused.value.details["item"] == 3


def test_the_number_of_items_is_counted_over_all_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RUN_ITEMS_MAX", 3)
    check = InputCheck(flow_with_number(), schema=False)
    check.check([b"1", b"2"])
    with pytest.raises(Invalid) as refused:
        check.check([b"3", b"4"])
    assert refused.value.reason == "TOO_MANY_ITEMS"


def test_parts_are_bounded_in_bytes_and_number() -> None:
    assert [len(part) for part in in_parts([b"1"] * 2_500)] == [1_000, 1_000, 500]
    assert [len(part) for part in in_parts([text_of(400_000)] * 5)] == [2, 2, 1]
    assert list(in_parts([])) == []
