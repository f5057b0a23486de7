"""Take-over: moves the assignments of executors without a session to live executors. The leader's work.

- An orphan is an assignment to an executor without a session. A run that an executor gave back or handed over is an
  orphan, too: the assignment carries the id of no executor (`keys.returned_by`, `handed_over_by`).
- Each transaction compares leadership, the absence of the old session, the presence of the new session, and the
  assignment, so no assignment moves twice.
- Without an executor with room, an orphan stays an orphan; the next scan finds it again.
- A run that an executor could not read goes to the others. After all have refused it, it waits, and all are asked once
  more after `REFUSED_RETRY_S`: an operator may have restored what was missing. A cancelled one ends meanwhile.
"""

from __future__ import annotations

import time
from collections import Counter
from typing import TYPE_CHECKING

from control_plane.unreadable import end_unreadable, is_cancel_requested
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Compare, Delete, Op, Put, Txn, absent, created_at, keys, present
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from control_plane.cluster import Cluster, Orphan
    from stepflow.store import Store

log = get_logger(__name__)

TAKE_OVERS_PER_TXN = 40

REFUSED_RETRY_S = 60.0
"""Pause after which a run that no executor could read is offered to all of them again."""

assert TAKE_OVERS_PER_TXN * 3 + 1 <= 128  # a take-over: at most three compares, and two writes


class OrphanTakeOver:
    """Moves orphaned assignments on behalf of a leader."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self._store = store
        self._cluster = cluster
        self._unreadable_since_s: dict[Orphan, tuple[float, bool]] = {}
        """Since when an unreadable run waits, by the monotonic clock, and if its inbox was read."""

    async def take_over_orphans(self, fence: Compare) -> None:
        """Move orphans while an executor has room. `fence`: this replica leads."""
        planned: Counter[str] = Counter()
        orphans = self._cluster.orphans()
        unreadable = [orphan for orphan in orphans if orphan.refused_by]
        await self._take_over_all(fence, [orphan for orphan in orphans if not orphan.refused_by], planned)
        await self._take_over_all(fence, await self._readable(unreadable), planned)

    async def _take_over_all(self, fence: Compare, orphans: list[Orphan], planned: Counter[str]) -> None:
        for start in range(0, len(orphans), TAKE_OVERS_PER_TXN):
            if not await self._take_over(fence, orphans[start : start + TAKE_OVERS_PER_TXN], planned):
                return

    async def _readable(self, unreadable: list[Orphan]) -> list[Orphan]:
        """Return those of the unreadable orphans that an executor may be able to read; end cancelled ones."""
        now_s = time.monotonic()
        self._unreadable_since_s = {
            orphan: self._unreadable_since_s.get(orphan, (now_s, False)) for orphan in unreadable
        }
        found: list[Orphan] = []
        for orphan, (since_s, seen) in list(self._unreadable_since_s.items()):
            if not seen:
                self._unreadable_since_s[orphan] = (since_s, True)
                if await is_cancel_requested(self._store, orphan.run_id) and await end_unreadable(self._store, orphan):
                    continue
            if self._cluster.choose({}, refused_by=orphan.refused_by) is not None:
                found.append(orphan)
            elif now_s - since_s >= REFUSED_RETRY_S:
                found.append(orphan._replace(refused_by=()))
        return found

    async def _take_over(self, fence: Compare, orphans: list[Orphan], planned: Counter[str]) -> bool:
        """Move some orphans in one transaction; return True if there may be room for more."""
        compares: list[Compare] = [fence]
        writes: list[Op] = []
        for old, run_id, partition, revision, refused_by in orphans:
            # 1. Choose the new owner; the executor that gave the run back only if no other has room.
            returned_by = old.removeprefix(keys.RETURNED) if old.startswith(keys.RETURNED) else ""
            executor = self._cluster.choose(planned, avoid=returned_by, refused_by=refused_by)
            if executor is None and refused_by:
                continue
            if executor is None:
                break
            planned[executor] += 1

            # 2. Fence: the old session is gone, the assignment unchanged, the new owner alive.
            key = keys.assigned(old, run_id, partition)
            compares += [absent(keys.session_executor(old)), created_at(key, revision)]
            compares.append(present(keys.session_executor(executor)))

            # 3. Move. `taken_from` is set for a dead owner only: the new one counts such losses.
            moved = state_pb2.Assignment(
                handed_over=old.startswith(keys.HANDED_OVER), given_back=bool(returned_by), refused_by=refused_by
            )
            if not moved.handed_over and not returned_by:
                moved.taken_from = old
            writes += [Delete(key), Put(keys.assigned(executor, run_id, partition), moved.SerializeToString())]
        if not writes:
            return False

        result = await self._store.txn(Txn(tuple(dict.fromkeys(compares)), tuple(writes)))
        if result.succeeded:
            log.info("runs taken over", count=len(writes) // 2)
        return result.succeeded  # False: the view was stale; its next change starts another scan


__all__ = ["OrphanTakeOver"]
