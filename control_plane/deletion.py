"""Deletion of an ended run with all its data, for clients and for retention sweeps.

Inbox and journals go first, then the blobs, then record, statuses and results in a single transaction. An
interrupted deletion leaves the record, so the next attempt continues.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.views import run_view
from stepflow.errors import FailedPrecondition, NotFound
from stepflow.journal import partition_count, read_record
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Compare, Delete, DeletePrefix, Txn, keys, present, range_all

if TYPE_CHECKING:
    from stepflow.store import Op, Store
    from stepflow.store.blobs import BlobStore


async def delete_run(store: Store, blobs: BlobStore, run_id: str, compares: tuple[Compare, ...] = ()) -> None:
    """Delete an ended run with all its data; every transaction compares `compares`.

    Raises: NotFound; FailedPrecondition (`RUN_NOT_ENDED`, `NOT_LEADING`: `compares` do not hold).
    """
    # 1. Check that the run has ended.
    record = await read_record(store, run_id)
    partitions = [
        state_pb2.PartitionStatus.FromString(item.value) async for item in range_all(store, keys.status_of_run(run_id))
    ]
    if not run_view(run_id, record, partitions).terminal:
        raise FailedPrecondition("RUN_NOT_ENDED", f"run {run_id} has not ended; cancel it first", run_id=run_id)

    # 2. Inbox and journals. Fenced, and before the blobs: no transaction guards those.
    await delete_journals(store, run_id, partition_count(record), compares)

    # 3. Blobs.
    await blobs.delete_scope(run_id)

    # 4. The rest at once. The record goes last: without it a broken deletion could not be continued.
    txn = Txn((present(keys.run(run_id)), *compares), tuple(remaining_deletes(run_id, record.created_at_ms)))
    if not (await store.txn(txn)).succeeded:
        raise NotFound("RUN_NOT_FOUND", f"run {run_id} was deleted by another request", run_id=run_id)


async def delete_journals(store: Store, run_id: str, partitions: int, compares: tuple[Compare, ...] = ()) -> None:
    """Delete a run's inbox and journals, in a transaction per partition.

    Raises: FailedPrecondition `NOT_LEADING` (`compares` do not hold).
    """
    for prefix in (keys.inbox_of_run(run_id), *(keys.journal_of_partition(run_id, p) for p in range(partitions))):
        if not (await store.txn(Txn(compares, (DeletePrefix(prefix),)))).succeeded:
            raise FailedPrecondition("NOT_LEADING", "another control plane leads now")


def remaining_deletes(run_id: str, created_at_ms: int) -> list[Op]:
    """Return the operations that delete the rest of a run without journals."""
    prefixes = (keys.results_of_run, keys.inbox_of_run, keys.adopting_of_run, keys.status_of_run)
    singles = (keys.by_age(run_id, created_at_ms), keys.run(run_id))
    return [*(DeletePrefix(prefix(run_id)) for prefix in prefixes), *map(Delete, singles)]


__all__ = ["delete_journals", "delete_run", "remaining_deletes"]
