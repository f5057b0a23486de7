"""The CPU time per step and the start-up time of this tree, compared with another commit's in one sitting.

    python -m benchmarks.compare COMMIT [PAIRS]

Both trees run in turn under this Python and these dependencies, PAIRS times (5 by default), because only ratios of
neighbours mean anything on a machine with other load. Each tree measures itself with its own `benchmarks.embedded` and
`benchmarks.mesh`. CPU times include the warm-up; that of the mesh is of all its processes, etcd, client and server too.
A ratio above 1 means that this tree needs more. The spread is that of the pairs' ratios, lowest and highest.
"""

from __future__ import annotations

import compileall
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("stepflow", "control_plane", "executor", "component_host")
PAIRS = 5
ROUNDS = 2
START = (sys.executable, "-c", "from stepflow.cli.__main__ import main; main()", "run", "--flow", "flow.yaml")
FLOW = "steps: [{id: a, component: /builtin/noop, input: {x: 1}}]\noutput: {$step: a}\n"


def embedded_us(runs: int) -> float:
    """Return the CPU time per step in microseconds of the embedded mesh, without the server."""
    import uvloop

    from benchmarks.embedded import HERE, STEPS, chain, config_for, measure

    config = config_for([sys.executable, str(HERE / "echo_server.py")])
    before_s = time.process_time()
    uvloop.run(measure(config, chain(STEPS), runs, ROUNDS))
    return (time.process_time() - before_s) / (runs * STEPS * (ROUNDS + 1)) * 1e6


def mesh_us(runs: int) -> float:
    """Return the CPU time per step in microseconds, over all processes of a mesh."""
    import uvloop

    from benchmarks.embedded import STEPS, chain
    from benchmarks.mesh import cpu_us, mesh, seconds, server_of, store

    async def measured() -> float:
        async with mesh(executors=1) as (dev, client):
            flow_id = await store(client, chain(STEPS))
            processes = {service.name: service.pid for service in dev.services} | {"client": os.getpid()}
            processes["server"] = server_of(processes["host-1"])
            await seconds(client, flow_id, runs)
            before = sum(cpu_us(processes).values())
            for _ in range(ROUNDS):
                await seconds(client, flow_id, runs)
            return (sum(cpu_us(processes).values()) - before) / (runs * STEPS * ROUNDS)

    return uvloop.run(measured())


def start_us(_runs: int) -> float:
    """Return the CPU time in microseconds of `stepflow run` with one builtin step."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "flow.yaml").write_text(FLOW, encoding="utf-8")
        before = os.times()
        for _ in range(ROUNDS * 3):
            subprocess.run(START, cwd=folder, check=True, capture_output=True)
        after = os.times()

    used_s = after.children_user + after.children_system - before.children_user - before.children_system
    return used_s / (ROUNDS * 3) * 1e6


SAMPLES = {
    "start-up of stepflow run": (start_us, 1),
    "embedded, 64 runs, per step": (embedded_us, 64),
    "mesh, 64 runs, per step": (mesh_us, 64),
    "mesh, 256 runs, per step": (mesh_us, 256),
}


def sample(name: str, tree: Path) -> float:
    """Return one sample of a tree, taken by a process of its own, in microseconds."""
    environment = {**os.environ, "PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}
    command = [sys.executable, __file__, "--sample", name]
    done = subprocess.run(command, env=environment, cwd=tree, check=True, capture_output=True, text=True)
    return float(done.stdout.split()[-1])


def compare(base: Path, pairs: int) -> None:
    """Print one row per sample: both medians, and the median and the spread of the pairs' ratios."""
    print(f"{'CPU time':32}{'base':>12}{'this tree':>12}{'ratio':>8}   spread")
    for name in SAMPLES:
        ratios, before, after = [], [], []
        for number in range(pairs):
            order = (base, ROOT) if number % 2 == 0 else (ROOT, base)
            taken = {tree: sample(name, tree) for tree in order}
            before.append(taken[base])
            after.append(taken[ROOT])
            ratios.append(taken[ROOT] / taken[base])
        row = f"{name:32}{statistics.median(before):>9,.0f} us{statistics.median(after):>9,.0f} us"
        print(f"{row}{statistics.median(ratios):>8.3f}   {min(ratios):.3f} to {max(ratios):.3f}", flush=True)


def git(*arguments: str) -> None:
    """Run git in this tree."""
    subprocess.run(["git", "-C", str(ROOT), *arguments], check=True)  # noqa: S607  # the user's git


def main() -> None:
    """Print the comparison with a commit, or take one sample."""
    if sys.argv[1] == "--sample":
        measure, runs = SAMPLES[sys.argv[2]]
        print(measure(runs))
        return
    from stepflow.dev.etcd_binary import find_etcd

    os.environ["ETCD_BIN"] = str(find_etcd(ROOT / ".cache").path)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder, "base")
        git("worktree", "add", "--detach", "--quiet", str(base), sys.argv[1])
        try:
            for tree in (base, ROOT):
                for package in PACKAGES:
                    compileall.compile_dir(tree / package, quiet=1)
            compare(base, int(sys.argv[2]) if len(sys.argv) > 2 else PAIRS)
        finally:
            git("worktree", "remove", "--force", str(base))


if __name__ == "__main__":
    main()
