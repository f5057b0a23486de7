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

from typing import TYPE_CHECKING, TypeVar

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
    present,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from control_plane.archive.reader import Archive, ReadOp
    from stepflow.store import Response, Store, StoreWatch

_T = TypeVar("_T")


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
            (packed,) = await self.read_packed(run_id, (Range(prefix, limit, after),)) or (None,)
            if isinstance(packed, Page):
                return packed
            raise
        if revision:
            return page

        # 2. It is complete if the record is there after it: a packer deletes the record first.
        (packed,) = await self.read_packed(run_id, (Range(prefix, limit, after),)) or (None,)
        return packed if isinstance(packed, Page) else page

    async def txn(self, txn: Txn) -> TxnResult:
        ops = reads_of(txn.then)
        run_ids = {run_of(op.key if isinstance(op, Get) else op.prefix) for op in ops or ()}
        run_id = run_ids.pop() if len(run_ids) == 1 else None
        if txn.compares or ops is None or run_id is None:
            return await self._store.txn(txn)
        return await self._read(run_id, ops)

    async def is_packed(self, run_id: str) -> bool:
        """Return True if the store does not have a run, and a segment has it."""
        return await self.read_packed(run_id, ()) is not None

    async def read_packed(self, run_id: str, ops: Sequence[ReadOp]) -> tuple[Response, ...] | None:
        """Read keys of a run as `Archive.read`; None also while the store has the run, and for a deleted one."""
        return await self.in_archive(run_id, lambda: self.archive.read(run_id, ops))

    async def in_archive(self, run_id: str, read: Callable[[], Awaitable[_T | None]]) -> _T | None:
        """Read a run from the archive; None, without a read, while the store has the run, and for a deleted one."""
        result = await self._store.txn(Txn((present(keys.run(run_id)),), (), _version_of(run_id)))
        return None if result.succeeded else await _if_new(self.archive, result.responses, read)

    async def _read(self, run_id: str, ops: tuple[ReadOp, ...]) -> TxnResult:
        result = await self._store.txn(Txn((present(keys.run(run_id)),), ops, (*_version_of(run_id), *ops)))
        if result.succeeded:
            return result
        packed = await _if_new(self.archive, result.responses[:2], lambda: self.archive.read(run_id, ops))
        return TxnResult(True, result.revision, result.responses[2:] if packed is None else packed)

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

    async def compact(self, revision: int) -> None:
        await self._store.compact(revision)

    async def close(self) -> None:
        """Leave the store open: it is its owner's."""


def _version_of(run_id: str) -> tuple[Get, Get]:
    """Return the reads of a run's tombstone and of the version of the set of segments."""
    return Get(keys.deleted(run_id)), Get(keys.segments_head())


async def _if_new(archive: Archive, version: Sequence[Response], read: Callable[[], Awaitable[_T | None]]) -> _T | None:
    """Read a run once the archive is as new as `version`, from `_version_of`; None if the run was deleted."""
    tombstone, head = version
    if tombstone is not None:
        return None
    await archive.manifests.catch_up(head.mod_revision if isinstance(head, KeyValue) else 0)
    return await read()


def reads_of(ops: Sequence[Op]) -> tuple[ReadOp, ...] | None:
    """Return the operations if all of them are reads, else None."""
    reads = tuple(op for op in ops if isinstance(op, (Get, Range)))
    return reads if len(reads) == len(ops) else None


__all__ = ["RunStore"]
