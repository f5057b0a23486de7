"""The start time of the command line: whole processes, from launch to exit.

    python -m benchmarks.startup

The bounds: 0.5 s for a run of one builtin step, with or without a configuration file; 0.25 s for `stepflow --help`.
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


def seconds(arguments: list[str], folder: Path) -> list[float]:
    """Return the wall time of each round in seconds, after a round that warms the file cache."""
    found = []
    for _ in range(ROUNDS + 1):
        started = time.perf_counter()
        subprocess.run([STEPFLOW, *arguments], cwd=folder, check=True, capture_output=True)
        found.append(time.perf_counter() - started)
    return found[1:]


def main() -> None:
    """Print the minimum, the median and the bound of each command."""
    print(f"{'command':32}{'min':>8}{'median':>8}{'bound':>10}")
    run = ["run", "--flow", "flow.yaml"]
    for name, arguments, config, bound in (
        ("stepflow --help", ["--help"], False, 0.25),
        ("stepflow run, no config", run, False, 0.5),
        ("stepflow run, config file", run, True, 0.5),
    ):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary)
            (folder / "flow.yaml").write_text(FLOW, encoding="utf-8")
            if config:
                (folder / "stepflow-config.yml").write_text(CONFIG, encoding="utf-8")
            found = seconds(arguments, folder)
        print(f"{name:32}{min(found):>6.2f} s{statistics.median(found):>6.2f} s{bound:>8.2f} s", flush=True)


if __name__ == "__main__":
    main()
