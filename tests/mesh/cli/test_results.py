"""Results of any size on stdout and in files, from the folder of this machine and from a mesh."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, run_cli, wait_until
from support.api import api_mesh
from support.result_parts import Composed, Part, add_ended_run

from stepflow.embedded.runs_folder import LocalRuns
from stepflow.errors import Code, Failure
from stepflow.ids import new_run_id

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ITEM = b'"' + b"x" * (1024 * 1024 - 3) + b'",'
LARGE = Composed([Part("json", b"["), *[Part("blob", ITEM)] * 20, Part("json", b"1]")])
"""A list of 20 texts of a mebibyte."""

SMALL = Composed([Part("json", b"["), Part("journal", b'{"a":1}'), Part("json", b"]")])
FAILED = Failure(Code.COMPONENT_FAILED, "it broke")


@dataclass(frozen=True)
class Ended:
    """Two ended runs at one place: `options` tell a command the place."""

    options: tuple[str, str]
    single: str
    """One item with a large result."""
    batch: str
    """A large, a small, a failed and a plain item."""

    def get(self, *arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
        return run_cli(["runs", "get", *arguments, *self.options], cwd=cwd)


@pytest.fixture(scope="module", params=["local", "mesh"])
def ended(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ended]:
    batch = [LARGE, SMALL, FAILED, b"7"]
    if request.param == "mesh":
        with api_mesh() as (mesh, run):
            found = [run(add_ended_run(mesh.store, mesh.blobs, outcomes)) for outcomes in ([LARGE], batch)]
            yield Ended(("--server", mesh.address), *found)
        return

    local = LocalRuns(tmp_path_factory.mktemp("runs") / ".stepflow")

    async def add(outcomes: list[Any]) -> str:
        run_id = new_run_id()
        store = await local.create(run_id)
        try:
            return await add_ended_run(store, local.blobs(), outcomes, run_id=run_id)
        finally:
            await store.close()

    found = [asyncio.run(add(outcomes)) for outcomes in ([LARGE], batch)]
    yield Ended(("--store", str(local.folder)), *found)


def flow_result(composed: Composed) -> str:
    return '{"outcome":"success","result":' + composed.text.decode() + "}\n"


def test_a_large_result_goes_to_stdout_and_to_a_file(ended: Ended, tmp_path: Path) -> None:
    shown = ended.get(ended.single, "--result", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, flow_result(LARGE)), shown.stderr

    shown = ended.get(ended.single, "--output", "result.json", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (0, ""), shown.stderr
    assert (tmp_path / "result.json").read_text() == flow_result(LARGE)
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_batch_is_a_line_for_each_item_however_large(ended: Ended, tmp_path: Path) -> None:
    shown = ended.get(ended.batch, "--output", "results.jsonl", cwd=tmp_path)
    assert shown.returncode == 1, shown.stderr
    large, small, failed, plain = (tmp_path / "results.jsonl").read_text().splitlines(keepends=True)
    assert (large, small) == (flow_result(LARGE), flow_result(SMALL))
    assert json.loads(failed) == {"outcome": "failed", "error": {"code": "COMPONENT_FAILED", "message": "it broke"}}
    assert json.loads(plain) == {"outcome": "success", "result": 7}


def test_the_result_of_one_item_is_printed_alone(ended: Ended, tmp_path: Path) -> None:
    shown = ended.get(ended.batch, "--item", "1", cwd=tmp_path)
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, flow_result(SMALL), "")

    (tmp_path / "result.json").write_text("before")
    for item, reason, code in ((2, "ITEM_FAILED", 1), (4, "ITEM_NOT_FOUND", 2)):
        shown = ended.get(ended.batch, "--item", str(item), "-o", "result.json", cwd=tmp_path)
        assert (shown.returncode, shown.stdout) == (code, "")
        assert reason in shown.stderr
    assert "it broke" in ended.get(ended.batch, "--item", "2", cwd=tmp_path).stderr
    assert (tmp_path / "result.json").read_text() == "before"


def test_json_has_the_length_of_a_large_result_in_its_place(ended: Ended, tmp_path: Path) -> None:
    shown = ended.get(ended.batch, "--json", cwd=tmp_path)
    items = [item["result"] for item in json.loads(shown.stdout)["items"]]
    assert items[:2] == [
        {"outcome": "success", "result_bytes": len(LARGE.text)},
        {"outcome": "success", "result": [{"a": 1}]},
    ]
    assert [item["outcome"] for item in items[2:]] == ["failed", "success"]


def test_people_see_the_length_of_a_large_result_and_the_command_that_prints_it(ended: Ended, tmp_path: Path) -> None:
    shown = ended.get(ended.batch, cwd=tmp_path)
    (line,) = [line for line in shown.stdout.splitlines() if f"{len(LARGE.text):,} bytes" in line]
    command = line.partition("stepflow ")[2].split()
    assert run_cli(command, cwd=tmp_path).stdout == flow_result(LARGE)


def test_a_large_result_is_not_written_as_yaml(ended: Ended, tmp_path: Path) -> None:
    shown = ended.get(ended.single, "--output", "result.yaml", cwd=tmp_path)
    assert shown.returncode == 1
    assert "RESULT_TOO_LARGE" in shown.stderr
    command = shown.stderr.rpartition("this prints them: stepflow ")[2].split()
    assert run_cli(command, cwd=tmp_path).stdout == flow_result(LARGE)
    assert list(tmp_path.iterdir()) == []


def test_results_exclude_steps_and_json(ended: Ended, tmp_path: Path) -> None:
    shown = ended.get(ended.single, "--result", "--json", cwd=tmp_path)
    assert (shown.returncode, shown.stdout) == (2, "")


def test_ctrl_c_leaves_the_file_that_was_there_before(ended: Ended, tmp_path: Path) -> None:
    output = tmp_path / "result.json"
    output.write_text("before")
    code = f"""
