"""Upkeep of the segments, for the leader: retention, and objects of a good size.

- Retention removes whole segments: by age, when the last of its runs is old enough, and by bytes, the runs that ended
  first before all others. It looks at manifests only, never at runs, so its cost does not grow with the number of runs.
- A segment is removed in steps that a later leader continues: `expiring` hides it, then the blobs of its runs go, then
  the object, then the manifest.
- Journals go earlier than runs: the segment is rewritten without them.
- Small segments are merged, neighbours in time and similar in size, so that each run is copied a few times only. A
  segment of which most was deleted is rewritten.
- Objects without a manifest are what crashes have left. They go when they are too old to be written at the moment, and
  only those of this store: other meshes may share the blob store.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING

from control_plane.archive.format import FOLDER, FORMAT, object_name
from control_plane.archive.led_segments import CHANGES_MAX
from control_plane.archive.packer import SEGMENT_BYTES, SEGMENT_RUNS_MAX
from control_plane.archive.rewriting import listed_runs, rewrite
from control_plane.archive.run_keys import check_leading
from stepflow.errors import DataLoss, NotFound, StepflowError
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.store import Txn, absent, keys
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from control_plane.archive.counters import ArchiveCounters
    from control_plane.archive.led_segments import LedSegments
    from control_plane.archive.policy import RetentionPolicy
    from stepflow.store import Compare, Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

ORPHAN_S = 3600.0
"""Age at which an object without a manifest is deleted: longer than any write takes."""

REMOVED_SHARE = 0.5
"""A segment with this share of its runs, or of its bytes, deleted is rewritten."""

MERGED = 8
"""Segments merged at once, of one tier: the tiers are powers of this number."""

FULL_SHARE = 0.5
"""A segment that fills this share of its target is never merged."""

SPAN_SHARE = 24
SPAN_S_MIN = 60.0
"""The runs of a segment ended within this part of their retention, so that age removes each in time."""

SCOPES_AT_ONCE = 8
"""Blobs of so many runs are deleted at once."""


class Upkeep:
    """Keeps the segments of one term of leadership. One call at a time, and never while runs are packed."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        segments: LedSegments,
        policy: RetentionPolicy,
        fence: Compare,
        counters: ArchiveCounters,
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._segments = segments
        self._policy = policy
        self._fence = fence
        self._counters = counters
        self._damaged: set[str] = set()
        """Segments that cannot be rewritten: they stay until they expire."""

    @property
    def span_ms(self) -> int:
        """Bound on the time between the ends of the runs of one segment."""
        return round(1000 * max(SPAN_S_MIN, self._policy.runs_s / SPAN_SHARE))

    async def step(self, now_ms: int) -> bool:
        """Do one piece of work; return True if more may be due.

        Raises: FailedPrecondition `NOT_LEADING`; StepflowError, of the store and of the blob store.
        """
        # 1. Retention: mark what is due, then remove one segment.
        await self._expire(now_ms)
        for name, manifest in self._known():
            if manifest.expiring:
                await self._remove(name)
                return True

        # 2. Rewrites.
        sources, strip = self._next_rewrite(now_ms)
        if not sources:
            return False
        try:
            await rewrite(self._blobs, self._segments, sources, strip=strip)
        except (DataLoss, NotFound) as error:  # readers meet the same; the others go on
            log.error("segments stay as they are", segments=sources, reason=error.reason, error=error.message)
            self._damaged.update(sources)
        except StepflowError:
            raise
        except Exception as error:  # one segment must not hold up the others
            log_defect(log, "segments stay as they are: rewriting failed by a defect", error, segments=sources)
            self._damaged.update(sources)
        return True

    def _known(self) -> list[tuple[str, pb.SegmentManifest]]:
        """Return the segments that this version understands; those of later versions are left to them."""
        return [item for item in self._segments.manifests.items() if item[1].format <= FORMAT]

    async def _expire(self, now_ms: int) -> None:
        """Mark the segments that retention removes, and those without runs."""
        known = [item for item in self._known() if not item[1].expiring]
        size = sum(manifest.bytes for _, manifest in known)
        due: list[str] = []
        for name, manifest in sorted(known, key=lambda item: item[1].ended_last_ms):
            old = now_ms - manifest.ended_last_ms > 1000 * self._policy.runs_s
            if old or size > self._policy.packed_bytes_max or len(manifest.removed) >= manifest.runs:
                due.append(name)
                size -= manifest.bytes

        for start in range(0, len(due), CHANGES_MAX):
            changed: dict[str, pb.SegmentManifest] = {}
            for name in due[start : start + CHANGES_MAX]:
                changed[name] = pb.SegmentManifest()
                changed[name].CopyFrom(self._segments.manifests[name])
                changed[name].expiring = True
            await self._segments.change(changed)

    async def _remove(self, name: str) -> None:
        """Remove an expiring segment with the blobs of its runs."""
        # 1. Blobs. Those of a deleted run went with it. An id that is in use again keeps them.
        manifest = self._segments.manifests[name]
        try:
            listed = await listed_runs(self._blobs, self._segments, name)
        except (NotFound, DataLoss) as error:  # gone: an earlier leader came so far
            if isinstance(error, DataLoss):
                log.error("blobs of expired runs may stay: their segment is damaged", segment=name, error=error.message)
            listed = []
        await check_leading(self._store, self._fence)
        scopes = [each.run_id for each in listed if each.has_blobs]
        packed = await self._segments.holding(scopes)
        scopes = [run_id for run_id in scopes if run_id not in packed.found and run_id not in packed.unsure]
        for start in range(0, len(scopes), SCOPES_AT_ONCE):
            unused = await self._not_live(scopes[start : start + SCOPES_AT_ONCE])
            await asyncio.gather(*map(self._blobs.delete_scope, unused))

        # 2. The object, then the manifest.
        await self._blobs.objects.delete(object_name(name))
        await self._segments.change({}, removed=[name])
        self._counters.expired_runs += manifest.runs - len(manifest.removed)
        log.info("segment removed", segment=name, runs=manifest.runs - len(manifest.removed), bytes=manifest.bytes)

    async def _not_live(self, run_ids: Sequence[str]) -> Sequence[str]:
        """Return those of the runs that the store does not have."""
        if (await self._store.txn(Txn(tuple(absent(keys.run(run_id)) for run_id in run_ids), ()))).succeeded:
            return run_ids
        if len(run_ids) == 1:
            return []
        return [each for run_id in run_ids for each in await self._not_live([run_id])]

    def _next_rewrite(self, now_ms: int) -> tuple[Sequence[str], bool]:
        """Return the segments to rewrite next into one, and True if their journals go; no segments: nothing is due."""
        known = [item for item in self._known() if not item[1].expiring and item[0] not in self._damaged]
        for name, manifest in known:
            if manifest.removed and (
                len(manifest.removed) >= REMOVED_SHARE * manifest.runs
                or manifest.removed_bytes >= REMOVED_SHARE * manifest.bytes
            ):
                return [name], manifest.stripped

        if self._policy.journals_s < self._policy.runs_s:
            before_ms = now_ms - 1000 * self._policy.journals_s
            for name, manifest in known:
                if not manifest.stripped and manifest.ended_last_ms < before_ms:
                    return [name], True

        for stripped in (False, True):
            tiers: dict[int, list[tuple[str, pb.SegmentManifest]]] = {}
            for name, manifest in known:
                if manifest.stripped == stripped and _share(manifest) < FULL_SHARE:
                    tiers.setdefault(_tier(manifest), []).append((name, manifest))
            for tier in tiers.values():
                chosen = _neighbours(tier, self.span_ms)
                if chosen:
                    return chosen, stripped
        return [], False

    async def delete_orphans(self, now_s: float | None = None) -> list[str]:
        """Delete objects of this store without a manifest, `ORPHAN_S` after they were written; return their names.

        Raises: FailedPrecondition `NOT_LEADING`; StepflowError, of the blob store.
        """
        # 1. List them. A name that begins with a dot is a draft.
        before_s = (time.time() if now_s is None else now_s) - ORPHAN_S
        found = [
            name
            async for name, written_at_s in self._blobs.objects.dates(FOLDER)
            if written_at_s < before_s and name not in self._segments.manifests and self._segments.is_own(name)
        ]
        if not found:
            return []

        # 2. Delete them, if the manifests are still those of the leader.
        await check_leading(self._store, self._fence)
        for name in found:
            await self._blobs.objects.delete(object_name(name))
        log.info("objects without a manifest deleted", count=len(found))
        return found


