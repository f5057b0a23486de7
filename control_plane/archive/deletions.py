"""Deletion of runs by clients, at any moment of packing.

A run is deleted with the key `deleted/<run id>`: it hides the run from all readers at once, wherever a copy of it lies or
is being written. The leader moves it into the manifests of the segments that have the run, and then deletes the key.

- Journals and blobs go before the run: a broken deletion leaves a run that can be deleted again.
- While the key exists no run of its id is packed, so it always means the copies in the segments. A new run of the same
  id may be admitted meanwhile: live runs are read from the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.archive.run_keys import KINDS, check_leading
from control_plane.views import run_view
from stepflow.errors import Conflict, FailedPrecondition, NotFound
from stepflow.journal import parse_record, partition_count
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import (
    Delete,
    DeletePrefix,
    KeyValue,
    Put,
    Txn,
    absent,
    keys,
    modified_at,
    range_all,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from control_plane.archive.led_segments import LedSegments
    from stepflow.store import Compare, Op, Store
    from stepflow.store.blobs import BlobStore

TRIES_MAX = 5

KEYS_PER_TXN = 100


async def delete_run(
    store: Store, blobs: BlobStore, run_id: str, is_packed: Callable[[str], Awaitable[bool]] | None = None
) -> None:
    """Delete an ended run with all its data. `is_packed`: returns True if a segment has the run, not deleted.

    Raises:
        NotFound: `RUN_NOT_FOUND`.
        FailedPrecondition: `RUN_NOT_ENDED`.
        Conflict: `DELETE_RACED`.
    """
    for _ in range(TRIES_MAX):
        found = await store.get(keys.run(run_id))
        if found is not None:
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
        if await store.get(found.key) is None:
            return False
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


async def finish_deletions(store: Store, segments: LedSegments, fence: Compare) -> int:
    """Remove the copies of deleted runs from the segments, on behalf of the leader; return the number of runs.

    Not while a run is being packed. Raises: FailedPrecondition `NOT_LEADING`; StepflowError.
    """
    # 1. Find the copies.
    hidden = [item async for item in range_all(store, keys.DELETED)]
    if not hidden:
        return 0
    held = await segments.holding([keys.parse_deleted(item.key) for item in hidden])

    # 2. Mark them in the manifests.
    numbers: dict[str, set[int]] = {}
    for copies in held.values():
        for name, number in copies:
            numbers.setdefault(name, set()).add(number)
    for name, removed in numbers.items():
        await segments.change({name: await _without(segments, name, removed)})

    # 3. Delete the keys, unless a later deletion has put one again.
    for start in range(0, len(hidden), KEYS_PER_TXN):
        await _delete_keys(store, fence, hidden[start : start + KEYS_PER_TXN])
    return len(hidden)


async def _without(segments: LedSegments, name: str, removed: set[int]) -> pb.SegmentManifest:
    """Return the manifest of a segment in which more runs are removed."""
    changed = pb.SegmentManifest()
    changed.CopyFrom(segments.manifests[name])
    tail = await segments.tail(name)
    if tail is not None:
        changed.removed_bytes += sum(tail.body(number).bytes for number in removed - set(changed.removed))
    merged = sorted(removed.union(changed.removed))
    del changed.removed[:]
    changed.removed.extend(merged)
    return changed


async def _delete_keys(store: Store, fence: Compare, items: Sequence[KeyValue]) -> None:
    compares = [modified_at(item.key, item.mod_revision) for item in items]
    if (await store.txn(Txn((fence, *compares), tuple(Delete(item.key) for item in items)))).succeeded:
        return
    await check_leading(store, fence)
    if len(items) > 1:  # one of them was put again: that is the next call's
        for item in items:
            await _delete_keys(store, fence, [item])


__all__ = ["delete_run", "finish_deletions"]
