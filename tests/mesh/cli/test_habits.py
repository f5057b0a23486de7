"""Habits of the command line against real engines: results while a batch runs, calls by hand, prune, completion."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, run_cli, wait_until
from support.api import api_mesh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

FLOW = """
name: nap
steps:
- id: nap
  component: /builtin/sleep
  input: {duration_ms: {$input: ms}}
output: [{$input: n}, {$step: nap}]
"""
LONG_MS = 600_000


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with api_mesh() as (mesh, _):
        yield mesh.address


@pytest.fixture(params=["here", "mesh"])
def command(request: pytest.FixtureRequest, tmp_path: Path) -> list[str]:
    """Return a command that runs a batch whose second item takes long."""
    (tmp_path / "flow.yaml").write_text(FLOW)
    durations = (1, LONG_MS, 1, 1)
    (tmp_path / "items.jsonl").write_text("".join(f'{{"n": {n}, "ms": {ms}}}\n' for n, ms in enumerate(durations)))
    batch = ["flow.yaml", "--inputs", "items.jsonl", "--quiet"]
    if request.param == "here":
        return ["run", *batch]
    return ["submit", *batch, "--server", request.getfixturevalue("server")]


def begin(command: list[str], cwd: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "stepflow.cli", *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def interrupt(process: subprocess.Popen[str]) -> str:
    """End a command as Ctrl-C does, and return what it told people."""
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130, told
    return told


def test_results_are_printed_in_order_while_the_batch_runs(command: list[str], tmp_path: Path) -> None:
    with begin(command, tmp_path) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline())["result"][0] == 0
        assert process.poll() is None, "the second item takes ten minutes"
        told = interrupt(process)
    assert "Traceback" not in told


def test_unordered_results_overtake_those_that_take_long(command: list[str], tmp_path: Path) -> None:
    with begin([*command, "--unordered"], tmp_path) as process:
        assert process.stdout is not None
        found = [json.loads(process.stdout.readline()) for _ in range(3)]
        assert sorted((line["item"], line["result"][0]) for line in found) == [(0, 0), (2, 2), (3, 3)]
        interrupt(process)


def test_a_file_has_what_ended_before_ctrl_c(command: list[str], tmp_path: Path) -> None:
    output = tmp_path / "results.jsonl"
    with begin([*command, "--unordered", "--output", str(output)], tmp_path) as process:
        wait_until(lambda: output.exists() and len(output.read_text().splitlines()) == 3, "three results", 30)
        interrupt(process)
    assert sorted(json.loads(line)["item"] for line in output.read_text().splitlines()) == [0, 2, 3]


def test_a_resumed_batch_prints_all_results_in_order(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "items.jsonl").write_text("".join(f'{{"n": {n}, "ms": {ms}}}\n' for n, ms in enumerate((1, 4_000, 1))))
    with begin(["run", "flow.yaml", "--inputs", "items.jsonl", "-q"], tmp_path) as process:
        assert process.stdout is not None
        process.stdout.readline()
        interrupt(process)
    done = run_cli(["resume", "-q"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [json.loads(line)["result"][0] for line in done.stdout.splitlines()] == [0, 1, 2]


def test_a_reader_that_goes_away_does_not_end_the_run(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    (tmp_path / "items.jsonl").write_text("".join(f'{{"n": {n}, "ms": {400 * n}}}\n' for n in range(4)))
    command = f"{sys.executable} -m stepflow.cli run flow.yaml --inputs items.jsonl -q"
    done = subprocess.run(
        ["bash", "-c", f"{command} | head -n 1; exit ${{PIPESTATUS[0]}}"],  # noqa: S607  # the shell of the system
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr
    assert "completed after" in done.stderr
    assert json.loads(done.stdout)["result"][0] == 0
    listed = json.loads(run_cli(["runs", "list", "--json"], cwd=tmp_path).stdout)["runs"]
    assert [(run["status"], run["items_completed"]) for run in listed] == [("completed", 4)]


def mesh_json(server: str, cwd: Path, *arguments: str) -> Any:
    done = run_cli([*arguments, "--server", server, "--json"], cwd=cwd)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_component_of_a_mesh_is_called_by_hand(server: str, tmp_path: Path) -> None:
    call = ["call", "--server", server]
    done = run_cli([*call, "/builtin/create_messages", "--input", '{"user_prompt": "Hi"}'], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"messages": [{"role": "user", "content": "Hi"}]}

    done = run_cli([*call, "/builtin/create_messages", "--input", '{"user_prompt": 7}'], cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "user_prompt" in done.stderr


def test_a_prune_of_a_mesh_deletes_ended_runs_and_no_others(server: str, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)

    def submit(ms: int, *options: str) -> str:
        value = json.dumps({"n": 0, "ms": ms})
        done = run_cli(["submit", "flow.yaml", "--input", value, "--server", server, *options], cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        listed = mesh_json(server, tmp_path, "runs", "list", "--limit", "1")["runs"]
        return str(listed[0]["run_id"])

    live, ended = submit(LONG_MS, "--no-wait"), submit(1)
    assert mesh_json(server, tmp_path, "runs", "prune", "--older-than", "1h") == {"run_ids": [], "deleted": True}

    would = mesh_json(server, tmp_path, "runs", "prune", "--older-than", "1ms", "--dry-run")
    assert ended in would["run_ids"]
    assert live not in would["run_ids"]
    assert mesh_json(server, tmp_path, "runs", "prune", "--older-than", "1ms") == would | {"deleted": True}

    left = [run["run_id"] for run in mesh_json(server, tmp_path, "runs", "list")["runs"]]
    assert live in left
    assert not set(would["run_ids"]) & set(left)


def test_runs_and_flows_of_a_mesh_are_completed(server: str, tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(FLOW)
    done = run_cli(["flows", "store", "flow.yaml", "--tag", "live", "--server", server], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    run_id = run_cli(
        ["submit", "nap", "--input", '{"n": 1, "ms": 1}', "--no-wait", "-q", "--server", server], cwd=tmp_path
    ).stdout.strip()

    def offered(*words: str) -> list[str]:
        line = " ".join(["stepflow", *words])
        asked = {"COMP_WORDS": line, "COMP_CWORD": str(len(words)), "_STEPFLOW_COMPLETE": "complete_bash"}
        done = run_cli([], cwd=tmp_path, env={**asked, "STEPFLOW_SERVER": server})
        assert done.stderr == ""
        return done.stdout.split()

    assert offered("submit", "na") == ["nap", "nap@live"]
    assert offered("flows", "show", "") == ["nap", "nap@live"]
    assert run_id in offered("runs", "watch", "")
    assert offered("runs", "show", run_id[:-2]) == [run_id]