import signal, sys
from stepflow.cli.__main__ import main
from stepflow.whole_file import whole_file
import stepflow.cli.output as written
class Interrupted:
    def __init__(self, file): self.file = file
    def write(self, text):
        self.file.write(text)
        if len(text) > 1000: signal.raise_signal(signal.SIGINT)
import contextlib
@contextlib.contextmanager
def interrupted(path):
    with whole_file(path) as file:
        yield Interrupted(file)
written.whole_file = interrupted
sys.exit(main({["runs", "get", ended.single, "-o", str(output), *ended.options]!r}))
"""
    stopped = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, timeout=60, check=False)
    assert stopped.returncode == 130, stopped.stderr
    assert output.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["result.json"]


def test_a_device_and_a_pipe_are_written_in_place(ended: Ended, tmp_path: Path) -> None:
    pipe = tmp_path / "result.json"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "stepflow.cli", "runs", "get", ended.single, "-o", str(pipe), *ended.options]
    with subprocess.Popen(command, cwd=ROOT) as writer:
        assert pipe.read_text() == flow_result(LARGE)
        assert writer.wait(30) == 0
    assert pipe.is_fifo()


def test_a_terminal_shows_how_far_a_large_result_is_written(
    ended: Ended, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = f"""
import sys
import stepflow.cli.output as written
written.PROGRESS_S = 0.0
from stepflow.cli.__main__ import main
sys.exit(main({["runs", "get", ended.single, "-o", str(tmp_path / "result.json"), *ended.options]!r}))
"""
    terminal, theirs = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                part = os.read(terminal, 65536)
            except OSError:
                break
            if not part:
                break
            shown += part
        assert process.wait(30) == 0
    os.close(terminal)
    assert f"of {len(LARGE.text) // 1_000_000} MB".encode() in shown
    assert wait_until(lambda: (tmp_path / "result.json").read_text() == flow_result(LARGE), "the file is whole")


TWICE = """
name: twice
output: [{$input: $}, {$input: $}]
"""
HALF = "x" * (9 * 1024 * 1024)


def twice(tmp_path: Path) -> list[str]:
    """Write a flow with a large result, and return the options of a command that runs it."""
    (tmp_path / "flow.yaml").write_text(TWICE)
    (tmp_path / "input.json").write_text(json.dumps(HALF))
    return ["--flow", "flow.yaml", "--input", "input.json", "--quiet"]


def test_a_run_on_this_machine_prints_a_large_result(tmp_path: Path) -> None:
    shown = run_cli(["run", *twice(tmp_path)], cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout) == {"outcome": "success", "result": [HALF, HALF]}

    (run_id,) = [path.stem for path in (tmp_path / ".stepflow" / "runs").glob("*.db")]
    again = run_cli(["resume", run_id, "--output", "result.json"], cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "result.json").read_text() == shown.stdout


def test_a_run_on_a_mesh_prints_a_large_result_or_with_json_its_length(tmp_path: Path) -> None:
    with api_mesh() as (mesh, _):
        submit = ["submit", *twice(tmp_path), "--server", mesh.address]
        shown = run_cli([*submit, "--output", "result.json"], cwd=tmp_path)
        assert (shown.returncode, shown.stdout) == (0, ""), shown.stderr
        assert json.loads((tmp_path / "result.json").read_text())["result"] == [HALF, HALF]

        shown = run_cli([*submit, "--json"], cwd=tmp_path)
        length = len(HALF) * 2 + 7
        assert json.loads(shown.stdout)["results"] == [{"outcome": "success", "result_bytes": length}]
        command = shown.stderr.rpartition("this prints them: stepflow ")[2].split()
        assert run_cli(command, cwd=tmp_path).stdout == (tmp_path / "result.json").read_text()
