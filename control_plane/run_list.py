"""Pages of runs, for clients, newest first.

- A page reads one range of the index by age (`run_index`) and the statuses of these runs, however many runs there are;
  and the list blocks of segments that have packed runs of that time (`archive`), which hold all that a list shows.
- An entry that changes between two pages may be missing from both, and is never in both.
- A page of runs that a filter leaves out, or of large batches, ends early: it may be empty, with a token.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from control_plane.archive.format import list_order
from control_plane.paging import read_token, write_token
from control_plane.views import run_view, view_of
from stepflow.codec import decode
from stepflow.errors import DataLoss
from stepflow.journal import parse_record, partition_count
from stepflow.mesh.v1 import state_pb2
from stepflow.rpc.labels import has_labels
from stepflow.store import Get, KeyValue, Page, Range, Txn, keys, modified_at, present, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping

    from control_plane.archive.packed_runs import PackedRuns
    from control_plane.archive.run_store import RunStore
    from control_plane.views import RunView
    from stepflow.mesh.v1 import segments_pb2
    from stepflow.store import Store

RUNS_READ_MAX = 1_000
"""Runs read for one page, however few pass the filter."""

STATUSES_READ_MAX = 2_000
"""Statuses read for one page; the batch that exceeds them ends the page."""

RANGE_RUNS = 200
"""Runs read at once."""

GETS_PER_TXN = 100
RECORDS_PER_TXN = 8
"""Records read at once; each may have a megabyte."""

WINDOW_MS_MIN = 1_000
WINDOW_MS_MAX = 30 * 24 * 3600 * 1000
WINDOW_GROWTH = 16
"""A range of the index is bounded on both sides: etcd counts all keys of a range, whatever its limit. The first window,
and by how much windows grow until they hold a page."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunFilter:
    """The runs to list; an empty field accepts all. `statuses` are names such as `failed`."""

    statuses: frozenset[str] = frozenset()
    flow_name: str = ""
    created_since_ms: int = 0
    labels: Mapping[str, str] = field(default_factory=dict)
    """Labels that a run must have, with their texts (`stepflow.rpc.labels`)."""

    def accepts_record(self, record: state_pb2.RunRecord) -> bool:
        """Return True if the name and the labels of a run fit; its status and time are not looked at."""
        if self.flow_name not in ("", record.flow_name):
            return False
        return not self.labels or has_labels(decode(record.labels_json or b"{}"), self.labels)


@dataclass(slots=True)
class _Found:
    """A run in the order of the list, and what is read of it."""

    run_id: str
    created_at_ms: int
    record: state_pb2.RunRecord | None = None
    """At least the members that a list shows; None until read."""
    partitions: list[state_pb2.PartitionStatus] = field(default_factory=list)
    """Statuses of the placed partitions."""
    packed: segments_pb2.ListedRun | None = None
    """Set for a run in a segment; then `partitions` is empty."""

    @property
    def position(self) -> tuple[int, str]:
        """Position in the list of runs."""
        return self.created_at_ms, self.run_id

    @property
    def partition_count(self) -> int:
        """Number of partitions, placed or not; 0 without a record."""
        return 0 if self.record is None else partition_count(self.record)


