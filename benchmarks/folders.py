"""The time of commands in a folder of 100,000 local runs.

    python -m benchmarks.folders [--quick]

Two runs are driven, and their databases copied under other ids, which replace theirs in the copies. Every 1,000th run
has failed. Reported are lists within one process, with the index as the ends of runs leave it and after a command of a
version without the index has changed the folder; whole commands, with the start of Python; and the first list without
an index. Fails if the list of the newest 50 takes longer than `LIST_S_MAX` within a process.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.cli.run_list import list_runs
from stepflow.config import default_config
from stepflow.embedded.examine import examine
from stepflow.embedded.mesh import open_mesh, run_request
from stepflow.embedded.runs_folder import LocalRuns
from stepflow.flow import flow_from_tree
from stepflow.ids import new_run_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from control_plane.views import RunView

RUNS = 100_000
QUICK_RUNS = 5_000
PAGE = 50
ROUNDS = 7
LIST_S_MAX = 0.3
FAILED_EVERY = 1_000
RUN_BYTES = 20_480
"""Space of a run: the database and the lock."""
STEPFLOW = Path(sys.executable).parent / "stepflow"
FLOW = "steps: [{id: a, component: /builtin/noop, input: {x: 1}}]\noutput: {$step: a}\n"
CONFIG = 'plugins: {builtin: {type: builtin}}\nroutes: {"/builtin": [{plugin: builtin}]}\n'


async def make_run(local: LocalRuns, component: str) -> RunView:
    """Drive a run of one step to its end."""
    tree = {"steps": [{"id": "a", "component": component, "input": {"x": 1}}], "output": {"$step": "a"}}
    config, run_id = default_config(local.folder), new_run_id()
    store = await local.create(run_id)
    try:
        async with open_mesh(config, store=store, blobs=local.blobs()) as mesh:
            request = run_request(flow_from_tree(tree), [b"{}"], config=config, run_id=run_id)
            await mesh.control.wait(await mesh.control.submit(request))
    finally:
        await store.close()
    with local.index() as index:
        return await examine(local, index, run_id)


def copy_run(local: LocalRuns, run: RunView, contents: bytes) -> RunView:
    """Write a copy of a run under a new id, and return its view."""
    run_id = new_run_id()
    local.database(run_id).write_bytes(contents.replace(run.run_id.encode(), run_id.encode()))
    Path(f"{local.database(run_id)}.lock").write_bytes(b"12345")
    return replace(run, run_id=run_id)


def fill(local: LocalRuns, count: int) -> None:
    """Add `count` ended runs, and note them in the index as the ends of runs do."""
    completed, failed = (asyncio.run(make_run(local, f"/builtin/{name}")) for name in ("noop", "missing"))
    contents = {run.run_id: local.database(run.run_id).read_bytes() for run in (completed, failed)}
    with local.index() as index, index.own_changes():
        for number in range(count):
            run = completed if (number + 1) % FAILED_EVERY else failed
            copy = copy_run(local, run, contents[run.run_id])
            index.note_ended(local.database(copy.run_id), copy, RUN_BYTES)


def newest(local: LocalRuns) -> None:
    """List the newest runs."""
    found = list(islice(list_runs(local), PAGE))
    assert len(found) == PAGE, len(found)


def seconds(work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> float:
    """Return the median wall time of some rounds, after a first round that warms the cache."""
    found = []
    for _ in range(ROUNDS + 1):
        prepare()
        started = time.perf_counter()
        work()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def command(folder: Path, *arguments: str) -> Callable[[], object]:
    """Return work that executes a command in a folder."""
    return lambda: subprocess.run([STEPFLOW, *arguments], cwd=folder, check=True, capture_output=True)


def change(local: LocalRuns) -> None:
    """Change the folder as a command without the index does."""
    other = local.folder / "runs" / "other"
    other.touch()
    other.unlink()


def show(name: str, work: Callable[[], object], prepare: Callable[[], object] = lambda: None) -> float:
    """Measure and print a row; return its time in seconds."""
    time_s = seconds(work, prepare)
    print(f"  {name:56}{time_s * 1000:>9.0f} ms", flush=True)
    return time_s


def measure_lists(local: LocalRuns) -> float:
    """Print the times of lists within this process; return that with the index as the ends of runs leave it."""
    print("within a process")
    listed_s = show(f"newest {PAGE}", lambda: newest(local))
    show(f"newest {PAGE} failed", lambda: list(islice(list_runs(local, ("failed",)), PAGE)))
    show("unfinished", lambda: list(list_runs(local, ("running", "interrupted"))))
    show(f"newest {PAGE}, after a change by others", lambda: newest(local), lambda: change(local))
    return listed_s


def measure_commands(folder: Path, local: LocalRuns) -> None:
    """Print the times of whole commands."""
    run_id = local.run_ids()[0]
    (folder / "flow.yaml").write_text(FLOW)
    print("whole commands")
    show("stepflow --help", command(folder, "--help"))
    show("runs list --limit 50", command(folder, "runs", "list", "--limit", str(PAGE)))
    show("runs list --status failed", command(folder, "runs", "list", "--status", "failed"))
    show("runs get, by a prefix", command(folder, "runs", "get", run_id[:-4]))

    run = ("run", "--flow", "flow.yaml", "--input-json", "{}")
    show("run", command(folder, *run))
    with tempfile.TemporaryDirectory() as empty:
        show("run, in an empty folder", command(folder, *run, "--store", empty))

    config = folder / "stepflow-config.yml"
    config.write_text(CONFIG)
    show("run, with a configuration", command(folder, *run))
    one_more = (len(local.run_ids()) + 1) * RUN_BYTES
    config.write_text(f"{CONFIG}retention: {{bytes: {one_more // 1024} KiB}}\n")
    show("run, with a retention that removes a run", command(folder, *run))


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    count = QUICK_RUNS if "--quick" in sys.argv[1:] else RUNS
    print(f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        local = LocalRuns(folder / ".stepflow")
        begun_at = time.perf_counter()
        fill(local, count)
        print(f"{count:,} runs made in {time.perf_counter() - begun_at:.0f} s")

        listed_s = measure_lists(local)
        measure_commands(folder, local)
        print("without the index file, as after a change of versions")
        show(
            f"newest {PAGE}, the first time",
            lambda: newest(local),
            lambda: (local.folder / "index.db").unlink(missing_ok=True),
        )
    if listed_s > LIST_S_MAX:
        sys.exit(f"the newest {PAGE} of {count:,} runs take {listed_s:.2f} s; the bound is {LIST_S_MAX} s")


if __name__ == "__main__":
    main()
