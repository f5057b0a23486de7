"""The leader's work: placing what waits, and taking over what dead executors left.

One replica leads at a time: it holds `leader` on its lease, and every transaction below compares that key, so a former
leader changes nothing. An orphan that nobody can take stays where it is; the next look finds it again. So do runs that
an executor gave back or handed over to nobody: they stand under nobody's id (`keys.returned_by`, `handed_over_by`).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import TYPE_CHECKING

from stepflow.errors import DataLoss, StepflowError
from stepflow.journal import parse_record, partition_count, partition_window
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import (
    Compare,
    Delete,
    Get,
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
from stepflow.store.lease import LEASE_TTL_S, LeaseKeeper
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from control_plane.cluster import Cluster
    from control_plane.liveness import Liveness
    from stepflow.store import Store

log = get_logger(__name__)

SCAN_INTERVAL_S = 30.0
"""However the watches fare, everything is looked at this often."""

ELECTION_INTERVAL_S = 1.0
PLACEMENTS_PER_TXN = 40
TAKE_OVERS_PER_TXN = 40

assert PLACEMENTS_PER_TXN * 2 + 1 <= 120  # a placement is two writes; the pending key is one more
assert PLACEMENTS_PER_TXN + 2 <= 120  # at most one compare each, of the taker's session
assert TAKE_OVERS_PER_TXN * 3 + 1 <= 128  # a take-over is at most three compares, and two writes


class Leader:
    """Stands for election until it leads, then works until it loses the lease; then it stands again."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        replica_id: str,
        liveness: Liveness,
        *,
        lease_ttl_s: float = LEASE_TTL_S,
    ) -> None:
        self._store = store
        self._liveness = liveness
        self._cluster = cluster
        self._replica_id = replica_id
        self._lease_ttl_s = lease_ttl_s
        self._work = asyncio.Event()
        self._lost = False
        self._task: asyncio.Task[None] | None = None
        self._leading = 0
        """Create revision of our `leader` key; 0 while another one leads."""

    @property
    def leading(self) -> bool:
        """Whether this replica believes that it leads; a hint."""
        return bool(self._leading)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="leader")

    async def close(self) -> None:
        """Resign, if it leads."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look(self) -> None:
        """Something has changed: see whether there is work."""
        self._work.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._term()
            except StepflowError as error:
                log.warning("leadership interrupted", reason=error.reason, error=error.message)
            except Exception as error:  # a mistake of ours must not leave the mesh without a leader for ever
                log.error("leadership failed", error=type(error).__name__, exc_info=True)
            await asyncio.sleep(ELECTION_INTERVAL_S)

    async def _term(self) -> None:
        """Stand for election, and lead until the lease is lost. However it ends, the lease does not outlive it: a
        `leader` key that goes on living without anybody leading would keep everybody else from it."""
        self._lost = False
        keeper = LeaseKeeper(self._store, self._on_lost, ttl_s=self._lease_ttl_s)
        try:
            await self._campaign(await keeper.start())
            self._liveness.start(self.fence())
            await self._lead()
        finally:
            self._leading = 0
            await self._liveness.close()
            await keeper.stop(revoke=True)

    def _on_lost(self) -> None:
        self._lost = True
        self._work.set()

    async def _campaign(self, lease: int) -> None:
        """Return once this replica leads, or has lost the lease on which it would."""
        key = keys.leader()
        txn = Txn((absent(key),), (Put(key, self._replica_id.encode(), lease),), (Get(key),))
        while not self._lost:
            result = await self._store.txn(txn)
            standing = result.responses[0]
            if result.succeeded:
                self._leading = result.revision
            elif isinstance(standing, KeyValue) and standing.lease == lease:
                self._leading = standing.create_revision  # an earlier sending, whose reply was lost, had committed
            if self._leading:
                log.info("leading", replica=self._replica_id)
                return
            await asyncio.sleep(ELECTION_INTERVAL_S)

    async def _lead(self) -> None:
        while not self._lost:
            self._work.clear()
            await self._take_over_orphans()
            await self._place_pending()
            try:
                async with asyncio.timeout(SCAN_INTERVAL_S):  # wait_for of Python 3.11 can swallow a cancellation
                    await self._work.wait()
            except TimeoutError:
                continue

    def fence(self) -> Compare:
        """Return what holds as long as this replica leads."""
        return created_at(keys.leader(), self._leading)

    # --- take-over ----------------------------------------------------------------------------------------------------

    async def _take_over_orphans(self) -> None:
        orphans = self._cluster.orphans()
        planned: Counter[str] = Counter()
        for start in range(0, len(orphans), TAKE_OVERS_PER_TXN):
            if not await self._take_over(orphans[start : start + TAKE_OVERS_PER_TXN], planned):
                return

    async def _take_over(self, orphans: list[tuple[str, str, int, int]], planned: Counter[str]) -> bool:
        """Move some orphans in one transaction; return whether to go on."""
        compares: list[Compare] = [self.fence()]
        writes: list[Op] = []
        for old, run_id, partition, revision in orphans:
            returned_by = old.removeprefix(keys.RETURNED) if old.startswith(keys.RETURNED) else ""
            taker = self._cluster.choose(planned, avoid=returned_by)
            if taker is None:
                break
            planned[taker] += 1
            key = keys.assigned(old, run_id, partition)
            compares += [absent(keys.session_executor(old)), created_at(key, revision)]
            compares.append(present(keys.session_executor(taker)))
            moved = state_pb2.Assignment(handed_over=old.startswith(keys.HANDED_OVER))
            if not moved.handed_over and not returned_by:
                moved.taken_from = old
            writes += [Delete(key), Put(keys.assigned(taker, run_id, partition), moved.SerializeToString())]
        if not writes:
            return False
        result = await self._store.txn(Txn(tuple(dict.fromkeys(compares)), tuple(writes)))
        if result.succeeded:
            log.info("runs taken over", count=len(writes) // 2)
        return result.succeeded  # else the picture was old; its change calls us again

    # --- placement ----------------------------------------------------------------------------------------------------

    async def _place_pending(self) -> None:
        """Place what waits, the oldest first, as long as somebody has room."""
        if not self._cluster.pending:
            return
        planned: Counter[str] = Counter()
        async for item in range_all(self._store, keys.PENDING):
            if self._cluster.choose(planned) is None:
                return
            standing: KeyValue | None = item
            while standing is not None and await self._place_some(standing, planned):
                standing = await self._store.get(item.key)

    async def _place_some(self, pending: KeyValue, planned: Counter[str]) -> bool:
        """Place what may be placed of one waiting run; return whether to look at it again at once."""
        run_id = keys.tail(keys.PENDING, pending.key)
        found = await self._store.get(keys.run(run_id))
        if found is None:
            return False
        try:
            record = parse_record(run_id, found.value)
        except DataLoss as error:  # it must not keep those behind it from being placed
            log.error("a waiting run cannot be placed", run_id=run_id, reason=error.reason, error=error.message)
            return False
        first = state_pb2.PendingRun.FromString(pending.value).next_partition
        total = partition_count(record)
        room = min(partition_window(record)[0] - await self._active(run_id), PLACEMENTS_PER_TXN, total - first)
        compares: list[Compare] = [self.fence(), modified_at(pending.key, pending.mod_revision)]
        writes: list[Op] = []
        for partition in range(first, first + room):
            taker = self._cluster.choose(planned, engine_version=record.policy.engine_version)
            if taker is None:
                break
            planned[taker] += 1
            compares.append(present(keys.session_executor(taker)))
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
        result = await self._store.txn(Txn(tuple(dict.fromkeys(compares)), tuple(writes)))
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
