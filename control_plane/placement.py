"""Placement: gives the partitions of waiting runs to executors with room. The leader's work.

- A run waits under `pending/`, with the number of the next partition to place; the oldest run comes first.
- A transaction places several partitions of a run. Leadership, the pending key and the session of each chosen executor
  are compared, so a stale view of the cluster places nothing.
- The window of a run bounds the partitions in progress; the rest of a batch keeps waiting.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from stepflow.errors import DataLoss
from stepflow.journal import parse_record, partition_count, partition_window
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Compare, Delete, KeyValue, Op, Put, Txn, keys, modified_at, present, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from control_plane.cluster import Cluster
    from stepflow.store import Store

log = get_logger(__name__)

PLACEMENTS_PER_TXN = 40

assert PLACEMENTS_PER_TXN * 2 + 1 <= 120  # writes: two per placement, and the pending key
assert PLACEMENTS_PER_TXN + 2 <= 120  # compares: a session per placement, leadership and the pending key


class Placement:
    """Places waiting runs on behalf of a leader."""

    def __init__(self, store: Store, cluster: Cluster) -> None:
        self._store = store
        self._cluster = cluster

    async def place_pending(self, fence: Compare) -> None:
        """Place waiting runs, oldest first, while an executor has room. `fence`: this replica leads."""
        if not self._cluster.pending:
            return

        planned: Counter[str] = Counter()
        async for item in range_all(self._store, keys.PENDING):
            if self._cluster.choose(planned) is None:
                return

            pending: KeyValue | None = item
            while pending is not None and await self._place_some(fence, pending, planned):
                pending = await self._store.get(item.key)

    async def _place_some(self, fence: Compare, pending: KeyValue, planned: Counter[str]) -> bool:
        """Place partitions of a run in one transaction; return True if more can be placed at once."""
        # 1. Read the run: how many partitions wait, and how many may run at the same time.
        run_id = keys.tail(keys.PENDING, pending.key)
        record = await self._record(run_id)
        if record is None:
            return False
        first = state_pb2.PendingRun.FromString(pending.value).next_partition
        total = partition_count(record)
        window = partition_window(record)[0] - await self._partitions_running(run_id)
        count = min(window, PLACEMENTS_PER_TXN, total - first)

        # 2. Choose an executor for each partition.
        compares: list[Compare] = [fence, modified_at(pending.key, pending.mod_revision)]
        writes: list[Op] = []
        for partition in range(first, first + count):
            executor = self._cluster.choose(planned, engine_version=record.policy.engine_version)
            if executor is None:
                break
            planned[executor] += 1
            compares.append(present(keys.session_executor(executor)))
            writes += [
                Put(keys.status(run_id, partition), new_status(record, partition).SerializeToString()),
                Put(keys.assigned(executor, run_id, partition), b""),
            ]
        if not writes:
            return False

        # 3. Move the pending key on, or remove it behind the last partition.
        placed = first + len(writes) // 2
        if placed == total:
            writes.append(Delete(pending.key))
        else:
            writes.append(Put(pending.key, state_pb2.PendingRun(next_partition=placed).SerializeToString()))

        # 4. Write everything; several partitions on one executor share a compare.
        result = await self._store.txn(Txn(tuple(dict.fromkeys(compares)), tuple(writes)))
        return result.succeeded and placed < total

    async def _record(self, run_id: str) -> state_pb2.RunRecord | None:
        found = await self._store.get(keys.run(run_id))
        if found is None:
            return None
        try:
            return parse_record(run_id, found.value)
        except DataLoss as error:  # Skipped, not raised: one damaged record would block all runs behind it.
            log.error("a waiting run cannot be placed", run_id=run_id, reason=error.reason, error=error.message)
            return None

    async def _partitions_running(self, run_id: str) -> int:
        """Count the partitions that are placed and have not ended."""
        return sum(
            [
                state_pb2.PartitionStatus.FromString(item.value).status == pb.RUN_STATUS_RUNNING
                async for item in range_all(self._store, keys.status_of_run(run_id))
            ]
        )


def new_status(record: state_pb2.RunRecord, partition: int) -> state_pb2.PartitionStatus:
    """Return the status of a partition at its first placement."""
    first_item = partition * record.items_per_partition
    return state_pb2.PartitionStatus(
        status=pb.RUN_STATUS_RUNNING,
        items_total=max(0, min(record.items_total - first_item, record.items_per_partition)),
        created_at_ms=record.created_at_ms,
    )


__all__ = ["Placement", "new_status"]
