"""The memory of every service while many runs with large values pass through a mesh at once.

    python -m benchmarks.large_values [--quick]

64 clients each submit a run of one step with an input of 15 MB to a mesh with a budget of 128 MiB for large values, and
read its result of 15 MB. Reported: the duration and the largest resident memory so far of control plane, executor and
host. Fails if a run fails, or if a result is not its input.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from benchmarks.batches import peak_bytes
from benchmarks.mesh import CACHE, HERE, settings_in
from stepflow.client import Client
from stepflow.dev.etcd_binary import find_etcd
from stepflow.dev.mesh import DevMesh

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.dev.service_process import Service

RUNS = 64
QUICK_RUNS = 16
VALUE_BYTES = 15_000_000
VALUE_MEMORY_MIB = 128

FLOW = {
    "name": "large",
    "steps": [{"id": "echo", "component": "/bench/echo", "input": {"value": {"$input": "$"}}}],
    "output": {"$step": "echo", "path": "value"},
}


class BudgetedMesh(DevMesh):
    """A mesh whose services have the same budget for large values."""

    async def _start(self, services: Sequence[Service]) -> None:
        for service in services:
            if service.name != "etcd":
                service.command = [*service.command, "--value-memory", str(VALUE_MEMORY_MIB)]
        await super()._start(services)


async def pass_run(client: Client, number: int) -> None:
    """Submit a run and check its result."""
    text = chr(ord("a") + number % 26) * VALUE_BYTES
    run_id = await client.submit(FLOW, text)
    run = await client.wait(run_id)
    (item,) = [item async for item in client.items(run_id)]
    assert run.status == "completed", f"{run.status}: {item.failure}"
    assert item.result == text, "the result is not the input"


async def measure(runs: int) -> None:
    """Pass all runs at once, and print the figures."""
    with tempfile.TemporaryDirectory() as folder:
        mesh = BudgetedMesh(settings_in(Path(folder), 1), say=lambda _: None)
        try:
            await mesh.start()
            started = time.perf_counter()
            async with Client(mesh.server) as client:
                await asyncio.gather(*(pass_run(client, number) for number in range(runs)))
            took_s = time.perf_counter() - started
            memory = ", ".join(
                f"{service.name} {peak_bytes(service.pid) / 2**20:,.0f}"
                for service in mesh.services
                if service.name != "etcd"
            )
            print(f"  {runs:>4} runs{took_s:>8.1f} s   MiB: {memory}", flush=True)
        finally:
            await mesh.stop()


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    os.environ["PYTHONPATH"] = str(HERE.parent)
    binary = find_etcd(CACHE)
    os.environ["ETCD_BIN"] = str(binary.path)
    print(
        f"Python {platform.python_version()}, etcd {binary.version}, {os.cpu_count()} cores; values of "
        f"{VALUE_BYTES / 1e6:g} MB, {VALUE_MEMORY_MIB} MiB for large values"
    )
    uvloop.run(measure(QUICK_RUNS if "--quick" in sys.argv[1:] else RUNS))


if __name__ == "__main__":
    main()
