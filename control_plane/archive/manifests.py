"""The known set of segments: manifests read from the store, kept current by a watch, in memory.

- `head` is the version of the set: the mod revision of `segments-head`, which every change of a manifest puts, too.
  The known set is never older than `head`.
- `catch_up(head)` makes the set at least that new: a reader that has seen a version in a transaction of its own then
  finds every run that was packed before. It waits for the watch, and lists the manifests only if the watch is late.
- Without a running `follow` every change is listed.

Memory: 4 bytes per packed run.
"""

from __future__ import annotations

import asyncio
import sys
from array import array
from bisect import bisect_left
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from control_plane.archive.format import FINGERPRINT_BYTES, fingerprint
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.store import keys, range_all
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)

WATCH_PATIENCE_S = 0.5
"""How long a reader waits for the watch before it lists the manifests."""

RELIST_INTERVAL_S = 600.0
"""A list reads all manifests. A watch that stalls silently is noticed by the readers, so the backstop may be slow."""

UNKNOWN = -1


class KnownSegment:
    """A segment as of its manifest."""

    def __init__(self, segment_id: str, manifest: pb.SegmentManifest, mod_revision: int) -> None:
        self.id = segment_id
        self.mod_revision = mod_revision
        self.removed = frozenset(manifest.removed)
        self.manifest = manifest
        """Without fingerprints and removed numbers."""
        self._fingerprints = array("I", manifest.fingerprints)
        assert self._fingerprints.itemsize == FINGERPRINT_BYTES
        if sys.byteorder == "little":
            self._fingerprints.byteswap()
        manifest.ClearField("fingerprints")
        manifest.ClearField("removed")

    def may_have(self, run_id: str, mark: int) -> bool:
        """Return False if the segment does not have the run. `mark`: the fingerprint of the run, as an integer."""
        if not self.manifest.first_run_id <= run_id <= self.manifest.last_run_id or self.manifest.expiring:
            return False
        position = bisect_left(self._fingerprints, mark)
        return position < len(self._fingerprints) and self._fingerprints[position] == mark

    def newest_behind(self, created_at_ms: int) -> int | None:
        """Return a bound on the creation times of the segment's runs that are not after a time; None without any."""
        ends = [min(span.last_ms, created_at_ms) for span in self.manifest.created if span.first_ms <= created_at_ms]
        return max(ends, default=None)


class Manifests:
    """The segments of a store. Bound to the event loop."""

    def __init__(self, store: Store) -> None:
        self.segments: dict[str, KnownSegment] = {}
        """By id."""
        self.head = UNKNOWN
        """Version of the set: 0 before the first segment of a store, `UNKNOWN` after a gap in the watch."""
        self._store = store
        self._last_run_id = ""
        """No segment has a run behind this one: a new id has the newest time."""
        self._gaps = 0
        """Count of gaps in the watch; 0 without a watch."""
        self._watched = False
        """Every change since the last list comes by the watch."""
        self._listing = asyncio.Lock()
        self._missed: list[StoreEvent] | None = None
        """Events since the beginning of the list that is being read."""
        self._changed = asyncio.Event()

    async def follow(self) -> None:
        """Keep the set current until cancelled."""
        await follow(
            self._store,
            keys.SEGMENTS_AND_HEAD,
            listed=lambda _: self.discard(),
            changed=self._on_changed,
            read=False,
            relist_interval_s=RELIST_INTERVAL_S,
        )

    def candidates(self, run_id: str) -> list[KnownSegment]:
        """Return the segments that may have a run, the newest first."""
        if run_id > self._last_run_id:
            return []
        mark = int.from_bytes(fingerprint(run_id))
        found = [segment for segment in self.segments.values() if segment.may_have(run_id, mark)]
        return sorted(found, key=lambda segment: segment.id, reverse=True)

    async def refresh(self) -> None:
        """Make the set as new as the store. Raises: StoreUnavailable."""
        found = await self._store.get(keys.segments_head())
        await self.catch_up(0 if found is None else found.mod_revision)

    async def catch_up(self, head: int) -> None:
        """Make the set at least as new as the version `head`. Raises: StoreUnavailable."""
        # 1. Wait for the watch.
        try:
            async with asyncio.timeout(WATCH_PATIENCE_S):
                while self.head < head and self._watched:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            log.info("the watch of segments is late", head=head)

        # 2. List.
        while self.head < head:
            async with self._listing:
                if self.head < head:
                    await self._list()

    async def _list(self) -> None:
        gaps, self._missed = self._gaps, []
        try:
            # 1. Read the head, then the manifests: they may be newer than it.
            head = await self._store.get(keys.segments_head())
            first = await self._store.range(keys.SEGMENTS)
            found: dict[str, KnownSegment] = {}
            async for item in range_all(self._store, keys.SEGMENTS, revision=first.revision, first=first):
                segment = self._known(item)
                if segment is not None:
                    found[segment.id] = segment
            if gaps != self._gaps:  # the store may have been replaced meanwhile; the caller lists again
                return

            # 2. Replace the set, and repeat the changes that the list does not have.
            self.segments = found
            self.head = 0 if head is None else head.mod_revision
            self._watched = gaps > 0
            for event in self._missed:
                if event.kv.mod_revision > first.revision:
                    self._apply(event)
        finally:
            self._missed = None
        self._set_last_run_id()
        self._changed.set()

    def _known(self, item: KeyValue) -> KnownSegment | None:
        segment_id = keys.parse_segment(item.key)
        known = self.segments.get(segment_id)
        if known is not None and known.mod_revision == item.mod_revision:
            return known
        try:
            return KnownSegment(segment_id, pb.SegmentManifest.FromString(item.value), item.mod_revision)
        except (DecodeError, ValueError):
            log.error("the manifest of a segment cannot be read", segment_id=segment_id)
            return None

    def _set_last_run_id(self) -> None:
        self._last_run_id = max((each.manifest.last_run_id for each in self.segments.values()), default="")

    def discard(self) -> None:
        """Forget the version: changes were missed, or another store is in the place of the first."""
        self._gaps += 1
        self._watched = False
        self.head = UNKNOWN
        self._changed.set()

    def _on_changed(self, events: Sequence[StoreEvent]) -> None:
        if self._missed is not None:
            self._missed += events
        if self._watched:  # else the next `catch_up` lists
            for event in events:
                self._apply(event)
            self._set_last_run_id()
            self._changed.set()

    def _apply(self, event: StoreEvent) -> None:
        if event.kv.key == keys.SEGMENTS_HEAD:
            self.head = max(self.head, event.kv.mod_revision)
        elif event.kv.key.startswith(keys.SEGMENTS):
            segment_id = keys.parse_segment(event.kv.key)
            known = self.segments.get(segment_id)
            if known is not None and known.mod_revision >= event.kv.mod_revision:  # the list was newer
                return
            segment = self._known(event.kv) if event.kind == "put" else None
            if segment is not None:
                self.segments[segment_id] = segment
            else:
                self.segments.pop(segment_id, None)


__all__ = ["UNKNOWN", "KnownSegment", "Manifests"]
