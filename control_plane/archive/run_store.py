"""`RunStore`: the store, for readers of runs. It answers for packed runs, too, with the key-values that the store had.

- A read of a run's keys compares that the store has the record of the run. If it has, the answer is the store's.
- Else the same transaction reads the tombstone of the run and the version of the set of segments; the archive is made
  at least that new, and answers if a segment has the run. If none has it, the answer is again the store's.
- So a run that is packed, rewritten or deleted meanwhile is read as before or as after, never as missing. A packer
  deletes the record of a run with the first of its keys, after the manifest is in the store.
- Writes, and reads of everything else, go to the store unchanged.

A transaction is answered from segments only if it has no compares and reads keys of one run.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.archive.format import run_of
from stepflow.store import (
    PAGE_KEYS_MAX,
    Get,
    KeyValue,
    Op,
    Page,
    Range,
    StoreCompacted,
    Txn,
    TxnResult,
    keys,
    modified_at,
    present,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control_plane.archive.reader import Archive, ReadOp
    from stepflow.mesh.v1 import segments_pb2 as pb
    from stepflow.store import Response, Store, StoreWatch

GETS_PER_TXN = 100
"""Tombstones read at once."""


class RunStore:
    """A `Store` whose reads find packed runs, too. Bound to the event loop of the store, which stays its owner's."""

    def __init__(self, store: Store, archive: Archive) -> None:
        self.archive = archive
        self._store = store

    async def get(self, key: str) -> KeyValue | None:
        run_id = run_of(key)
        if run_id is None:
            return await self._store.get(key)
        (found,) = (await self._read(run_id, (Get(key),))).responses
        assert found is None or isinstance(found, KeyValue)
        return found

    async def range(self, prefix: str, *, after: str = "", limit: int = PAGE_KEYS_MAX, revision: int = 0) -> Page:
        run_id = run_of(prefix)
        if run_id is None:
            return await self._store.range(prefix, after=after, limit=limit, revision=revision)

        # 1. A page of the store, at an older revision as it was then.
        page: Page | None = None
        try:
            page = await self._store.range(prefix, after=after, limit=limit, revision=revision)
        except StoreCompacted:  # later pages of a run that was packed meanwhile
            (packed,) = await self._packed(run_id, (Range(prefix, limit, after),)) or (None,)
            if isinstance(packed, Page):
                return packed
            raise
        if revision:
            return page

        # 2. It is complete if the record is there after it: a packer deletes the record first.
        (packed,) = await self._packed(run_id, (Range(prefix, limit, after),)) or (None,)
        return packed if isinstance(packed, Page) else page

    async def txn(self, txn: Txn) -> TxnResult:
        ops = reads_of(txn.then)
        run_ids = {run_of(op.key if isinstance(op, Get) else op.prefix) for op in ops or ()}
        run_id = run_ids.pop() if len(run_ids) == 1 else None
        if txn.compares or ops is None or run_id is None:
            return await self._store.txn(txn)
        return await self._read(run_id, ops)

    @property
    def segments_version(self) -> int:
        """The version of the known set of segments; `note_version` makes it newer."""
        return self.archive.manifests.head

    async def packed_behind(self, position: tuple[int, str] | None, limit: int) -> list[pb.ListedRun]:
        """Return the next packed runs behind a position in lists, newest first, without deleted ones.

        As of `segments_version`, or later. Raises: as `Archive.read`.
        """
        manifests = self.archive.manifests
        found: list[pb.ListedRun] = []
        while True:
            head, wanted = manifests.head, limit - len(found)
            some = await self.archive.entries_behind(position, wanted)
            deleted = await self._deleted_of(some, head)
            if deleted is None:
                await manifests.refresh()
                continue

            found += [listed for listed in some if listed.run_id not in deleted]
            if len(found) == limit or len(some) < wanted:
                return found
            position = some[-1].created_at_ms, some[-1].run_id

    async def _deleted_of(self, found: Sequence[pb.ListedRun], head: int) -> set[str] | None:
        """Return the runs with tombstones; None if `head` is no longer the version of the set of segments.

        A tombstone goes with a new version, so both are read at one moment.
        """
        deleted: set[str] = set()
        for start in range(0, len(found), GETS_PER_TXN):
            some = [listed.run_id for listed in found[start : start + GETS_PER_TXN]]
            compares = (modified_at(keys.segments_head(), head),)
            result = await self._store.txn(Txn(compares, tuple(Get(keys.deleted(run_id)) for run_id in some)))
            if not result.succeeded:
                return None
            found_there = zip(some, result.responses, strict=True)
            deleted |= {run_id for run_id, tombstone in found_there if tombstone is not None}
        return deleted

    async def packed_record(self, run_id: str) -> tuple[int, KeyValue | None]:
        """Return the version of the set of segments, and the record of a run that was in a segment then."""
        manifests = self.archive.manifests
        await manifests.catch_up(0)
        head = manifests.head
        if not manifests.candidates(run_id):
            return head, None
        (found,) = await self._packed(run_id, (Get(keys.run(run_id)),)) or (None,)
        assert found is None or isinstance(found, KeyValue)
        return head, found

    async def note_version(self, known: int, current: int) -> bool:
        """Catch up with the set of segments, whose version was `known` and is `current`; return False if it is both."""
        if current < known:  # another store is in the place of the first
            self.archive.manifests.discard()
        await self.archive.manifests.catch_up(current)
        return current != known

    async def is_packed(self, run_id: str) -> bool:
        """Return True if the store does not have a run, and a segment has it."""
        return await self._packed(run_id, ()) is not None

    async def _packed(self, run_id: str, ops: Sequence[ReadOp]) -> tuple[Response, ...] | None:
        result = await self._store.txn(Txn((present(keys.run(run_id)),), (), _version_of(run_id)))
        return None if result.succeeded else await self._from_archive(run_id, ops, result.responses)

    async def _read(self, run_id: str, ops: tuple[ReadOp, ...]) -> TxnResult:
        result = await self._store.txn(Txn((present(keys.run(run_id)),), ops, (*_version_of(run_id), *ops)))
        if result.succeeded:
            return result
        packed = await self._from_archive(run_id, ops, result.responses[:2])
        return TxnResult(True, result.revision, result.responses[2:] if packed is None else packed)

    async def _from_archive(
        self, run_id: str, ops: Sequence[ReadOp], version: Sequence[Response]
    ) -> tuple[Response, ...] | None:
        tombstone, head = version
        if tombstone is not None:
            return None
        await self.archive.manifests.catch_up(head.mod_revision if isinstance(head, KeyValue) else 0)
        return await self.archive.read(run_id, ops)

    async def lease_grant(self, ttl_s: float) -> int:
        return await self._store.lease_grant(ttl_s)

    async def lease_keep_alive(self, lease: int) -> float:
        return await self._store.lease_keep_alive(lease)

    async def lease_revoke(self, lease: int) -> None:
        await self._store.lease_revoke(lease)

    def watch(self, prefix: str, *, from_revision: int = 0) -> StoreWatch:
        return self._store.watch(prefix, from_revision=from_revision)

    async def revision(self) -> int:
        return await self._store.revision()

    async def close(self) -> None:
        """Leave the store open: it is its owner's."""


def _version_of(run_id: str) -> tuple[Get, Get]:
    """Return the reads of a run's tombstone and of the version of the set of segments."""
    return Get(keys.deleted(run_id)), Get(keys.segments_head())


def reads_of(ops: Sequence[Op]) -> tuple[ReadOp, ...] | None:
    """Return the operations if all of them are reads, else None."""
    reads = tuple(op for op in ops if isinstance(op, (Get, Range)))
    return reads if len(reads) == len(ops) else None


__all__ = ["RunStore"]
