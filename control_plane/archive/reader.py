"""Reading packed runs: finds a run, its values, and pages of lists, in a bounded number of reads of the blob store.

- A run is found by the manifests in memory, then by the id block of its segment. A body within `SMALL_BODY_BYTES` is
  read at once, of a larger one its index and the values that are wanted.
- A list reads the blocks of only those segments that have runs of the wanted time.
- What was read last is kept, bounded by `CACHE_BYTES_MAX`: objects never change.
- An object that is gone was rewritten or expired: the manifests are read again, and the read is repeated.
"""

from __future__ import annotations

import asyncio
import heapq
from bisect import bisect_right
from collections import OrderedDict
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

from control_plane.archive.format import (
    BodyPlace,
    RunBody,
    SegmentTail,
    check_format,
    decode_index,
    decode_list,
    decode_tail,
    list_order,
    object_name,
)
from control_plane.archive.manifests import Manifests
from stepflow.errors import DataLoss, FailedPrecondition, NotFound, StepflowError
from stepflow.off_loop import off_loop
from stepflow.store import PAGE_BYTES_MAX, PAGE_KEYS_MAX, Get, KeyValue, Page, Range
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Container, Iterator, Sequence

    from control_plane.archive.manifests import KnownSegment
    from stepflow.mesh.v1 import segments_pb2 as pb
    from stepflow.store import Response, Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

_T = TypeVar("_T")

CACHE_BYTES_MAX = 64 * 1024 * 1024
"""Bound on the estimated memory of kept parts of segments. A larger part is not kept."""

SMALL_BODY_BYTES = 256 * 1024
"""A body of this size is read and kept whole."""

OVERHEAD_FACTOR = 4
"""Estimated memory of a decoded part, by its size in the object."""

GONE_TRIES_MAX = 10
"""Reads of a run whose object was gone each time."""

NEWEST = (-(2**63), "")
"""The position before all runs of a list."""

ReadOp: TypeAlias = Get | Range


class PackedRun(NamedTuple):
    """The location of a packed run."""

    segment: KnownSegment
    number: int
    place: BodyPlace


@dataclass(frozen=True, slots=True)
class _Body:
    """A body as far as it is kept."""

    index: RunBody
    values: bytes | None
    """All values; None for a large body."""


