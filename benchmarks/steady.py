"""A mesh of processes under an unbroken load of short runs: rates, refusals, latencies and the size of etcd over time.

    python -m benchmarks.steady [--minutes 30] [--runs N] [--result-bytes 30720] [--steps 1] [--clients 128]
                                [--pace FACTOR] [--surge-minutes M] [--window S]

Clients submit a run, wait for its end, and submit the next one. Each row is a window of time: runs that ended per
second, submissions refused for good, the latency of a run (median and 95th percentile), etcd's size in use and
allocated, the size of the blob folder, and the CPU time per run of each process. With `--pace`, the clients are
`FACTOR` times as many for `--surge-minutes`, which end `CALM_S` before the end of the time.

At the end 200 runs from all over the time are read back. Fails if a run was refused, lost or unreadable, if etcd held
more than `IN_USE_BYTES_MAX`, if the last window's rate is below `RATE_SHARE_MIN` of the second window's, or if after a
surge the last window's latencies exceed `LATENCY_SHARE_MAX` times the second window's.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import platform
import random
import statistics
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import uvloop

from benchmarks.embedded import chain
from benchmarks.mesh import CACHE, HERE, cpu_us, mesh, server_of, store
from stepflow.dev.etcd_binary import find_etcd
from stepflow.errors import StepflowError
from stepflow.flow import flow_from_tree

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from stepflow.client import Client
    from stepflow.dev.mesh import DevMesh
    from stepflow.flow import Flow

IN_USE_BYTES_MAX = 1024**3
RATE_SHARE_MIN = 0.95
LATENCY_SHARE_MAX = 1.2
CALM_S = 120.0
"""Seconds of the ordinary load after a surge: the latencies of the second minute count."""

READ_BACK = 200
KEPT_IDS = 20_000
"""Run ids remembered for reading back: a uniform sample of all."""


@dataclass
class Load:
    """The counts since the last row, and since the beginning."""

    flow_id: str
    size: int
    ended: int = 0
    total: int = 0
    refused: list[str] = field(default_factory=list)
    latencies_s: list[float] = field(default_factory=list)
    sample: list[tuple[str, int]] = field(default_factory=list)
    """Run ids with the number that each was submitted with."""

    def note(self, run_id: str, number: int, took_s: float) -> None:
        self.ended += 1
        self.total += 1
        self.latencies_s.append(took_s)
        if len(self.sample) < KEPT_IDS:
            self.sample.append((run_id, number))
        elif (place := random.randrange(self.total)) < KEPT_IDS:
            self.sample[place] = (run_id, number)


@dataclass(frozen=True)
class Row:
    """A window of time. Sizes in bytes, `rate` in runs per second, latencies in seconds."""

    at_s: float
    rate: float
    refused: int
    latency_s: float
    latency_p95_s: float
    in_use: int
    allocated: int
    blobs: int
    cpu: Mapping[str, float]


def answer_flow() -> Flow:
    """Return a flow of one step, whose result is as long as the input says."""
    step = {
        "id": "answer",
        "component": "/bench/answer",
        "input": {"value": {"$input": "value"}, "size": {"$input": "size"}},
    }
    return flow_from_tree({"name": "answer", "steps": [step], "output": {"$step": "answer"}})


def etcd_sizes(address: str) -> tuple[int, int]:
    """Return the bytes in use and allocated."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=10) as reply:  # the etcd of this benchmark
        lines = dict(line.rsplit(" ", 1) for line in reply.read().decode().splitlines() if not line.startswith("#"))
    total = "etcd_mvcc_db_total_size_in"
    return int(float(lines[f"{total}_use_in_bytes"])), int(float(lines[f"{total}_bytes"]))


def folder_bytes(folder: Path) -> int:
    """Return the size of all files under a folder."""
    size = 0
    for entry in folder.rglob("*"):
        try:
            size += entry.stat().st_size if entry.is_file() else 0
        except FileNotFoundError:
            continue
    return size


async def one_client(client: Client, load: Load, until: asyncio.Event, numbers: list[int]) -> None:
    """Submit runs one after another until told to stop."""
    while not until.is_set():
        numbers[0] += 1
        number = numbers[0]
        started = time.perf_counter()
        try:
            run_id = await client.submit(load.flow_id, {"value": number, "size": load.size})
            run = await client.wait(run_id)
        except StepflowError as error:
            load.refused.append(f"{error.reason}: {error.message}")
            continue
        assert run.status == "completed", run
        load.note(run_id, number, time.perf_counter() - started)


async def watch_load(dev: DevMesh, load: Load, options: argparse.Namespace, until: asyncio.Event) -> list[Row]:
    """Print a row for each window until the time or the number of runs is over."""
    processes = {service.name: service.pid for service in dev.services} | {"client": os.getpid()}
    processes["server"] = server_of(processes["host-1"])
    rows: list[Row] = []
    started, before = time.perf_counter(), cpu_us(processes)
    print(f"  {'s':>6}{'runs':>9}{'runs/s':>9}{'refused':>9}{'p50 ms':>8}{'p95 ms':>8}{'in use':>8}{'etcd':>7}"
          f"{'blobs MiB':>11}  CPU us per run", flush=True)  # fmt: skip
    while not until.is_set():
        opened = time.perf_counter()
        await asyncio.sleep(options.window)
        length_s = time.perf_counter() - opened
        after = cpu_us(processes)
        in_use, allocated = await asyncio.to_thread(etcd_sizes, dev.addresses()["etcd"])
        blobs = await asyncio.to_thread(folder_bytes, dev.settings.folder / "blobs")
        times = sorted(load.latencies_s) or [0.0]
        cpu = {name: (after[name] - before[name]) / max(1, load.ended) for name in after}
        rows.append(
            Row(
                at_s=time.perf_counter() - started,
                rate=load.ended / length_s,
                refused=len(load.refused) - sum(row.refused for row in rows),
                latency_s=statistics.median(times),
                latency_p95_s=times[int(len(times) * 0.95)],
                in_use=in_use,
                allocated=allocated,
                blobs=blobs,
                cpu=cpu,
            )
        )
        tell(rows[-1], load)
        before, load.ended, load.latencies_s = after, 0, []
        if rows[-1].at_s >= options.minutes * 60 or (options.runs and load.total >= options.runs):
            until.set()
    return rows


