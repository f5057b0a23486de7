"""Policies of a configuration in the runs of a mesh, and draining of parts: against one real `stepflow dev`."""

from __future__ import annotations

import asyncio
import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from support import run_cli, wait_until
from support.dev import Dev, dev_mesh, running

from stepflow.client import BlockingClient, Client
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = """
plugins:
  builtin: {type: builtin}
  mock: {type: mock, components: {/lost: {input_schema: {}, output_schema: {}, behaviors: {}}}}
routes:
  "/builtin": [{plugin: builtin}]
  "/mock": [{plugin: mock}]
retry:
  transportMaxRetries: %d
  backoff: {type: constant, delayMs: 1}
"""
LOST = {
    "name": "lost",
    "steps": [{"id": "lost", "component": "/mock/lost", "input": {}}],
    "output": {"$step": "lost"},
}
"""A mock without an answer for its input is UNREACHABLE."""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    """Give one that repeats a lost call once."""
    folder = tmp_path_factory.mktemp("mesh")
    (folder / "stepflow-config.yml").write_text(CONFIG % 1)
    with dev_mesh(folder, "--hosts", "2") as dev:
        yield dev


def attempts(mesh: Dev, run_id: str) -> int:
    """Return how often the step of a run was tried."""
    (step,) = mesh.json("runs", "steps", run_id)["steps"]
    return int(step["attempt"])


def submit(mesh: Dev, folder: Path, *args: str) -> int:
    """Submit a flow that fails from a folder; return how often its step was tried."""
    (folder / "lost.json").write_text(json.dumps(LOST))
    done = mesh.cli("submit", "--flow", str(folder / "lost.json"), "--input-json", "{}", "--json", *args)
    assert done.returncode == 1, done.stderr
    tree = json.loads(done.stdout)
    assert tree["results"][0]["error"]["code"] == "UNREACHABLE"
    return attempts(mesh, tree["run_id"])


# --- retry -------------------------------------------------------------------------------------------------------


def test_runs_that_bring_no_retry_get_that_of_the_mesh(mesh: Dev) -> None:
    with BlockingClient(mesh.server) as client:
        run_id = client.submit(LOST, {})
        assert client.wait(run_id, timeout_s=20).status == "failed"
        assert attempts(mesh, run_id) == 2


def test_submit_sends_the_retry_beside_the_flow_or_of_the_config_that_is_named(mesh: Dev, tmp_path: Path) -> None:
    beside, named = tmp_path / "beside", tmp_path / "named.yml"
    beside.mkdir()
    (beside / "stepflow-config.yml").write_text(CONFIG % 2)
    named.write_text(CONFIG % 0)
    assert submit(mesh, beside) == 3
    assert submit(mesh, beside, "--config", str(named)) == 1


def test_a_client_says_how_often_a_lost_call_is_repeated(mesh: Dev) -> None:
    async def tried(retry: dict[str, Any]) -> int:
        async with Client(mesh.server) as client:
            run_id = await client.submit(LOST, {}, retry=retry)
            assert (await client.wait(run_id, timeout_s=20)).status == "failed"
            (step,) = [step async for step in client.steps(run_id)]
            return step.attempt

    assert asyncio.run(tried({"transportMaxRetries": 3})) == 4
    assert asyncio.run(tried({"backoff": {"type": "constant", "delayMs": 2}})) == 2  # the count is the mesh's
    for wrong in ({"retries": 3}, {"transportMaxRetries": -1}, {"backoff": {"type": "often"}}):
        with pytest.raises(Invalid):
            asyncio.run(tried(wrong))


def test_a_repeated_submission_is_the_same_run_whatever_the_mesh_was_told(mesh: Dev) -> None:
    """The hash of a request is of what was asked, not of the defaults that stood in for the rest."""
    from uuid import uuid4

    from stepflow.errors import AlreadyExists

    run_id = str(uuid4())
    with BlockingClient(mesh.server) as client:
        assert client.submit(LOST, {}, run_id=run_id) == run_id
        mesh.cli("runs", "cancel", run_id)
        assert client.submit(LOST, {}, run_id=run_id) == run_id
        with pytest.raises(AlreadyExists):
            client.submit(LOST, {}, run_id=run_id, retry={"transportMaxRetries": 1})


# --- signals -----------------------------------------------------------------------------------------------------

WAIT = {
    "name": "ask",
    "steps": [{"id": "ask", "component": "/builtin/wait_for_signal", "input": {"name": "approved"}}],
    "output": {"$step": "ask", "path": "payload.by"},
}


def test_a_run_that_waits_says_for_what_and_a_signal_lets_it_go_on(mesh: Dev) -> None:
    (mesh.folder / "ask.json").write_text(json.dumps(WAIT))
    with running(mesh, "submit", "--flow", "ask.json", "--input-json", "{}") as submit:
        wait_until(lambda: "for the signal approved" in submit.said, "it says what it waits for", 20)
        run_id = submit.said.split("run_id: ")[1].split()[0]
        sent = mesh.json("runs", "signal", run_id, "approved", "--payload-json", '{"by": "Ada"}')
        assert sent["run_id"] == run_id
        assert submit.wait() == 0
        assert submit.process.stdout is not None
        assert json.loads(submit.process.stdout.read()) == {"outcome": "success", "result": "Ada"}
    late = mesh.cli("runs", "signal", run_id, "approved")
    assert late.returncode == 1
    assert "error[RUN_ENDED]" in late.stderr


def test_a_run_of_this_machine_takes_a_signal_when_it_is_resumed(tmp_path: Path) -> None:
    (tmp_path / "ask.json").write_text(json.dumps(WAIT))
    here = Dev(tmp_path)
    environ = {name: text for name, text in here.environ().items() if name != "STEPFLOW_SERVER"}
    with running(here, "run", "--flow", "ask.json", "--input-json", "{}") as first:
        wait_until(lambda: "for the signal approved" in first.said, "it waits", 20)
        run_id = first.said.split("run_id: ")[1].split()[0]
        busy = run_cli(["runs", "signal", run_id, "approved"], cwd=tmp_path, env=environ)
        assert busy.returncode == 1
        assert "error[" in busy.stderr
        first.signal(signal.SIGINT)
        assert first.wait() == 130
    sent = run_cli(["runs", "signal", run_id, "approved", "--payload-yaml", "by: Ada"], cwd=tmp_path, env=environ)
    assert sent.returncode == 0, sent.stderr
    resumed = run_cli(["resume", run_id], cwd=tmp_path, env=environ)
    assert json.loads(resumed.stdout) == {"outcome": "success", "result": "Ada"}


# --- drain -------------------------------------------------------------------------------------------------------


def test_a_drained_host_is_shown_as_such_and_the_other_one_does_the_work(mesh: Dev) -> None:
    drained = mesh.json("cluster", "drain", "host-2")
    assert drained["host_id"].startswith("host-2-")
    states = {host["host_id"].rpartition("-")[0]: host["draining"] for host in mesh.json("cluster", "status")["hosts"]}
    assert states == {"host-1": False, "host-2": True}
    assert "draining" in mesh.cli("cluster", "status").stdout
    (mesh.folder / "say.json").write_text(
        json.dumps(
            {
                "steps": [{"id": "a", "component": "/builtin/create_messages", "input": {"user_prompt": "x"}}],
                "output": {"$step": "a"},
            }
        )
    )
    assert mesh.json("submit", "--flow", "say.json", "--input-json", "{}")["status"] == "completed"
