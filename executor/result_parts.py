"""Results of a partition's items in parts: references to its journal and blobs, and the text in between.

Each byte of a result is stored once: the journal and the blobs of the run hold nearly all of it. Only the text between
them is written, in the list itself or, where it is long, in blobs. Of a list that would grow beyond `LIST_BYTES_MAX`
the rest is copied into blobs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX
from stepflow.flow.values import REFERENCE_BYTES_MIN, Journaled, Part, Stored, flat
from stepflow.mesh.v1 import state_pb2

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.blobs import RunBlobs
    from stepflow.codec import Json

LIST_BYTES_MAX = PAYLOAD_BYTES_MAX // 2
"""Length of the list of parts from which on journaled texts are copied."""

TEXT_BYTES_MAX = PAYLOAD_BYTES_MAX // 2
"""Length of a text to gather before it becomes a blob."""

SHORT_TEXT_BYTES_MAX = 128
"""Longest text in a list that has reached `LIST_BYTES_MAX`."""

PIECES_PER_TURN = 5_000
"""Pieces listed before the event loop serves other runs."""

PART_BYTES = 24
"""Estimate of a reference in the list; of one to a blob, in addition to the blob's id."""


async def result_parts(
    value: Json, run_id: str, blobs: RunBlobs, value_of: Callable[[int], tuple[int, int]]
) -> state_pb2.ResultParts:
    """Return the parts of a value. `value_of`: first entry and index within the journal's value of an entry.

    Raises: StepflowError.
    """
    listing = _Listing(run_id, blobs, value_of)
    for count, piece in enumerate(flat(value)):
        await listing.add(piece)
        if count % PIECES_PER_TURN == PIECES_PER_TURN - 1:
            await asyncio.sleep(0)
    await listing.end_text()
    listing.parts.bytes = value.size
    return listing.parts


class _Listing:
    """The list so far, and the text that belongs behind it."""

    def __init__(self, run_id: str, blobs: RunBlobs, value_of: Callable[[int], tuple[int, int]]) -> None:
        self.parts = state_pb2.ResultParts()
        self._run_id = run_id
        self._blobs = blobs
        self._value_of = value_of
        self._bytes = 0
        self._texts: list[bytes] = []
        self._text_bytes = 0

    async def add(self, piece: bytes | Json) -> None:
        """List a piece of the value."""
        if isinstance(piece, bytes):
            await self._add_text(piece)
            return

        source = piece.source if isinstance(piece, Part) else piece
        offset = piece.offset if isinstance(piece, Part) else 0
        match source:
            case Stored():
                if source.pending:
                    await self._blobs.put_blob(self._run_id, source.raw)
                await self.end_text()
                part = state_pb2.BlobPart(blob=source.blob, offset=offset, length=piece.size)
                self.parts.parts.add(blob=part)
                self._bytes += PART_BYTES + len(source.blob)
            case Journaled() if piece.size >= REFERENCE_BYTES_MIN and self._bytes < LIST_BYTES_MAX:
                await self.end_text()
                first_seq, index = self._value_of(source.entry)
                at = state_pb2.JournalPart(first_seq=first_seq, index=index, offset=offset, length=piece.size)
                self.parts.parts.add(journal=at)
                self._bytes += PART_BYTES
            case _:
                await self._add_text(piece.raw)

    async def end_text(self) -> None:
        """List the text gathered so far. Idempotent."""
        if not self._texts:
            return
        text = b"".join(self._texts)
        self._texts, self._text_bytes = [], 0

        if len(text) > (INLINE_BYTES_MAX if self._bytes < LIST_BYTES_MAX else SHORT_TEXT_BYTES_MAX):
            blob = await self._blobs.put_blob(self._run_id, text)
            self.parts.parts.add(blob=state_pb2.BlobPart(blob=blob, length=len(text)))
            self._bytes += PART_BYTES + len(blob)
        else:
            self.parts.parts.add(json=text)
            self._bytes += PART_BYTES + len(text)

    async def _add_text(self, text: bytes) -> None:
        if self._text_bytes + len(text) > TEXT_BYTES_MAX:
            await self.end_text()
        self._texts.append(text)
        self._text_bytes += len(text)


__all__ = ["result_parts"]
