"""Listings: pages of runs, items and steps, for clients.

- Runs are listed from the index by age (`run_index`): a page reads one range of it and the statuses of these runs.
- A page of runs that a filter leaves out, of large batches or of large results ends early: empty, even, with a token.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from control_plane.paging import PAGE_BYTES_MAX, read_token, write_token
from control_plane.views import NEVER_STARTED, ItemView, RunView, run_view, status_name
from stepflow.codec import Json
from stepflow.errors import DataLoss, NotFound
from stepflow.journal import (
    blob_reader,
    journal_entries,
    open_partition,
    parse_record,
    partition_count,
    read_plan,
    read_record,
    replay_entry,
)
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run.entries import failure_from_pb, json_of
from stepflow.run.views import StepView, list_steps
from stepflow.store import Get, KeyValue, Page, Range, Txn, keys, present, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from stepflow.errors import Failure
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

RUNS_READ_MAX = 1_000
"""Runs read for one page, however few pass the filter."""

STATUSES_READ_MAX = 2_000
"""A page of runs ends behind the batch that makes it read so many statuses."""

RANGE_RUNS = 200
"""Runs read at once."""

GETS_PER_TXN = 100
RECORDS_PER_TXN = 8
"""Records read at once; each may have a megabyte."""

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class RunFilter:
    """The runs to list; an empty field accepts all. `statuses` are names such as `failed`."""

    statuses: frozenset[str] = frozenset()
    flow_name: str = ""
    created_since_ms: int = 0


@dataclass(slots=True)
class _Found:
    """A run in the order of the list, and what is read of it."""

    run_id: str
    created_at_ms: int
    record: state_pb2.RunRecord | None = None
    """At least the members that a list shows; None until read."""
    partitions: list[state_pb2.PartitionStatus] = field(default_factory=list)
    """Statuses of the placed partitions."""

    @property
    def position(self) -> tuple[int, str]:
        """Position in the list of runs."""
        return self.created_at_ms, self.run_id

    @property
    def partition_count(self) -> int:
        """Number of partitions, placed or not; 0 without a record."""
        return 0 if self.record is None else partition_count(self.record)


class Listing:
    """Reads pages of lists from the store."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._read_blob = blob_reader(store, blobs)

    async def runs(self, wanted: RunFilter, size: int, token: str) -> tuple[list[RunView], str]:
        """Return a page of runs, newest first, and the token of the next page; empty after the last page."""
        position = read_token(token, tuple[int, str])
        views: list[RunView] = []
        runs_read, statuses_left = 0, STATUSES_READ_MAX
        filtered = bool(wanted.statuses or wanted.flow_name)

        while True:
            # 1. Read a range of the index, and the records that it does not have.
            limit = min(RANGE_RUNS, RUNS_READ_MAX - runs_read, RANGE_RUNS if filtered else size - len(views))
            found, more = await self._runs_behind(position, limit)
            runs_read += len(found)
            recent = [each for each in found if each.created_at_ms >= wanted.created_since_ms]
            more = more and len(recent) == len(found)
            await self._read_records([each for each in recent if each.record is None])

            # 2. Read the statuses, of as many runs as the page may read.
            named = [each for each in recent if each.record and wanted.flow_name in ("", each.record.flow_name)]
            behind: _Found | None = None
            for index, each in enumerate(named):
                statuses_left -= each.partition_count
                if statuses_left < 0 and index:
                    behind = each
                    break
            shown = await self._views(named if behind is None else named[: named.index(behind)])

            # 3. Fill the page.
            for each in recent:
                if each is behind:
                    return views, write_token(position)
                if len(views) == size:
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
        after = "" if position is None else keys.by_age(position[1], position[0])
        indexed = Txn((present(keys.BY_AGE_COMPLETE),), (Range(keys.BY_AGE, limit, after),))
        result = await self._store.txn(indexed)
        if not result.succeeded:
            return await self._scanned_behind(after, limit)

        (page,) = result.responses
        assert isinstance(page, Page)
        found: list[_Found] = []
        for item in page.items:
            created_at_ms, run_id = keys.parse_by_age(item.key)
            record = state_pb2.RunRecord.FromString(item.value) if item.value else None
            found.append(_Found(run_id, created_at_ms, record))
        return found, page.more

    async def _scanned_behind(self, after: str, limit: int) -> tuple[list[_Found], bool]:
        """Do the same without the index, from the statuses of all runs."""
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
        single = [each for each in found if each.partition_count == 1]
        for start in range(0, len(single), GETS_PER_TXN):
            some = single[start : start + GETS_PER_TXN]
            reads = tuple(Get(keys.status(each.run_id, 0)) for each in some)
            for each, item in zip(some, (await self._store.txn(Txn((), reads))).responses, strict=True):
                if isinstance(item, KeyValue):
                    each.partitions.append(state_pb2.PartitionStatus.FromString(item.value))

        for each in found:
            if each.partition_count > 1:
                async for item in range_all(self._store, keys.status_of_run(each.run_id)):
                    each.partitions.append(state_pb2.PartitionStatus.FromString(item.value))

        # 2. A run without a status waits, or was deleted.
        waiting = [each for each in found if not each.partitions]
        for each in waiting:
            each.record = None
        await self._read_records(waiting)
        return {
            each.run_id: run_view(each.run_id, each.record, each.partitions)
            for each in found
            if each.record is not None
        }

    async def _read_records(self, found: list[_Found]) -> None:
        """Read the records of runs, as far as they exist and can be read."""
        for start in range(0, len(found), RECORDS_PER_TXN):
            some = found[start : start + RECORDS_PER_TXN]
            reads = tuple(Get(keys.run(each.run_id)) for each in some)
            for each, item in zip(some, (await self._store.txn(Txn((), reads))).responses, strict=True):
                if not isinstance(item, KeyValue):
                    continue
                try:
                    each.record = parse_record(each.run_id, item.value)
                except DataLoss as error:  # one damaged run must not hide the others
                    log.error("a run cannot be listed", run_id=each.run_id, reason=error.reason, error=error.message)

    async def items(self, run_id: str, size: int, token: str) -> tuple[list[ItemView], str]:
        """Return a page of items and the token of the next one. Raises: NotFound, DataLoss."""
        record = await read_record(self._store, run_id)
        start = read_token(token, int) or 0
        end = min(record.items_total, start + size)

        views: list[ItemView] = []
        bytes_total = 0
        results: dict[int, state_pb2.ItemResult] = {}
        default = _RUNNING
        for index in range(start, end):
            partition, offset = divmod(index, record.items_per_partition)
            if not views or offset == 0:
                results, default = await self._partition_results(run_id, partition)

            view = await self._item(run_id, index, results.get(index), default)
            views.append(view)
            bytes_total += len(view.outcome.raw) if isinstance(view.outcome, Json) else 0
            if bytes_total >= PAGE_BYTES_MAX:
                break

        following = start + len(views)
        return views, write_token(following) if following < record.items_total else ""

    async def _partition_results(self, run_id: str, partition: int) -> tuple[dict[int, state_pb2.ItemResult], ItemView]:
        """Return the results of a partition by item, and the view of an item without a result."""
        # Before the results: read after them, an end between the two reads would show items as never started.
        existing = await self._store.get(keys.status(run_id, partition))
        status = (
            state_pb2.PartitionStatus() if existing is None else state_pb2.PartitionStatus.FromString(existing.value)
        )

        found = await self._store.get(keys.results(run_id, partition))
        if found is not None:
            results = state_pb2.PartitionResults.FromString(found.value)
            return {result.item: result for result in results.items}, _RUNNING
        if status.status == pb.RUN_STATUS_CANCELLED:
            return {}, ItemView(0, "cancelled", NEVER_STARTED, status.completed_at_ms)
        return {}, _RUNNING

    async def _item(self, run_id: str, index: int, result: state_pb2.ItemResult | None, default: ItemView) -> ItemView:
        if result is None:
            return replace(default, item=index)

        outcome: Json | Failure
        if result.HasField("failure"):
            outcome = failure_from_pb(result.failure)
        elif result.result.blob:
            try:
                outcome = Json((await self._blobs.get(result.result.blob, scope=run_id))[0])
            except NotFound:
                raise DataLoss(
                    "RESULT_MISSING", f"the result of item {index} of run {run_id} is missing from the blob store"
                ) from None
        else:
            outcome = json_of(result.result)

        return ItemView(index, status_name(result.status), outcome, result.completed_at_ms)

    async def steps(self, run_id: str, size: int, token: str, *, with_results: bool) -> tuple[list[StepView], str]:
        """Return a page of steps, by partition, and the token of the next page. Raises: NotFound, DataLoss.

        `with_results`: read large results from the blob store, and count all results towards the bytes of the page.
        """
        record = await read_record(self._store, run_id)
        partition, offset = read_token(token, tuple[int, int]) or (0, 0)

        views: list[StepView] = []
        bytes_total = 0
        while partition < partition_count(record):
            for view in (await self._partition_steps(run_id, partition, record))[offset:]:
                if len(views) == size or bytes_total >= PAGE_BYTES_MAX:
                    return views, write_token((partition, offset))

                if with_results:
                    bytes_total += await self._load(run_id, view)
                views.append(view)
                offset += 1

            partition, offset = partition + 1, 0
        return views, ""

    async def _partition_steps(self, run_id: str, partition: int, record: state_pb2.RunRecord) -> list[StepView]:
        plan = await read_plan(self._store, record)
        state = None
        entries = []
        async for entry in journal_entries(self._store, run_id, partition):
            if state is None:
                state = await open_partition(run_id, partition, record, plan, self._read_blob)
            await replay_entry(state, entry, self._read_blob)
            entries.append(entry)
        return [] if state is None else list_steps(state, entries)

    async def _load(self, run_id: str, view: StepView) -> int:
        """Read a result in the blob store into the view; return the bytes of the result."""
        outcome = view.outcome
        if not isinstance(outcome, Json):
            return 0

        blob = getattr(outcome, "blob", "")
        if blob and not outcome.raw:
            content = await self._read_blob(run_id, blob, shared=False)
            if content is None:
                raise DataLoss("RESULT_MISSING", f"a result of run {run_id} is missing from the blob store")
            view.outcome = outcome = Json(content)
        return len(outcome.raw)


_RUNNING = ItemView(0, "running", None, None)


__all__ = ["Listing", "RunFilter"]
