"""Durable steps per second of a mesh over a real etcd, and the take-over time of a killed executor's runs.

    python -m benchmarks.mesh [--quick]

Nothing is mocked: etcd, one control plane, one executor and one component host are processes on this machine, with a
server of the SDK on stdio behind the host. A client submits over gRPC and waits.

- *Chain*: 50 sequential steps; 1, 8, 64 or 256 runs execute at once. Each row includes the CPU time per step of each
  process, the figure to trust on a machine with other load.
- *Single steps*: runs of one step each, 256 in flight.
- *Take-over*: one of two executors is killed with runs in flight. The time from the kill to the run's new owner.
"""

from __future__ import annotations

import asyncio
import os
import platform
import signal
import statistics
import sys
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.embedded import STEPS, chain
from stepflow.client import Client
from stepflow.codec import encode
from stepflow.dev.etcd_binary import find_etcd
from stepflow.dev.mesh import DevMesh
from stepflow.dev.ports import free_port
from stepflow.dev.services import DevSettings
from stepflow.flow import flow_bytes, flow_from_tree

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from stepflow.flow import Flow

HERE = Path(__file__).resolve().parent
CACHE = HERE.parent / ".cache"
ROUNDS = 9
SINGLE_RUNS = 2_000
SINGLE_WINDOW = 256
KILLED_RUNS = 50
NAP_MS = 20_000
"""Outlasts the take-over, so that no run ends before it moves."""


@asynccontextmanager
async def mesh(executors: int) -> AsyncIterator[tuple[DevMesh, Client]]:
    """Yield a started mesh in a temporary folder, and a client of it."""
    with tempfile.TemporaryDirectory() as folder:
        dev = DevMesh(settings_in(Path(folder), executors), say=lambda _: None)
        try:
            await dev.start()
            async with Client(dev.server) as client:
                yield dev, client
        finally:
            await dev.stop()


def settings_in(folder: Path, executors: int) -> DevSettings:
    """Write the configuration and return the settings of the mesh."""
    config = folder / "stepflow-config.yml"
    config.write_bytes(encode(config_tree()))
    return DevSettings(folder=folder / "mesh", config=config, port=free_port(), executors=executors)


def config_tree() -> dict[str, Any]:
    """Return a configuration with two plugins: the benchmark's server and the builtins."""
    server = {
        "type": "stepflow",
        "transport": "stdio",
        "command": sys.executable,
        "args": [str(HERE / "echo_server.py")],
        "env": {"PYTHONPATH": str(HERE.parent)},
    }
    plugins = {"bench": server, "builtin": {"type": "builtin"}}
    return {"plugins": plugins, "routes": {"/bench": [{"plugin": "bench"}], "/builtin": [{"plugin": "builtin"}]}}


def nap() -> Flow:
    """Return a flow of one short step, and one sleep that outlasts the take-over."""
    steps = [
        {"id": "done", "component": "/bench/step", "input": {"value": {"$input": "value"}}},
        {"id": "nap", "component": "/builtin/sleep", "input": {"duration_ms": NAP_MS}},
    ]
    return flow_from_tree({"name": "nap", "steps": steps, "output": [{"$step": "done"}, {"$step": "nap"}]})


async def store(client: Client, flow: Flow) -> str:
    """Store a flow and return its id."""
    return (await client.store_flow(flow_bytes(flow))).flow_id


async def submit(client: Client, flow_id: str, runs: int) -> list[str]:
    """Submit runs of one item each and return their ids."""
    outcomes = await client.submit_runs(flow_id, [{"value": 1}] * runs, concurrency_max=STEPS)
    for outcome in outcomes:
        if not isinstance(outcome, str):
            raise outcome
    return [outcome for outcome in outcomes if isinstance(outcome, str)]


async def finish(client: Client, run_ids: list[str]) -> None:
    """Wait until all runs have completed."""
    for run in await asyncio.gather(*map(client.wait, run_ids)):
        assert run.status == "completed", run


async def seconds(client: Client, flow_id: str, runs: int) -> float:
    """Return the duration of `runs` concurrent runs in seconds, from the submission to the last result."""
    started = time.perf_counter()
    await finish(client, await submit(client, flow_id, runs))
    return time.perf_counter() - started


def cpu_us(processes: Mapping[str, int]) -> dict[str, float]:
    """Return the CPU time of each process so far, in microseconds."""
    used = {}
    for name, pid in processes.items():
        fields = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()
        used[name] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") * 1e6
    return used