class RunList:
    """Reads pages of runs from the store and from segments."""

    def __init__(self, store: Store, runs: RunStore, packed: PackedRuns) -> None:
        """`runs`, `packed`: over the same store."""
        self._store = store
        self._runs = runs
        self._packed = packed
        self._window_ms = WINDOW_MS_MIN
        """Age of the runs that a page probably needs, from its position on."""

    async def page(self, wanted: RunFilter, size: int, token: str) -> tuple[list[RunView], str]:
        """Return a page of runs, newest first, and the token of the next page; empty after the last page."""
        position = read_token(token, tuple[int, str])
        views: list[RunView] = []
        runs_read, statuses_left = 0, STATUSES_READ_MAX
        filtered = bool(wanted.statuses or wanted.flow_name or wanted.labels)

        while True:
            # 1. Read a range of the index, and the records that it does not have.
            limit = min(RANGE_RUNS, RUNS_READ_MAX - runs_read, RANGE_RUNS if filtered else size - len(views))
            found, more = await self._runs_behind(position, limit)
            runs_read += len(found)
            recent = [each for each in found if each.created_at_ms >= wanted.created_since_ms]
            more = more and len(recent) == len(found)
            await self._read_records([each for each in recent if each.record is None])

            # 2. Read the statuses, of as many runs as the page may read.
            named = [each for each in recent if each.record and wanted.accepts_record(each.record)]
            count = len(named)
            for index, each in enumerate(named):
                statuses_left -= each.partition_count
                if statuses_left < 0 and index:
                    count = index
                    break
            behind = named[count] if count < len(named) else None
            shown = await self._views(named[:count])

            # 3. Fill the page.
            for each in recent:
                if each is behind or len(views) == size:
                    return views, write_token(position)
                position = each.position
                view = shown.get(each.run_id)
                if view is not None and (not wanted.statuses or view.status in wanted.statuses):
                    views.append(view)

            if not more:
                return views, ""
            if len(views) == size or runs_read >= RUNS_READ_MAX or statuses_left <= 0:
                return views, write_token(position)

    async def _runs_behind(self, position: tuple[int, str] | None, limit: int) -> tuple[list[_Found], bool]:
        """Return the next runs behind a position, newest first, and True if there are more."""
        # The store first: what is packed before this read is then found in the segments, and what is in both is live.
        live, more = await self._live_behind(position, limit)
        packed = [_packed(listed) for listed in await self._packed.behind(position, limit + 1)]
        if not packed:
            return live, more

        known = {each.run_id for each in live}
        found = live + [each for each in packed if each.run_id not in known]
        found.sort(key=lambda each: list_order(each.created_at_ms, each.run_id))
        return found[:limit], more or len(found) > limit

    async def _live_behind(self, position: tuple[int, str] | None, limit: int) -> tuple[list[_Found], bool]:
        """Return the next runs of the store."""
        after = "" if position is None else keys.by_age(position[1], position[0])
        since_ms = time.time_ns() // 1_000_000 if position is None else position[0]
        found: list[_Found] = []

        # In windows of age that grow until they hold enough. One more run than wanted shows if there are more.
        window_ms: int = self._window_ms
        while len(found) <= limit:
            oldest_ms = since_ms - window_ms
            before = keys.by_age_bound(oldest_ms) if oldest_ms > 0 else ""
            page = await self._read_index(Range(keys.BY_AGE, limit + 1 - len(found), after, before))
            if page is None:
                return await self._scanned_behind(position, limit)
            for item in page.items:
                created_at_ms, run_id = keys.parse_by_age(item.key)
                record = state_pb2.RunRecord.FromString(item.value) if item.value else None
                found.append(_Found(run_id, created_at_ms, record))
                after = item.key
            if not page.more and not before:
                self._window_ms = WINDOW_MS_MAX
                return found[:limit], len(found) > limit
            window_ms *= WINDOW_GROWTH

        # The next page begins with a window that should hold it.
        span_ms = max(0, since_ms - found[-1].created_at_ms)
        self._window_ms = min(max(WINDOW_MS_MIN, 2 * span_ms), WINDOW_MS_MAX)
        return found[:limit], True

    async def _read_index(self, read: Range) -> Page | None:
        """Read a range of the index; None if it is incomplete. The known segments are then as new as the range."""
        while True:
            known = self._packed.version
            compares = (present(keys.BY_AGE_COMPLETE), modified_at(keys.segments_head(), known))
            orelse = (Get(keys.BY_AGE_COMPLETE), Get(keys.segments_head()))
            result = await self._store.txn(Txn(compares, (read,), orelse))
            if result.succeeded:
                (page,) = result.responses
                assert isinstance(page, Page)
                return page

            complete, head = result.responses
            await self._packed.note_version(known, head.mod_revision if isinstance(head, KeyValue) else 0)
            if complete is None:
                return None

    async def _scanned_behind(self, position: tuple[int, str] | None, limit: int) -> tuple[list[_Found], bool]:
        """Return the same from the statuses of all runs, while the index is incomplete."""
        after = "" if position is None else keys.by_age(position[1], position[0])
        created: dict[str, int] = {}
        async for item in range_all(self._store, keys.STATUS):
            run_id, partition = keys.parse_status(item.key)
            if not partition:
                created[run_id] = state_pb2.PartitionStatus.FromString(item.value).created_at_ms

        async for item in range_all(self._store, keys.PENDING):
            run_id = keys.tail(keys.PENDING, item.key)
            record = None if run_id in created else await self._store.get(keys.run(run_id))
            if record is not None:
                created[run_id] = state_pb2.RunRecord.FromString(record.value).created_at_ms

        behind = sorted(path for path in (keys.by_age(*run) for run in created.items()) if path > after)
        found = [_Found(run_id, at_ms) for at_ms, run_id in map(keys.parse_by_age, behind[:limit])]
        return found, len(behind) > limit

    async def _views(self, found: list[_Found]) -> dict[str, RunView]:
        """Read the statuses of runs; return the views of the runs that still exist."""
        # 1. Statuses.
        live = [each for each in found if each.packed is None]
        single = {keys.status(each.run_id, 0): each for each in live if each.partition_count == 1}
        for key, item in (await self._get_all(list(single))).items():
            single[key].partitions.append(state_pb2.PartitionStatus.FromString(item.value))
        for each in live:
            if each.partition_count > 1:
                await self._read_partitions(each)

        # 2. A run without a status waits, was just placed, packed or deleted.
        unplaced = [each for each in live if not each.partitions]
        waiting = await self._get_all([keys.pending(each.run_id) for each in unplaced])
        doubtful = [each for each in unplaced if keys.pending(each.run_id) not in waiting]
        for each in doubtful:
            each.record = None
        await self._read_records(doubtful)
        for each in doubtful:
            if each.record is not None:
                await self._read_partitions(each)
        return {each.run_id: _view(each, each.record) for each in found if each.record is not None}

    async def _read_partitions(self, found: _Found) -> None:
        """Read the statuses of a run."""
        async for item in range_all(self._runs, keys.status_of_run(found.run_id)):
            found.partitions.append(state_pb2.PartitionStatus.FromString(item.value))

    async def _get_all(self, names: list[str]) -> dict[str, KeyValue]:
        """Read those of the keys that exist. One by one: etcd counts all keys behind the beginning of a range."""
        found: dict[str, KeyValue] = {}
        for start in range(0, len(names), GETS_PER_TXN):
            reads = tuple(map(Get, names[start : start + GETS_PER_TXN]))
            for item in (await self._store.txn(Txn((), reads))).responses:
                if isinstance(item, KeyValue):
                    found[item.key] = item
        return found

    async def _read_records(self, found: list[_Found]) -> None:
        """Read the records of runs, as far as they exist and can be read."""
        for start in range(0, len(found), RECORDS_PER_TXN):
            some = found[start : start + RECORDS_PER_TXN]
            reads = tuple(Get(keys.run(each.run_id)) for each in some)
            for each, item in zip(some, (await self._store.txn(Txn((), reads))).responses, strict=True):
                existing = item or await self._runs.get(keys.run(each.run_id))  # packed
                if not isinstance(existing, KeyValue):
                    continue
                try:
                    each.record = parse_record(each.run_id, existing.value)
                except DataLoss as error:  # one damaged run must not hide the others
                    log.error("a run cannot be listed", run_id=each.run_id, reason=error.reason, error=error.message)


def _packed(listed: segments_pb2.ListedRun) -> _Found:
    record = state_pb2.RunRecord.FromString(listed.shown) if listed.shown else None
    return _Found(listed.run_id, listed.created_at_ms, record, packed=listed)


def _view(found: _Found, record: state_pb2.RunRecord) -> RunView:
    listed = found.packed
    if listed is None:
        return run_view(found.run_id, record, found.partitions)
    total = state_pb2.PartitionStatus(
        status=listed.status,
        items_completed=listed.items_completed,
        items_failed=listed.items_failed,
        items_cancelled=listed.items_cancelled,
        completed_at_ms=listed.ended_at_ms,
        paused_ms=listed.paused_ms,
    )
    return view_of(found.run_id, record, total, ended=True)


__all__ = ["RunFilter", "RunList"]
