"""What a mesh leaves behind once all its runs have ended and are packed: nothing but segments and their blobs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from control_plane.archive.counters import ArchiveCounters
from control_plane.archive.led_segments import LedSegments
from control_plane.archive.policy import RetentionPolicy
from control_plane.archive.upkeep import Upkeep
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.store import created_at, keys, put, range_all

if TYPE_CHECKING:
    from collections.abc import Collection
    from pathlib import Path

    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

OF_RUNS = (
    keys.RUNS,
    keys.BY_AGE,
    keys.STATUS,
    keys.RESULTS,
    keys.PENDING,
    keys.ASSIGNED,
    keys.INBOX,
    keys.JOURNAL,
    keys.ADOPTING,
    keys.DELETED,
)
"""What the store has of runs that are not packed yet, and of deletions that are not finished."""

DAY_S = 24 * 3600.0


async def keys_of_runs(store: Store) -> list[str]:
    """Return keys of runs in the store, the first of each kind."""
    pages = [await store.range(prefix, limit=1) for prefix in OF_RUNS]
    return [page.items[0].key for page in pages if page.items]


async def packed_runs(store: Store) -> tuple[int, int]:
    """Return the numbers of packed runs and of segments."""
    values = [item.value async for item in range_all(store, keys.SEGMENTS)]
    manifests = [pb.SegmentManifest.FromString(value) for value in values]
    return sum(manifest.runs - len(manifest.removed) for manifest in manifests), len(manifests)


async def leftovers(store: Store, blobs: BlobStore, folder: Path, runs: Collection[str]) -> list[str]:
    """Do the upkeep of the next day, for a mesh without processes; return what is left behind, one sentence each.

    `folder`: of the blob store. `runs`: those that were not deleted.
    """
    # 1. Lead, and sweep a day later.
    leader = await store.get(keys.leader())
    if leader is None:
        await put(store, keys.leader(), b"leftovers")
        leader = await store.get(keys.leader())
    assert leader is not None
    fence = created_at(keys.leader(), leader.create_revision)
    segments = LedSegments(store, blobs, fence)
    await segments.load()
    upkeep = Upkeep(store, blobs, segments, RetentionPolicy(), fence, ArchiveCounters())
    await upkeep.delete_orphans(now_s=time.time() + DAY_S)

    # 2. Compare objects with manifests, and blobs with runs.
    objects = {name async for name, _ in blobs.objects.dates("segments")}
    manifests = {keys.parse_segment(item.key) async for item in range_all(store, keys.SEGMENTS)}
    found = [f"the object {name} has no manifest" for name in sorted(objects - manifests)]
    found += [f"the segment {name} has no object" for name in sorted(manifests - objects)]
    scopes = {path.name for path in (folder / "blobs").iterdir()} if (folder / "blobs").is_dir() else set()
    found += [f"blobs of {name} are left, which is no run" for name in sorted(scopes - {"shared", *runs})]
    return found


__all__ = ["keys_of_runs", "leftovers", "packed_runs"]