def tell(row: Row, load: Load) -> None:
    """Print a row."""
    sizes = f"{row.in_use / 2**20:>8.0f}{row.allocated / 2**20:>7.0f}{row.blobs / 2**20:>11,.0f}"
    times = f"{row.latency_s * 1000:>8.0f}{row.latency_p95_s * 1000:>8.0f}"
    cpu = ", ".join(f"{name} {us:.0f}" for name, us in row.cpu.items())
    print(f"  {row.at_s:>6.0f}{load.total:>9,}{row.rate:>9.0f}{row.refused:>9}{times}{sizes}  {cpu}", flush=True)


async def surge(client: Client, load: Load, options: argparse.Namespace, numbers: list[int]) -> None:
    """Add clients for the minutes of the surge."""
    if options.pace <= 1:
        return

    await asyncio.sleep(max(0.0, (options.minutes - options.surge_minutes) * 60 - CALM_S))
    print(f"  now {options.pace:g} times as many clients", flush=True)
    over = asyncio.Event()
    more = int(options.clients * (options.pace - 1))
    tasks = [asyncio.create_task(one_client(client, load, over, numbers)) for _ in range(more)]
    await asyncio.sleep(options.surge_minutes * 60)
    over.set()
    await asyncio.gather(*tasks)
    print("  as many clients as before", flush=True)


async def read_back(client: Client, load: Load) -> list[str]:
    """Read runs from all over the time; return a message for each that is not as it was."""
    problems: list[str] = []
    for run_id, number in random.sample(load.sample, min(READ_BACK, len(load.sample))):
        run = await client.get(run_id)
        (item,) = [item async for item in client.items(run_id)]
        steps = [step async for step in client.steps(run_id)]
        text = item.result["text"] if load.size else ""
        if run.status != "completed" or not steps or (load.size and not text.startswith(f"{number:x} ")):
            problems.append(f"run {run_id} is not as it was: {run.status}, {len(steps)} steps")
    return problems


async def measure(options: argparse.Namespace) -> list[str]:
    """Run the load; return the problems."""
    async with mesh(executors=1) as (dev, client):
        flow = answer_flow() if options.result_bytes else chain(options.steps)
        load = Load(await store(client, flow), options.result_bytes)
        until, numbers = asyncio.Event(), [0]
        clients = [asyncio.create_task(one_client(client, load, until, numbers)) for _ in range(options.clients)]
        more = asyncio.create_task(surge(client, load, options, numbers))
        rows = await watch_load(dev, load, options, until)
        await asyncio.gather(*clients)
        more.cancel()
        problems = await read_back(client, load)

    # The checks.
    problems += sorted(set(load.refused))[:5]
    if load.refused:
        problems.append(f"{len(load.refused)} submissions were refused for good")
    if max(row.in_use for row in rows) > IN_USE_BYTES_MAX:
        problems.append(f"etcd held {max(row.in_use for row in rows):,} bytes")
    if len(rows) > 2 and rows[-1].rate < RATE_SHARE_MIN * rows[1].rate:
        problems.append(f"the rate fell from {rows[1].rate:.0f} to {rows[-1].rate:.0f} runs/s")
    if options.pace > 1:
        for name in ("latency_s", "latency_p95_s"):
            before_s, after_s = getattr(rows[1], name), getattr(rows[-1], name)
            if after_s > LATENCY_SHARE_MAX * before_s:
                problems.append(f"{name} was {before_s:.3f} before the surge, and is {after_s:.3f} after it")
    print(f"  {load.total:,} runs, {len(load.refused)} refused; read back: {READ_BACK}", flush=True)
    return problems


def main() -> None:
    """Print the rows, and the machine they were measured on."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--runs", type=int, default=0, help="stop after this many runs")
    parser.add_argument("--result-bytes", type=int, default=30 * 1024, help="0: results of a few bytes")
    parser.add_argument("--steps", type=int, default=1, help="steps of a run, with --result-bytes 0")
    parser.add_argument("--clients", type=int, default=128)
    parser.add_argument("--pace", type=float, default=1.0)
    parser.add_argument("--surge-minutes", type=float, default=10.0)
    parser.add_argument("--window", type=float, default=60.0, help="seconds of a row")
    options = parser.parse_args()

    os.environ["PYTHONPATH"] = str(HERE.parent)
    binary = find_etcd(CACHE)
    os.environ["ETCD_BIN"] = str(binary.path)
    what = f"{options.result_bytes:,} bytes" if options.result_bytes else f"{options.steps} steps, small results"
    print(f"Python {platform.python_version()}, etcd {binary.version}, {os.cpu_count()} cores; "
          f"{options.clients} clients, {what}; folder {tempfile.gettempdir()}")  # fmt: skip
    problems = uvloop.run(measure(options))
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
