"""The end of deletions, for the leader: deleted runs leave the segments.

A client deletes a run with the key `deleted/<run id>` (`control_plane/deletion.py`). It hides the run from all readers
at once, wherever a copy of it lies or is being written. The leader moves it into the manifests of the segments that
have the run, and then deletes the key. The key stays while a segment that may have the run cannot be read.

While the key exists no run of its id is packed, so it always means the copies in the segments. A new run of the same id
may be admitted meanwhile: live runs are read from the store.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.archive.run_keys import check_leading
from stepflow.errors import DataLoss
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.store import Delete, Txn, keys, modified_at, range_all

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control_plane.archive.led_segments import LedSegments
    from stepflow.store import Compare, KeyValue, Store

KEYS_PER_TXN = 100


async def finish_deletions(store: Store, segments: LedSegments, fence: Compare) -> int:
    """Remove the copies of deleted runs from the segments, on behalf of the leader; return the number of runs.

    Not while a run is being packed.

    Raises: FailedPrecondition `NOT_LEADING`; DataLoss `SEGMENT_MISSING`: some deletions wait; StepflowError.
    """
    # 1. Find the copies.
    hidden = [item async for item in range_all(store, keys.DELETED)]
    if not hidden:
        return 0
    held = await segments.holding([keys.parse_deleted(item.key) for item in hidden])

    # 2. Mark them in the manifests.
    numbers: dict[str, set[int]] = {}
    for copies in held.found.values():
        for name, number in copies:
            numbers.setdefault(name, set()).add(number)
    for name, removed in numbers.items():
        await segments.change({name: await _without(segments, name, removed)})

    # 3. Delete the keys, unless a later deletion has put one again.
    ended = [item for item in hidden if keys.parse_deleted(item.key) not in held.unsure]
    for start in range(0, len(ended), KEYS_PER_TXN):
        await _delete_keys(store, fence, ended[start : start + KEYS_PER_TXN])
    if held.unsure:
        raise DataLoss(
            "SEGMENT_MISSING", f"deletions of {len(held.unsure)} runs wait: a segment that may have them cannot be read"
        )
    return len(ended)


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


__all__ = ["finish_deletions"]
