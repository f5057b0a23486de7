"""Pages of a run's items and steps, for clients.

- Items of an ended partition are read from its results; those of a live one, and all steps, from the journal
  (`replay`). Of a packed run with a long journal the segment has the list of steps (`archive.step_index`).
- An entry that changes between two pages may be missing from both, or be in both.
- A page of large results ends early, below the message size that clients receive; a page of steps also behind many
  partitions without any: it may be empty, with a token.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import msgspec

from control_plane.paging import PAGE_BYTES_MAX, PAGE_SIZE_MAX, read_token, write_token
from control_plane.replay.replays import Replays
from control_plane.results import InParts, Results, ResultText
from control_plane.views import NEVER_STARTED, ItemView, status_name
from stepflow.codec import Json, LargeJson
from stepflow.errors import DataLoss, FailedPrecondition, Failure, Invalid, NotFound
from stepflow.journal import blob_reader, partition_count, read_record
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.result_parts import parts_bytes
from stepflow.run.entries import failure_from_pb, json_of
from stepflow.store import keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from control_plane.archive.run_store import RunStore
    from control_plane.replay.process import ReplayProcess
    from stepflow.run.views import StepView
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

PARTITIONS_READ_MAX = 50
"""Partitions read for one page of steps, however few steps they have."""


class StepPage(NamedTuple):
    """A page of steps."""

    steps: list[StepView]
    token: str
    """Token of the next page; empty after the last one."""
    incomplete: str = ""
    """Why later steps are missing: a later version wrote the next entry."""


class Listing:
    """Reads pages of items and steps."""

    def __init__(self, store: RunStore, blobs: BlobStore, process: ReplayProcess | None = None) -> None:
        """`process`: as for `Replays`."""
        self._store = store
        read_blob = blob_reader(store, blobs)
        self.replays = Replays(store, read_blob, process)
        self._results = Results(store, read_blob)

    async def items(self, run_id: str, size: int, token: str, first: int = 0) -> tuple[list[ItemView], str]:
        """Return a page of items and the token of the next one; without a token, from item `first` on.

        Raises: NotFound, DataLoss.
        """
        record = await read_record(self._store, run_id)
        start = read_token(token, int) or first
        end = min(record.items_total, start + size)

        views: list[ItemView] = []
        bytes_total = 0
        ended: dict[int, ItemView] = {}
        default = _RUNNING
        for index in range(start, end):
            partition, offset = divmod(index, record.items_per_partition)
            if not views or offset == 0:
                ended, default = await self._partition_items(run_id, partition, record, index, end - index)

            view = ended.get(index) or replace(default, item=index)
            if isinstance(view.outcome, (Json, LargeJson)):
                loaded = await self._results.load(run_id, view.outcome, f"the result of item {index}")
                view = replace(view, outcome=loaded)
            views.append(view)
            bytes_total += len(view.outcome.raw) if isinstance(view.outcome, Json) else 0
            if bytes_total >= PAGE_BYTES_MAX:
                break

        following = start + len(views)
        return views, write_token(following) if following < record.items_total else ""

    async def each_item(self, run_id: str, first: int = 0, size: int = PAGE_SIZE_MAX) -> AsyncGenerator[ItemView, None]:
        """Yield the items from `first` on in index order; memory holds `size` of them. Raises: NotFound, DataLoss."""
        token = ""
        while True:
            views, token = await self.items(run_id, size, token, first)
            for view in views:
                yield view
            if not token:
                return

    async def result(self, run_id: str, item: int, offset: int = 0) -> ResultText:
        """Return the text of an item's result behind `offset`, of any size, in chunks.

        Raises: NotFound, FailedPrecondition (`ITEM_NOT_ENDED`, `ITEM_FAILED`), Invalid (`OFFSET_INVALID`), DataLoss.
        """
        record = await read_record(self._store, run_id)
        if item >= record.items_total:
            raise NotFound("ITEM_NOT_FOUND", f"run {run_id} has {record.items_total:,} items, and no item {item:,}")

        partition = item // record.items_per_partition
        ended, default = await self._partition_items(run_id, partition, record, item, 1, whole=True)
        outcome = ended.get(item, default).outcome
        if outcome is None:
            raise FailedPrecondition("ITEM_NOT_ENDED", f"item {item} of run {run_id} has not ended yet")
        if isinstance(outcome, Failure):
            text = f"item {item} of run {run_id} has no result: {outcome.code.name}: {outcome.message}"
            raise FailedPrecondition(
                "ITEM_FAILED", text, failure_code=outcome.code.name, failure_message=outcome.message
            )

        found = await self._results.text(run_id, outcome, offset)
        if offset > found.text_bytes:
            raise Invalid("OFFSET_INVALID", f"offset {offset:,} lies behind the result of {found.text_bytes:,} bytes")
        return ResultText(found.text_bytes, self._checked(run_id, found.chunks))

    async def _checked(self, run_id: str, chunks: AsyncGenerator[bytes]) -> AsyncGenerator[bytes]:
        """Yield chunks; if one is missing because the run is deleted meanwhile, say so. Raises: NotFound, DataLoss."""
        try:
            async for chunk in chunks:
                yield chunk
        except DataLoss:
            await read_record(self._store, run_id)
            raise

    async def _partition_items(
        self,
        run_id: str,
        partition: int,
        record: state_pb2.RunRecord,
        start: int,
        count: int,
        *,
        whole: bool = False,
    ) -> tuple[dict[int, ItemView], ItemView]:
        """Return the ended items of a partition, and the view of the others. Results may lie in the blob store.

        At least the items of the range that are in the partition; `whole`: results above 16 MiB, too.
        """
        # 1. The status, before the results: read after them, an end between the two reads would show items as running.
        existing = await self._store.get(keys.status(run_id, partition))
        if existing is None:
            return {}, _RUNNING
        status = state_pb2.PartitionStatus.FromString(existing.value)

        # 2. The results of an ended partition.
        found = await self._store.get(keys.results(run_id, partition))
        if found is not None:
            results = state_pb2.PartitionResults.FromString(found.value)
            return {result.item: _item_view(partition, result) for result in results.items}, _RUNNING

        # 3. Without results: ended before it was placed, ended as unreadable, or live.
        if status.status == pb.RUN_STATUS_CANCELLED:
            why = failure_from_pb(status.failure) if status.HasField("failure") else NEVER_STARTED
            return {}, ItemView(0, "cancelled", why, status.completed_at_ms)
        try:
            return await self.replays.items(run_id, partition, record, start, count, whole=whole), _RUNNING
        except DataLoss as error:  # the other partitions are shown all the same
            log.error("items of a damaged journal are not known", run_id=run_id, reason=error.reason)
            return {}, _RUNNING

    async def steps(self, run_id: str, size: int, token: str, *, with_results: bool) -> StepPage:
        """Return a page of steps, by partition. Raises: NotFound, DataLoss.

        `with_results`: read large results from the blob store, and count all results towards the bytes of the page.
        Without, the outcome of a step is its failure or None.
        """
        partition, offset = read_token(token, tuple[int, int]) or (0, 0)
        behind = partition + PARTITIONS_READ_MAX
        incomplete = ""

        # The record of a packed run is read only if it is needed: a long run has a long index of keys.
        from control_plane.archive.step_index import StepIndexReader  # `stepflow run` starts without it

        index = StepIndexReader(self._store, run_id)
        await index.open()
        record = None if index.partitions_total else await read_record(self._store, run_id)
        partitions = index.partitions_total if record is None else partition_count(record)

        views: list[StepView] = []
        bytes_total = 0
        while partition < partitions:
            # 1. The next steps of the partition.
            wanted = size - len(views)
            read = await index.steps(partition, offset, wanted, with_results=with_results)
            if read is None:
                record = record or await read_record(self._store, run_id)
                read = await self.replays.steps(run_id, partition, record, offset, wanted, with_results=with_results)
                incomplete = incomplete or read.incomplete

            # 2. As many as fit.
            for view in read.steps:
                if bytes_total >= PAGE_BYTES_MAX:
                    return StepPage(views, write_token((partition, offset)), incomplete)
                views.append(view)
                if with_results:
                    views[-1], size_read = await self._loaded(run_id, view)
                    bytes_total += size_read
                elif not isinstance(view.outcome, Failure):
                    views[-1] = msgspec.structs.replace(view, outcome=None)
                offset += 1
            if read.more:
                return StepPage(views, write_token((partition, offset)), incomplete)

            partition, offset = partition + 1, 0
            if partition == behind and partition < partitions:
                return StepPage(views, write_token((partition, 0)), incomplete)
        return StepPage(views, "", incomplete)

    async def _loaded(self, run_id: str, view: StepView) -> tuple[StepView, int]:
        """Return the step with its result, read from the blob store if it is there, and the bytes of the result."""
        if not isinstance(view.outcome, (Json, InParts)):
            return view, 0
        outcome = await self._results.load(run_id, view.outcome)
        size = len(outcome.raw) if isinstance(outcome, Json) else 0
        return msgspec.structs.replace(view, outcome=outcome), size


_RUNNING = ItemView(0, "running", None, None)


def _item_view(partition: int, result: state_pb2.ItemResult) -> ItemView:
    text_bytes = parts_bytes(result)
    outcome: Json | Failure | LargeJson
    if text_bytes is not None:
        outcome = InParts(text_bytes, partition, result)
    else:
        outcome = failure_from_pb(result.failure) if result.HasField("failure") else json_of(result.result)
    return ItemView(result.item, status_name(result.status), outcome, result.completed_at_ms)


__all__ = ["Listing", "StepPage"]
