"""Results that refer to journal entries, made independent of the journal before the journal goes.

The parts that lie in the journal become JSON text in place; long texts become blobs of the run. Parts that lie in blobs
stay as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
from google.protobuf.message import DecodeError

from stepflow.errors import DataLoss, NotFound
from stepflow.mesh.v1 import journal_pb2, state_pb2
from stepflow.store import KeyValue, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

TEXT_INLINE_BYTES_MAX = 32 * 1024
"""A longer text between two other parts becomes a blob."""

BLOB_BYTES = 4 * 1024 * 1024
"""Size of the blobs that a long text becomes."""

PARTS_INLINE_BYTES_MAX = 256 * 1024
"""A longer list of parts becomes a blob."""


def refers_to_journal(value: bytes) -> bool:
    """Return True if the results of a partition have parts. What cannot be decoded refers to nothing."""
    try:
        results = state_pb2.PartitionResults.FromString(value)
    except DecodeError:
        return False
    return any(item.WhichOneof("outcome") in ("parts", "parts_blob") for item in results.items)


async def whole_results(
    item: KeyValue, value_of: Callable[[str], Awaitable[bytes | None]], blobs: BlobStore
) -> KeyValue:
    """Return a key-value of a run without references to the journal; others than results as they are.

    `value_of`: returns the value of a key of the run. A result of which something is missing stays as it is.

    Raises: Unavailable, FailedPrecondition, of the blob store.
    """
    if not item.key.startswith(keys.RESULTS) or not refers_to_journal(item.value):
        return item

    run_id, partition = keys.parse_results(item.key)
    results = state_pb2.PartitionResults.FromString(item.value)
    for each in results.items:
        try:
            await _make_whole(each, _WholeResult(run_id, partition, value_of, blobs), blobs, run_id)
        except (DataLoss, NotFound, DecodeError) as error:  # it could not be read before either
            log.error("a result stays incomplete", run_id=run_id, item=each.item, error=str(error))
    return msgspec.structs.replace(item, value=results.SerializeToString())


async def _make_whole(each: state_pb2.ItemResult, made: _WholeResult, blobs: BlobStore, run_id: str) -> None:
    kind = each.WhichOneof("outcome")
    if kind == "parts":
        parts = each.parts
    elif kind == "parts_blob":
        parts = state_pb2.ResultParts.FromString((await blobs.get(each.parts_blob, scope=run_id))[0])
    else:
        return
    if not any(part.HasField("journal") for part in parts.parts):
        return

    whole = await made.made_of(parts)
    packed = whole.SerializeToString()
    if len(packed) > PARTS_INLINE_BYTES_MAX:
        each.parts_blob = await blobs.put(packed, scope=run_id)
        each.parts_bytes = whole.bytes
    else:
        each.parts.CopyFrom(whole)


class _WholeResult:
    """Collects the text of one result."""

    def __init__(
        self, run_id: str, partition: int, value_of: Callable[[str], Awaitable[bytes | None]], blobs: BlobStore
    ) -> None:
        self._run_id = run_id
        self._partition = partition
        self._value_of = value_of
        self._blobs = blobs
        self._text = bytearray()
        self._made = state_pb2.ResultParts()
        self._batch: tuple[int, journal_pb2.EntryBatch] | None = None
        """The journal value read last: neighbouring parts often lie in one."""

    async def made_of(self, parts: state_pb2.ResultParts) -> state_pb2.ResultParts:
        self._made.bytes = parts.bytes
        for part in parts.parts:
            match part.WhichOneof("kind"):
                case "json":
                    self._text += part.json
                case "journal":
                    self._text += await self._of_journal(part.journal)
                case _:  # a blob, or of a kind that a later version knows
                    await self._flush()
                    self._made.parts.append(part)
            while len(self._text) >= BLOB_BYTES:
                await self._put(BLOB_BYTES)
        await self._flush()
        return self._made

    async def _of_journal(self, part: state_pb2.JournalPart) -> bytes:
        if self._batch is None or self._batch[0] != part.first_seq:
            value = await self._value_of(keys.journal(self._run_id, self._partition, part.first_seq))
            if value is None:
                raise self._missing(part)
            self._batch = part.first_seq, journal_pb2.EntryBatch.FromString(value)
        entries = self._batch[1].entries
        if part.index >= len(entries):
            raise self._missing(part)
        text: bytes = entries[part.index].step_completed.result.json[part.offset : part.offset + part.length]
        if len(text) != part.length:
            raise self._missing(part)
        return text

    async def _flush(self) -> None:
        if len(self._text) > TEXT_INLINE_BYTES_MAX:
            await self._put(len(self._text))
        elif self._text:
            self._made.parts.add(json=bytes(self._text))
            self._text.clear()

    async def _put(self, size: int) -> None:
        blob = await self._blobs.put(bytes(self._text[:size]), scope=self._run_id)
        self._made.parts.add(blob=state_pb2.BlobPart(blob=blob, length=size))
        del self._text[:size]

    def _missing(self, part: state_pb2.JournalPart) -> DataLoss:
        return DataLoss(
            "RESULT_MISSING",
            f"a result of run {self._run_id} is incomplete: journal entry {part.first_seq}+{part.index} is missing",
            run_id=self._run_id,
        )


__all__ = ["refers_to_journal", "whole_results"]
