"""Results that refer to the journal, before the journal goes."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from control_plane.archive import whole_results as module
from control_plane.archive.whole_results import refers_to_journal, whole_results
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import KeyValue, keys
from stepflow.store.blobs import BlobStore

RUN = "r"
ANSWERS = [b'"%s"' % (b"%d" % number * 50) for number in range(4)]


def journal() -> dict[str, bytes]:
    """Return two values of a journal, with two results each."""
    values = {}
    for first in (0, 2):
        entries = [
            pb.Entry(step_completed=pb.StepCompleted(result=pb.Payload(json=answer)))
            for answer in ANSWERS[first : first + 2]
        ]
        values[keys.journal(RUN, 0, first)] = pb.EntryBatch(entries=entries).SerializeToString()
    return values


def part(number: int, offset: int = 0, length: int = 0) -> state_pb2.ResultPart:
    found = state_pb2.JournalPart(
        first_seq=number // 2 * 2, index=number % 2, offset=offset, length=length or len(ANSWERS[number]) - offset
    )
    return state_pb2.ResultPart(journal=found)


def results(*items: state_pb2.ItemResult) -> KeyValue:
    return KeyValue(keys.results(RUN, 0), state_pb2.PartitionResults(items=items).SerializeToString(), 1, 2, 3)


def made_whole(item: KeyValue, blobs: BlobStore, values: dict[str, bytes]) -> state_pb2.PartitionResults:
    async def value_of(key: str) -> bytes | None:
        return values.get(key)

    async def work() -> KeyValue:
        return await whole_results(item, value_of, blobs)

    made = asyncio.run(work())
    assert (made.key, made.create_revision, made.mod_revision, made.version) == (item.key, 1, 2, 3)
    return state_pb2.PartitionResults.FromString(made.value)


def text_of(parts: state_pb2.ResultParts, blobs: BlobStore) -> bytes:
    async def work() -> bytes:
        text = b""
        for each in parts.parts:
            assert not each.HasField("journal")
            if each.HasField("blob"):
                content = (await blobs.get(each.blob.blob, scope=RUN))[0]
                text += content[each.blob.offset : each.blob.offset + each.blob.length]
            else:
                text += each.json
        return text

    return asyncio.run(work())


@pytest.fixture
def blobs() -> BlobStore:
    return BlobStore.open("memory://")


def parts_of(blobs: BlobStore) -> tuple[state_pb2.ResultParts, bytes]:
    """Return a result with a part of each kind, and its text."""
    stored = asyncio.run(blobs.put(b"xx[5]xx", scope=RUN))
    made = [
        state_pb2.ResultPart(json=b"["),
        part(0),
        state_pb2.ResultPart(json=b","),
        part(3),
        state_pb2.ResultPart(json=b","),
        state_pb2.ResultPart(blob=state_pb2.BlobPart(blob=stored, offset=2, length=3)),
        state_pb2.ResultPart(json=b',"'),
        part(1, 5, 7),
        state_pb2.ResultPart(json=b'"]'),
    ]
    text = b"[" + ANSWERS[0] + b"," + ANSWERS[3] + b',[5],"' + ANSWERS[1][5:12] + b'"]'
    return state_pb2.ResultParts(parts=made, bytes=len(text)), text


@pytest.mark.parametrize("sizes", [(32_768, 4_194_304), (10, 64)])
def test_a_result_in_parts_has_the_same_text_without_the_journal(
    blobs: BlobStore, sizes: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TEXT_INLINE_BYTES_MAX", sizes[0])
    monkeypatch.setattr(module, "BLOB_BYTES", sizes[1])
    parts, text = parts_of(blobs)
    plain = state_pb2.ItemResult(item=1, result=pb.Payload(json=b"7"))
    whole = made_whole(results(state_pb2.ItemResult(parts=parts), plain), blobs, journal())
    assert text_of(whole.items[0].parts, blobs) == text
    assert whole.items[0].parts.bytes == len(text)
    assert whole.items[1] == plain


def test_a_list_of_parts_in_a_blob_becomes_another_one(blobs: BlobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARTS_INLINE_BYTES_MAX", 10)
    parts, text = parts_of(blobs)
    stored = asyncio.run(blobs.put(parts.SerializeToString(), scope=RUN))
    item = results(state_pb2.ItemResult(parts_blob=stored, parts_bytes=len(text)))
    assert refers_to_journal(item.value)
    found = made_whole(item, blobs, journal()).items[0]
    assert found.parts_bytes == len(text)
    raw = asyncio.run(blobs.get(found.parts_blob, scope=RUN))[0]
    assert text_of(state_pb2.ResultParts.FromString(raw), blobs) == text


def test_other_results_and_damaged_ones_stay_as_they_are(blobs: BlobStore) -> None:
    plain = results(state_pb2.ItemResult(result=pb.Payload(json=b"1")))
    assert not refers_to_journal(plain.value)
    parts, _ = parts_of(blobs)
    damaged: list[Any] = [
        state_pb2.ItemResult(parts=parts),
        state_pb2.ItemResult(parts_blob="0" * 64),
    ]
    for item in (plain, results(damaged[0]), results(damaged[1])):
        assert made_whole(item, blobs, {}).SerializeToString() == item.value
