"""What components print, in `stepflow run` and `stepflow runs logs`, from every kind of StepFlow server."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, run_cli, text_of, wait_until

if TYPE_CHECKING:
    from pathlib import Path

SERVERS = ROOT / "tests" / "data" / "servers"
PASSWORD, PW = "the-password-of-the-server", "hunter2-the-input"

CONFIG = """
plugins:
  stdio: {{type: stepflow, transport: stdio, command: {python}, args: [{server}], env: {env}}}
  http: {{type: stepflow, transport: http, command: {python}, args: [{server}, --http], env: {env}}}
  pull: {{type: grpc, command: {python}, args: [{server}], queueName: logs, env: {env}}}
  other: {{type: stepflow, transport: stdio, command: {python}, args: [{other}]}}
routes:
  /stdio: [{{plugin: stdio}}]
  /http: [{{plugin: http}}]
  /pull: [{{plugin: pull}}]
  /other: [{{plugin: other}}]
"""

KINDS = """
name: kinds
steps:
  - {id: a, component: /stdio/printing, input: {name: stdio}}
  - {id: b, component: /http/printing, input: {name: http, after: {$step: a}}}
  - {id: c, component: /pull/printing, input: {name: pull, after: {$step: b}}}
  - {id: d, component: /other/speak, input: {after: {$step: c}}}
output: {$step: d}
"""

TOLD = """
name: told
schemas:
  properties:
    input: {type: object, properties: {pw: {type: string, is_secret: true}}}
steps:
  - {id: tell, component: /stdio/told, input: {$input: $}}
output: {$step: tell}
"""

FLOOD = """
name: flood
steps:
  - {id: flood, component: /stdio/flood, input: {lines: 200000}}
output: {$step: flood}
"""

GATED = """
name: gated
steps:
  - {id: wait, component: /stdio/gated, input: {$input: $}}
output: {$step: wait}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("logs")
    env = json.dumps({"PYTHONPATH": str(ROOT), "SERVER_PASSWORD": "${SERVER_PASSWORD:-none}"})
    server, other = SERVERS / "logging_server.py", SERVERS / "stderr_server.py"
    config = CONFIG.format(python=sys.executable, server=server, other=other, env=env)
    (folder / "stepflow-config.yml").write_text(config)
    for name, text in (("kinds", KINDS), ("told", TOLD), ("flood", FLOOD), ("gated", GATED)):
        (folder / f"{name}.yaml").write_text(text)
    return folder


def cli(folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return run_cli(args, cwd=folder, env={"SERVER_PASSWORD": PASSWORD})


def run(folder: Path, flow: str, value: Any = None) -> tuple[subprocess.CompletedProcess[str], str]:
    """Run a flow; return the process and the id of the run."""
    done = cli(folder, "run", "--flow", f"{flow}.yaml", "--input-json", json.dumps(value or {}))
    return done, run_id_in(done.stderr)


def run_id_in(text: str) -> str:
    return next(line for line in text.splitlines() if line.startswith("run_id: ")).removeprefix("run_id: ")


def test_every_kind_of_server_is_heard_and_its_lines_come_back_later(folder: Path) -> None:
    done, run_id = run(folder, "kinds")
    assert done.returncode == 0, done.stderr
    shown = done.stderr.splitlines()
    for step, kind in (("a", "stdio"), ("b", "http"), ("c", "pull")):
        texts = [line.removeprefix(f"{step} | ") for line in shown if line.startswith(f"{step} | ")]
        assert texts == [
            f"printed {kind}",
            "to stderr",
            "WARNING warned",
            "ERROR library: an error",
            "ERROR of two lines",
            "without an end",
        ]
    assert [line for line in shown if line.startswith("d | ")] == ["d | working on {'after': 'done'}"]
    assert "other | started" not in shown, "the start of a server is no log of a step"

    later = cli(folder, "runs", "logs", run_id)
    lines = [line.partition("  ")[2] for line in later.stdout.splitlines()]
    assert "other | started" in lines
    of_steps = ("a | ", "b | ", "c | ", "d | ")
    assert [line for line in lines if line.startswith(of_steps)] == [
        line for line in shown if line.startswith(of_steps)
    ]
    of_step = cli(folder, "runs", "logs", run_id, "0/b", "--json")
    entries = [json.loads(line) for line in of_step.stdout.splitlines()]
    assert [entry["text"] for entry in entries][:2] == ["printed http", "to stderr"]
    assert {(entry["step_id"], entry["attempt"], entry["run_id"]) for entry in entries} == {("b", 1, run_id)}
    assert entries[2]["level"] == "warning"


def test_secrets_of_the_server_and_of_the_run_are_nowhere(folder: Path) -> None:
    done, run_id = run(folder, "told", {"pw": PW})
    assert done.returncode == 1
    assert "tell | the environment says [REDACTED]" in done.stderr
    assert "tell | the input says [REDACTED]" in done.stderr
    later = cli(folder, "runs", "logs", run_id)
    stored = text_of(folder / ".stepflow" / "logs" / f"{run_id}.jsonl")
    for text in (done.stderr, later.stdout, stored):
        assert "[REDACTED]" in text
        assert PASSWORD not in text
        assert PW not in text


def test_a_flood_does_not_hold_up_the_result(folder: Path) -> None:
    done, run_id = run(folder, "flood")
    assert done.returncode == 0, done.stderr
    texts = [line for line in done.stderr.splitlines() if line.startswith("flood | ")]
    assert texts[-1] == "flood | line 199999"
    assert any("lines left out" in text for text in texts)
    assert len(texts) < 20_000
    assert cli(folder, "runs", "logs", run_id).stdout.splitlines()[-1].endswith("flood | line 199999")


def test_a_log_is_followed_until_the_run_ends(folder: Path) -> None:
    gate = folder / "gate"
    runner = start(folder, "run", "--flow", "gated.yaml", "--input-json", json.dumps({"gate": str(gate)}))
    try:
        wait_until(lambda: "waits for the gate" in text_of(folder / "run.err"), "the component waits")
        run_id = run_id_in(text_of(folder / "run.err"))
        now = cli(folder, "runs", "logs", run_id)
        assert now.stdout.splitlines()[-1].endswith("wait | waits for the gate")

        follower = start(folder, "runs", "logs", run_id, "-f")
        wait_until(lambda: "waits for the gate" in text_of(folder / "runs.out"), "the follower has the first line")
        gate.touch()
        assert follower.wait(30) == 0
        assert text_of(folder / "runs.out").splitlines()[-1].endswith("wait | has passed the gate")
        assert runner.wait(30) == 0
    finally:
        gate.touch()
        runner.kill()
        runner.wait()


def test_a_deleted_run_leaves_no_log(folder: Path) -> None:
    _, run_id = run(folder, "kinds")
    log = folder / ".stepflow" / "logs" / f"{run_id}.jsonl"
    assert log.exists()
    assert cli(folder, "runs", "delete", run_id).returncode == 0
    assert not log.exists()


def start(folder: Path, *args: str) -> subprocess.Popen[bytes]:
    """Start a command whose output goes to files named after it."""
    import os

    with (folder / f"{args[0]}.out").open("wb") as out, (folder / f"{args[0]}.err").open("wb") as err:
        return subprocess.Popen(
            [sys.executable, "-m", "stepflow.cli", *args],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(ROOT), "SERVER_PASSWORD": PASSWORD},
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
        )
