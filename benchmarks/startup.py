"""The start time of the command line: whole processes, from launch to exit, as a ratio to a bare interpreter.

    python -m benchmarks.startup

The bounds: 24 times a bare interpreter for a run of one builtin step, with or without a configuration file, the check
included; 8 times for `stepflow --help`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = 7
FLOW = "steps: [{id: a, component: /builtin/noop, input: {x: 1}}]\noutput: {$step: a}\n"
CONFIG = 'plugins: {builtin: {type: builtin}}\nroutes: {"/builtin": [{plugin: builtin}]}\n'
STEPFLOW = Path(sys.executable).parent / "stepflow"


def seconds(command: list[str | Path], folder: Path) -> float:
    """Return the wall time of one process."""
    started = time.perf_counter()
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return time.perf_counter() - started


def main() -> None:
    """Print for each command the median, its ratio to the median of a bare interpreter, and the bound."""
    print(f"{'command':32}{'median':>10}{'ratio':>8}{'bound':>8}")
    run = ["run", "--flow", "flow.yaml"]
    for name, arguments, config, bound in (
        ("stepflow --help", ["--help"], False, 8),
        ("stepflow run, no config", run, False, 24),
        ("stepflow run, config file", run, True, 24),
    ):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "flow.yaml").write_text(FLOW, encoding="utf-8")
            if config:
                (folder / "stepflow-config.yml").write_text(CONFIG, encoding="utf-8")

            # In turns: the machine may become slower in between. The first round warms the file cache.
            rounds = [
                (seconds([sys.executable, "-c", "pass"], folder), seconds([STEPFLOW, *arguments], folder))
                for _ in range(ROUNDS + 1)
            ][1:]
        bare, found = (statistics.median(one) for one in zip(*rounds, strict=True))
        print(f"{name:32}{found * 1_000:>7.0f} ms{found / bare:>7.1f}x{bound:>7}x", flush=True)


if __name__ == "__main__":
    main()
