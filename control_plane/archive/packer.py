"""Packs ended runs into segments, for the leader.

The order makes each run readable at any moment, and continuable after a crash at any point:

1. Read runs that are due, and check that they have ended.
2. Write them into an object that no reader knows. After a crash it is an orphan, which `upkeep` deletes.
3. Put the manifest. From now on the segment has the runs, too; readers prefer the store.
4. Delete the keys, each record first: readers turn to the segment. A later leader finds what a crash has left by the
   statuses: of a run that is packed already, only the keys are deleted.

- A client may delete a run at any of these points. It leaves the key `deleted/`, which hides the copy of the segment
  until `tombstones` has removed it; a run whose key exists is not packed.
- Memory holds a batch of runs, never a whole segment.
- A run with a long journal gets the list of its steps (`step_index`).
"""

from __future__ import annotations

import asyncio
import contextlib
from contextlib import aclosing
from typing import TYPE_CHECKING

from control_plane.archive.builder import SegmentBuilder, StepLists
from control_plane.archive.format import object_name
from control_plane.archive.run_keys import delete_large, delete_runs, has_blobs, named_blobs
from control_plane.archive.run_reader import BATCH_RUNS, RunReader, pages_of
from control_plane.archive.step_index import entries_by_partition
from control_plane.shared_blobs import blob_ids
from stepflow.errors import DataLoss, NotFound, StepflowError
from stepflow.mesh.v1.segments_pb2 import StepIndex
from stepflow.off_loop import off_loop
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from control_plane.archive.counters import ArchiveCounters
    from control_plane.archive.due_runs import DueRun, DueRuns
    from control_plane.archive.led_segments import LedSegments
    from control_plane.archive.run_keys import RunKeys
    from control_plane.archive.step_index import StepIndexWriter
    from stepflow.store import Compare, Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

SEGMENT_BYTES = 32 * 1024 * 1024
SEGMENT_RUNS_MAX = 4096
"""A segment ends with the batch of runs that reaches one of these."""


