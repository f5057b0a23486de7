"""Results put together from parts, over every store: the text, what is read for it, and what is missing."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Any

import pytest
from support.result_parts import Composed, Part, PartsWriter

from stepflow.errors import DataLoss
from stepflow.journal import blob_reader
from stepflow.mesh.v1 import state_pb2
from stepflow.result_parts import CHUNK_BYTES, JOURNAL_VALUES_KEPT, parts_bytes, parts_of, read_parts
from stepflow.store import delete, keys, put
from stepflow.store.blobs import BlobStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from conftest import WithStore

    from stepflow.store import KeyValue, Store

    Change = Callable[[Store, PartsWriter, state_pb2.ResultParts], Awaitable[None]]


class Counted:
    """A store and blobs that note what is read."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._read_blob = blob_reader(store, blobs)
        self.read: list[str] = []

    async def get(self, key: str) -> KeyValue | None:
        self.read.append(key)
        return await self._store.get(key)

    async def blob(self, run_id: str, blob: str, *, shared: bool) -> bytes | None:
        self.read.append(blob)
        return await self._read_blob(run_id, blob, shared=shared)


async def written(store: Store, parts: list[Part], **options: Any) -> tuple[PartsWriter, state_pb2.ResultParts]:
    writer = PartsWriter(store, BlobStore.open("memory://"), **options)
    return writer, await writer.parts(Composed(parts))


async def chunks_of(writer: PartsWriter, parts: state_pb2.ResultParts, **options: Any) -> list[bytes]:
    read_blob = blob_reader(writer.store, writer.blobs)
    return [chunk async for chunk in read_parts(writer.store, read_blob, writer.run_id, 0, parts, **options)]


def random_parts(draw: random.Random) -> list[Part]:
    sources = [draw.randbytes(draw.randint(1, 60)) for _ in range(8)]
    parts = []
    for _ in range(draw.randint(1, 60)):
        source = draw.choice(sources)
        start, end = sorted(draw.sample(range(len(source) + 1), 2))
        parts.append(Part(draw.choice(("json", "journal", "blob")), source, start, end))
    return parts


