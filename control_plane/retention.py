"""Removing runs that have ended: one that a client names, the oldest where room is short, and those whose time is over.

- Only a whole tree goes: journals, blobs, then record, statuses, results and inbox in one transaction. What breaks off
  in the middle leaves the record, so that the next try goes on.
- Room comes before time: over `store_bytes_max` the oldest trees go early. Journals and inbox, the bulk of a run, go
  before the rest of it does: results can be read for longer than steps.
- Every transaction of a sweep compares leadership, so a former leader removes nothing; and each run's statuses are read
  again before it goes. A status that says the end never changes.
- At `QUOTA_SHARE_MAX` of etcd's quota no new runs are admitted: those that run must be able to end.

- Shared blobs go when they were not put again for long, and nothing refers to them (`shared_blobs`).

Does not remove flows: they are small, and a run may be begun with them at any time.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from control_plane.shared_blobs import sweep_shared_blobs
from control_plane.views import TERMINAL, run_view
from stepflow.errors import FailedPrecondition, Forbidden, Invalid, NotFound, Overloaded, StepflowError
from stepflow.journal import partition_count, read_record
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Compare, Delete, DeletePrefix, Txn, keys, modified_at, present, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store import Op, Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

SWEEP_INTERVAL_S = 60.0
BLOBS_INTERVAL_S = 3600.0

SWEEP_RUNS_MAX = 10_000
"""Runs removed by one sweep; the next one follows at once."""

RUNS_PER_TXN = 20
"""Runs of one partition that go together."""

assert RUNS_PER_TXN * 4 <= 120  # operations of a transaction

QUOTA_BYTES_DEFAULT = 4 * 1024**3
"""What etcd is recommended to be started with (`--quota-backend-bytes`)."""

QUOTA_SHARE_MAX = 0.7
QUOTA_INTERVAL_S = 5.0


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long what has ended is kept, and how much of it."""

    store_bytes_max: int = 1024**3
    """Keys and values of all ended runs together."""
    journals_s: float = 24 * 3600.0
    runs_s: float = 7 * 24 * 3600.0
    blobs_s: float = 30 * 24 * 3600.0
    """Shared blobs, from their last put."""

    def __post_init__(self) -> None:
        if self.store_bytes_max < 0 or self.blobs_s < 0 or not 0 <= self.journals_s <= self.runs_s:
            raise Invalid(
                "RETENTION_INVALID", "retention: nothing may be negative, and journals are kept no longer than runs"
            )


@dataclass(slots=True)
class _Ended:
    """A run whose placed partitions have all ended."""

    run_id: str
    ended_at_ms: int = 0
    statuses: list[Compare] = field(default_factory=list)
    """That the statuses still say what they said, one for each partition."""


@dataclass(slots=True)
class Swept:
    """What a sweep has done."""

    removed: list[str] = field(default_factory=list)
    stripped: list[str] = field(default_factory=list)
    """Lost their journals."""


