"""Take-over: moves the assignments of executors without a session to live executors. The leader's work.

- An orphan is an assignment to an executor without a session. A run that an executor gave back or handed over is an
  orphan, too: the assignment carries the id of no executor (`keys.returned_by`, `handed_over_by`).
- Each transaction compares leadership, the absence of the old session, the presence of the new session, and the
  assignment, so no assignment moves twice.
- Without an executor with room, an orphan stays an orphan; the next scan finds it again.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from stepflow.mesh.v1 import state_pb2
from stepflow.store import Compare, Delete, Op, Put, Txn, absent, created_at, keys, present
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from control_plane.cluster import Cluster, Orphan
    from stepflow.store import Store

log = get_logger(__name__)

TAKE_OVERS_PER_TXN = 40

assert TAKE_OVERS_PER_TXN * 3 + 1 <= 128  # a take-over: at most three compares, and two writes


class OrphanTakeOver:
    """Moves orphaned assignments on behalf of a leader."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self._store = store
        self._cluster = cluster

    async def take_over_orphans(self, fence: Compare) -> None:
        """Move orphans while an executor has room. `fence`: this replica leads."""
        orphans = self._cluster.orphans()
        planned: Counter[str] = Counter()
        for start in range(0, len(orphans), TAKE_OVERS_PER_TXN):
            if not await self._take_over(fence, orphans[start : start + TAKE_OVERS_PER_TXN], planned):
                return

    async def _take_over(self, fence: Compare, orphans: list[Orphan], planned: Counter[str]) -> bool:
        """Move some orphans in one transaction; return True if there may be room for more."""
        compares: list[Compare] = [fence]
        writes: list[Op] = []
        for old, run_id, partition, revision in orphans:
            # 1. Choose the new owner; the executor that gave the run back only if no other has room.
            returned_by = old.removeprefix(keys.RETURNED) if old.startswith(keys.RETURNED) else ""
            executor = self._cluster.choose(planned, avoid=returned_by)
            if executor is None:
                break
            planned[executor] += 1

            # 2. Fence: the old session is gone, the assignment unchanged, the new owner alive.
            key = keys.assigned(old, run_id, partition)
            compares += [absent(keys.session_executor(old)), created_at(key, revision)]
            compares.append(present(keys.session_executor(executor)))

            # 3. Move. `taken_from` is set for a dead owner only: the new one counts such losses.
            moved = state_pb2.Assignment(handed_over=old.startswith(keys.HANDED_OVER), given_back=bool(returned_by))
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
