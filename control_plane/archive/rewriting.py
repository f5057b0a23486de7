"""New segments from old ones: without the runs that were deleted, without journals, or several in one.

- A copied run keeps its bytes. Bodies are read and written in pieces: memory holds a few MiB.
- The new object is durable before one transaction puts its manifest and deletes the old ones. Then the old objects go;
  a reader that has looked into an old manifest looks again.
- A run without journals keeps its results: those that refer to journal entries are made whole first, large ones as
  blobs of the run.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from control_plane.archive.builder import SegmentBuilder
from control_plane.archive.format import decode_index, decode_list, object_name
from control_plane.archive.whole_results import refers_to_journal, whole_results
from stepflow.errors import NotFound
from stepflow.store import KeyValue, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from control_plane.archive.format import BodyPlace
    from control_plane.archive.led_segments import LedSegments
    from stepflow.mesh.v1 import segments_pb2 as pb
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

PIECE_BYTES = 4 * 1024 * 1024
"""Bytes of bodies read at once; also the bound on a body that is decoded whole."""

STRIPPED = (keys.JOURNAL, keys.INBOX, keys.STEPS)
"""The keys that go with the journals."""


async def rewrite(blobs: BlobStore, segments: LedSegments, sources: Sequence[str], *, strip: bool) -> str:
    """Replace segments by one new segment, and return its id. Each source has a run that is not removed.

    `strip`: leave out journals and inboxes.

    Raises: FailedPrecondition `NOT_LEADING`; DataLoss: a source is damaged or gone; StepflowError.
    """
    # 1. The new object.
    name = segments.new_id()
    builder = SegmentBuilder()

    async def chunks() -> AsyncIterator[bytes]:
        for source in sources:
            async for chunk in _Source(blobs, segments, source).copied(builder, strip):
                yield chunk
        yield await asyncio.to_thread(builder.finish)

    await blobs.objects.write(object_name(name), chunks())

    # 2. The manifests.
    manifest = builder.manifest()
    manifest.stripped = strip or all(segments.manifests[source].stripped for source in sources)
    await segments.change({name: manifest}, removed=sources)

    # 3. The old objects; after a crash they are orphans.
    for source in sources:
        await blobs.objects.delete(object_name(source))
    log.info("segments rewritten", segment=name, sources=len(sources), runs=manifest.runs, bytes=manifest.bytes)
    return name


async def listed_runs(blobs: BlobStore, segments: LedSegments, name: str) -> list[pb.ListedRun]:
    """Return the list entries of a segment without removed runs, in the order of lists.

    Raises: NotFound: the object is gone; DataLoss; Unavailable, FailedPrecondition.
    """
    tail = await segments.tail(name)
    if tail is None:
        raise NotFound("OBJECT_NOT_FOUND", f"there is no object {object_name(name)} in the blob store", name=name)
    removed = set(segments.manifests[name].removed)
    found: list[pb.ListedRun] = []
    for block in tail.lists:
        raw = await blobs.objects.read(object_name(name), block.offset, block.bytes)
        found += [listed for listed in decode_list(block, raw) if listed.number not in removed]
    return found


class _Source:
    """A segment that is being copied."""

    def __init__(self, blobs: BlobStore, segments: LedSegments, name: str) -> None:
        self._blobs = blobs
        self._segments = segments
        self._name = name

    async def copied(self, builder: SegmentBuilder, strip: bool) -> AsyncIterator[bytes]:
        """Add the runs to a segment, and yield its bytes."""
        tail = await self._segments.tail(self._name)
        listed = await listed_runs(self._blobs, self._segments, self._name)
        assert tail is not None
        builder.add_named(tail.named_blobs)
        added = builder.run_ids  # a run that was packed twice
        bodies = [(tail.body(each.number), each) for each in listed if each.run_id not in added]
        bodies.sort(key=lambda body: body[0].offset)
        for group in _pieces(bodies):
            first, last = group[0][0], group[-1][0]
            if last.offset + last.bytes - first.offset > PIECE_BYTES:
                ((place, each),) = group
                large = (
                    self._stripped_large(builder, place, each) if strip else self._copied_large(builder, place, each)
                )
                async for chunk in large:
                    yield chunk
                continue

            raw = await self._read(first.offset, last.offset + last.bytes - first.offset)
            for place, each in group:
                body = raw[place.offset - first.offset : place.offset - first.offset + place.bytes]
                if strip:
                    yield await self._stripped(builder, place, each, body)
                else:
                    builder.copy_run(each, place)
                    yield body

    async def _copied_large(
        self, builder: SegmentBuilder, place: BodyPlace, each: pb.ListedRun
    ) -> AsyncIterator[bytes]:
        builder.copy_run(each, place)
        for offset in range(place.offset, place.offset + place.bytes, PIECE_BYTES):
            yield await self._read(offset, min(PIECE_BYTES, place.offset + place.bytes - offset))

    async def _stripped(self, builder: SegmentBuilder, place: BodyPlace, each: pb.ListedRun, body: bytes) -> bytes:
        """Add a run that is in memory without its journals; return its bytes."""
        index = decode_index(each.run_id, place, body[-place.index_bytes :])
        items = list(index.key_values(body))
        kept = [item for item in items if not item.key.startswith(STRIPPED)]
        if any(item.key.startswith(keys.RESULTS) and refers_to_journal(item.value) for item in kept):
            by_key = {item.key: item.value for item in items}

            async def value_of(key: str) -> bytes | None:
                return by_key.get(key)

            kept = [await whole_results(item, value_of, self._blobs) for item in kept]
            return builder.add_run(each.run_id, kept, has_blobs=True)
        return builder.add_run(each.run_id, kept, has_blobs=each.has_blobs)

    async def _stripped_large(
        self, builder: SegmentBuilder, place: BodyPlace, each: pb.ListedRun
    ) -> AsyncIterator[bytes]:
        """Add a run without its journals, value by value."""
        raw = await self._read(place.index_offset, place.index_bytes)
        index = decode_index(each.run_id, place, raw)

        async def value_at(position: int) -> KeyValue:
            start, end = index.offsets[position : position + 2]
            value = await self._read(place.offset + start, end - start) if end > start else b""
            return index.key_value(position, value)

        async def value_of(key: str) -> bytes | None:
            position = index.find(key)
            return None if position is None else (await value_at(position)).value

        builder.begin_run(each.run_id, has_blobs=True)
        for position, key in enumerate(index.keys):
            if not key.startswith(STRIPPED):
                yield builder.add_items([await whole_results(await value_at(position), value_of, self._blobs)])
        yield builder.end_run()

    async def _read(self, offset: int, length: int) -> bytes:
        return await self._blobs.objects.read(object_name(self._name), offset, length)


def _pieces(bodies: Sequence[tuple[BodyPlace, pb.ListedRun]]) -> list[list[tuple[BodyPlace, pb.ListedRun]]]:
    """Group bodies that one read of `PIECE_BYTES` gets; a larger body is a group of its own."""
    groups: list[list[tuple[BodyPlace, pb.ListedRun]]] = []
    for place, each in bodies:
        if groups and place.offset + place.bytes - groups[-1][0][0].offset <= PIECE_BYTES:
            groups[-1].append((place, each))
        else:
            groups.append([(place, each)])
    return groups


__all__ = ["listed_runs", "rewrite"]
