"""Retention: sweeps that remove expired runs, and the oldest ended runs when the store runs short of room.

- A run goes with all its data, as in `deletion`.
- Room comes before time: above `store_bytes_max` the oldest runs go early.
- Journals and inbox, the bulk of a run, go before the rest of the run: results stay readable for longer than steps.
- Every transaction of a sweep compares leadership, so a former leader removes nothing. Statuses are compared with the
  removal, or read again; the status of an ended partition never changes.
- Old, unreferenced shared blobs go, too (`shared_blobs`).
- A sweep reads the status of every run, and so completes the index of runs (`run_index`).

Flows are small and stay: a later run may name any of them.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from control_plane.deletion import delete_journals, delete_run, remaining_deletes
from control_plane.run_index import RunIndex
from control_plane.shared_blobs import sweep_shared_blobs
from control_plane.views import TERMINAL
from stepflow.errors import FailedPrecondition, Invalid, NotFound, StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Compare, DeletePrefix, Txn, keys, modified_at, range_all
from stepflow.telemetry import get_logger, log_defect
from stepflow.vital import ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

SWEEP_INTERVAL_S = 60.0
BLOBS_INTERVAL_S = 3600.0

SWEEP_RUNS_MAX = 10_000
"""Runs removed by one sweep. A sweep that reaches this bound is followed by the next one at once."""

RUNS_PER_TXN = 20
"""Runs of one partition each, removed in one transaction."""

assert RUNS_PER_TXN * 5 <= 120  # operations: five per run


@dataclass(frozen=True, slots=True)
class RetentionPolicy:
    """How long ended runs and shared blobs are kept, and how many bytes of runs."""

    store_bytes_max: int = 1024**3
    """Bound on keys and values of all ended runs together."""
    journals_s: float = 24 * 3600.0
    runs_s: float = 7 * 24 * 3600.0
    blobs_s: float = 30 * 24 * 3600.0
    """Age of shared blobs, since their last put."""

    def __post_init__(self) -> None:
        if self.store_bytes_max < 0 or self.blobs_s < 0 or not 0 <= self.journals_s <= self.runs_s:
            raise Invalid(
                "RETENTION_INVALID", "retention: no limit may be negative, and journals are kept no longer than runs"
            )


@dataclass(slots=True)
class _EndedRun:
    """A run whose placed partitions have all ended."""

    run_id: str
    created_at_ms: int
    ended_at_ms: int = 0
    statuses: list[Compare] = field(default_factory=list)
    """One per partition: the status is unchanged."""


@dataclass(slots=True)
class Swept:
    """The run ids changed by a sweep."""

    removed: list[str] = field(default_factory=list)
    stripped: list[str] = field(default_factory=list)
    """Runs without journals now; the rest of them stays."""


class Retention:
    """Sweeps while this replica leads. `leadership` returns the fence of a leader, None otherwise."""

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
        self._index = RunIndex(store)

        # What earlier sweeps found.
        self._bytes: dict[str, int] = {}
        """By run: the size of all its data, cached, since only a sweep changes an ended run."""
        self._stripped: set[str] = set()
        """Runs whose journals are gone."""
        self._blobs_due_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="retention")

    def ended(self) -> list[str]:
        """Return the tasks that have ended although the sweeps go on."""
        return ended(self._task)

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
            except Exception as error:  # Logged, not raised: without this task the store would fill up.
                log_defect(log, "retention failed by a defect", error)

            if len(swept.removed) < SWEEP_RUNS_MAX:
                await asyncio.sleep(SWEEP_INTERVAL_S)

    async def _sweep_blobs(self, fence: Compare) -> None:
        """Sweep the shared blobs at most once per `BLOBS_INTERVAL_S`: a sweep lists all of them."""
        if time.monotonic() >= self._blobs_due_s:
            self._blobs_due_s = time.monotonic() + min(BLOBS_INTERVAL_S, self._policy.blobs_s)
            await sweep_shared_blobs(self._store, self._blobs, time.time() - self._policy.blobs_s, fence)

    async def sweep(self, fence: Compare, now_ms: int) -> Swept:
        """Remove runs and journals that are due, oldest first, up to `SWEEP_RUNS_MAX` each. Raises: StepflowError."""
        # 1. List the ended runs, and measure them.
        ended = sorted(await self._ended(fence), key=lambda run: run.ended_at_ms)
        self._discard_except({run.run_id for run in ended})
        total = 0
        for run in ended:
            total += await self._size(run.run_id)

        # 2. Choose: whole runs for room or for their age, else journals for their age.
        due, journals_due = [], []
        for run in ended:
            age_s = (now_ms - run.ended_at_ms) / 1000
            if total > self._policy.store_bytes_max or age_s > self._policy.runs_s:
                due.append(run)
                total -= self._bytes[run.run_id]
            elif age_s > self._policy.journals_s and run.run_id not in self._stripped:
                journals_due.append(run)

        # 3. Remove.
        swept = Swept(removed=await self._remove(due[:SWEEP_RUNS_MAX], fence))
        for run in journals_due[:SWEEP_RUNS_MAX]:
            await delete_journals(self._store, run.run_id, len(run.statuses), (fence,))
            self._stripped.add(run.run_id)
            self._bytes.pop(run.run_id)
            swept.stripped.append(run.run_id)
        return swept

    async def _remove(self, runs: list[_EndedRun], fence: Compare) -> list[str]:
        """Remove runs, in batches if small; return the ids of the removed runs."""
        small = [run for run in runs if len(run.statuses) == 1]
        removed: list[str] = []
        for start in range(0, len(small), RUNS_PER_TXN):
            batch = small[start : start + RUNS_PER_TXN]
            if await self._remove_batch(batch, fence):
                removed += [run.run_id for run in batch]
            else:
                # One of them has changed, or the fence is lost: find out run by run.
                removed += [run.run_id for run in batch if await self._remove_one(run.run_id, fence)]

        large = [run for run in runs if len(run.statuses) > 1]
        return removed + [run.run_id for run in large if await self._remove_one(run.run_id, fence)]

    async def _remove_batch(self, batch: list[_EndedRun], fence: Compare) -> bool:
        """Remove small runs in two transactions; return False if a compare fails."""
        compares = (fence, *(compare for run in batch for compare in run.statuses))

        # 1. Journals. Fenced, and before the blobs: no transaction guards those.
        journals = tuple(DeletePrefix(keys.journal_of_run(run.run_id)) for run in batch)
        if not (await self._store.txn(Txn(compares, journals))).succeeded:
            return False

        # 2. Blobs.
        await asyncio.gather(*(self._blobs.delete_scope(run.run_id) for run in batch))

        # 3. The rest.
        rest = tuple(op for run in batch for op in remaining_deletes(run.run_id, run.created_at_ms))
        return (await self._store.txn(Txn(compares, rest))).succeeded

    async def _remove_one(self, run_id: str, fence: Compare) -> bool:
        try:
            await delete_run(self._store, self._blobs, run_id, (fence,))
        except (NotFound, FailedPrecondition) as error:  # a client has deleted it
            if error.reason == "NOT_LEADING":
                raise
            return False
        return True

    async def _ended(self, fence: Compare) -> list[_EndedRun]:
        """Return the runs that have ended, and complete the index with all runs."""
        found: dict[str, _EndedRun] = {}
        running: set[str] = set()
        created: dict[str, tuple[int, int]] = {}
        async for item in range_all(self._store, keys.STATUS):
            run_id = keys.parse_status(item.key)[0]
            status = state_pb2.PartitionStatus.FromString(item.value)
            if status.status not in TERMINAL:
                running.add(run_id)
            run = found.setdefault(run_id, _EndedRun(run_id, status.created_at_ms))
            created.setdefault(run_id, (status.created_at_ms, item.create_revision))
            run.statuses.append(modified_at(item.key, item.mod_revision))
            run.ended_at_ms = max(run.ended_at_ms, status.completed_at_ms)

        # A run with partitions that wait has not ended, even if all placed ones have.
        async for item in range_all(self._store, keys.PENDING):
            run_id = keys.tail(keys.PENDING, item.key)
            running.add(run_id)
            created.setdefault(run_id, (0, item.create_revision))

        await self._index.complete(fence, created)
        return [run for run in found.values() if run.run_id not in running]

    async def _size(self, run_id: str) -> int:
        """Return the bytes of a run's data; read once, then cached."""
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

    def _discard_except(self, run_ids: set[str]) -> None:
        """Discard the notes about deleted runs."""
        self._stripped &= run_ids
        for run_id in self._bytes.keys() - run_ids:
            del self._bytes[run_id]


__all__ = ["Retention", "RetentionPolicy", "Swept"]