def test_the_text_of_a_result_is_the_concatenation_of_its_parts_from_any_offset(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for seed in range(20):
            composed = random_parts(random.Random(seed))  # cases, no secrets
            text = Composed(composed).text
            writer, parts = await written(store, composed)
            for offset in {0, 1, len(text) // 2, len(text) - 1, len(text)} - {-1}:
                assert b"".join(await chunks_of(writer, parts, offset=offset)) == text[offset:], f"{seed=} {offset=}"

    with_store(scenario)


def test_all_chunks_but_the_last_have_one_mebibyte(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        large = bytes(range(256)) * 9_000
        small = [Part("journal", b"%05d" % number) for number in range(30)]
        writer, parts = await written(store, [*small, Part("blob", large), *small, Part("json", b"]")])
        chunks = await chunks_of(writer, parts)
        assert [len(chunk) for chunk in chunks] == [CHUNK_BYTES, CHUNK_BYTES, parts.bytes - 2 * CHUNK_BYTES]

    with_store(scenario)


def test_values_in_the_order_of_the_journal_are_read_once_and_blobs_while_parts_follow_each_other(
    with_store: WithStore,
) -> None:
    async def scenario(store: Store) -> None:
        sources = [b"source %d" % number for number in range(4 * JOURNAL_VALUES_KEPT)]
        halves = [Part("journal", source, start, end) for source in sources for start, end in ((0, 3), (3, None))]
        blobs = [Part("blob", b"first", 0, 2), Part("blob", b"first", 2), Part("blob", b"second")]
        writer, parts = await written(store, [*halves, *blobs], entries_per_value=2)
        counted = Counted(store, writer.blobs)

        text = b"".join([chunk async for chunk in read_parts(counted, counted.blob, writer.run_id, 0, parts)])
        assert text == b"".join(sources) + b"firstsecond"
        assert len(counted.read) == len(set(counted.read)) == len(sources) // 2 + 2

    with_store(scenario)


def test_a_skipped_part_is_not_read(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        writer, parts = await written(store, [Part("blob", b"gone"), Part("journal", b"kept")])
        counted = Counted(store, writer.blobs)
        chunks = read_parts(counted, counted.blob, writer.run_id, 0, parts, offset=5)
        assert [chunk async for chunk in chunks] == [b"ept"]
        assert counted.read == [keys.journal(writer.run_id, 0, 0)]

    with_store(scenario)


async def _delete_value(store: Store, writer: PartsWriter, _: state_pb2.ResultParts) -> None:
    await delete(store, keys.journal(writer.run_id, 0, 0))


async def _damage_value(store: Store, writer: PartsWriter, _: state_pb2.ResultParts) -> None:
    await put(store, keys.journal(writer.run_id, 0, 0), b"\xff\xff")


async def _delete_blob(_: Store, writer: PartsWriter, __: state_pb2.ResultParts) -> None:
    await writer.blobs.delete_scope(writer.run_id)


async def _refer_to_no_entry(_: Store, __: PartsWriter, parts: state_pb2.ResultParts) -> None:
    parts.parts[0].journal.index = 7


async def _refer_behind_the_entry(_: Store, __: PartsWriter, parts: state_pb2.ResultParts) -> None:
    parts.parts[0].journal.offset = 1


async def _refer_behind_the_blob(_: Store, __: PartsWriter, parts: state_pb2.ResultParts) -> None:
    parts.parts[1].blob.offset = 1


async def _lose_a_part(_: Store, __: PartsWriter, parts: state_pb2.ResultParts) -> None:
    parts.parts.add()  # of a kind that this version does not know
    parts.bytes += 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (_delete_value, "RESULT_MISSING"),
        (_delete_blob, "RESULT_MISSING"),
        (_damage_value, "RESULT_CORRUPT"),
        (_refer_to_no_entry, "RESULT_CORRUPT"),
        (_refer_behind_the_entry, "RESULT_CORRUPT"),
        (_refer_behind_the_blob, "RESULT_CORRUPT"),
        (_lose_a_part, "RESULT_CORRUPT"),
    ],
)
def test_what_is_missing_or_damaged_ends_the_reading(with_store: WithStore, change: Change, reason: str) -> None:
    async def scenario(store: Store) -> None:
        writer, parts = await written(store, [Part("journal", b"abc"), Part("blob", b"def")])
        assert await chunks_of(writer, parts) == [b"abcdef"]
        await change(store, writer, parts)
        with pytest.raises(DataLoss) as caught:
            await chunks_of(writer, parts)
        assert (caught.value.reason, caught.value.details["run_id"]) == (reason, writer.run_id)

    with_store(scenario)


def test_a_list_of_parts_in_a_blob_is_read_and_one_that_does_not_fit_is_refused(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        writer = PartsWriter(store, BlobStore.open("memory://"))
        read_blob = blob_reader(store, writer.blobs)
        result = await writer.item(0, Composed([Part("journal", b"abc"), Part("json", b"d")], listed_in_blob=True))
        assert parts_bytes(result) == 4
        assert await chunks_of(writer, await parts_of(read_blob, writer.run_id, result)) == [b"abcd"]

        result.parts_bytes = 5
        with pytest.raises(DataLoss, match="4 bytes instead of 5") as caught:
            await parts_of(read_blob, writer.run_id, result)
        assert caught.value.reason == "RESULT_CORRUPT"

        result.parts_blob = await writer.blobs.put(b"\xff\xff", scope=writer.run_id)
        with pytest.raises(DataLoss, match="cannot be read"):
            await parts_of(read_blob, writer.run_id, result)

        await writer.blobs.delete_scope(writer.run_id)
        with pytest.raises(DataLoss) as caught:
            await parts_of(read_blob, writer.run_id, result)
        assert caught.value.reason == "RESULT_MISSING"

    with_store(scenario)


def test_results_without_parts_have_no_length_of_parts() -> None:
    assert parts_bytes(state_pb2.ItemResult()) is None
    result = state_pb2.ItemResult()
    result.result.json = b"1"
    assert parts_bytes(result) is None
