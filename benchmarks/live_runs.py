"""What a live run costs that waits: in a mesh of processes with 2,500, 5,000 and 10,000 of them.

    python -m benchmarks.live_runs [--quick]

Half of the runs wait for a slow component, half sleep. Reported for each size: memory of executor and control plane
for a run, the processor time that both take while nothing happens, watches in etcd, and how fast runs are submitted
and, at the end, cancelled and completed. It fails when memory or idle time for a run grow with the number of runs, or
when runs have watches of their own; tasks and timers are counted by `tests/mesh/recovery/test_live_runs.py`.
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
"""For one run, from the smallest size to the largest. The idle time has its noise beside it."""

IDLE_NOISE = 0.05
"""Share of a processor that a service takes whatever it has to do."""

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
SERVICES = ("executor-1", "control_plane")


@dataclass
class Cost:
    runs: int
    memory_bytes: dict[str, int]
    idle_share: dict[str, float]
    watches: int


def flows() -> list[Any]:
    """A run that waits for a component, and one that sleeps."""
    waits = {"id": "a", "component": "/slow/wait", "input": {"value": {"$input": "value"}}}
    sleeps = {"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 24 * 3_600_000}}
    return [flow_from_tree({"name": step["id"], "steps": [step], "output": {"$step": "a"}}) for step in (waits, sleeps)]


def settings_in(folder: Path) -> DevSettings:
    """Write the configuration and return what to start."""
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
    """Return what a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")


def busy_s(pid: int) -> float:
    """Return the processor time that a process has taken."""
    fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_PER_S


def watches_of(etcd: str) -> int:
    """Return the number of watches that etcd serves."""
    with urllib.request.urlopen(f"http://{etcd}/metrics", timeout=5) as reply:  # an etcd of ours
        lines = reply.read().decode().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("etcd_debugging_mvcc_watcher_total ")))


async def each(work: Callable[[str], Awaitable[Any]], run_ids: list[str]) -> float:
    """Do something with every run, some at a time; return how many a second."""
    places = asyncio.Semaphore(AT_ONCE)

    async def one(run_id: str) -> None:
        async with places:
            await work(run_id)

    started = time.perf_counter()
    await asyncio.gather(*map(one, run_ids))
    return len(run_ids) / (time.perf_counter() - started)


async def measure(dev: DevMesh, runs: int) -> Cost:
    """Measure the services while nothing happens."""
    await asyncio.sleep(IDLE_S)  # what the last submissions have left behind
    pids = {service.name: service.pid for service in dev.services if service.name in SERVICES}
    before = {name: busy_s(pid) for name, pid in pids.items()}
    await asyncio.sleep(IDLE_S)
    idle = {name: (busy_s(pid) - before[name]) / IDLE_S for name, pid in pids.items()}
    memory = {name: memory_bytes(pid) for name, pid in pids.items()}
    return Cost(runs, memory, idle, await asyncio.to_thread(watches_of, dev.addresses()["etcd"]))


async def live(sizes: tuple[int, ...], folder: Path) -> list[Cost]:
    """Fill a mesh step by step, measure it at each size, and empty it again."""
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
    """Return what one run adds to a service's memory."""
    return (cost.memory_bytes[name] - empty.memory_bytes[name]) / cost.runs


def check(empty: Cost, first: Cost, last: Cost) -> list[str]:
    """Return what grows worse than linearly."""
    problems = []
    for name in SERVICES:
        if per_run(empty, last, name) > GROWTH_MAX * per_run(empty, first, name):
            problems.append(f"{name}: memory for a run grows with their number")
        growth = last.runs / first.runs
        if last.idle_share[name] > GROWTH_MAX * growth * first.idle_share[name] + IDLE_NOISE:
            problems.append(f"{name}: idle time for a run grows with their number")
    if last.watches > first.watches:
        problems.append("runs have watches of their own")
    return problems


def main() -> None:
    """Print what was measured, and on what."""
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
