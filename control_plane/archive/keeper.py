"""The archive's work while this replica leads: packing, the end of deletions, upkeep, and old shared blobs.

- One task does it all in turn, so no segment is rewritten while runs are packed into another, and no deletion ends
  while its run is between the store and a segment.
- A failure of one kind of work pauses this kind only. While the blob store refuses objects, ended runs wait in the
  store.
- Busy meshes pack every second; idle ones wait, so that a segment has many runs.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from control_plane.archive.counters import ArchiveCounters
from control_plane.archive.led_segments import LedSegments
from control_plane.archive.packer import Packer
from control_plane.archive.tombstones import finish_deletions
from control_plane.archive.upkeep import Upkeep
from control_plane.run_index import complete_index
from control_plane.shared_blobs import sweep_shared_blobs
from stepflow.errors import StepflowError
from stepflow.store import keys, range_all
from stepflow.telemetry import get_logger, log_defect
from stepflow.vital import ended

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from control_plane.archive.due_runs import DueRuns
    from control_plane.archive.policy import RetentionPolicy
    from control_plane.archive.step_index import StepIndexWriter
    from control_plane.formats import Formats
    from control_plane.store_meter import StoreMeter
    from stepflow.store import Compare, Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

TICK_S = 0.5
"""Between two looks at what is due, and at the leadership."""

PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 30.0
"""Time that due runs wait for others, so that a segment gets many: doubled until segments are well filled, and halved
after a full one."""

WELL_FILLED = 0.5
"""Share of the target of a segment. Upkeep does not merge segments of this size, so most runs are written once."""

PACKS_PER_TICK = 8
"""Segments packed before retention and deletions get their turn."""

RETRY_S_MIN = 1.0
RETRY_S_MAX = 15.0
"""Pauses of one kind of work after its failures, doubling."""

UPKEEP_INTERVAL_S = 5.0
UPKEEP_PIECES = 4
"""Pieces of upkeep between two looks at what is due for packing."""

HOURLY_S = 3600.0


class ArchiveKeeper:
    """Works from `start` to `close`, whenever `leadership` returns the fence of a leader."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        formats: Formats,
        due_runs: DueRuns,
        policy: RetentionPolicy,
        leadership: Callable[[], Compare | None],
        meter: StoreMeter,
        step_index: StepIndexWriter | None = None,
    ) -> None:
        """`step_index`: as for `Packer`."""
        self.counters = ArchiveCounters()
        self._store = store
        self._blobs = blobs
        self._formats = formats
        self._due_runs = due_runs
        self._policy = policy
        self._leadership = leadership
        self._meter = meter
        self.step_index = step_index
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="archive")

    def ended(self) -> list[str]:
        """Return the tasks that have ended although the work goes on."""
        return ended(self._task)

    async def close(self) -> None:
        if self._task is not None:
            task, self._task = self._task, None  # no health check misses a task that ends on purpose
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            fence = self._leadership()
            try:
                if fence is not None:
                    await self._term(fence)
            except StepflowError as error:
                log.warning("archive interrupted", reason=error.reason, error=error.message)
            except Exception as error:  # Logged, not raised: without this task the store would fill up.
                log_defect(log, "archive failed by a defect", error)
            finally:
                self._due_runs.end()
                self.counters.clear_state()
            await asyncio.sleep(TICK_S)

    async def _term(self, fence: Compare) -> None:
        """Work until the leadership ends. Raises: StepflowError."""
        # 1. What is to be done: the ended runs, and the segments.
        self._due_runs.begin()
        await self._formats.announce(fence, self._policy.formats_grace_s)
        segments = LedSegments(self._store, self._blobs, fence)
        await segments.load()
        term = _Term(self, fence, segments)
        await term.list_runs(complete=True)

        # 2. Do it.
        while self._leadership() == fence:
            size = await self._meter.read()
            self.counters.linger_s = self._policy.linger_at(0 if size is None else size.in_use)
            await term.tick()
            await asyncio.sleep(TICK_S)

    def context(self) -> tuple[Store, BlobStore, Formats, DueRuns, RetentionPolicy]:
        """Return what a term works with."""
        return self._store, self._blobs, self._formats, self._due_runs, self._policy