def shares(before: Mapping[str, float], after: Mapping[str, float], steps: int) -> str:
    """Return a text with the CPU time per step of each process between two samples."""
    used = {name: (after[name] - before[name]) / steps for name in before}
    each = ", ".join(f"{name} {us:.0f}" for name, us in used.items())
    return f"{sum(used.values()):.0f} us ({each})"


def server_of(host: int) -> int:
    """Return the process id of a host's component server."""
    for folder in Path("/proc").iterdir():
        with suppress(OSError):
            words = (folder / "cmdline").read_text("utf-8")
            parent = (folder / "stat").read_text("ascii").rpartition(")")[2].split()[1]
            if "echo_server.py" in words and int(parent) == host:
                return int(folder.name)
    raise AssertionError("the host has no server")


async def single_steps(client: Client, flow_id: str, runs: int) -> float:
    """Return the runs per second of `runs` single-step runs, `SINGLE_WINDOW` in flight."""
    window = asyncio.Semaphore(SINGLE_WINDOW)

    async def one() -> None:
        async with window:
            run = await client.wait(await client.submit(flow_id, {"value": 1}))
            assert run.status == "completed", run

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(runs)))
    return runs / (time.perf_counter() - started)


async def moved_after_ms(client: Client, run_id: str, old_owner: str, killed_at_ms: float) -> float:
    """Return the time from the kill to the run's new owner in milliseconds, by the new owner's journal."""
    async for event in client.watch(run_id):
        if event.kind == "run_adopted" and not event.executor_id.startswith(old_owner):
            return event.at_ms - killed_at_ms
    raise AssertionError("the run ended before it moved")


async def take_over() -> list[float]:
    """Kill one of two executors under `KILLED_RUNS` runs. Return the sorted take-over times of its runs, in ms."""
    async with mesh(executors=2) as (dev, client):
        run_ids = await submit(client, await store(client, nap()), KILLED_RUNS)
        victim = next(service for service in dev.services if service.name == "executor-1")
        owned = [run_id for run_id in run_ids if await owner(client, run_id) == victim.name]
        killed_at_ms = time.time() * 1000
        os.kill(victim.pid, signal.SIGKILL)
        moves = (moved_after_ms(client, run_id, victim.name, killed_at_ms) for run_id in owned)
        return sorted(await asyncio.gather(*moves))


async def owner(client: Client, run_id: str) -> str:
    """Return the name of the run's owner, after the run's first step."""
    name = ""
    async for event in client.watch(run_id):
        if event.kind == "run_adopted":
            name = event.executor_id.rpartition("-")[0]
        if event.kind == "step_sleeping":
            return name
    raise AssertionError("the run ended before it slept")


async def throughput(rounds: int, runs_at_once: tuple[int, ...]) -> None:
    """Measure and print chains and single steps."""
    async with mesh(executors=1) as (dev, client):
        flow_id = await store(client, chain(STEPS))
        processes = {service.name: service.pid for service in dev.services} | {"client": os.getpid()}
        processes["server"] = server_of(processes["host-1"])
        print(f"\n  {'flow':8}{'runs':>6}{'steps/s':>12}{'best':>12}{'ms/step in a row':>20}  CPU time per step")
        for runs in runs_at_once:
            await seconds(client, flow_id, runs)
            before = cpu_us(processes)
            elapsed = [await seconds(client, flow_id, runs) for _ in range(rounds)]
            used = shares(before, cpu_us(processes), runs * STEPS * rounds)
            median, rates = statistics.median(elapsed), [runs * STEPS / one for one in elapsed]
            row = f"  {'chain':8}{runs:>6}{statistics.median(rates):>12,.0f}{max(rates):>12,.0f}"
            print(f"{row}{median / STEPS * 1000:>20.2f}  {used}", flush=True)
        flow_id = await store(client, chain(1))
        await single_steps(client, flow_id, SINGLE_WINDOW)
        print(f"\n  single-step runs/s: {await single_steps(client, flow_id, SINGLE_RUNS):,.0f}", flush=True)


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    quick = "--quick" in sys.argv[1:]
    os.environ["PYTHONPATH"] = str(HERE.parent)
    binary = find_etcd(CACHE)
    os.environ["ETCD_BIN"] = str(binary.path)
    load = os.getloadavg()[0]
    print(f"Python {platform.python_version()}, etcd {binary.version}, {os.cpu_count()} cores, load {load:.1f}")
    uvloop.run(throughput(1 if quick else ROUNDS, (1, 64) if quick else (1, 8, 64, 256)))
    moved = uvloop.run(take_over())
    print(f"  take-over of {len(moved)} runs after SIGKILL: first {moved[0]:.0f} ms, last {moved[-1]:.0f} ms")


if __name__ == "__main__":
    main()
