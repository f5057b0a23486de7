"""The time of a page of a list, in stores of 500, 5,000 and 50,000 runs and in runs of up to 46,500 steps.

    python -m benchmarks.listings [--quick]

Reported for etcd and for SQLite, at each number of runs: a page of 50 runs at the beginning and in the middle of the
list, a page that a filter leaves empty, and the rate of submissions with so many runs in the store. Then for each
number of steps: the first page of a live run, which replays the run in a process, and of the same run packed into a
segment, for a control plane that has read nothing of it; a later page; and the longest stall of the event loop during
each of them. Fails if a page takes longer than `PAGE_MS_MAX` or grows with the store, the first page of a live run
excepted, and if the loop stalls for longer than `STALL_MS_MAX`.
"""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import statistics
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.mesh import CACHE
from control_plane.admission import RunRequest
from control_plane.archive.counters import ArchiveCounters
from control_plane.archive.due_runs import DueRuns
from control_plane.archive.led_segments import LedSegments
from control_plane.archive.packer import Packer
from control_plane.archive.step_index import StepIndexWriter
from control_plane.control_plane import ControlPlane
from control_plane.replay.process import ReplayProcess
from control_plane.run_index import entry
from control_plane.run_list import RunFilter
from stepflow.codec import encode
from stepflow.dev.etcd_binary import find_etcd
from stepflow.dev.ports import free_port
from stepflow.flow import flow_from_tree
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.rpc.process import GC_THRESHOLD
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import Put, Txn, keys, modified_at, put
from stepflow.store.blobs import BlobStore
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from stepflow.store import Op, Store

SIZES = (500, 5_000, 50_000)
QUICK_SIZES = (500, 5_000)
STEPS = (500, 5_000, 49_990)
"""A journal has at most 50,000 entries."""
QUICK_STEPS = (500, 5_000)
BATCH = 200
"""Entries in a value of the journal of a run with many calls in flight; without, it has one."""
PAGE = 50
REPEATS = 15
SUBMISSIONS = 300
PAGE_MS_MAX = 20.0
STALL_MS_MAX = 20.0
GROWTH_MAX = 2.0
"""Bound on the growth of a page from the smallest store to the largest."""

NOISE_MS = 2.0
TICK_S = 0.002


async def fill(store: Store, since: int, count: int) -> None:
    """Add ended runs number `since` to `count`, as admission and executors leave them."""
    at_ms = 1_700_000_000_000
    for start in range(since, count, 30):
        writes: list[Op] = []
        for number in range(start, min(count, start + 30)):
            run_id = new_run_id()
            record = state_pb2.RunRecord(
                flow_id="f" * 64,
                flow_name=f"flow-{number % 10}",
                items_total=1,
                items_per_partition=64,
                created_at_ms=at_ms + number,
            )
            record.inputs.add(json=encode({"text": "x" * 1_000}))
            status = state_pb2.PartitionStatus(
                status=pb.RUN_STATUS_COMPLETED, items_total=1, items_completed=1, created_at_ms=at_ms + number
            )
            writes += [
                Put(keys.run(run_id), record.SerializeToString()),
                entry(run_id, record),
                Put(keys.status(run_id, 0), status.SerializeToString()),
            ]
        await store.txn(Txn((), tuple(writes)))
    await put(store, keys.BY_AGE_COMPLETE, b"")


async def add_long_run(store: Store, control: ControlPlane, steps: int, batch: int = BATCH) -> str:
    """Add an ended run whose flow maps a step over a list. `batch`: entries in a value of its journal."""
    tree = {
        "steps": [{"id": "each", "component": "/builtin/map", "input": {
            "workflow": {"$literal": {"steps": [{"id": "s", "component": "/kit/echo", "input": {"$input": "$"}}],
                                      "output": {"$step": "s"}}},
            "items": {"$input": "$"}}}],
        "output": {"$step": "each"},
    }  # fmt: skip
    flow_id = await control.store_flow(flow_from_tree(tree))
    run_id = new_run_id()
    record = state_pb2.RunRecord(
        flow_id=flow_id,
        items_total=1,
        items_per_partition=64,
        policy=state_pb2.Policy(concurrency_max=10, engine_version=ENGINE_VERSION),
    )
    record.inputs.add(json=encode(list(range(steps - 1))))
    entries = [pb.Entry(at_ms=1, adopted=pb.Adopted(executor_id="bench", epoch=1))]
    sub_run = pb.SubRunStarted(kind=pb.SUB_RUN_KIND_MAP, key=f"{run_id}/0/each/map.0")
    entries.append(pb.Entry(at_ms=1, sub_run_started=sub_run))
    for item in range(steps - 1):
        done = pb.StepCompleted(attempt=1, started_at_ms=1, result=pb.Payload(json=encode({"n": item})))
        entries.append(pb.Entry(at_ms=2, scope=1, item=item, step_completed=done))
    entries.append(pb.Entry(at_ms=3, step_completed=pb.StepCompleted(of_sub_run=True)))
    entries.append(pb.Entry(at_ms=3, run_completed=pb.RunCompleted(status=pb.RUN_STATUS_COMPLETED)))

    await put(store, keys.run(run_id), record.SerializeToString())
    ended = state_pb2.PartitionStatus(status=pb.RUN_STATUS_COMPLETED)
    await put(store, keys.status(run_id, 0), ended.SerializeToString())
    for start in range(0, len(entries), batch):
        values = pb.EntryBatch(entries=entries[start : start + batch])
        await put(store, keys.journal(run_id, 0, start), values.SerializeToString())
    return run_id