class _Term:
    """The work of one term of leadership."""

    def __init__(self, keeper: ArchiveKeeper, fence: Compare, segments: LedSegments) -> None:
        self._store, self._blobs, self._formats, self._due_runs, self._policy = keeper.context()
        self._counters = keeper.counters
        self._fence = fence
        self._segments = segments
        self._packer = Packer(
            self._store, self._blobs, segments, self._due_runs, fence, self._counters, keeper.step_index
        )
        self._upkeep = Upkeep(self._store, self._blobs, segments, self._policy, fence, self._counters)

        # When each kind of work is due, by the monotonic clock.
        self._pause_s = PAUSE_S_MIN
        self._retries: dict[str, tuple[float, float]] = {}
        """By kind of work that failed: when it is tried again, and the pause before."""
        self._upkeep_due_s = 0.0
        self._orphans_due_s = 0.0
        self._shared_due_s = 0.0

    async def list_runs(self, *, complete: bool = False) -> None:
        """List the statuses of the store; `complete`: add what the index by age lacks. Raises: StepflowError."""
        created = await self._due_runs.list_all(self._store)
        if complete:
            async for item in range_all(self._store, keys.PENDING):
                created.setdefault(keys.tail(keys.PENDING, item.key), 0)
            await complete_index(self._store, self._fence, created)

    async def tick(self) -> None:
        """Do what is due. Raises: FailedPrecondition `NOT_LEADING`."""
        if self._due_runs.stale:
            await self._try("list", self.list_runs)
        await self._try("delete", self._finish_deletions)
        if self._formats.active:
            await self._try("pack", self._pack)
        await self._try("upkeep", self._do_upkeep)
        await self._try("sweep", self._sweep)
        self._count()

    async def _finish_deletions(self) -> None:
        await finish_deletions(self._store, self._segments, self._fence)

    async def _pack(self) -> None:
        """Pack runs that are due and have waited for others."""
        for _ in range(PACKS_PER_TICK):
            due_ms = _now_ms() - round(1000 * self._counters.linger_s)
            oldest_ms = self._due_runs.oldest_ms()
            pause_ms = 1000 * max(PAUSE_S_MIN, min(self._pause_s, self._counters.linger_s))
            if oldest_ms is None or oldest_ms > due_ms - pause_ms:
                return

            full = await self._packer.pack(due_ms, self._upkeep.span_ms)
            if full < WELL_FILLED:
                self._pause_s *= 2
            elif full >= 1.0:
                self._pause_s /= 2
            self._pause_s = min(max(PAUSE_S_MIN, self._pause_s), PAUSE_S_MAX)
            self._count()
            if full < WELL_FILLED:
                return

    async def _do_upkeep(self) -> None:
        """Do some pieces of upkeep, at the next tick again if there are more."""
        now_s = time.monotonic()
        if now_s >= self._upkeep_due_s:
            for _ in range(UPKEEP_PIECES):
                if not await self._upkeep.step(_now_ms()):
                    self._upkeep_due_s = now_s + UPKEEP_INTERVAL_S
                    break

    async def _sweep(self) -> None:
        """Delete orphans and old shared blobs, every hour: it makes room while a full blob store refuses upkeep."""
        now_s = time.monotonic()
        if now_s >= self._orphans_due_s:
            self._orphans_due_s = now_s + HOURLY_S
            await self._upkeep.delete_orphans()
        if now_s >= self._shared_due_s:
            self._shared_due_s = now_s + min(HOURLY_S, self._policy.blobs_s)
            before_s = time.time() - self._policy.blobs_s
            await sweep_shared_blobs(self._store, self._blobs, before_s, self._fence, self._segments.named_blobs)

    async def _try(self, kind: str, work: Callable[[], Awaitable[None]]) -> None:
        """Do one kind of work, unless it failed a moment ago. Raises: FailedPrecondition `NOT_LEADING`."""
        due_s, pause_s = self._retries.get(kind, (0.0, 0.0))
        if time.monotonic() < due_s:
            return
        try:
            await work()
        except StepflowError as error:
            if error.reason in ("NOT_LEADING", "SEGMENTS_CHANGED"):
                raise
            log.warning("archive: work failed, trying again", work=kind, reason=error.reason, error=error.message)
            trouble = f"{error.reason}: {error.message}"
        except Exception as error:
            log_defect(log, "archive: work failed by a defect", error, work=kind)
            trouble = "internal error"
        else:
            self._retries.pop(kind, None)
            if kind == "pack":
                self._counters.trouble = ""
            return

        pause_s = min(max(RETRY_S_MIN, 2 * pause_s), RETRY_S_MAX)
        self._retries[kind] = (time.monotonic() + pause_s, pause_s)
        if kind == "pack":
            self._counters.trouble = trouble

    def _count(self) -> None:
        counters = self._counters
        manifests = self._segments.manifests.values()
        counters.segments = len(manifests)
        counters.segment_runs = sum(manifest.runs - len(manifest.removed) for manifest in manifests)
        counters.segment_bytes = sum(manifest.bytes for manifest in manifests)
        counters.waiting_runs = len(self._due_runs)
        oldest_ms = self._due_runs.oldest_ms()
        due_ms = 0 if oldest_ms is None else oldest_ms + round(1000 * counters.linger_s)
        counters.oldest_due_ms = due_ms if due_ms and due_ms <= _now_ms() else 0


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


__all__ = ["ArchiveKeeper"]