def _share(manifest: pb.SegmentManifest) -> float:
    """Return how full a segment is, from 0 to about 1."""
    return max(manifest.bytes / SEGMENT_BYTES, manifest.runs / SEGMENT_RUNS_MAX)


def _tier(manifest: pb.SegmentManifest) -> int:
    return math.floor(math.log(max(_share(manifest), 1e-6), MERGED))


def _neighbours(tier: Iterable[tuple[str, pb.SegmentManifest]], span_ms: int) -> list[str]:
    """Return `MERGED` segments of a tier that may become one; none if there are too few.

    The runs of all of them must have ended within `span_ms`, and must fit one segment.
    """
    ordered = sorted(tier, key=lambda item: item[1].ended_first_ms)
    for start in range(len(ordered) - MERGED + 1):
        group = ordered[start : start + MERGED]
        last_ms = max(manifest.ended_last_ms for _, manifest in group)
        if last_ms - group[0][1].ended_first_ms <= span_ms:
            return _fitting(group)
    return []


def _fitting(group: Sequence[tuple[str, pb.SegmentManifest]]) -> list[str]:
    """Return the first segments of a group that fill one segment."""
    names: list[str] = []
    share = 0.0
    for name, manifest in group:
        share += _share(manifest)
        if share > 1 and len(names) > 1:
            break
        names.append(name)
    return names


__all__ = ["Upkeep"]
