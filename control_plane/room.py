"""The room of the store: measured by each replica, kept by the leader.

- Each replica measures the store once a second, and slows its admissions down by it (`pressure`).
- The leader compacts the history (`compaction`), and writes the key `pressure`: the bound above which values become
  blobs, lower while the store is short of room, and what the packing of ended runs counts, for `cluster status`.

The bound has a hysteresis, so that it does not change with every measurement.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from control_plane.compaction import Compaction
from control_plane.pressure import QUOTA_BYTES_DEFAULT, AdmissionPressure
from stepflow.codec import INLINE_BYTES_MAX
from stepflow.errors import StepflowError
from stepflow.mesh.v1 import cluster_pb2, pressure_pb2
from stepflow.store import Get, KeyValue, Put, Txn, keys
from stepflow.telemetry import get_logger
from stepflow.vital import ended, keep_running

if TYPE_CHECKING:
    from collections.abc import Callable

    from control_plane.activity import Activity
    from control_plane.archive.counters import ArchiveCounters
    from control_plane.store_meter import StoreMeter
    from stepflow.store import Compare, Store

log = get_logger(__name__)

TICK_S = 1.0

TOLD_S = 10.0
"""Interval at which the activity of packing is written, if it has changed."""

SHORT_SHARE = 0.25
AMPLE_SHARE = 0.2
"""Above the first share of the quota the bound falls to `SHORT_INLINE_BYTES`; below the second it is restored."""

SHORT_INLINE_BYTES = 4 * 1024

RUNS_OUT_WINDOW_S = 20.0
"""Window of the rate at which runs leave: several segments, and short enough to follow."""

ALLOCATED_SHARE_WARN = 0.9


class Room:
    """The room of one store, as one replica sees it. `leadership` returns the fence of a leader, None otherwise."""

    def __init__(
        self,
        store: Store,
        meter: StoreMeter,
        activity: Activity,
        leadership: Callable[[], Compare | None],
        quota_bytes: int = QUOTA_BYTES_DEFAULT,
        packing: Callable[[], ArchiveCounters | None] = lambda: None,
    ) -> None:
        self.activity = activity
        self.meter = meter
        self.admission = AdmissionPressure(meter, quota_bytes, lambda: activity.runs_out.per_s(RUNS_OUT_WINDOW_S))
        self._store = store
        self._leadership = leadership
        self._quota_bytes = quota_bytes
        self._packing = packing
        self._compaction = Compaction(store)
        self._fence: Compare | None = None
        """Of the term that the state below belongs to."""
        self._told: pressure_pb2.Pressure | None = None
        """What the key says; None before it was read."""
        self._told_at_s = 0.0
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(keep_running(log, "the room of the store", self._run), name="room")

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
            try:
                await self.tick(time.monotonic())
            except StepflowError as error:
                log.info("room of the store not looked after", reason=error.reason)
            await asyncio.sleep(TICK_S)

    async def tick(self, now_s: float) -> None:
        """Measure; as the leader, compact and tell the services. Raises: StepflowError."""
        # 1. Measure.
        size = await self.meter.read()
        if size is not None:
            self.activity.note_size(size.in_use)
        packing = self._packing()
        if packing is not None:
            self.activity.bytes_out.set_total(packing.packed_bytes)

        # 2. Begin a term, or end one.
        fence = self._leadership()
        if fence != self._fence:
            self._fence, self._told = fence, None
            self._compaction.begin_term()
        if fence is None:
            return

        # 3. Compact, and tell.
        await self._compaction.tick(fence, now_s, 0 if size is None else size.in_use)
        if size is not None:
            await self._tell(fence, now_s, size.in_use, packing)

    async def _tell(self, fence: Compare, now_s: float, bytes_in_use: int, packing: ArchiveCounters | None) -> None:
        """Write the key `pressure` if it has changed."""
        if self._told is None:
            self._told = await self._read()
        pressure = pressure_pb2.Pressure(inline_bytes_max=self._inline_bytes_max(bytes_in_use))
        if packing is not None:
            pressure.packing.lag_ms = int(1000 * packing.lag_s())
            pressure.packing.segments = packing.segments
            pressure.packing.runs = packing.segment_runs
            pressure.packing.bytes = packing.segment_bytes
            pressure.packing.bytes_out_per_s = round(self.activity.bytes_out.per_s())
            pressure.packing.trouble = packing.trouble

        bound_changed = pressure.inline_bytes_max != (self._told.inline_bytes_max or INLINE_BYTES_MAX)
        if not bound_changed and (pressure.packing == self._told.packing or now_s - self._told_at_s < TOLD_S):
            return
        if (await self._store.txn(Txn((fence,), (Put(keys.pressure(), pressure.SerializeToString()),)))).succeeded:
            if bound_changed:
                log.info("larger values become blobs", bytes_max=pressure.inline_bytes_max, bytes_in_use=bytes_in_use)
            self._told, self._told_at_s = pressure, now_s

    def _inline_bytes_max(self, bytes_in_use: int) -> int:
        share = bytes_in_use / self._quota_bytes
        if share > SHORT_SHARE:
            return SHORT_INLINE_BYTES
        if share < AMPLE_SHARE or self._told is None:
            return INLINE_BYTES_MAX
        return self._told.inline_bytes_max or INLINE_BYTES_MAX

    async def _read(self) -> pressure_pb2.Pressure:
        (item,) = (await self._store.txn(Txn((), (Get(keys.pressure()),)))).responses
        return pressure_pb2.Pressure.FromString(item.value) if isinstance(item, KeyValue) else pressure_pb2.Pressure()

    async def report(self) -> cluster_pb2.StoreInfo | None:
        """Return the room for `cluster status`; None if the store has no size. Raises: StepflowError."""
        size = await self.meter.read()
        if size is None:
            return None
        told = await self._read()
        activity, packing = self.activity, told.packing
        info = cluster_pb2.StoreInfo(
            bytes_in_use=size.in_use,
            bytes_allocated=size.allocated,
            quota_bytes=self._quota_bytes,
            bytes_in_per_s=max(0.0, activity.growth_per_s() + packing.bytes_out_per_s),
            bytes_out_per_s=packing.bytes_out_per_s,
            runs_in_per_s=activity.runs_in.per_s(),
            runs_out_per_s=activity.runs_out.per_s(),
            packing_lag_ms=packing.lag_ms,
            segments=packing.segments,
            packed_runs=packing.runs,
            packed_bytes=packing.bytes,
            inline_bytes_max=told.inline_bytes_max or INLINE_BYTES_MAX,
            runs_per_s_max=self.admission.rate(size),
        )
        if info.inline_bytes_max < INLINE_BYTES_MAX:
            info.slowed.append(f"values above {info.inline_bytes_max:,} bytes go to the blob store, to save room")
        if packing.trouble:
            info.slowed.append(f"ended runs stay in the store for now: {packing.trouble}")
        if slowed := self.admission.slowed(size):
            info.slowed.append(slowed)
        return info

    async def obstacle(self) -> str:
        """Return why new runs are refused; empty if they are not."""
        size = await self.meter.read()
        return self.admission.slowed(size) if size is not None and self.admission.rate(size) == 0 else ""

    async def warning(self) -> str:
        """Return what an operator should do about the file of etcd; empty if nothing."""
        size = await self.meter.read()
        if size is None or size.allocated < ALLOCATED_SHARE_WARN * self._quota_bytes:
            return ""
        return (
            f"etcd's file has {size.allocated:,} of the {self._quota_bytes:,} bytes of its quota ({size.in_use:,} in "
            "use): at its quota etcd takes no writes; raise the quota"
        )


__all__ = ["Room"]
