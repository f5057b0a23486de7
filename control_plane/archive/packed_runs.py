"""Packed runs for lists and admissions, which compare the version of the set of segments in transactions of their own.

A transaction that succeeds with the compare `modified_at(segments-head, version)` proves that the known set of segments
was current at its revision. After one that fails, `note_version` makes the set current.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.store import Get, KeyValue, Txn, keys, modified_at

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control_plane.archive.run_store import RunStore
    from stepflow.mesh.v1 import segments_pb2 as pb
    from stepflow.store import Store

GETS_PER_TXN = 100
"""Tombstones read at once."""


class PackedRuns:
    """The packed runs of a store."""

    def __init__(self, store: Store, runs: RunStore) -> None:
        """`runs`: over the same store."""
        self._store = store
        self._runs = runs
        self._archive = runs.archive

    @property
    def version(self) -> int:
        """The version of the known set of segments; `note_version` makes it newer."""
        return self._archive.manifests.head

    async def behind(self, position: tuple[int, str] | None, limit: int) -> list[pb.ListedRun]:
        """Return the next packed runs behind a position in lists, newest first, without deleted ones.

        As of `version`, or later. Raises: as `Archive.read`.
        """
        manifests = self._archive.manifests
        found: list[pb.ListedRun] = []
        while True:
            head, wanted = manifests.head, limit - len(found)
            some = await self._archive.entries_behind(position, wanted)
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

    async def record(self, run_id: str) -> tuple[int, KeyValue | None]:
        """Return the version of the set of segments, and the record of a run that was in a segment then."""
        manifests = self._archive.manifests
        await manifests.catch_up(0)
        head = manifests.head
        if not manifests.candidates(run_id):
            return head, None
        (found,) = await self._runs.read_packed(run_id, (Get(keys.run(run_id)),)) or (None,)
        assert found is None or isinstance(found, KeyValue)
        return head, found

    async def note_version(self, known: int, current: int) -> bool:
        """Catch up with the set of segments, whose version was `known` and is `current`; return False if it is both."""
        if current < known:  # another store is in the place of the first
            self._archive.manifests.discard()
        await self._archive.manifests.catch_up(current)
        return current != known


__all__ = ["PackedRuns"]
