"""The memory of every process while a large batch passes through, in a mesh and embedded.

    python -m benchmarks.batches [--quick]

Two shapes: few large items (100 KB), and many small ones (1 KB). Each passes at two sizes, as `stepflow submit
--inputs` through a mesh of processes and as `stepflow run --inputs`, to a file of results. Reported: the duration and
the largest resident memory so far of command, control plane, executor and host. Fails if a process needs
more for the larger batch (`GROWTH_BYTES_MAX`), or if a result is missing or out of order.

etcd is left out: it keeps the journals, which grow with the batch.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import uvloop

from benchmarks.mesh import CACHE, HERE, settings_in
from stepflow.dev.etcd_binary import find_etcd
from stepflow.dev.mesh import DevMesh

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SHAPES = {"large": ((1_000, 2_500), 100_000), "small": ((20_000, 100_000), 1_000)}
QUICK_SHAPES = {"large": ((700, 1_000), 100_000), "small": ((2_000, 10_000), 1_000)}
"""By name: the numbers of items of the two batches, and the bytes of an item."""

GROWTH_BYTES_MAX = 96 * 1024 * 1024
"""Above it, memory follows the size of the batch. Below it lie the allocator, and which partitions happen to meet."""

COMMAND = "command"

FLOW = {
    "name": "batch",
    "steps": [{"id": "told", "component": "/builtin/create_messages", "input": {"user_prompt": {"$input": "text"}}}],
    "output": {"number": {"$input": "number"}, "messages": {"$step": "told", "path": "messages"}},
}


@dataclass
class Passage:
    """One batch that has passed. `memory_bytes`: by process."""

    items: int
    took_s: float
    memory_bytes: dict[str, int]


def write_inputs(path: Path, items: int, item_bytes: int) -> None:
    with path.open("w") as file:
        for number in range(items):
            text = chr(ord("a") + number % 26) * item_bytes
            file.write(json.dumps({"number": number, "text": text}) + "\n")


def check_results(path: Path, items: int) -> None:
    """Check that each input has its result, in order."""
    count = 0
    with path.open() as file:
        for number, line in enumerate(file):
            result = json.loads(line)
            assert result.get("result", {}).get("number") == number, line[:200]
            count += 1
    assert count == items, f"{count} results of {items} items"


def run_command(args: Sequence[str], folder: Path) -> int:
    """Run a `stepflow` command and return its largest resident memory, in bytes."""
    process = subprocess.Popen([sys.executable, "-m", "stepflow.cli", *args, "--quiet"], cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{args[0]} exited with {process.returncode}"
    return usage.ru_maxrss * 1024


def peak_bytes(pid: int) -> int:
    """Return the largest resident memory of a process so far, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text("ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"process {pid} has no VmHWM")


async def passage(args: Sequence[str], folder: Path, items: int, item_bytes: int, pids: Mapping[str, int]) -> Passage:
    """Pass a batch through a command, and measure."""
    inputs, results = folder / "inputs.jsonl", folder / "results.jsonl"
    await asyncio.to_thread(write_inputs, inputs, items, item_bytes)

    started = time.perf_counter()
    files = ("--inputs", str(inputs), "--output", str(results))
    command = await asyncio.to_thread(run_command, [*args, "--flow", "flow.json", *files], folder)
    took_s = time.perf_counter() - started

    await asyncio.to_thread(check_results, results, items)
    return Passage(items, took_s, {COMMAND: command} | {name: peak_bytes(pid) for name, pid in pids.items()})


async def in_mesh(folder: Path, sizes: Sequence[int], item_bytes: int) -> list[Passage]:
    dev = DevMesh(settings_in(folder, 1), say=lambda _: None)
    try:
        await dev.start()
        pids = {service.name: service.pid for service in dev.services if service.name != "etcd"}
        args = ("submit", "--server", dev.server)
        return [await passage(args, folder, items, item_bytes, pids) for items in sizes]
    finally:
        await dev.stop()


async def embedded(folder: Path, sizes: Sequence[int], item_bytes: int) -> list[Passage]:
    return [await passage(("run",), folder, items, item_bytes, {}) for items in sizes]


async def measure(shape: str, sizes: Sequence[int], item_bytes: int) -> list[str]:
    """Print a row for each batch, and return a message for each process whose memory follows the size of the batch."""
    problems: list[str] = []
    for where, work in (("mesh", in_mesh), ("embedded", embedded)):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            (folder / "flow.json").write_text(json.dumps(FLOW))
            first, last = await work(folder, sizes, item_bytes)

        for one in (first, last):
            memory = ", ".join(f"{name} {size / 2**20:,.0f}" for name, size in one.memory_bytes.items())
            print(f"  {shape:<6}{where:<9}{one.items:>8,} items{one.took_s:>8.1f} s   MiB: {memory}", flush=True)
        problems += [
            f"{where}, {shape} items: {name} needs {(size - first.memory_bytes[name]) / 2**20:,.0f} MiB more"
            for name, size in last.memory_bytes.items()
            if size - first.memory_bytes[name] > GROWTH_BYTES_MAX
        ]
    return problems


async def measure_all(shapes: Mapping[str, tuple[Sequence[int], int]]) -> list[str]:
    return [problem for name, (sizes, size) in shapes.items() for problem in await measure(name, sizes, size)]


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    shapes = QUICK_SHAPES if "--quick" in sys.argv[1:] else SHAPES
    os.environ["PYTHONPATH"] = str(HERE.parent)
    binary = find_etcd(CACHE)
    os.environ["ETCD_BIN"] = str(binary.path)
    print(f"Python {platform.python_version()}, etcd {binary.version}, {os.cpu_count()} cores; large batches")
    problems = uvloop.run(measure_all(shapes))
    sys.exit("\n".join(problems) if problems else 0)


if __name__ == "__main__":
    main()
