"""The cost of a live, waiting run, in a mesh of processes with 2,500, 5,000 and 10,000 of them.

    python -m benchmarks.live_runs [--quick]

Half of the runs wait for a slow component, half sleep. Reported for each size: memory per run of executor and control
plane, the idle CPU time of both, the watches in etcd, and the rate of submissions. At the end, the rates of
cancellation and completion. Fails if memory or idle time per run grows with the number of runs, or if runs have
separate watches. `tests/mesh/recovery/test_live_runs.py` counts tasks and timers.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.mesh import CACHE, HERE, submit
from stepflow.client import Client
from stepflow.codec import encode
from stepflow.dev.etcd_binary import find_etcd
from stepflow.dev.mesh import DevMesh
from stepflow.dev.ports import free_port
from stepflow.dev.services import DevSettings
from stepflow.flow import flow_bytes, flow_from_tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SIZES = (2_500, 5_000, 10_000)
QUICK_SIZES = (250, 500, 1_000)
IDLE_S = 5.0
AT_ONCE = 64
GROWTH_MAX = 1.5
"""Bound on the growth per run from the smallest size to the largest. Idle time may exceed it by `IDLE_NOISE`."""

IDLE_NOISE = 0.05
"""Share of a CPU that a service uses independently of its load."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SERVICES = ("executor-1", "control_plane")


@dataclass
class Cost:
    runs: int
    memory_bytes: dict[str, int]
    idle_share: dict[str, float]
    watches: int


def flows() -> list[Any]:
    """Return two flows: one waits for a component, one sleeps."""
    waits = {"id": "a", "component": "/slow/wait", "input": {"value": {"$input": "value"}}}
    sleeps = {"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 24 * 3_600_000}}
    return [flow_from_tree({"name": step["id"], "steps": [step], "output": {"$step": "a"}}) for step in (waits, sleeps)]


def settings_in(folder: Path) -> DevSettings:
    """Write the configuration and return the settings of the mesh."""
    server = {
        "type": "stepflow",
        "command": sys.executable,
        "args": [str(HERE / "waiting_server.py")],
        "env": {"PYTHONPATH": str(HERE.parent), "GO_FILE": str(folder / "go")},
    }
    plugins = {"slow": server, "builtin": {"type": "builtin"}}
    config = folder / "stepflow-config.yml"
    routes = {"/slow": [{"plugin": "slow"}], "/builtin": [{"plugin": "builtin"}]}
    config.write_bytes(encode({"plugins": plugins, "routes": routes}))
    return DevSettings(folder=folder / "mesh", config=config, port=free_port())


def memory_bytes(pid: int) -> int:
    """Return the resident memory of a process, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def busy_s(pid: int) -> float:
    """Return the CPU time of a process so far, in seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def watches_of(etcd: str) -> int:
    """Return the number of watches in etcd."""
    with urllib.request.urlopen(f"http://{etcd}/metrics", timeout=5) as reply:  # the etcd of this benchmark
        lines = reply.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total ")))


async def each(work: Callable[[str], Awaitable[Any]], run_ids: list[str]) -> float:
    """Call `work` for every run, `AT_ONCE` at a time. Return the calls per second."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(run_id: str) -> None:
        async with places:
            await work(run_id)

    started = time.perf_counter()
    await asyncio.gather(*map(one, run_ids))
    return len(run_ids) / (time.perf_counter() - started)


async def measure(dev: DevMesh, runs: int) -> Cost:
    """Measure the idle services."""
    await asyncio.sleep(IDLE_S)  # let the work of the last submissions finish
    pids = {service.name: service.pid for service in dev.services if service.name in SERVICES}
    before = {name: busy_s(pid) for name, pid in pids.items()}
    await asyncio.sleep(IDLE_S)
    idle = {name: (busy_s(pid) - before[name]) / IDLE_S for name, pid in pids.items()}
    memory = {name: memory_bytes(pid) for name, pid in pids.items()}
    return Cost(runs, memory, idle, await asyncio.to_thread(watches_of, dev.addresses()["etcd"]))


async def live(sizes: tuple[int, ...], folder: Path) -> list[Cost]:
    """Fill a mesh, measure it at each size, and empty it again."""
    dev = DevMesh(settings_in(folder), say=lambda _: None)
    try:
        await dev.start()
        async with Client(dev.server) as client:
            flow_ids = [(await client.store_flow(flow_bytes(flow))).flow_id for flow in flows()]
            run_ids: dict[str, list[str]] = {flow_id: [] for flow_id in flow_ids}
            costs = [await measure(dev, 0)]
            for size in sizes:
                started = time.perf_counter()
                more = (size - costs[-1].runs) // 2
                for flow_id in flow_ids:
                    for start in range(0, more, 500):
                        run_ids[flow_id] += await submit(client, flow_id, min(500, more - start))
                rate = 2 * more / (time.perf_counter() - started)
                costs.append(await measure(dev, size))
                tell(costs[0], costs[-1], f"submitted {rate:,.0f}/s")
            waiting, sleeping = run_ids.values()
            print(f"  cancelled {await each(client.cancel, sleeping):,.0f}/s", end=", ", flush=True)
            await each(client.wait, sleeping)
            (folder / "go").touch()
            print(f"completed {await each(client.wait, waiting):,.0f}/s", flush=True)
            return costs
    finally:
        await dev.stop()


def tell(empty: Cost, cost: Cost, more: str) -> None:
    """Print a row."""
    row = "".join(
        f"{per_run(empty, cost, name) / 1024:>9.1f} KiB/run{cost.idle_share[name]:>7.1%} idle" for name in SERVICES
    )
    print(f"  {cost.runs:>6}{row}{cost.watches:>6} watches   {more}", flush=True)


def per_run(empty: Cost, cost: Cost, name: str) -> float:
    """Return the memory that one run adds to a service, in bytes."""
    return (cost.memory_bytes[name] - empty.memory_bytes[name]) / cost.runs


def check(empty: Cost, first: Cost, last: Cost) -> list[str]:
    """Return a message for each cost that grows faster than linearly."""
    problems = []
    for name in SERVICES:
        if per_run(empty, last, name) > GROWTH_MAX * per_run(empty, first, name):
            problems.append(f"{name}: memory per run grows with the number of runs")
        growth = last.runs / first.runs
        if last.idle_share[name] > GROWTH_MAX * growth * first.idle_share[name] + IDLE_NOISE:
            problems.append(f"{name}: idle time per run grows with the number of runs")
    if last.watches > first.watches:
        problems.append("the number of watches grows with the number of runs")
    return problems


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    sizes = QUICK_SIZES if "--quick" in sys.argv[1:] else SIZES
    os.environ["PYTHONPATH"] = str(HERE.parent)
    binary = find_etcd(CACHE)
    os.environ["ETCD_BIN"] = str(binary.path)
    print(f"Python {platform.python_version()}, etcd {binary.version}, {os.cpu_count()} cores; live runs that wait")
    print(f"  {'runs':>6}{'':8}executor{'':21}control plane")
    with tempfile.TemporaryDirectory() as folder:
        costs = uvloop.run(live(sizes, Path(folder)))
    problems = check(costs[0], costs[1], costs[-1])
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
