"""The lists of steps of packed runs: rows in the order of the list, so that a page is a bounded read.

- The packer adds them to the body of a run, for partitions of at least `INDEXED_ENTRIES` entries. A page of a shorter
  one is replayed in a few milliseconds.
- Rows tell what a replay tells. What they lack, a reader replays: results that would take more room than
  the partition itself, and partitions that could not be replayed when they were packed.
- They go with the journal.

The layout: `docs/reference/segments.md`.
"""

from __future__ import annotations

import asyncio
import zlib
from bisect import bisect_left
from contextlib import aclosing
from functools import partial
from itertools import accumulate
from operator import attrgetter
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError

from control_plane.archive.format import decode_step_index, decode_steps
from control_plane.paging import PAGE_BYTES_MAX
from control_plane.replay.process import ReplayLost
from control_plane.replay.read_rows import in_parts, step_view
from control_plane.replay.replays import StepsRead
from control_plane.results import InParts
from stepflow.codec import PAYLOAD_BYTES_MAX, Json, LargeJson
from stepflow.errors import DataLoss, FailedPrecondition, Unavailable
from stepflow.journal import parse_record, partition_count
from stepflow.mesh.v1 import journal_pb2, state_pb2
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.store import keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping

    from control_plane.archive.reader import Archive, PackedRun
    from control_plane.archive.run_store import RunStore
    from control_plane.replay.replays import KeptPartition, Replays
    from stepflow.run.views import StepView
    from stepflow.store import KeyValue

_T = TypeVar("_T")

log = get_logger(__name__)

INDEXED_ENTRIES = 256
"""Entries of a journal that is too long to replay for a page."""

ENTRY_BYTES_MIN = 16
"""Least size of an entry about a step, so that short values need not be decoded to count theirs."""

CHUNK_ROWS = 64
"""Rows that are read at once, with results of up to 2 MiB."""

CHUNKS_AT_ONCE = 4
"""Chunks that are read together."""

ROOM_BYTES = 1024 * 1024
"""Least room for composed results of a partition, see `_room`."""


class StepIndexReader:
    """Reads the steps of one run for one page."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self.partitions_total = 0
        """Partitions of the run; 0 if no list of its steps is packed."""
        self._store = store
        self._run_id = run_id
        self._partitions: dict[int, pb.PartitionSteps] = {}

    async def open(self) -> None:
        """Find the lists of steps. Raises: DataLoss."""

        async def read(packed: PackedRun) -> pb.StepIndex | None:
            return await _index_of(self._store.archive, packed)

        index = await self._from_archive(read)
        if index is not None:
            self.partitions_total = index.partitions_total
            self._partitions = {each.partition: each for each in index.partitions}

    async def steps(self, partition: int, start: int, count: int, *, with_results: bool) -> StepsRead | None:
        """Return steps of a partition, in the order of lists; None if they must be replayed. Raises: DataLoss.

        `with_results`: until the page is full (`PAGE_BYTES_MAX`), so they may be fewer than `count`.
        """
        if partition not in self._partitions:
            return None

        async def read(packed: PackedRun) -> StepsRead | None:
            index = await _index_of(self._store.archive, packed)
            found = None if index is None else next((p for p in index.partitions if p.partition == partition), None)
            if index is None or found is None:
                return None
            steps = _PackedSteps(self._store.archive, packed, index, found)
            return await steps.page(start, count, with_results=with_results)

        return await self._from_archive(read)

    async def _from_archive(self, read: Callable[[PackedRun], Awaitable[_T | None]]) -> _T | None:
        return await self._store.in_archive(self._run_id, lambda: self._store.archive.of_packed(self._run_id, read))


class _PackedSteps:
    """The list of steps of one partition."""

    def __init__(self, archive: Archive, packed: PackedRun, index: pb.StepIndex, steps: pb.PartitionSteps) -> None:
        self._archive = archive
        self._packed = packed
        self._steps = steps
        begin = packed.place.step_index_offset - index.bytes + steps.offset
        sizes = (*steps.chunk_bytes, *(text.bytes for text in steps.texts))
        self._offsets = [*accumulate(sizes, initial=begin)]
        """In the object: of each chunk, then of each text."""

    async def page(self, start: int, count: int, *, with_results: bool) -> StepsRead | None:
        end = min(start + count, self._steps.rows_total)
        views: list[StepView] = []
        room = PAGE_BYTES_MAX

        async with aclosing(self._rows(start, end)) as rows:
            async for row in rows:
                view = step_view(row, self._steps.partition, with_result=with_results)
                if type(view.outcome) is LargeJson and view.outcome.text_bytes <= PAYLOAD_BYTES_MAX:
                    text = await self._text(start + len(views))
                    if text is None:
                        return None
                    view.outcome = text

                views.append(view)
                room -= _result_bytes(view.outcome)
                if room <= 0:
                    break
        return StepsRead(views, start + len(views) < self._steps.rows_total)

    async def _rows(self, start: int, end: int) -> AsyncGenerator[pb.StepRow]:
        """Yield the rows from `start` to before `end`."""
        per_chunk = self._steps.rows_per_chunk
        chunks = range(start // per_chunk, -(-end // per_chunk) if start < end else 0)
        for group in range(chunks.start, chunks.stop, CHUNKS_AT_ONCE):
            numbers = range(group, min(group + CHUNKS_AT_ONCE, chunks.stop))
            for number, chunk in zip(numbers, await asyncio.gather(*map(self._chunk, numbers)), strict=True):
                first = number * per_chunk
                for row in chunk.rows[max(0, start - first) : end - first]:
                    yield row

    async def _chunk(self, number: int) -> pb.StepRows:
        decode = partial(decode_steps, pb.StepRows, self._steps.chunk_crc32s[number])
        return await self._archive.part(self._packed, self._offsets[number], self._steps.chunk_bytes[number], decode)

    async def _text(self, row: int) -> InParts | None:
        """Return a long result of a row; None if the list does not have it."""
        texts = self._steps.texts
        number = bisect_left(texts, row, key=attrgetter("row"))
        if number == len(texts) or texts[number].row != row:
            return None
        text, offset = texts[number], self._offsets[len(self._steps.chunk_bytes) + number]
        decode = partial(decode_steps, state_pb2.ResultParts, text.crc32)
        return in_parts(await self._archive.part(self._packed, offset, text.bytes, decode), self._steps.partition)


async def _index_of(archive: Archive, packed: PackedRun) -> pb.StepIndex | None:
    place = packed.place
    if not place.step_index_bytes:
        return None
    return await archive.part(
        packed, place.step_index_offset, place.step_index_bytes, partial(decode_step_index, place)
    )


def entries_by_partition(items: Iterable[KeyValue]) -> dict[int, int]:
    """Return the number of entries of each partition's journal; a lower bound. `items`: with its last values."""
    newest = {keys.parse_journal(item.key)[1]: item for item in items if item.key.startswith(keys.JOURNAL)}
    return {partition: _entries_up_to(item) for partition, item in newest.items()}


