"""The leader's work: placing what waits, and taking over what dead executors left.

One replica leads at a time: it holds `leader` on its lease, and every transaction below compares that key, so a former
leader changes nothing. An orphan that nobody can take stays where it is; the next look finds it again.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import StepflowError
from stepflow.journal import partition_count, partition_window
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import (
    Compare,
    Delete,
    KeyValue,
    Op,
    Put,
    Txn,
    absent,
    created_at,
    keys,
    modified_at,
    present,
    range_all,
)
from stepflow.store.lease import LeaseKeeper
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from control_plane.cluster import Cluster
    from stepflow.store import Store

log = get_logger(__name__)

SCAN_INTERVAL_S = 30.0
"""However the watches fare, everything is looked at this often."""

ELECTION_INTERVAL_S = 1.0
PLACEMENTS_PER_TXN = 40
TAKE_OVERS_PER_TXN = 25

assert PLACEMENTS_PER_TXN * 2 + 4 <= 120  # a placement is two writes
assert TAKE_OVERS_PER_TXN * 4 + 4 <= 120  # a take-over is two writes and three compares


class Leader:
    """Stands for election until it leads, then works until it loses the lease."""

    def __init__(self, store: Store, cluster: Cluster, replica_id: str) -> None:
        self._store = store
        self._cluster = cluster
        self._replica_id = replica_id
        self._work = asyncio.Event()
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._keeper: LeaseKeeper | None = None
        self._leading = 0
        """Create revision of our `leader` key; 0 while another one leads."""

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="leader")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        if self._keeper is not None:
            await self._keeper.stop(revoke=True)

    def look(self) -> None:
        """Something has changed: see whether there is work."""
        self._work.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._campaign()
                await self._lead()
            except StepflowError as error:
                log.warning("leadership interrupted", reason=error.reason, error=error.message)
                await asyncio.sleep(ELECTION_INTERVAL_S)

    async def _campaign(self) -> None:
        """Return once this replica leads."""
        self._lost.clear()
        self._keeper = LeaseKeeper(self._store, self._lost.set)
        lease = await self._keeper.start()
        txn = Txn((absent(keys.leader()),), (Put(keys.leader(), self._replica_id.encode(), lease),))
        while not self._lost.is_set():
            result = await self._store.txn(txn)
            if result.succeeded:
                self._leading = result.revision
                log.info("leading", replica=self._replica_id)
                return
            await asyncio.sleep(ELECTION_INTERVAL_S)

    async def _lead(self) -> None:
        while not self._lost.is_set():
            self._work.clear()
            await self._take_over_orphans()
            await self._place_pending()
            try:
                async with asyncio.timeout(SCAN_INTERVAL_S):  # wait_for of Python 3.11 can swallow a cancellation
                    await self._work.wait()
            except TimeoutError:
                continue

    def _fence(self) -> Compare:
        return created_at(keys.leader(), self._leading)

    # --- take-over ------------------------------------------------------------------------------------------------------

    async def _take_over_orphans(self) -> None:
        orphans = self._cluster.orphans()
        for start in range(0, len(orphans), TAKE_OVERS_PER_TXN):
            compares: list[Compare] = [self._fence()]
            writes: list[Op] = []
            takers: dict[str, int] = {}
            for old, run_id, partition, revision in orphans[start : start + TAKE_OVERS_PER_TXN]:
                taker = self._taker(takers)
                if taker is None:
                    return
                takers[taker] = takers.get(taker, 0) + 1
                key = keys.assigned(old, run_id, partition)
                compares += [absent(keys.session_executor(old)), created_at(key, revision)]
                writes += [Delete(key), Put(keys.assigned(taker, run_id, partition), b"")]
            compares += [present(keys.session_executor(taker)) for taker in takers]
            result = await self._store.txn(Txn(tuple(dict.fromkeys(compares)), tuple(writes)))
            if not result.succeeded:
                return  # the picture was old; its change calls us again
            log.info("runs taken over", count=len(writes) // 2)

    def _taker(self, planned: dict[str, int]) -> str | None:
        """Choose the executor with the fewest runs, those counted that this transaction gives it."""
        loads = [
            (len(self._cluster.assignments.get(executor, ())) + planned.get(executor, 0), executor)
            for executor, session in self._cluster.sessions.items()
            if not session.draining
        ]
        loads = [(load, executor) for load, executor in loads if load < self._cluster.sessions[executor].runs_max]
        return min(loads)[1] if loads else None

    # --- placement ------------------------------------------------------------------------------------------------------

    async def _place_pending(self) -> None:
        async for item in range_all(self._store, keys.PENDING):
            while await self._place_some(item):
                again = await self._store.get(item.key)
                if again is None:
                    break
                item = again

    async def _place_some(self, pending: KeyValue) -> bool:
        """Place what may be placed of one waiting run; return whether to look at it again at once."""
        run_id = keys.tail(keys.PENDING, pending.key)
        found = await self._store.get(keys.run(run_id))
        if found is None:
            return False
        record = state_pb2.RunRecord.FromString(found.value)
        first = state_pb2.PendingRun.FromString(pending.value).next_partition
        total = partition_count(record)
        room = min(partition_window(record)[0] - await self._active(run_id), PLACEMENTS_PER_TXN, total - first)
        compares: list[Compare] = [self._fence(), modified_at(pending.key, pending.mod_revision)]
        writes: list[Op] = []
        takers: dict[str, int] = {}
        for partition in range(first, first + room):
            taker = self._taker(takers)
            if taker is None:
                break
            takers[taker] = takers.get(taker, 0) + 1
            status = new_status(record, partition)
            writes += [
                Put(keys.status(run_id, partition), status.SerializeToString()),
                Put(keys.assigned(taker, run_id, partition), b""),
            ]
        if not writes:
            return False
        placed = first + len(writes) // 2
        if placed == total:
            writes.append(Delete(pending.key))
        else:
            writes.append(Put(pending.key, state_pb2.PendingRun(next_partition=placed).SerializeToString()))
        compares += [present(keys.session_executor(taker)) for taker in takers]
        result = await self._store.txn(Txn(tuple(compares), tuple(writes)))
        return result.succeeded and placed < total

    async def _active(self, run_id: str) -> int:
        """Count the partitions that are placed and have not ended."""
        return sum(
            [
                state_pb2.PartitionStatus.FromString(item.value).status == pb.RUN_STATUS_RUNNING
                async for item in range_all(self._store, keys.status_of_run(run_id))
            ]
        )


def new_status(record: state_pb2.RunRecord, partition: int) -> state_pb2.PartitionStatus:
    """Return the status of a partition that is placed for the first time."""
    first = partition * record.items_per_partition
    return state_pb2.PartitionStatus(
        status=pb.RUN_STATUS_RUNNING,
        items_total=max(0, min(record.items_total - first, record.items_per_partition)),
        created_at_ms=record.created_at_ms,
    )
