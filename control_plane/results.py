"""Results for clients: whole up to 16 MiB, and in chunks at any size.

- A result is inline, in a blob, in parts (`stepflow.result_parts`), or, of a partition that is replayed, composed.
- Memory is held for a result while it is whole. A call that streams holds memory for one blob at a time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.codec import PAYLOAD_BYTES_MAX, Json, LargeJson
from stepflow.errors import DataLoss
from stepflow.flow.values import Composed, Part, Stored, flat, size_of
from stepflow.result_parts import CHUNK_BYTES, in_chunks, parts_of, read_parts
from stepflow.rpc import call_memory

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from stepflow.journal import GetBlob
    from stepflow.mesh.v1 import state_pb2
    from stepflow.store import Store


@dataclass(frozen=True, slots=True)
class InParts(LargeJson):
    """A result in parts, none of which is loaded."""

    partition: int
    result: state_pb2.ItemResult


@dataclass(frozen=True, slots=True)
class ResultText:
    """The JSON text of a result. `chunks` is read once; `text_bytes` counts what `chunks` leaves out, too."""

    text_bytes: int
    chunks: AsyncGenerator[bytes]


class Results:
    """Reads results that are not in memory."""

    def __init__(self, store: Store, read_blob: GetBlob) -> None:
        self._store = store
        self._read_blob = read_blob

    async def load(self, run_id: str, result: Json | LargeJson, what: str = "a result") -> Json | LargeJson:
        """Return a result whole, once the call has memory for it; a larger one as a `LargeJson`. Raises: DataLoss."""
        match result:
            case Stored():
                return await self._stored(run_id, result, what)
            case Composed() | Part() if result.size > PAYLOAD_BYTES_MAX:
                return LargeJson(result.size)
            case Composed() | Part():
                await call_memory.hold(result.size)
                return Json(b"".join([chunk async for chunk in self._pieces(run_id, result, 0, what)]))
            case InParts() if result.text_bytes <= PAYLOAD_BYTES_MAX:
                await call_memory.hold(result.text_bytes)
                return Json(b"".join([chunk async for chunk in self._parts(run_id, result, 0)]))
            case InParts():
                return LargeJson(result.text_bytes)
            case _:
                return result

    async def text(self, run_id: str, result: Json | LargeJson, offset: int) -> ResultText:
        """Return the text of a result behind `offset`, in chunks. Raises: DataLoss."""
        if isinstance(result, InParts):
            return ResultText(result.text_bytes, self._parts(run_id, result, offset))
        if isinstance(result, (Composed, Part)):
            return ResultText(result.size, in_chunks(self._pieces(run_id, result, offset, "a result")))
        if isinstance(result, Stored):
            result = await self._stored(run_id, result, "a result")
        assert isinstance(result, Json)
        return ResultText(len(result.raw), _chunks(result.raw, offset))

    async def _pieces(self, run_id: str, result: Json, offset: int, what: str) -> AsyncGenerator[bytes]:
        """Yield the pieces of a composed result behind `offset`; memory is held for one of the stored ones."""
        held, kept = 0, ("", b"")
        for piece in flat(result):
            if offset >= (size := size_of(piece)):
                offset -= size
                continue

            source = piece.source if isinstance(piece, Part) else piece
            if isinstance(source, Stored) and not source.loaded:
                if kept[0] != source.blob:
                    call_memory.give_back(held)
                    kept = (source.blob, (await self._stored(run_id, source, what)).raw)
                    held = source.blob_bytes or PAYLOAD_BYTES_MAX
                start = piece.offset if isinstance(piece, Part) else 0
                text = kept[1][start : start + size]
            else:
                text = piece if isinstance(piece, bytes) else piece.raw
            yield text[offset:] if offset else text
            offset = 0
        call_memory.give_back(held)

    async def _stored(self, run_id: str, result: Stored, what: str) -> Json:
        if result.loaded:
            return Json(result.raw)
        await call_memory.hold(result.blob_bytes or PAYLOAD_BYTES_MAX)
        content = await self._read_blob(run_id, result.blob, shared=False)
        if content is None:
            raise DataLoss("RESULT_MISSING", f"{what} of run {run_id} is missing from the blob store")
        return Json(content)

    async def _parts(self, run_id: str, result: InParts, offset: int) -> AsyncGenerator[bytes]:
        listed, sources = _BlobByBlob(self._read_blob), _BlobByBlob(self._read_blob)
        parts = await parts_of(listed, run_id, result.result)
        async for chunk in read_parts(self._store, sources, run_id, result.partition, parts, offset=offset):
            yield chunk
        # A page has many results. After an error the call ends, and gives everything back.
        listed.give_back()
        sources.give_back()


class _BlobByBlob:
    """Reads blobs of which one is used at a time, and holds memory for that one."""

    def __init__(self, read_blob: GetBlob) -> None:
        self._read_blob = read_blob
        self._held = 0

    async def __call__(self, run_id: str, blob: str, *, shared: bool) -> bytes | None:
        self.give_back()
        self._held = await call_memory.hold()  # the size is not known
        content = await self._read_blob(run_id, blob, shared=shared)
        unused = self._held - len(content or b"")
        call_memory.give_back(unused)
        self._held -= max(0, unused)
        return content

    def give_back(self) -> None:
        """Give back the memory of the blob that was read last."""
        call_memory.give_back(self._held)
        self._held = 0


async def _chunks(text: bytes, offset: int) -> AsyncGenerator[bytes]:
    for start in range(offset, len(text), CHUNK_BYTES):
        yield text[start : start + CHUNK_BYTES]


__all__ = ["InParts", "ResultText", "Results"]
