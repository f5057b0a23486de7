"""The set of segments, as its only writer knows it: the leader.

- Every change is one transaction that compares the leadership and the manifests that it replaces, and puts
  `segments-head`. It is sent again until it is decided.
- The ids of segments have the mark of their store, the key `segments-mark`. Meshes may share a blob store, and a wiped
  etcd is a new one: the leader deletes orphans of its own store only.
- A run is found by the fingerprints of the manifests, then in the id block of the object. A lookup of many runs costs
  two searches per segment of any size.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from bisect import bisect_left, bisect_right
from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from control_plane.archive.format import FORMAT, decode_tail, fingerprint, object_name
from control_plane.archive.run_keys import check_leading
from stepflow.errors import Conflict, DataLoss, NotFound
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.retry import doubling
from stepflow.store import Delete, Get, KeyValue, Put, StoreUnavailable, Txn, absent, keys, modified_at, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

    from control_plane.archive.format import SegmentTail
    from stepflow.store import Compare, Op, Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

TAILS_CACHED = 32
"""Id blocks in memory, about 100 KiB each."""

CHANGES_MAX = 50
"""Manifests changed in one transaction: each may have 25 KiB."""

RETRY_S_MIN = 0.1
RETRY_S_MAX = 2.0


class Copies(NamedTuple):
    """Where runs are."""

    found: dict[str, list[tuple[str, int]]]
    """By run: the segments that have it, and its number there."""
    unsure: set[str]
    """Runs that a segment may have which cannot be read."""


class LedSegments:
    """The manifests of a term of leadership, loaded once and then changed only here."""

    def __init__(self, store: Store, blobs: BlobStore, fence: Compare) -> None:
        self.manifests: dict[str, pb.SegmentManifest] = {}
        """By segment id. Replace a manifest through `change`; never modify one."""
        self._store = store
        self._blobs = blobs
        self._fence = fence
        self._revisions: dict[str, int] = {}
        self._tails: OrderedDict[str, SegmentTail] = OrderedDict()
        self._mark = ""

    async def load(self) -> None:
        """Read all manifests. Raises: FailedPrecondition `NOT_LEADING`; StepflowError."""
        key = keys.segments_mark()
        new = Txn((self._fence, absent(key)), (Put(key, secrets.token_hex(4).encode()),), (Get(key),))
        if not (await self._store.txn(new)).succeeded:
            await check_leading(self._store, self._fence)
        found = await self._store.get(key)
        assert found is not None, "a key that is never deleted"
        self._mark = found.value.decode()

        self.manifests.clear()
        self._revisions.clear()
        async for item in range_all(self._store, keys.SEGMENTS):
            self._note(item)

    def new_id(self) -> str:
        """Return a new segment id; ids sort by time."""
        return f"{time.time_ns() // 1_000_000:013d}-{self._mark}{secrets.token_hex(4)}"

    def is_own(self, name: str) -> bool:
        """Return True for the name of an object, or of its draft, that a leader of this store has written."""
        return name.lstrip(".").partition("-")[2].startswith(self._mark)

    async def change(self, put: Mapping[str, pb.SegmentManifest], removed: Collection[str] = ()) -> None:
        """Put and delete manifests in one transaction, at most `CHANGES_MAX`.

        Raises: FailedPrecondition `NOT_LEADING`; Conflict: the set was changed by others, load it again.
        """
        # 1. The transaction.
        values = {keys.segment(name): manifest.SerializeToString() for name, manifest in put.items()}
        names = [*put, *removed]
        assert len(names) <= CHANGES_MAX
        compares = [self._unchanged(name) for name in names]
        ops: list[Op] = [Put(key, value) for key, value in values.items()]
        ops += [Delete(keys.segment(name)) for name in removed]
        ops.append(Put(keys.segments_head(), b""))
        reads = tuple(Get(keys.segment(name)) for name in names)
        txn = Txn((self._fence, *compares), tuple(ops), reads)

        # 2. Send it until it is decided: an object whose manifest is in doubt can be neither used nor deleted.
        pauses_s = doubling(RETRY_S_MIN, RETRY_S_MAX)
        while True:
            try:
                result = await self._store.txn(txn)
                break
            except StoreUnavailable:
                await asyncio.sleep(next(pauses_s))

        # 3. Note the change; a failed compare may mean that an earlier attempt was carried out.
        revision = result.revision
        if not result.succeeded:
            existing = [item if isinstance(item, KeyValue) else None for item in result.responses]
            if [item and item.value for item in existing] != [values.get(keys.segment(name)) for name in names]:
                await check_leading(self._store, self._fence)
                raise Conflict("SEGMENTS_CHANGED", "the segments were changed by others than the leader")
            revision = max((item.mod_revision for item in existing if item), default=revision)
        for name, manifest in put.items():
            self.manifests[name], self._revisions[name] = manifest, revision
        for name in removed:
            self._discard(name)

    async def holding(self, run_ids: Collection[str]) -> Copies:
        """Return where the runs are that were not removed. Raises: StepflowError, of the blob store."""
        found: dict[str, list[tuple[str, int]]] = {}
        unsure: set[str] = set()
        ordered = sorted(run_ids)
        for name, likely in list(self._likely(ordered)):
            try:
                tail = await self.tail(name)
            except DataLoss as error:  # its runs cannot be read either
                log.error("a segment is damaged", segment=name, reason=error.reason, error=error.message)
                tail = None
            if tail is None:
                unsure.update(likely)
                continue
            removed = set(self.manifests[name].removed)
            for run_id in likely:
                number = tail.number(run_id)
                if number is not None and number not in removed:
                    found.setdefault(run_id, []).append((name, number))
        return Copies(found, unsure)

    async def named_blobs(self) -> set[bytes] | None:
        """Return the ids of the shared blobs that the requests of the runs may name; None for any.

        Raises: StepflowError, of the blob store.
        """
        found: set[bytes] = set()
        for name, manifest in list(self.manifests.items()):
            if manifest.format > FORMAT:
                return None
            tail = None if manifest.expiring else await self.tail(name)
            if tail is not None:
                if tail.named_blobs is None:
                    return None
                found |= tail.named_blobs
        return found

    async def tail(self, name: str) -> SegmentTail | None:
        """Return the id block and the footer of a segment; None if its object is gone.

        Raises: DataLoss, Unavailable, FailedPrecondition.
        """
        tail = self._tails.get(name)
        if tail is None:
            manifest = self.manifests[name]
            try:
                raw = await self._blobs.objects.read(
                    object_name(name), manifest.tail_offset, manifest.bytes - manifest.tail_offset
                )
            except NotFound:
                return None
            tail = self._tails[name] = decode_tail(raw)
            while len(self._tails) > TAILS_CACHED:
                self._tails.popitem(last=False)
        self._tails.move_to_end(name)
        return tail

    def _likely(self, ordered: Sequence[str]) -> Iterator[tuple[str, list[str]]]:
        """Yield segments with those of the runs that their fingerprints do not exclude."""
        prints = {run_id: fingerprint(run_id) for run_id in ordered}
        for name, manifest in self.manifests.items():
            if manifest.expiring or manifest.format > FORMAT:
                continue
            first = bisect_left(ordered, manifest.first_run_id)
            end = bisect_right(ordered, manifest.last_run_id)
            likely = [run_id for run_id in ordered[first:end] if _has(manifest.fingerprints, prints[run_id])]
            if likely:
                yield name, likely

    def _unchanged(self, name: str) -> Compare:
        revision = self._revisions.get(name)
        return absent(keys.segment(name)) if revision is None else modified_at(keys.segment(name), revision)

    def _note(self, item: KeyValue) -> None:
        name = keys.parse_segment(item.key)
        self.manifests[name] = pb.SegmentManifest.FromString(item.value)
        self._revisions[name] = item.mod_revision

    def _discard(self, name: str) -> None:
        self.manifests.pop(name, None)
        self._revisions.pop(name, None)
        self._tails.pop(name, None)


def _has(fingerprints: bytes, wanted: bytes) -> bool:
    size = len(wanted)
    index = bisect_left(
        range(len(fingerprints) // size), wanted, key=lambda at: fingerprints[at * size : at * size + size]
    )
    return fingerprints[index * size : index * size + size] == wanted


__all__ = ["CHANGES_MAX", "Copies", "LedSegments"]
