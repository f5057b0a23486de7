"""Reads ended runs from the store for packing, many in one transaction.

- Ids sort by time, and so do the ends of most runs. So runs that are due together are neighbours in the store, and one
  range of each kind of keys reads many of them: a fifth of the work of reading them one by one.
- Where other runs stand between them, or a run has many keys, the ranges reach their limits first. The runs that are
  missing are read one by one, and windows are tried again only later.
- A read is of one revision. What belongs to an ended run never changes; a client may delete it meanwhile.
- A small run is read whole. Of a large one, `pages_of` yields the key-values page by page.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from control_plane.archive.run_keys import KINDS, STREAMS, TXN_OPS, RunKeys
from control_plane.views import TERMINAL
from stepflow.errors import DataLoss
from stepflow.journal import parse_record, partition_count
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Get, KeyValue, Page, Range, Txn, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from control_plane.archive.due_runs import DueRun
    from stepflow.store import Op, Response, Store

log = get_logger(__name__)

WINDOW_RUNS = 32
"""Runs read by one range of each kind of keys."""

WINDOW_KINDS = (keys.ADOPTING, keys.INBOX, keys.JOURNAL, keys.RESULTS, keys.STATUS, keys.RUNS, keys.DELETED)
"""`KINDS` as the prefixes of all runs, then the keys of which a run has one."""

KEYS_PER_RUN = 8
"""Keys of each kind that a window has room for, and that a read of single runs begins with. A key of a journal may have
192 KiB, so this bounds the memory of a read."""

RUNS_PER_READ = TXN_OPS // (len(KINDS) + 2)
"""Runs read one by one in one transaction."""

WHOLE_RUN_BYTES_MAX = 1024 * 1024
"""A run above this size is packed page by page, so that memory holds a page of it."""

READS_WITHOUT_WINDOWS = 32
"""After windows that had less than half of their runs: reads until windows are tried again."""

BATCH_RUNS = WINDOW_RUNS * STREAMS
"""Runs of one call of `RunReader.read`, which memory has to hold."""


class RunReader:
    """Reads the runs of one leader's term."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._without_windows = 0
        """Reads until windows are tried again."""

    async def read(self, runs: Sequence[DueRun]) -> list[RunKeys]:
        """Read up to `BATCH_RUNS` ended runs, which are sorted by id; return them in any order.

        Raises: StepflowError.
        """
        found: list[RunKeys] = []
        rest = list(runs)

        # 1. In windows.
        if self._without_windows:
            self._without_windows -= 1
        else:
            windows = [runs[start : start + WINDOW_RUNS] for start in range(0, len(runs), WINDOW_RUNS)]
            for some in await asyncio.gather(*map(self._read_window, windows)):
                found += some
            known = {read.run.run_id for read in found}
            rest = [run for run in runs if run.run_id not in known]
            if 2 * len(rest) > len(runs):
                self._without_windows = READS_WITHOUT_WINDOWS

        # 2. One by one.
        groups = [rest[start : start + RUNS_PER_READ] for start in range(0, len(rest), RUNS_PER_READ)]
        for start in range(0, len(groups), STREAMS):
            for some in await asyncio.gather(*map(self._read_singly, groups[start : start + STREAMS])):
                found += some
        return found

    async def _read_window(self, runs: Sequence[DueRun]) -> list[RunKeys]:
        """Return those of the runs whose keys are all within the limits of the ranges."""
        first, last = runs[0].run_id, runs[-1].run_id
        limit = KEYS_PER_RUN * len(runs)
        # "/" + 1 is "0": the last run's keys are inside. Other ids that the ranges have, too, do no harm.
        ops = [Range(prefix, limit, f"{prefix}{first[:-1]}", f"{prefix}{last}0") for prefix in WINDOW_KINDS]
        result = await self._store.txn(Txn((), tuple(ops)))

        # Sort the keys by run; `end` is the first id that may have further keys.
        end = f"{last}0"
        by_run: dict[str, list[list[KeyValue]]] = {run.run_id: [[] for _ in WINDOW_KINDS] for run in runs}
        for index, (prefix, page) in enumerate(zip(WINDOW_KINDS, result.responses, strict=True)):
            assert isinstance(page, Page)
            skip = len(prefix)
            for item in page.items:
                lists = by_run.get(item.key[skip:].partition("/")[0])
                if lists is not None:
                    lists[index].append(item)
            if page.more:
                end = min(end, page.items[-1].key[skip:].partition("/")[0])

        found: list[RunKeys] = []
        for run in runs:
            if run.run_id >= end:
                break
            *lists, records, deleted = by_run[run.run_id]
            read = _begun(run, result.revision, records[0] if records else None, bool(deleted))
            _fill(read, lists)
            found.append(read)
        return found

    async def _read_singly(self, runs: Sequence[DueRun]) -> list[RunKeys]:
        ops: list[Op] = []
        for run in runs:
            ops += Get(keys.run(run.run_id)), Get(keys.deleted(run.run_id))
            ops += [Range(prefix(run.run_id), limit=KEYS_PER_RUN) for prefix in KINDS]
        result = await self._store.txn(Txn((), tuple(ops)))

        found: list[RunKeys] = []
        per_run = len(KINDS) + 2
        for index, run in enumerate(runs):
            record, deleted, *pages = result.responses[index * per_run : (index + 1) * per_run]
            assert record is None or isinstance(record, KeyValue)
            read = _begun(run, result.revision, record, deleted is not None)
            lists = await self._completed(read, pages)
            if lists is not None:
                _fill(read, lists)
            found.append(read)
        return found

    async def _completed(self, read: RunKeys, pages: Sequence[Response]) -> list[list[KeyValue]] | None:
        """Return the key-values of each kind, of which `pages` has the first.

        None for a run that is too large: it has its statuses then.
        """
        lists: list[list[KeyValue]] = []
        size = 0
        for prefix, page in zip(reversed(KINDS), reversed(pages), strict=True):  # the statuses first
            assert isinstance(page, Page)
            items: list[KeyValue] = []
            async for some in self._from_page(prefix(read.run.run_id), page, read.revision):
                items += some
                size += sum(len(item.value) for item in some)
                if lists and size > WHOLE_RUN_BYTES_MAX:
                    _fill(read, [*([] for _ in KINDS[1:]), lists[0]])
                    read.whole = False
                    return None
            lists.append(items)
        return lists[::-1]

    async def _from_page(self, prefix: str, page: Page, revision: int) -> AsyncIterator[list[KeyValue]]:
        """Yield the key-values under a prefix as of a revision, beginning with the first page."""
        while True:
            yield page.items
            if not page.more:
                return
            page = await self._store.range(prefix, after=page.items[-1].key, revision=revision)


