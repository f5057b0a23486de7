"""The list of steps of a packed partition: rows in the order of the list, so that a page is a bounded read.

    steps/<run id>/<partition>/rows/<first row>    `CHUNK_ROWS` rows (`StepRows`)
    steps/<run id>/<partition>/text/<row>          the parts of a result that is too long for its row

- The packer adds these values to the body of a run, for partitions of at least `INDEXED_ENTRIES` entries. A page of a
  shorter one is replayed in a few milliseconds.
- Rows tell what a replay tells. Whatever they do not have, a reader replays: results that would take more room than
  the partition itself, and partitions that could not be replayed when they were packed.
- They go with the journal.
"""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, TypeVar

from google.protobuf.message import DecodeError, Message

from control_plane.paging import PAGE_BYTES_MAX
from control_plane.replay.process import ReplayLost
from control_plane.replay.read_rows import in_parts, step_view
from control_plane.replay.replays import StepsRead
from control_plane.results import InParts
from stepflow.codec import PAYLOAD_BYTES_MAX, Json, LargeJson
from stepflow.errors import DataLoss, FailedPrecondition, Unavailable
from stepflow.journal import parse_record
from stepflow.mesh.v1 import segments_pb2, state_pb2
from stepflow.store import Get, KeyValue, Page, Range, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping

    from control_plane.archive.run_store import RunStore
    from control_plane.replay.replays import KeptPartition, Replays
    from stepflow.run.views import StepView

_M = TypeVar("_M", bound=Message)

log = get_logger(__name__)

INDEXED_ENTRIES = 256
"""Entries of a journal that is too long to replay for a page."""

CHUNK_ROWS = 64
"""Rows of one value. Part of the layout: readers compute the key of a row."""

ROOM_BYTES = 1024 * 1024
"""Least room for composed results of a partition, see `_room`."""


class StepIndexReader:
    """Reads steps of one run for one page."""

    def __init__(self, store: RunStore, run_id: str) -> None:
        self._store = store
        self._run_id = run_id
        self._is_packed = True
        """False once the run was found in the store."""

    async def steps(self, partition: int, start: int, count: int, *, with_results: bool) -> StepsRead | None:
        """Return steps of a partition, in the order of lists; None if they must be replayed. Raises: DataLoss.

        `with_results`: until the page is full (`PAGE_BYTES_MAX`), so they may be fewer than `count`.
        """
        if not self._is_packed or not count:
            return None

        views: list[StepView] = []
        room = PAGE_BYTES_MAX
        total = 0
        async with aclosing(self._rows(partition, start, count)) as rows:
            async for row, rows_total in rows:
                total = rows_total
                if not with_results and not row.HasField("failure"):
                    row.ClearField("outcome")
                view = step_view(row, partition)
                if type(view.outcome) is LargeJson and view.outcome.text_bytes <= PAYLOAD_BYTES_MAX:
                    text = await self._text(partition, start + len(views))
                    if text is None:
                        return None
                    view.outcome = text
                views.append(view)
                room -= _result_bytes(view.outcome)
                if room <= 0:
                    break
            else:
                if len(views) < min(count, total - start):  # some are missing
                    return None
        return StepsRead(views, start + len(views) < total) if views else None

    async def _rows(self, partition: int, start: int, count: int) -> AsyncGenerator[tuple[segments_pb2.StepRow, int]]:
        """Yield rows, each with the number of rows of the whole list; fewer than `count` if some are missing."""
        prefix = keys.step_rows_of_partition(self._run_id, partition)
        end = start + count
        first = start - start % CHUNK_ROWS
        while first < end:
            # 1. The next values, as many as fit a page of the archive.
            after = keys.step_rows(self._run_id, partition, first - 1) if first else ""
            wanted = Range(prefix, (end - first - 1) // CHUNK_ROWS + 1, after)
            found = await self._store.read_packed(self._run_id, (wanted,))
            if found is None:
                self._is_packed = False
                return
            (page,) = found
            assert isinstance(page, Page)

            # 2. Their rows.
            for item in page.items:
                if item.key != keys.step_rows(self._run_id, partition, first):
                    return
                chunk = _parsed(segments_pb2.StepRows, item)
                for row in chunk.rows[max(0, start - first) : end - first]:
                    yield row, chunk.rows_total
                first += CHUNK_ROWS
            if not page.more:
                return

    async def _text(self, partition: int, row: int) -> InParts | None:
        """Return a long result of a row; None if the index does not have it."""
        found = await self._store.read_packed(self._run_id, (Get(keys.step_text(self._run_id, partition, row)),))
        item = None if found is None else found[0]
        if not isinstance(item, KeyValue):
            return None
        return in_parts(_parsed(state_pb2.ResultParts, item), partition)


class StepIndexWriter:
    """Makes the lists of steps for the packer."""

    def __init__(self, replays: Replays) -> None:
        self._replays = replays

    async def values(self, run_id: str, record: bytes, entries: Mapping[int, int]) -> AsyncGenerator[list[KeyValue]]:
        """Yield the values of a run's long partitions, in the order of keys. `entries`: of each partition's journal.

        Raises: StepflowError, of the store and of the blob store.
        """
        long = [partition for partition, count in sorted(entries.items()) if count >= INDEXED_ENTRIES]
        if not long:
            return
        try:
            parsed = parse_record(run_id, record)
        except DataLoss:
            return
        for partition in long:
            try:
                async with self._replays.current(run_id, partition, parsed) as kept:
                    async for some in _values(run_id, partition, kept):
                        yield some
            except (DataLoss, FailedPrecondition, ReplayLost, Unavailable) as error:
                if isinstance(error, Unavailable) and error.reason != "REPLAY_FAILED":
                    raise
                log.warning(
                    "the steps of a packed run are replayed for each reader", run_id=run_id, partition=partition
                )


async def _values(run_id: str, partition: int, kept: KeptPartition) -> AsyncIterator[list[KeyValue]]:
    """Yield the values of a partition that is replayed. Raises: ReplayLost."""
    replay = kept.replay
    if replay is None or replay.unknown:
        return
    copy_room = text_room = _room(kept)

    # 1. The rows.
    long_rows: list[int] = []
    first = 0
    while True:
        rows, copy_room = await replay.index_rows(first, CHUNK_ROWS, copy_room)
        if not rows.rows:
            break
        long_rows += [number for number, row in enumerate(rows.rows, first) if 0 < row.text_bytes <= PAYLOAD_BYTES_MAX]
        yield [_key_value(keys.step_rows(run_id, partition, first), rows.SerializeToString())]
        first += CHUNK_ROWS

    # 2. The texts, while there is room.
    for number in long_rows:
        text = await replay.text(number, text_room)
        if not text:
            break
        text_room -= len(text)
        yield [_key_value(keys.step_text(run_id, partition, number), text)]


def _room(kept: KeptPartition) -> int:
    """Return the room for composed results, once in rows and once in texts."""
    return max(ROOM_BYTES, kept.value_bytes)


def _key_value(key: str, value: bytes) -> KeyValue:
    return KeyValue(key, value, 0, 0, 0)


def _result_bytes(outcome: object) -> int:
    match outcome:
        case InParts():
            return outcome.text_bytes
        case Json():
            return outcome.size
        case _:
            return 0


def _parsed(message_type: type[_M], item: KeyValue) -> _M:
    try:
        return message_type.FromString(item.value)
    except DecodeError:
        raise DataLoss("SEGMENT_CORRUPT", f"{item.key} of a segment of ended runs cannot be read") from None


__all__ = ["StepIndexReader", "StepIndexWriter"]
