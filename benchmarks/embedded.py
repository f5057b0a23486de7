"""Durable steps per second, and milliseconds per sequential step, of the embedded mesh, compared with a bare client.

    python -m benchmarks.embedded [--quick]

Nothing is mocked: a SQLite file with full synchronisation, and a component server as a process on stdio. A *chain* is
50 sequential steps, a *fan* 50 concurrent ones; 1, 8 or 64 runs execute at once. `share` is the share of the upper
bound: the rate of a bare JSON-RPC client of the same server, measured right afterwards with a like number of calls in
flight. The CPU time is that of this process, start and warm-up included, without the component server.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from benchmarks.bare import bare_calls_per_s
from stepflow.config import config_from_tree
from stepflow.embedded.mesh import open_mesh, run_request
from stepflow.flow import flow_from_tree
from stepflow.store.blobs import BlobStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from stepflow.config import Config
    from stepflow.embedded.mesh import Mesh
    from stepflow.flow import Flow

HERE = Path(__file__).resolve().parent
STEPS = 50
ROUNDS = 5


def chain(steps: int) -> Flow:
    """Return a flow of steps that each depend on the previous one."""
    tree = [{"id": "s0", "component": "/bench/step", "input": {"value": {"$input": "value"}}}]
    for index in range(1, steps):
        value = {"$step": f"s{index - 1}", "path": "value"}
        tree.append({"id": f"s{index}", "component": "/bench/step", "input": {"value": value}})
    return flow_from_tree({"name": "chain", "steps": tree, "output": {"$step": f"s{steps - 1}"}})


def fan(steps: int) -> Flow:
    """Return a flow of independent steps."""
    tree = [
        {"id": f"s{index}", "component": "/bench/step", "input": {"value": {"$input": "value"}}}
        for index in range(steps)
    ]
    return flow_from_tree({"name": "fan", "steps": tree, "output": [{"$step": f"s{index}"} for index in range(steps)]})


def config_for(command: list[str]) -> Config:
    """Return a configuration with one plugin, the benchmark's server."""
    plugin = {
        "type": "stepflow",
        "transport": "stdio",
        "command": command[0],
        "args": command[1:],
        "env": {"PYTHONPATH": str(HERE.parent)},
    }
    tree = {"plugins": {"bench": plugin}, "routes": {"/bench": [{"plugin": "bench"}]}}
    return config_from_tree(tree, source="benchmark", base_dir=HERE)


async def seconds(mesh: Mesh, config: Config, flow_id: str, runs: int) -> float:
    """Return the duration of `runs` concurrent runs, in seconds."""

    async def one() -> None:
        request = run_request(flow_id, [b'{"value":1}'], config=config, concurrency_max=STEPS)
        run_id = await mesh.control.submit(request)
        view = await mesh.control.wait(run_id)
        assert view.status == "completed", (view, await mesh.control.items(run_id))

    started = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(runs)))
    return time.perf_counter() - started


async def measure(config: Config, flow: Flow, runs: int, rounds: int) -> float:
    """Return the median duration of a round in seconds, after a warm-up round."""
    with tempfile.TemporaryDirectory() as folder:
        store = await SqliteStore.open(f"{folder}/run.db")
        try:
            async with open_mesh(config, store=store, blobs=BlobStore.open(f"{folder}/blobs")) as mesh:
                for error in mesh.host.plugins.failures.values():
                    raise error
                flow_id = await mesh.control.store_flow(flow)
                await seconds(mesh, config, flow_id, runs)
                return statistics.median([await seconds(mesh, config, flow_id, runs) for _ in range(rounds)])
        finally:
            await store.close()


def table(name: str, command: list[str], cases: list[tuple[str, Flow, int]], *, rounds: int, component: str) -> None:
    """Measure one server and print one row per case."""
    config = config_for(command)
    print(f"\n{name}")
    head = f"  {'flow':8}{'runs':>6}{'steps/s':>12}{'ms/step in a row':>20}{'bare loop/s':>14}{'share':>8}"
    print(f"{head}{'CPU us/step':>13}")
    for shape, flow, runs in cases:
        cpu_before_s = time.process_time()
        elapsed = uvloop.run(measure(config, flow, runs, rounds))
        cpu_us = (time.process_time() - cpu_before_s) / (runs * STEPS * (rounds + 1)) * 1e6  # the warm-up round too
        window = runs if shape == "chain" else min(runs * STEPS, 1024)
        bare = bare_calls_per_s(command, component=component, window=window, calls=2_000 if window == 1 else 10_000)
        rate = runs * STEPS / elapsed
        in_a_row = f"{elapsed / STEPS * 1000:.2f}" if shape == "chain" else "-"
        print(
            f"  {shape:8}{runs:>6}{rate:>12,.0f}{in_a_row:>20}{bare:>14,.0f}{rate / bare:>8.0%}{cpu_us:>13.0f}",
            flush=True,
        )


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    quick = "--quick" in sys.argv[1:]
    rounds = 1 if quick else ROUNDS
    os.chdir(HERE)
    os.environ["PYTHONPATH"] = str(HERE.parent)
    load = os.getloadavg()[0]
    sqlite = sqlite3.sqlite_version
    print(f"Python {platform.python_version()}, SQLite {sqlite}, {os.cpu_count()} cores, load {load:.1f}")
    shapes = (("chain", chain(STEPS)), ("fan", fan(STEPS)))
    cases = [(shape, flow, runs) for shape, flow in shapes for runs in (1, 8, 64)]
    table(
        "SDK server over stdio (stepflow.component)",
        [sys.executable, str(HERE / "echo_server.py")],
        cases,
        rounds=rounds,
        component="/step",
    )
    if quick:
        return
    from support import server_venv

    python = str(server_venv(["stepflow-py==0.7.0"], "stepflow-py-0.7.0") / "python")
    table(
        "stepflow-py 0.7.0 over stdio",
        [python, str(HERE / "stepflow_py_server.py")],
        [("chain", chain(STEPS), 64), ("fan", fan(STEPS), 64)],
        rounds=rounds,
        component="/step",
    )


if __name__ == "__main__":
    main()