def _begun(run: DueRun, revision: int, record: KeyValue | None, deleted: bool) -> RunKeys:
    read = RunKeys(run, revision, record, deleted)
    read.by_age = keys.by_age(run.run_id, run.created_at_ms)
    return read


def _fill(read: RunKeys, lists: Sequence[list[KeyValue]]) -> None:
    """Add the key-values of each kind to a run."""
    statuses = lists[-1]
    read.ended = _has_ended(read, statuses)
    items = [item for of_kind in lists[:-1] for item in of_kind]
    if read.record is not None:
        items.append(read.record)
    read.items = items + statuses
    read.names = [item.key for item in read.items]


def _has_ended(read: RunKeys, statuses: Sequence[KeyValue]) -> bool:
    """Return True if all partitions have ended; note what the record tells."""
    try:
        terminal = all(state_pb2.PartitionStatus.FromString(item.value).status in TERMINAL for item in statuses)
    except DecodeError:
        log.error("a run stays in the store: its status cannot be read", run_id=read.run.run_id)
        return False

    read.partitions = max(1, len(statuses))
    if read.record is not None:
        with contextlib.suppress(DataLoss):  # packed as it is: readers tell of it as before
            record = parse_record(read.run.run_id, read.record.value)
            read.partitions = partition_count(record)
            # Not as listed: it may be another run of the same id.
            read.by_age = keys.by_age(read.run.run_id, record.created_at_ms)
            inputs = [payload.blob for payload in record.inputs if payload.blob]
            read.input_blobs = (*record.partition_inputs, *inputs)
            read.hashes = (record.flow_id, record.request_hash, *read.input_blobs)
    return bool(statuses) and terminal and len(statuses) == read.partitions


async def pages_of(store: Store, read: RunKeys) -> AsyncIterator[list[KeyValue]]:
    """Yield all key-values of a large run in the order of keys, in pages. Raises: StepflowError.

    Each page is of its own moment: the read may take longer than the store keeps history. What a client deletes
    meanwhile is missing, as it would be in the store.
    """
    run_id = read.run.run_id
    for prefix in KINDS:
        if prefix is keys.status_of_run and read.record is not None:
            yield [read.record]
        after = ""
        while True:
            page = await store.range(prefix(run_id), after=after)
            if page.items:
                yield page.items
            if not page.more:
                break
            after = page.items[-1].key


__all__ = ["BATCH_RUNS", "RunReader", "pages_of"]
