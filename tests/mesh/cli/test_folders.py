"""Commands in a folder of local runs: what they list, find and remove."""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from support import run_cli

from stepflow.embedded.runs_folder import LocalRuns

if TYPE_CHECKING:
    import subprocess
    from pathlib import Path

FLOW = "steps: [{id: a, component: /builtin/noop, input: {x: 1}}]\noutput: {$step: a}\n"
CONFIG = 'plugins: {builtin: {type: builtin}}\nroutes: {"/builtin": [{plugin: builtin}]}\n'


class RunsPlace:
    """A folder with a flow, a config and its own `.stepflow`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.local = LocalRuns(folder / ".stepflow")
        (folder / "flow.yaml").write_text(FLOW)

    def cli(self, *args: str) -> subprocess.CompletedProcess[str]:
        return run_cli(args, cwd=self.folder)

    def run(self, retention: str = "") -> tuple[str, subprocess.CompletedProcess[str]]:
        """Run the flow to its end; return the id of the run, and the process."""
        (self.folder / "stepflow-config.yml").write_text(CONFIG + retention)
        before = set(self.local.run_ids())
        done = self.cli("run", "--flow", "flow.yaml", "--input-json", "{}")
        assert done.returncode == 0, done.stderr
        [run_id] = set(self.local.run_ids()) - before
        return run_id, done

    def age(self) -> None:
        """Let all runs that have ended have ended long ago."""
        db = sqlite3.connect(self.folder / ".stepflow" / "index.db", isolation_level=None)
        db.execute("UPDATE runs SET ended_at_ms = 1 WHERE status IS NOT NULL")
        db.close()

    def listed(self, *args: str) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = json.loads(self.cli("runs", "list", "--json", *args).stdout)["runs"]
        return runs


@pytest.fixture
def place(tmp_path: Path) -> RunsPlace:
    return RunsPlace(tmp_path)


def test_the_end_of_a_run_removes_old_runs_as_the_configuration_says(place: RunsPlace) -> None:
    old = [place.run()[0] for _ in range(2)]
    place.age()
    kept, _ = place.run()
    assert {run["run_id"] for run in place.listed()} == {*old, kept}, "by default every run is kept"

    last, done = place.run("retention: {age: 7d}\n")
    assert json.loads(done.stdout) == {"outcome": "success", "result": {"x": 1}}
    assert [run["run_id"] for run in place.listed()] == [last, kept]
    assert place.cli("runs", "show", old[0]).returncode == 2

    place.age()
    final, _ = place.run("retention: {bytes: 1KiB}\n")
    assert [run["run_id"] for run in place.listed()] == [final], "its own end is too recent"


def test_a_damaged_run_is_named_and_kept_by_retention(place: RunsPlace) -> None:
    damaged, _ = place.run()
    database = place.local.database(damaged)
    database.write_bytes(b"no database at all, whatever its name says")
    (place.folder / ".stepflow" / "index.db").unlink()
    for told in (True, False):  # once an hour
        _, done = place.run("retention: {age: 1s}\n")
        assert (str(database) in done.stderr) == told
    assert database.exists()


def test_runs_are_found_by_status_and_by_prefix_and_after_the_loss_of_the_index(place: RunsPlace) -> None:
    ids = [place.run()[0] for _ in range(2)]
    for _ in range(2):
        assert [run["run_id"] for run in place.listed("--limit", "1")] == [ids[1]]
        assert [run["run_id"] for run in place.listed("--status", "completed")] == ids[::-1]
        assert place.listed("--status", "failed", "--status", "interrupted") == []
        shown = json.loads(place.cli("runs", "get", ids[0][:-1], "--json").stdout)
        assert shown["run_id"] == ids[0]
        assert place.cli("resume", ids[0][:-1]).returncode == 0
        (place.folder / ".stepflow" / "index.db").unlink()


def test_a_deleted_run_is_listed_no_more(place: RunsPlace) -> None:
    ids = [place.run()[0] for _ in range(2)]
    assert place.cli("runs", "delete", ids[0]).returncode == 0
    assert [run["run_id"] for run in place.listed()] == [ids[1]]
    with place.local.index() as index:
        assert [row.run_id for row in index.newest()] == [ids[1]]
