"""Listings: pages of runs, items and steps, for clients.

- Runs are listed from statuses, which are small. Records with their inputs are read only for runs of the page.
- An entry that changes between two pages may be missing from both, and is never in both.
- A page of large results ends early, below the message size that clients receive.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from control_plane.paging import PAGE_BYTES_MAX, read_token, write_token
from control_plane.views import NEVER_STARTED, TERMINAL, ItemView, RunView, run_view, status_name
from stepflow.codec import Json
from stepflow.errors import DataLoss, NotFound
from stepflow.journal import (
    blob_reader,
    journal_entries,
    journal_unread,
    open_partition,
    partition_count,
    read_plan,
    read_record,
    replay_entry,
)
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run.entries import failure_from_pb, json_of
from stepflow.run.views import StepView, list_steps
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from stepflow.errors import Failure
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

RECORDS_READ_MAX = 1_000
"""Records read for one page of runs, however few pass the filter."""


@dataclass(frozen=True, slots=True)
class RunFilter:
    """The runs to list; an empty field accepts all. `statuses` are names such as `failed`."""

    statuses: frozenset[str] = frozenset()
    flow_name: str = ""
    created_since_ms: int = 0


@dataclass(slots=True)
class _Found:
    """A run, known from statuses alone."""

    run_id: str
    created_at_ms: int
    partitions: list[state_pb2.PartitionStatus] = field(default_factory=list)

    @property
    def position(self) -> tuple[int, str]:
        """Position in the list of runs."""
        return self.created_at_ms, self.run_id


class Listing:
    """Reads pages of lists from the store."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._store = store
        self._blobs = blobs
        self._read_blob = blob_reader(store, blobs)

    async def runs(self, wanted: RunFilter, size: int, token: str) -> tuple[list[RunView], str]:
        """Return a page of runs, newest first, and the token of the next page; empty after the last page."""
        # 1. Sort the runs behind the token by their statuses alone.
        before = read_token(token, tuple[int, str])
        candidates = sorted(
            (
                found
                for found in (await self._all_runs()).values()
                if found.created_at_ms >= wanted.created_since_ms and (before is None or found.position < before)
            ),
            key=lambda found: found.position,
            reverse=True,
        )

        # 2. Read records until the page is full.
        views: list[RunView] = []
        read = 0
        for found in candidates:
            if len(views) == size or read == RECORDS_READ_MAX:
                return views, write_token(before)
            before = found.position

            if wanted.statuses and not (wanted.statuses & _possible(found)):
                continue
            read += 1
            view = await self._view(found)
            if view is not None and _passes(view, wanted):
                views.append(view)
        return views, ""

    async def _all_runs(self) -> dict[str, _Found]:
        """Return all runs by id, placed or waiting."""
        found: dict[str, _Found] = {}
        async for item in range_all(self._store, keys.STATUS):
            run_id = keys.parse_status(item.key)[0]
            status = state_pb2.PartitionStatus.FromString(item.value)
            if run_id not in found:
                found[run_id] = _Found(run_id, status.created_at_ms)
            found[run_id].partitions.append(status)

        async for item in range_all(self._store, keys.PENDING):
            run_id = keys.tail(keys.PENDING, item.key)
            if run_id not in found:
                record = await self._store.get(keys.run(run_id))
                if record is not None:
                    found[run_id] = _Found(run_id, state_pb2.RunRecord.FromString(record.value).created_at_ms)
        return found

    async def _view(self, found: _Found) -> RunView | None:
        record = await self._store.get(keys.run(found.run_id))
        if record is None:  # deleted since the statuses were read
            return None
        return run_view(found.run_id, state_pb2.RunRecord.FromString(record.value), found.partitions)

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
        if await journal_unread(self._store, run_id, partition):
            return []  # read here, it might do to this process what it did to its executors
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


def _possible(found: _Found) -> frozenset[str]:
    """Return the possible statuses of the run, judged from placed partitions; others may still wait."""
    statuses = [partition.status for partition in found.partitions]
    if not statuses or any(status not in TERMINAL for status in statuses):
        return frozenset(("running",))
    return frozenset(("running", *map(status_name, statuses)))


def _passes(view: RunView, wanted: RunFilter) -> bool:
    return (not wanted.statuses or view.status in wanted.statuses) and (
        not wanted.flow_name or view.flow_name == wanted.flow_name
    )


__all__ = ["Listing", "RunFilter"]
