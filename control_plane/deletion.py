"""Deletion of an ended run by a client, at any moment of its packing.

- Journals and blobs go before the run: a broken deletion leaves a run that can be deleted again.
- The last transaction puts the key `deleted/`. It hides the copies of the run in segments, and one that is being
  written (`control_plane/archive/tombstones.py`).
- Each transaction compares the record: a run that was packed meanwhile is found again, in its segment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.archive.run_keys import KINDS
from control_plane.views import run_view
from stepflow.errors import Conflict, FailedPrecondition, NotFound
from stepflow.journal import parse_record, partition_count
from stepflow.mesh.v1 import state_pb2
from stepflow.store import (
    Delete,
    DeletePrefix,
    Get,
    KeyValue,
    Put,
    Txn,
    absent,
    keys,
    modified_at,
    present,
    range_all,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stepflow.store import Compare, Op, Store
    from stepflow.store.blobs import BlobStore

TRIES_MAX = 5


async def delete_run(
    store: Store, blobs: BlobStore, run_id: str, is_packed: Callable[[str], Awaitable[bool]] | None = None
) -> None:
    """Delete an ended run with all its data. `is_packed`: returns True if a segment has the run, not deleted.

    Raises:
        NotFound: `RUN_NOT_FOUND`.
        FailedPrecondition: `RUN_NOT_ENDED`.
        Conflict: `DELETE_RACED`.
    """
    key = keys.run(run_id)
    for _ in range(TRIES_MAX):
        # Compared, so that the store itself answers: readers find packed runs, too.
        (found,) = (await store.txn(Txn((present(key),), (Get(key),)))).responses or (None,)
        if isinstance(found, KeyValue):
            if await _delete_live(store, blobs, run_id, found):
                return
        elif is_packed is not None and await is_packed(run_id):
            if await _delete_packed(store, blobs, run_id):
                return
        else:
            raise NotFound("RUN_NOT_FOUND", f"there is no run {run_id}", run_id=run_id)
    raise Conflict("DELETE_RACED", f"run {run_id} changed during all {TRIES_MAX} tries to delete it; try again")


async def _delete_live(store: Store, blobs: BlobStore, run_id: str, found: KeyValue) -> bool:
    """Delete a run that the store has; return False if it was packed or deleted meanwhile."""
    # 1. Check that the run has ended.
    record = parse_record(run_id, found.value)
    partitions = [
        state_pb2.PartitionStatus.FromString(item.value) async for item in range_all(store, keys.status_of_run(run_id))
    ]
    if not run_view(run_id, record, partitions).terminal:
        if not (await store.txn(Txn((modified_at(found.key, found.mod_revision),), ()))).succeeded:
            return False  # packed or deleted while its statuses were read
        raise FailedPrecondition("RUN_NOT_ENDED", f"run {run_id} has not ended; cancel it first", run_id=run_id)

    # 2. Inbox and journals, in bounded transactions; then the blobs.
    unchanged = modified_at(found.key, found.mod_revision)
    if not await _delete_bulk(store, run_id, partition_count(record), unchanged):
        return False
    await blobs.delete_scope(run_id)

    # 3. The rest at once, with the key that hides a copy that is being packed.
    rest: list[Op] = [DeletePrefix(kind(run_id)) for kind in KINDS]
    rest += Delete(found.key), Delete(keys.by_age(run_id, record.created_at_ms)), Put(keys.deleted(run_id), b"")
    return (await store.txn(Txn((unchanged,), tuple(rest)))).succeeded


async def _delete_packed(store: Store, blobs: BlobStore, run_id: str) -> bool:
    """Delete a run that a segment has; return False if the id is in use again."""
    # 1. Blobs.
    await blobs.delete_scope(run_id)

    # 2. Hide it, with the keys that the packer may not have deleted yet: a later run of this id must not find them.
    gone = absent(keys.run(run_id))
    rest = [DeletePrefix(kind(run_id)) for kind in KINDS]
    return (await store.txn(Txn((gone,), (*rest, Put(keys.deleted(run_id), b""))))).succeeded


async def _delete_bulk(store: Store, run_id: str, partitions: int, unchanged: Compare) -> bool:
    """Delete inbox and journals, in a transaction per partition; return False if the run was packed or deleted."""
    for prefix in (keys.inbox_of_run(run_id), *(keys.journal_of_partition(run_id, p) for p in range(partitions))):
        if not (await store.txn(Txn((unchanged,), (DeletePrefix(prefix),)))).succeeded:
            return False
    return True


__all__ = ["delete_run"]
