"""Removing runs: one that a client names, and those whose time or room is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.views import run_view
from stepflow.errors import Refused
from stepflow.journal import partition_count, read_record
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Delete, DeletePrefix, Txn, keys, present, range_all

if TYPE_CHECKING:
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore


async def delete_run(store: Store, blobs: BlobStore, run_id: str) -> None:
    """Remove a run that has ended, with all that belongs to it.

    Raises: NotFound; Refused `RUN_NOT_ENDED`.
    """
    record = await read_record(store, run_id)
    partitions = [
        state_pb2.PartitionStatus.FromString(item.value) async for item in range_all(store, keys.status_of_run(run_id))
    ]
    if not run_view(run_id, record, partitions).terminal:
        raise Refused("RUN_NOT_ENDED", f"run {run_id} has not ended; cancel it first", run_id=run_id)
    for partition in range(partition_count(record)):
        await store.txn(Txn((), (DeletePrefix(keys.journal_of_partition(run_id, partition)),)))
    await blobs.delete_scope(run_id)
    await store.txn(
        Txn(
            (present(keys.run(run_id)),),
            (
                DeletePrefix(keys.results_of_run(run_id)),
                DeletePrefix(keys.inbox_of_run(run_id)),
                DeletePrefix(keys.status_of_run(run_id)),
                Delete(keys.run(run_id)),
            ),
        )
    )