class Packer:
    """Packs during one term of leadership. One call at a time."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        segments: LedSegments,
        due_runs: DueRuns,
        fence: Compare,
        counters: ArchiveCounters,
        step_index: StepIndexWriter | None = None,
    ) -> None:
        """`step_index`: makes the lists of steps of long runs; None: readers replay these runs."""
        self._store = store
        self._blobs = blobs
        self._segments = segments
        self._due_runs = due_runs
        self._fence = fence
        self._counters = counters
        self._step_index = step_index
        self._reader = RunReader(store)
        self._runs_max = SEGMENT_RUNS_MAX
        self._refused: set[str] = set()
        """Runs that made packing fail by a defect; the next leader tries again."""

    async def pack(self, before_ms: int, span_ms: int) -> float:
        """Pack runs that ended at `before_ms` or earlier into one segment; return how full it is, 0 to about 1.

        `span_ms`: bound on the time between the ends of its runs. After an error all runs are due again.

        Raises: FailedPrecondition `NOT_LEADING`; StepflowError, of the store and of the blob store.
        """
        taken = self._due_runs.take(before_ms, self._runs_max, span_ms)
        taken = [run for run in taken if run.run_id not in self._refused]
        if not taken:
            return 0.0

        left = sorted(taken, key=lambda run: run.run_id)  # neighbours in the store
        try:
            full = await self._pack(left)
        except (StepflowError, asyncio.CancelledError):
            self._due_runs.put_back(run._replace(listed=True) for run in taken)
            raise
        except Exception as error:
            # One of the runs may be at fault: search for it, so that it does not keep the others.
            log_defect(log, "packing failed by a defect", error, runs=len(taken))
            self._runs_max = max(1, len(taken) // 8)
            if len(taken) == 1:
                log.error("a run stays in the store: it cannot be packed", run_id=taken[0].run_id)
                self._refused.add(taken[0].run_id)
            else:
                self._due_runs.put_back(run._replace(listed=True) for run in taken)
            return 1.0

        self._due_runs.put_back(left)
        self._runs_max = min(SEGMENT_RUNS_MAX, 8 * self._runs_max)
        return full

    async def _pack(self, left: list[DueRun]) -> float:
        """Pack the first of the runs; the others stay in `left`."""
        batches = self._packable(left)
        first = await anext(batches, None)
        if first is None:
            return 0.0

        # 1. The object.
        name = self._segments.new_id()
        builder = SegmentBuilder()
        packed: list[RunKeys] = []

        async def chunks() -> AsyncIterator[bytes]:
            batch: list[RunKeys] | None = first
            while batch is not None:
                async for chunk in self._bodies(builder, batch):
                    yield chunk
                for read in batch:
                    read.release()
                packed.extend(batch)
                batch = None if builder.bytes >= SEGMENT_BYTES else await anext(batches, None)
            yield await asyncio.to_thread(builder.finish)

        await self._blobs.objects.write(object_name(name), chunks())
        await batches.aclose()

        # 2. The manifest.
        manifest = builder.manifest()
        await self._segments.change({name: manifest})

        # 3. The keys in the store.
        await delete_runs(self._store, self._fence, packed)
        self._counters.packed_runs += manifest.runs
        self._counters.packed_bytes += manifest.bytes
        log.debug("runs packed", segment=name, runs=manifest.runs, bytes=manifest.bytes)
        return max(manifest.bytes / SEGMENT_BYTES, manifest.runs / SEGMENT_RUNS_MAX)

    async def _packable(self, left: list[DueRun]) -> AsyncGenerator[list[RunKeys], None]:
        """Take runs from `left`, in batches; yield those that are to be packed, and finish those that are packed."""
        while left:
            taken, left[:BATCH_RUNS] = left[:BATCH_RUNS], []
            reads = await self._reader.read(taken)
            doubtful = [read.run.run_id for read in reads if read.run.listed and read.record is not None]
            held = (await self._segments.holding(doubtful)).found if doubtful else {}

            batch: list[RunKeys] = []
            for read in reads:
                if read.record is None:
                    if read.names:  # the deletion of a packed run, or of an expired one, broke off
                        await delete_large(self._store, self._fence, read)
                elif not read.ended:
                    continue  # its next status tells
                elif read.deleted:  # an earlier run of the id; its key would hide the copy
                    self._due_runs.put_back([read.run])
                elif read.run.run_id in held:
                    await delete_runs(self._store, self._fence, [read])
                else:
                    batch.append(read)
            if batch:
                yield batch

    async def _bodies(self, builder: SegmentBuilder, batch: Sequence[RunKeys]) -> AsyncIterator[bytes]:
        """Add runs to a segment, and yield its bytes."""
        # 1. Ids of shared blobs in inputs that lie in the blob store.
        for read in batch:
            for blob in read.input_blobs:
                with contextlib.suppress(NotFound, DataLoss):
                    content = (await self._blobs.get(blob, scope=read.run.run_id))[0]
                    builder.add_named(await off_loop(len(content), blob_ids, content))

        # 2. The runs.
        whole = [(read, await self._step_lists(read)) for read in batch if read.whole]
        yield await asyncio.to_thread(_add_whole, builder, whole)
        for read in batch:
            if not read.whole:
                async with aclosing(self._large_body(builder, read)) as chunks:
                    async for chunk in chunks:
                        yield chunk

    async def _large_body(self, builder: SegmentBuilder, read: RunKeys) -> AsyncGenerator[bytes]:
        """Add a run that does not fit memory, and yield its bytes."""
        entries: dict[int, int] = {}
        builder.add_named(named_blobs(read))
        builder.begin_run(read.run.run_id)
        async for page in pages_of(self._store, read):
            entries |= entries_by_partition(page)
            yield await asyncio.to_thread(builder.add_items, page)

        index, has_steps = StepIndex(), False
        async with aclosing(self._steps_of(read, entries, index)) as chunks:
            async for chunk in chunks:
                yield builder.add_steps(chunk)
                has_steps = True
        if has_steps:  # also if none of them is complete
            yield builder.end_steps(index)
        yield builder.end_run()

    async def _step_lists(self, read: RunKeys) -> StepLists | None:
        """Return the lists of steps of a run that fits memory."""
        index = StepIndex()
        chunks = [chunk async for chunk in self._steps_of(read, entries_by_partition(read.items), index)]
        return StepLists(b"".join(chunks), index) if index.partitions else None

    async def _steps_of(self, read: RunKeys, entries: Mapping[int, int], index: StepIndex) -> AsyncGenerator[bytes]:
        """Yield the lists of steps of a run. Raises: StepflowError."""
        if self._step_index is None or read.record is None:
            return
        lists = self._step_index.lists(read.run.run_id, read.record.value, entries, index)
        async with aclosing(lists) as chunks:
            async for chunk in chunks:
                yield chunk


def _add_whole(builder: SegmentBuilder, runs: Sequence[tuple[RunKeys, StepLists | None]]) -> bytes:
    return b"".join(
        [
            builder.add_run(
                read.run.run_id, read.items, has_blobs=has_blobs(read), named=named_blobs(read), steps=steps
            )
            for read, steps in runs
        ]
    )


__all__ = ["SEGMENT_BYTES", "SEGMENT_RUNS_MAX", "Packer"]
