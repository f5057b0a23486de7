"""Results in parts: the JSON text of a result, read from the journal and the blobs of its run.

- The parts are `ResultParts`, in the item's result or in a blob of the run. They are concatenated and never decoded.
- Memory is bounded, however large the result: `JOURNAL_VALUES_KEPT` values of the journal, one blob, and one chunk.
  Values of the journal are read ahead, and reused while parts refer to them.
- Whatever is missing or does not fit ends the reading with `DataLoss`; a chunk that was yielded is right.

It never writes.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from typing import TYPE_CHECKING, Protocol

from google.protobuf.message import DecodeError

from stepflow.errors import DataLoss
from stepflow.mesh.v1 import journal_pb2, state_pb2
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Sequence

    from stepflow.store import KeyValue


class ValueReader(Protocol):
    """The part of a store that is read."""

    async def get(self, key: str) -> KeyValue | None: ...


class BlobReader(Protocol):
    """Loads a blob of a run, as `stepflow.journal.GetBlob`; None if it does not exist."""

    async def __call__(self, run_id: str, blob: str, *, shared: bool) -> bytes | None: ...


CHUNK_BYTES = 1024 * 1024
"""Size of the chunks; the last one of a result is smaller."""

JOURNAL_VALUES_KEPT = 16
"""Values of the journal in memory, of up to 256 KiB each."""

READ_AHEAD_VALUES = 8
"""Values of the journal that are read together."""

READ_AHEAD_PARTS = 512
"""Parts that are searched for the next values."""


def parts_bytes(result: state_pb2.ItemResult) -> int | None:
    """Return the length of a result in parts; None for another outcome."""
    match result.WhichOneof("outcome"):
        case "parts":
            return result.parts.bytes
        case "parts_blob":
            return result.parts_bytes
        case _:
            return None


async def parts_of(get_blob: BlobReader, run_id: str, result: state_pb2.ItemResult) -> state_pb2.ResultParts:
    """Return the parts of a result, from its blob if they are there. Raises: DataLoss."""
    if result.HasField("parts"):
        return result.parts

    content = await get_blob(run_id, result.parts_blob, shared=False)
    if content is None:
        raise _missing(run_id, f"the list of parts of item {result.item}, blob {result.parts_blob},")
    try:
        parts = state_pb2.ResultParts.FromString(content)
    except DecodeError:
        raise _corrupt(run_id, f"the list of parts of item {result.item} cannot be read") from None
    if parts.bytes != result.parts_bytes:
        raise _corrupt(
            run_id, f"the parts of item {result.item} have {parts.bytes:,} bytes instead of {result.parts_bytes:,}"
        )
    return parts


async def read_parts(
    store: ValueReader,
    get_blob: BlobReader,
    run_id: str,
    partition: int,
    parts: state_pb2.ResultParts,
    *,
    offset: int = 0,
) -> AsyncGenerator[bytes]:
    """Yield the text of a result behind `offset`, in chunks of `CHUNK_BYTES`.

    Raises:
        DataLoss: `RESULT_MISSING`, `RESULT_CORRUPT`.
    """
    sources = _Sources(store, get_blob, run_id, partition)

    async def pieces() -> AsyncGenerator[memoryview]:
        total = 0
        for index, part in enumerate(parts.parts):
            length = _length(part)
            total += length
            if offset < total:
                piece = memoryview(await sources.piece(parts.parts, index))
                yield piece[max(0, offset - (total - length)) :]
        if total != parts.bytes:
            raise _corrupt(run_id, f"its parts have {total:,} bytes instead of {parts.bytes:,}")

    async for chunk in in_chunks(pieces()):
        yield chunk


async def in_chunks(pieces: AsyncIterator[bytes | memoryview]) -> AsyncGenerator[bytes]:
    """Yield a text that comes in pieces of any size in chunks of `CHUNK_BYTES`."""
    chunk = bytearray()
    async for piece in pieces:
        rest = memoryview(piece)
        while rest:
            room = CHUNK_BYTES - len(chunk)
            chunk += rest[:room]
            rest = rest[room:]
            if len(chunk) == CHUNK_BYTES:
                yield bytes(chunk)
                chunk.clear()
    if chunk:
        yield bytes(chunk)


def _length(part: state_pb2.ResultPart) -> int:
    match part.WhichOneof("kind"):
        case "json":
            return len(part.json)
        case "journal":
            return part.journal.length
        case "blob":
            return part.blob.length
        case _:  # of a later version: the total will not fit
            return 0


class _Sources:
    """What the parts of one result refer to, as far as it is in memory."""

    def __init__(self, store: ValueReader, get_blob: BlobReader, run_id: str, partition: int) -> None:
        self._store = store
        self._get_blob = get_blob
        self._run_id = run_id
        self._partition = partition
        self._values: OrderedDict[int, journal_pb2.EntryBatch] = OrderedDict()
        """Values of the journal by the number of their first entry, the one used last at the end."""
        self._blob = ("", b"")
        """The blob used last: its id, and its content."""

    async def piece(self, parts: Sequence[state_pb2.ResultPart], index: int) -> bytes | memoryview:
        """Return the bytes of a part. Raises: DataLoss."""
        part = parts[index]
        match part.WhichOneof("kind"):
            case "journal":
                if part.journal.first_seq not in self._values:
                    await self._read_ahead(parts, index)
                source = self._result(part.journal.first_seq, part.journal.index)
                return self._cut(source, part.journal.offset, part.journal.length)
            case "blob":
                source = await self._content(part.blob.blob)
                return self._cut(source, part.blob.offset, part.blob.length)
            case _:
                return part.json

    def _cut(self, source: bytes, offset: int, length: int) -> memoryview:
        if offset + length > len(source):
            raise _corrupt(
                self._run_id, f"a result refers to bytes {offset:,} to {offset + length:,} of {len(source):,}"
            )
        return memoryview(source)[offset : offset + length]

    async def _content(self, blob: str) -> bytes:
        if self._blob[0] != blob:
            self._blob = ("", b"")  # Before the read: else two blobs would be in memory.
            content = await self._get_blob(self._run_id, blob, shared=False)
            if content is None:
                raise _missing(self._run_id, f"blob {blob}")
            self._blob = (blob, content)
        return self._blob[1]

    async def _read_ahead(self, parts: Sequence[state_pb2.ResultPart], index: int) -> None:
        """Read the value of a part, with the values of the next parts."""
        wanted: dict[int, None] = {}
        for part in parts[index : index + READ_AHEAD_PARTS]:
            if part.HasField("journal") and part.journal.first_seq not in self._values:
                wanted[part.journal.first_seq] = None
                if len(wanted) == READ_AHEAD_VALUES:
                    break

        async def read(first_seq: int) -> tuple[int, KeyValue | None]:
            return first_seq, await self._store.get(keys.journal(self._run_id, self._partition, first_seq))

        for first_seq, found in await asyncio.gather(*map(read, wanted)):
            if found is None:
                raise _missing(self._run_id, f"entry {first_seq} of partition {self._partition}")
            try:
                self._values[first_seq] = journal_pb2.EntryBatch.FromString(found.value)
            except DecodeError:
                raise _corrupt(self._run_id, f"entries from {first_seq} on cannot be read") from None
        while len(self._values) > JOURNAL_VALUES_KEPT:
            self._values.popitem(last=False)

    def _result(self, first_seq: int, index: int) -> bytes:
        """Return the inline result of an entry."""
        self._values.move_to_end(first_seq)
        entries = self._values[first_seq].entries
        if index >= len(entries) or not entries[index].step_completed.result.json:
            raise _corrupt(
                self._run_id, f"a result refers to entry {first_seq + index}, which has no result of its own"
            )
        return entries[index].step_completed.result.json


def _missing(run_id: str, what: str) -> DataLoss:
    return DataLoss("RESULT_MISSING", f"{what} is missing: a result of run {run_id} refers to it", run_id=run_id)


def _corrupt(run_id: str, problem: str) -> DataLoss:
    return DataLoss("RESULT_CORRUPT", f"a result of run {run_id} cannot be put together: {problem}", run_id=run_id)


__all__ = ["CHUNK_BYTES", "in_chunks", "parts_bytes", "parts_of", "read_parts"]