class Retention:
    """Sweeps while this replica leads. `leadership` gives what holds as long as it does; None while it does not."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        policy: RetentionPolicy,
        leadership: Callable[[], Compare | None],
    ) -> None:
        self._store = store
        self._blobs = blobs
        self._policy = policy
        self._leadership = leadership
        self._bytes: dict[str, int] = {}
        """Sizes of ended trees, which change only through us."""
        self._stripped: set[str] = set()
        self._blobs_due_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="retention")

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            fence = self._leadership()
            swept = Swept()
            try:
                if fence is not None:
                    swept = await self.sweep(fence, time.time_ns() // 1_000_000)
                    await self._sweep_blobs(fence)
                if swept.removed or swept.stripped:
                    log.info("runs removed", removed=len(swept.removed), journals=len(swept.stripped))
            except StepflowError as error:
                log.warning("retention interrupted", reason=error.reason, error=error.message)
            except Exception:  # a defect must not fill the store silently
                log.exception("retention failed by a defect")
            if len(swept.removed) < SWEEP_RUNS_MAX:
                await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _sweep_blobs(self, fence: Compare) -> None:
        """Look through the shared blobs from time to time: all of them are listed."""
        if time.monotonic() >= self._blobs_due_s:
            self._blobs_due_s = time.monotonic() + min(BLOBS_INTERVAL_S, self._policy.blobs_s)
            await sweep_shared_blobs(self._store, self._blobs, time.time() - self._policy.blobs_s, fence)

    async def sweep(self, fence: Compare, now_ms: int) -> Swept:
        """Remove what must go now, oldest first, a bounded number. Raises: StepflowError."""
        ended = sorted(await self._ended(), key=lambda run: run.ended_at_ms)
        self._forget({run.run_id for run in ended})
        total = 0
        for run in ended:
            total += await self._size(run.run_id)
        over, old = [], []
        for run in ended:
            age_s = (now_ms - run.ended_at_ms) / 1000
            if total > self._policy.store_bytes_max or age_s > self._policy.runs_s:
                over.append(run)
                total -= self._bytes[run.run_id]
            elif age_s > self._policy.journals_s and run.run_id not in self._stripped:
                old.append(run)
        swept = Swept(removed=await self._remove(over[:SWEEP_RUNS_MAX], fence))
        for run in old[:SWEEP_RUNS_MAX]:
            await delete_journals(self._store, run.run_id, len(run.statuses), (fence,))
            self._stripped.add(run.run_id)
            self._bytes.pop(run.run_id)
            swept.stripped.append(run.run_id)
        return swept

    async def _remove(self, runs: list[_Ended], fence: Compare) -> list[str]:
        """Remove runs, the small ones together; return those that are gone by our hand."""
        small = [run for run in runs if len(run.statuses) == 1]
        removed: list[str] = []
        for start in range(0, len(small), RUNS_PER_TXN):
            batch = small[start : start + RUNS_PER_TXN]
            if await self._remove_batch(batch, fence):
                removed += [run.run_id for run in batch]
            else:
                removed += [run.run_id for run in batch if await self._remove_one(run.run_id, fence)]
        large = [run for run in runs if len(run.statuses) > 1]
        return removed + [run.run_id for run in large if await self._remove_one(run.run_id, fence)]

    async def _remove_batch(self, batch: list[_Ended], fence: Compare) -> bool:
        """Journals first: only who still leads goes on to the blobs, which no transaction guards."""
        compares = (fence, *(compare for run in batch for compare in run.statuses))
        journals = tuple(DeletePrefix(keys.journal_of_run(run.run_id)) for run in batch)
        if not (await self._store.txn(Txn(compares, journals))).succeeded:
            return False
        await asyncio.gather(*(self._blobs.delete_scope(run.run_id) for run in batch))
        rest = tuple(op for run in batch for op in _removal(run.run_id))
        return (await self._store.txn(Txn(compares, rest))).succeeded

    async def _remove_one(self, run_id: str, fence: Compare) -> bool:
        try:
            await delete_run(self._store, self._blobs, run_id, (fence,))
        except (NotFound, FailedPrecondition) as error:  # a client was faster
            if error.reason == "NOT_LEADING":
                raise
            return False
        return True

    async def _ended(self) -> list[_Ended]:
        """Find the runs whose partitions have ended, as far as they were placed."""
        found: dict[str, _Ended] = {}
        running: set[str] = set()
        async for item in range_all(self._store, keys.STATUS):
            run_id = keys.parse_status(item.key)[0]
            status = state_pb2.PartitionStatus.FromString(item.value)
            if status.status not in TERMINAL:
                running.add(run_id)
            run = found.setdefault(run_id, _Ended(run_id))
            run.statuses.append(modified_at(item.key, item.mod_revision))
            run.ended_at_ms = max(run.ended_at_ms, status.completed_at_ms)
        async for item in range_all(self._store, keys.PENDING):
            running.add(keys.tail(keys.PENDING, item.key))
        return [run for run in found.values() if run.run_id not in running]

    async def _size(self, run_id: str) -> int:
        """Return the bytes of a tree; read once."""
        if run_id not in self._bytes:
            size = 0
            record = await self._store.get(keys.run(run_id))
            if record is not None:
                size += len(record.key) + len(record.value)
            for prefix in (keys.journal_of_run(run_id), keys.inbox_of_run(run_id), keys.results_of_run(run_id)):
                async for item in range_all(self._store, prefix):
                    size += len(item.key) + len(item.value)
            self._bytes[run_id] = size
        return self._bytes[run_id]

    def _forget(self, standing: set[str]) -> None:
        """Drop what is noted of runs that are gone."""
        self._stripped &= standing
        for run_id in self._bytes.keys() - standing:
            del self._bytes[run_id]


async def delete_run(store: Store, blobs: BlobStore, run_id: str, compares: tuple[Compare, ...] = ()) -> None:
    """Remove a run that has ended, with all that belongs to it; every transaction compares `compares`.

    Raises: NotFound; FailedPrecondition (`RUN_NOT_ENDED`, `NOT_LEADING`: `compares` do not hold any more).
    """
    record = await read_record(store, run_id)
    partitions = [
        state_pb2.PartitionStatus.FromString(item.value) async for item in range_all(store, keys.status_of_run(run_id))
    ]
    if not run_view(run_id, record, partitions).terminal:
        raise FailedPrecondition("RUN_NOT_ENDED", f"run {run_id} has not ended; cancel it first", run_id=run_id)
    await delete_journals(store, run_id, partition_count(record), compares)
    await blobs.delete_scope(run_id)
    writes = tuple(_removal(run_id))
    if not (await store.txn(Txn((present(keys.run(run_id)), *compares), writes))).succeeded:
        raise NotFound("RUN_NOT_FOUND", f"run {run_id} was removed by somebody else just now", run_id=run_id)


def _removal(run_id: str) -> list[Op]:
    """Return what removes a run but for its journals."""
    prefixes = (keys.results_of_run, keys.inbox_of_run, keys.status_of_run)
    return [*(DeletePrefix(prefix(run_id)) for prefix in prefixes), Delete(keys.run(run_id))]


async def delete_journals(store: Store, run_id: str, partitions: int, compares: tuple[Compare, ...] = ()) -> None:
    """Remove a run's inbox and its journals, a partition at a time.

    Raises: FailedPrecondition `NOT_LEADING`, when the compares do not hold.
    """
    for prefix in (keys.inbox_of_run(run_id), *(keys.journal_of_partition(run_id, p) for p in range(partitions))):
        txn = Txn(compares, (DeletePrefix(prefix),))
        if not (await store.txn(txn)).succeeded:
            raise FailedPrecondition("NOT_LEADING", "another control plane leads by now")


class QuotaGate:
    """Refuses new runs while the store is nearly full. A store without a quota (SQLite) is never full."""

    def __init__(self, store: Store, quota_bytes: int = QUOTA_BYTES_DEFAULT) -> None:
        self._status: Callable[[], Any] | None = getattr(store, "status", None)
        self._bytes_max = int(quota_bytes * QUOTA_SHARE_MAX)
        self._bytes = 0
        self._asked_at = 0.0
        self._warned = False

    async def check(self) -> None:
        """Raises: Overloaded `STORE_FULL`."""
        if self._status is None:
            return
        now = time.monotonic()
        if now - self._asked_at >= QUOTA_INTERVAL_S:
            self._asked_at = now  # before the answer: the others go on with the old one meanwhile
            try:
                self._bytes = (await self._status()).size_in_use_bytes
            except Forbidden:
                if not self._warned:
                    log.warning(
                        "etcd tells its size to root alone and serves no metrics: no run is refused when it gets full; "
                        "only --store-bytes-max keeps room"
                    )
                self._warned = True
            except StepflowError as error:  # whatever is wrong will show where the run is written
                log.info("size of the store not known", reason=error.reason)
        if self._bytes > self._bytes_max:
            raise Overloaded(
                "STORE_FULL",
                f"the store holds {self._bytes:,} bytes, too much for new runs (limit {self._bytes_max:,}): "
                "delete runs, or wait until old ones are removed",
                bytes_max=self._bytes_max,
            )