def _entries_up_to(item: KeyValue) -> int:
    first_seq = keys.parse_journal(item.key)[2]
    if first_seq >= INDEXED_ENTRIES or len(item.value) < INDEXED_ENTRIES * ENTRY_BYTES_MIN:
        return first_seq
    try:
        return first_seq + len(journal_pb2.EntryBatch.FromString(item.value).entries)
    except DecodeError:  # readers meet it, too
        return first_seq


class StepIndexWriter:
    """Makes the lists of steps for the packer."""

    def __init__(self, replays: Replays) -> None:
        self._replays = replays

    async def lists(
        self, run_id: str, record: bytes, entries: Mapping[int, int], index: pb.StepIndex
    ) -> AsyncGenerator[bytes]:
        """Yield the lists of a run's long partitions, and note in `index` where they are.

        `entries`: number of entries of each partition's journal.

        Raises: StepflowError, of the store and of the blob store.
        """
        long = [partition for partition, count in sorted(entries.items()) if count >= INDEXED_ENTRIES]
        if not long:
            return
        try:
            parsed = parse_record(run_id, record)
        except DataLoss:  # readers meet it, too
            return

        index.partitions_total = partition_count(parsed)
        written = 0
        for partition in long:
            steps = pb.PartitionSteps(partition=partition, offset=written, rows_per_chunk=CHUNK_ROWS)
            try:
                async with self._replays.current(run_id, partition, parsed) as kept:
                    async for chunk in _list_of(kept, steps):
                        written += len(chunk)
                        yield chunk
            except (DataLoss, FailedPrecondition, ReplayLost, Unavailable) as error:
                if isinstance(error, Unavailable) and error.reason != "REPLAY_FAILED":
                    raise
                log.warning("steps of a packed run are replayed for each reader", run_id=run_id, partition=partition)
                continue
            if steps.rows_total:
                index.partitions.append(steps)


async def _list_of(kept: KeptPartition, steps: pb.PartitionSteps) -> AsyncGenerator[bytes]:
    """Yield the list of a partition that is replayed, and note the sizes. Raises: ReplayLost."""
    replay = kept.replay
    if replay is None or replay.unknown:
        return
    copy_room = text_room = _room(kept)

    # 1. The rows.
    long_rows: list[int] = []
    rows_total = first = 0
    while first <= rows_total:
        rows, copy_room = await replay.index_rows(first, CHUNK_ROWS, copy_room)
        rows_total = rows.rows_total
        if not rows.rows:
            break
        long_rows += [number for number, row in enumerate(rows.rows, first) if 0 < row.text_bytes <= PAYLOAD_BYTES_MAX]
        chunk = rows.SerializeToString()
        steps.chunk_bytes.append(len(chunk))
        steps.chunk_crc32s.append(zlib.crc32(chunk))
        yield chunk
        first += CHUNK_ROWS

    # 2. The texts, while there is room.
    for row in long_rows:
        text = await replay.text(row, text_room)
        if not text:
            break
        text_room -= len(text)
        steps.texts.add(row=row, bytes=len(text), crc32=zlib.crc32(text))
        yield text
    steps.rows_total = rows_total


def _room(kept: KeptPartition) -> int:
    """Return the room for composed results, once in rows and once in texts.

    A `map` over the whole partition fits. Results that are composed of each other again and again do not.
    """
    return ROOM_BYTES + 2 * kept.value_bytes


def _result_bytes(outcome: object) -> int:
    match outcome:
        case InParts():
            return outcome.text_bytes
        case Json():
            return outcome.size
        case _:
            return 0


__all__ = ["StepIndexReader", "StepIndexWriter"]