async def ms_of(work: Callable[[], Awaitable[Any]]) -> float:
    """Return the median time of some work."""
    times = []
    for _ in range(REPEATS):
        started = time.perf_counter()
        await work()
        times.append(1000 * (time.perf_counter() - started))
    return statistics.median(times)


async def admissions_per_s(control: ControlPlane) -> float:
    """Submit runs that wait, 32 at a time, and delete nothing."""
    flow_id = await control.store_flow(flow_from_tree({"output": 1}))
    slots = asyncio.Semaphore(32)

    async def one() -> None:
        async with slots:
            await control.submit(RunRequest(flow_id, [b"1"]))

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(SUBMISSIONS)))
    return SUBMISSIONS / (time.perf_counter() - started)


class Stalls:
    """The longest time between two turns of the event loop."""

    def __init__(self) -> None:
        self.longest_ms = 0.0
        self._task = asyncio.create_task(self._tick())

    async def _tick(self) -> None:
        while True:
            started = time.perf_counter()
            await asyncio.sleep(TICK_S)
            self.longest_ms = max(self.longest_ms, 1000 * (time.perf_counter() - started - TICK_S))

    def stop(self) -> float:
        self._task.cancel()
        return self.longest_ms


async def of_runs(store: Store, sizes: tuple[int, ...]) -> list[str]:
    """Measure pages of runs; return what is wrong."""
    control = ControlPlane(store, BlobStore.open("memory://"))
    page = control.run_list.page
    rows: list[tuple[float, float, float]] = []
    for before, size in zip((0, *sizes), sizes, strict=False):
        await fill(store, before, size)
        token = ""
        for _ in range(min(size, 5_000) // 1_000 // 2 + 1):
            _, token = await page(RunFilter(), min(1_000, size // 2), token)
        row = (
            await ms_of(lambda: page(RunFilter(), PAGE, "")),
            await ms_of(lambda: page(RunFilter(), PAGE, token)),  # noqa: B023  # called at once
            await ms_of(lambda: page(RunFilter(statuses=frozenset(("failed",))), PAGE, "")),
        )
        rows.append(row)
        rate = await admissions_per_s(control)
        first, middle, filtered = row
        print(
            f"  {size:>7} runs   first page {first:5.1f} ms   middle {middle:5.1f} ms"
            f"   filtered {filtered:6.1f} ms   {rate:6,.0f} submissions/s",
            flush=True,
        )
    await control.close()
    smallest, largest = rows[0][:2], rows[-1][:2]
    slow = any(ms > PAGE_MS_MAX for ms in largest)
    grows = any(late > GROWTH_MAX * early + NOISE_MS for early, late in zip(smallest, largest, strict=True))
    return ["a page of runs takes too long"] * slow + ["a page of runs grows with the store"] * grows


async def pack(store: Store, blobs: BlobStore, control: ControlPlane, run_id: str) -> float:
    """Pack a run as a leader does; return the seconds."""
    leader = await put(store, keys.leader(), b"bench")
    fence = modified_at(keys.leader(), leader)
    segments = LedSegments(store, blobs, fence)
    await segments.load()
    due_runs = DueRuns()
    due_runs.begin()
    await due_runs.list_all(store)
    packer = Packer(
        store, blobs, segments, due_runs, fence, ArchiveCounters(), StepIndexWriter(control.listing.replays)
    )
    started = time.perf_counter()
    while await store.get(keys.run(run_id)) is not None:
        await packer.pack(2**50, 2**50)
    return time.perf_counter() - started


async def first_page(control: ControlPlane, run_id: str, *, with_results: bool = False) -> tuple[float, float, str]:
    """Read the first page of steps; return the ms, the longest stall in ms, and the token of the next page."""
    stalls, started = Stalls(), time.perf_counter()
    found, token, _ = await control.listing.steps(run_id, 100, "", with_results=with_results)
    first_ms = 1000 * (time.perf_counter() - started)
    assert found, "no steps"
    return first_ms, stalls.stop(), token


async def of_steps(store: Store, sizes: tuple[int, ...]) -> list[str]:
    """Measure pages of steps; return what is wrong."""
    blobs = BlobStore.open("memory://")
    process = ReplayProcess()
    control = ControlPlane(store, blobs, replay_process=process)
    await control.listing.steps(await add_long_run(store, control, 500), 1, "", with_results=True)  # starts the process
    problems: list[str] = []
    for steps, batch in [*((steps, BATCH) for steps in sizes), (sizes[-1], 1)]:
        run_id = await add_long_run(store, control, steps, batch)
        live_ms, live_stall_ms, _ = await first_page(control, run_id)
        pack_s = await pack(store, blobs, control, run_id)

        cold = ControlPlane(store, blobs, replay_process=process)
        generation = process.generation
        packed_ms, packed_stall_ms, token = await first_page(cold, run_id)
        results_ms, results_stall_ms, _ = await first_page(cold, run_id, with_results=True)
        later_ms = await ms_of(lambda: cold.listing.steps(run_id, 100, token, with_results=True))  # noqa: B023  # called at once
        await cold.close()
        print(
            f"  {steps:>7} steps, {batch:>3} a value  live: first page {live_ms:5.0f} ms, stall {live_stall_ms:4.1f} ms"
            f"   packed in {pack_s:4.1f} s: first page {packed_ms:4.1f} ms, stall {packed_stall_ms:4.1f} ms,"
            f" with results {results_ms:4.1f} ms, later page {later_ms:4.1f} ms",
            flush=True,
        )
        assert process.generation == generation
        if max(packed_ms, results_ms, later_ms) > PAGE_MS_MAX:
            problems.append(f"a page of {steps} steps takes too long")
        if max(live_stall_ms, packed_stall_ms, results_stall_ms) > STALL_MS_MAX:
            problems.append(f"a page of {steps} steps stalls the event loop")
    await control.close()
    await process.close()
    return problems


@asynccontextmanager
async def running_etcd(folder: Path) -> AsyncIterator[EtcdStore]:
    """Run an etcd, and yield a store over it."""
    client, peer = free_port(), free_port()
    process = await asyncio.create_subprocess_exec(
        str(find_etcd(CACHE).path),
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls=http://127.0.0.1:{client}",
        f"--advertise-client-urls=http://127.0.0.1:{client}",
        f"--listen-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-advertise-peer-urls=http://127.0.0.1:{peer}",
        f"--initial-cluster=default=http://127.0.0.1:{peer}",
        "--snapshot-count=5000",
        "--log-level=error",
    )
    try:
        async with asyncio.timeout(30):
            while True:
                try:
                    store = await EtcdStore.open(EtcdConfig.parse(f"127.0.0.1:{client}"))
                    break
                except Exception:
                    await asyncio.sleep(0.1)
        yield store
        await store.close()
    finally:
        process.kill()
        await process.wait()


async def measure(sizes: tuple[int, ...], steps: tuple[int, ...], folder: Path) -> list[str]:
    """Measure both stores; return what is wrong."""
    problems: list[str] = []
    async with AsyncExitStack() as stack:
        print("etcd")
        etcd = await stack.enter_async_context(running_etcd(folder))
        problems += await of_runs(etcd, sizes)
        problems += await of_steps(etcd, steps)

        print("SQLite")
        sqlite = await SqliteStore.open(folder / "store.db")
        stack.push_async_callback(sqlite.close)
        problems += await of_runs(sqlite, sizes)
        problems += await of_steps(sqlite, steps)
    return problems


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    quick = "--quick" in sys.argv[1:]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores; pages of {PAGE} runs and 100 steps")
    gc.freeze()  # as the services do, which pause for fewer collections then
    gc.set_threshold(GC_THRESHOLD, 20, 20)
    with tempfile.TemporaryDirectory() as folder:
        problems = uvloop.run(measure(QUICK_SIZES if quick else SIZES, QUICK_STEPS if quick else STEPS, Path(folder)))
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