class Archive:
    """Reads the packed runs of a store. Bound to the event loop."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self.manifests = Manifests(store)
        self._objects = blobs.objects
        self._cache = _PartCache()

    async def read(self, run_id: str, ops: Sequence[ReadOp]) -> tuple[Response, ...] | None:
        """Read key-values of a packed run, as the store would; None if no segment has the run.

        Pages have revision 0, the current one. They end after `PAGE_KEYS_MAX` keys or `PAGE_BYTES_MAX`.

        Raises: DataLoss; FailedPrecondition `SEGMENT_UNKNOWN`; the errors of the blob store.
        """

        async def once() -> tuple[Response, ...] | None:
            packed = await self._find(run_id)
            if packed is None:
                return None
            body = await self._body(run_id, packed)
            return tuple([await self._answer(packed, body, op) for op in ops])

        return await self._repeated(once)

    async def of_packed(self, run_id: str, work: Callable[[PackedRun], Awaitable[_T]]) -> _T | None:
        """Return what `work` makes of a packed run; None if no segment has the run. Raises: as `read`."""

        async def once() -> _T | None:
            packed = await self._find(run_id)
            return None if packed is None else await work(packed)

        return await self._repeated(once)

    async def part(self, packed: PackedRun, offset: int, size: int, decode: Callable[[bytes], _T]) -> _T:
        """Return a decoded part of a body, and keep it. `offset`: in the object. Raises: as `read`."""

        async def load() -> tuple[_T, int]:
            raw = await self._objects.read(object_name(packed.segment.id), offset, size)
            return await off_loop(size, decode, raw), OVERHEAD_FACTOR * size

        with _named(packed.segment):
            return await self._cache.get(("part", packed.segment.id, offset), load)

    async def listed(self, run_id: str) -> pb.ListedRun | None:
        """Return what lists show of a packed run; None if no segment has it. Raises: as `read`."""

        async def once() -> pb.ListedRun | None:
            packed = await self._find(run_id)
            if packed is None:
                return None
            block, position = (await self._tail(packed.segment)).list_position(packed.number)
            return (await self._list_block(packed.segment, block))[position]

        return await self._repeated(once)

    async def entries_behind(self, position: tuple[int, str] | None, limit: int) -> list[pb.ListedRun]:
        """Return the next packed runs behind a position in lists (creation time, run id), newest first.

        Raises: as `read`.
        """

        skipped: set[str] = set()
        while True:
            try:
                return await self._repeated(lambda: self._entries_behind(position, limit, skipped))
            except (DataLoss, FailedPrecondition) as error:  # a damaged segment must not hide the others
                segment_id = str(error.details.get("segment_id", ""))
                if not segment_id or segment_id in skipped:
                    raise
                skipped.add(segment_id)
                log.error(
                    "runs of a segment cannot be listed",
                    segment_id=segment_id,
                    reason=error.reason,
                    error=error.message,
                )

    async def _repeated(self, work: Callable[[], Awaitable[_T]]) -> _T:
        """Do work with the known segments; again with newer ones if an object is gone."""
        for _ in range(GONE_TRIES_MAX):
            before = self.manifests.segments.copy()
            try:
                return await work()
            except NotFound as error:
                gone = str(error.details.get("name", ""))
                await self.manifests.refresh()
                if before == self.manifests.segments:
                    break
        raise DataLoss(
            "SEGMENT_MISSING",
            f"the object {gone} with ended runs is missing from the blob store",
            segment_id=gone.rpartition("/")[2],
        )

    # A run.

    async def _find(self, run_id: str) -> PackedRun | None:
        for segment in self.manifests.candidates(run_id):
            tail = await self._tail(segment)
            number = tail.number(run_id)
            if number is not None and number not in segment.removed:
                return PackedRun(segment, number, tail.body(number))
        return None

    async def _answer(self, packed: PackedRun, body: _Body, op: ReadOp) -> Response:
        match op:
            case Get(key):
                found = body.index.find(key)
                return None if found is None else (await self._key_values(packed, body, range(found, found + 1)))[0]
            case Range(prefix, limit, after, before):
                positions = body.index.positions(prefix, after, before)
                wanted = _page(body.index, positions, limit)
                return Page(await self._key_values(packed, body, wanted), len(wanted) < len(positions), 0)

    async def _key_values(self, packed: PackedRun, body: _Body, positions: range) -> list[KeyValue]:
        if not positions:
            return []
        start, end = body.index.offsets[positions[0]], body.index.offsets[positions[-1] + 1]
        if body.values is not None:
            raw = body.values[start:end]
        elif start == end:
            raw = b""
        else:
            raw = await self._objects.read(object_name(packed.segment.id), packed.place.offset + start, end - start)
        offsets = body.index.offsets
        return [
            body.index.key_value(position, raw[offsets[position] - start : offsets[position + 1] - start])
            for position in positions
        ]

    async def _body(self, run_id: str, packed: PackedRun) -> _Body:
        place = packed.place
        small = place.bytes <= SMALL_BODY_BYTES

        async def load() -> tuple[_Body, int]:
            offset, size = (place.offset, place.bytes) if small else (place.index_offset, place.index_bytes)
            raw = await self._objects.read(object_name(packed.segment.id), offset, size)
            packed_index = raw[-place.index_bytes :]
            index = await off_loop(len(packed_index), decode_index, run_id, place, packed_index)
            memory = OVERHEAD_FACTOR * place.index_bytes + (place.bytes if small else 0)
            return _Body(index, raw[: -place.index_bytes] if small else None), memory

        with _named(packed.segment):
            return await self._cache.get(("body", packed.segment.id, packed.number), load)

    # Parts of segments.

    async def _tail(self, segment: KnownSegment) -> SegmentTail:
        async def load() -> tuple[SegmentTail, int]:
            manifest = segment.manifest
            check_format(manifest.format)
            size = manifest.bytes - manifest.tail_offset
            raw = await self._objects.read(object_name(segment.id), manifest.tail_offset, size)
            return await off_loop(len(raw), decode_tail, raw), OVERHEAD_FACTOR * len(raw)

        with _named(segment):
            return await self._cache.get(("tail", segment.id, 0), load)

    async def _list_block(self, segment: KnownSegment, block: int) -> Sequence[pb.ListedRun]:
        place = (await self._tail(segment)).lists[block]

        async def load() -> tuple[Sequence[pb.ListedRun], int]:
            raw = await self._objects.read(object_name(segment.id), place.offset, place.bytes)
            return decode_list(place, raw), OVERHEAD_FACTOR * len(raw)

        with _named(segment):
            return await self._cache.get(("list", segment.id, block), load)

    # Lists.

    async def _entries_behind(
        self, position: tuple[int, str] | None, limit: int, skipped: Container[str]
    ) -> list[pb.ListedRun]:
        behind = NEWEST if position is None else list_order(*position)

        # 1. A segment is in the heap by a bound on its next run: from the manifest, until its turn comes.
        heap: list[tuple[tuple[int, str], str, _SegmentCursor]] = []
        for segment in self.manifests.segments.values():
            newest_ms = segment.newest_behind(-behind[0])
            if newest_ms is not None and not segment.manifest.expiring and segment.id not in skipped:
                heap.append((list_order(newest_ms, ""), segment.id, _SegmentCursor(segment, behind)))
        heapq.heapify(heap)

        # 2. Merge.
        found: list[pb.ListedRun] = []
        while heap and len(found) < limit:
            _, segment_id, cursor = heapq.heappop(heap)
            listed = cursor.next
            if listed is not None and not (found and found[-1].run_id == listed.run_id):
                found.append(listed)  # once, while a run is in two segments for a moment
            await self._advance(cursor)
            if cursor.next is not None:
                heapq.heappush(heap, (_order(cursor.next), segment_id, cursor))
        return found

    async def _advance(self, cursor: _SegmentCursor) -> None:
        """Take a cursor to the next run of its segment."""
        segment = cursor.segment
        tail = await self._tail(segment)
        block = tail.list_behind(cursor.behind)
        cursor.next = None
        while cursor.next is None and block < len(tail.lists):
            runs = await self._list_block(segment, block)
            for position in range(bisect_right(runs, cursor.behind, key=_order), len(runs)):
                if runs[position].number not in segment.removed:
                    cursor.next = runs[position]
                    cursor.behind = _order(cursor.next)
                    break
            block += 1


class _SegmentCursor:
    """The position of a list in one segment."""

    def __init__(self, segment: KnownSegment, behind: tuple[int, str]) -> None:
        self.segment = segment
        self.behind = behind
        """Runs up to this position in lists were passed."""
        self.next: pb.ListedRun | None = None
        """The run at `behind`; None before the segment is opened, and at its end."""


def _order(listed: pb.ListedRun) -> tuple[int, str]:
    return list_order(listed.created_at_ms, listed.run_id)


@contextmanager
def _named(segment: KnownSegment) -> Iterator[None]:
    """Add the id of the segment to an error of its contents."""
    try:
        yield
    except StepflowError as error:
        if error.reason in ("SEGMENT_CORRUPT", "SEGMENT_UNKNOWN"):
            error.details["segment_id"] = segment.id
        raise


def _page(index: RunBody, positions: range, limit: int) -> range:
    """Return the positions of one page."""
    count = 0
    for position in positions[: min(limit, PAGE_KEYS_MAX)]:
        count += 1
        if index.offsets[position + 1] - index.offsets[positions[0]] >= PAGE_BYTES_MAX:
            break
    return positions[:count]


class _PartCache:
    """Parts of objects: the ones used last are kept; a part that several readers want is loaded once."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str, int], tuple[Any, int]] = OrderedDict()
        self._loading: dict[tuple[str, str, int], asyncio.Task[Any]] = {}
        self._bytes = 0

    async def get(self, name: tuple[str, str, int], load: Callable[[], Awaitable[tuple[_T, int]]]) -> _T:
        """Return a part. `load`: returns it with its estimated memory in bytes."""
        kept = self._kept.get(name)
        if kept is not None:
            self._kept.move_to_end(name)
            return kept[0]  # type: ignore[no-any-return]  # a name always has parts of one type

        loading = self._loading.get(name)
        if loading is None:
            loading = self._loading[name] = asyncio.create_task(self._load(name, load), name=f"load {name}")
            loading.add_done_callback(_retrieve_error)
        return await asyncio.shield(loading)

    async def _load(self, name: tuple[str, str, int], load: Callable[[], Awaitable[tuple[_T, int]]]) -> _T:
        try:
            part, size = await load()
        finally:
            del self._loading[name]
        if size <= CACHE_BYTES_MAX:
            self._kept[name] = (part, size)
            self._bytes += size
            while self._bytes > CACHE_BYTES_MAX:
                self._bytes -= self._kept.popitem(last=False)[1][1]
        return part


def _retrieve_error(loading: asyncio.Task[Any]) -> None:
    """Retrieve the error of a load: if its readers were cancelled, asyncio would log the error as lost."""
    if not loading.cancelled():
        loading.exception()


__all__ = ["Archive", "PackedRun", "ReadOp"]
