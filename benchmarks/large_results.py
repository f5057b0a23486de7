"""The memory that a result of 300 MB takes, where it is computed and where it only passes.

    python -m benchmarks.large_results [--quick]

A flow gathers five results of 3 MB, twenty times, into its output. It is run with `stepflow run`, printed again from
the folder, and run on a mesh. Reported: durations, and the largest resident memory of each process. Fails if a result
is wrong, or if a process that only passes the result on takes more than `PASSES_BYTES_MAX`.
"""

from __future__ import annotations

import asyncio
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from benchmarks.batches import peak_bytes
from benchmarks.mesh import CACHE, HERE, settings_in
from stepflow.dev.etcd_binary import find_etcd
from stepflow.dev.mesh import DevMesh

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

TEXTS = 5
TEXT_BYTES = 3_000_000
REPEATS = 20
QUICK_REPEATS = 4

PASSES_BYTES_MAX = 256 * 1024 * 1024
"""Less than the result, and more than a process that holds some of its blobs."""


def flow_of(repeats: int) -> dict[str, Any]:
    """Return a flow whose output has `repeats` times the results of its steps."""
    steps = [
        {"id": f"s{n}", "component": "/bench/echo", "input": {"value": {"$input": f"[{n}]"}}} for n in range(TEXTS)
    ]
    gathered = [{"$step": f"s{n}", "path": "value"} for n in range(TEXTS)]
    return {"name": "large-result", "steps": steps, "output": gathered * repeats}


async def command(*args: str, cwd: Path) -> tuple[float, int]:
    """Run `stepflow ARGS`; return its duration in seconds and its peak of resident memory in bytes."""
    started = time.perf_counter()

    def run() -> int:
        pid = os.posix_spawn(sys.executable, [sys.executable, "-m", "stepflow.cli", *args], os.environ)
        _, status, usage = os.wait4(pid, 0)
        assert os.waitstatus_to_exitcode(status) == 0, f"stepflow {' '.join(args)} has failed"
        return usage.ru_maxrss * 1024

    os.chdir(cwd)
    peak = await asyncio.to_thread(run)
    return time.perf_counter() - started, peak


def check(path: Path, repeats: int) -> int:
    """Check a result piece by piece, and return its length. The memory of this process counts for its children, too."""

    def expected() -> Iterator[bytes]:
        texts = [f'"{chr(ord("a") + n) * TEXT_BYTES}"'.encode() for n in range(TEXTS)]
        yield b'{"outcome":"success","result":['
        for number in range(TEXTS * repeats):
            yield (b"," if number else b"") + texts[number % TEXTS]
        yield b"]}\n"

    with path.open("rb") as file:
        assert all(file.read(len(piece)) == piece for piece in expected()), "the result is not the one of the flow"
        assert not file.read(1), "the result is longer than that of the flow"
    return path.stat().st_size


def report(what: str, took_s: float, peak: int, *, passes: bool) -> None:
    """Print the figures of a process. Raises: AssertionError, `passes` and above the bound."""
    print(f"{what}: {took_s:.1f} s, {peak / 2**20:,.0f} MiB")
    assert not passes or peak <= PASSES_BYTES_MAX, f"{what} takes more than {PASSES_BYTES_MAX / 2**20:,.0f} MiB"


async def measure(repeats: int) -> None:
    """Compute the result here and on a mesh, print it again, and report."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        mesh = DevMesh(settings_in(folder, 1), say=lambda _: None)
        (folder / "flow.json").write_text(json.dumps(flow_of(repeats)))
        (folder / "input.json").write_text(json.dumps([chr(ord("a") + n) * TEXT_BYTES for n in range(TEXTS)]))
        given = ("--flow", "flow.json", "--input", "input.json", "--quiet", "--output", "result.json")

        report("stepflow run", *await command("run", *given, cwd=folder), passes=False)
        size = check(folder / "result.json", repeats)
        (run_id,) = [path.stem for path in (folder / ".stepflow" / "runs").glob("*.db")]
        get = ("runs", "get", run_id, "--output", "again.json")
        report("stepflow runs get", *await command(*get, cwd=folder), passes=True)
        assert check(folder / "again.json", repeats) == size

        try:
            await mesh.start()
            (folder / "result.json").unlink()
            took = await command("submit", *given, "--server", mesh.server, cwd=folder)
            report("stepflow submit", *took, passes=True)
            assert check(folder / "result.json", repeats) == size
            for service in mesh.services:
                if service.name != "etcd":
                    is_control_plane = service.name.startswith("control")
                    report(service.name, took[0], peak_bytes(service.pid), passes=is_control_plane)
        finally:
            await mesh.stop()
        print(f"result: {size:,} bytes")


def main(args: Sequence[str]) -> None:
    os.environ["PYTHONPATH"] = str(HERE.parent)
    os.environ["ETCD_BIN"] = str(find_etcd(CACHE).path)
    print(f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    uvloop.run(measure(QUICK_REPEATS if "--quick" in args else REPEATS))


if __name__ == "__main__":
    main(sys.argv[1:])
