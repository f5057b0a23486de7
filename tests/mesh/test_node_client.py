"""The example in Node.js, against a real server: the API can be used from any language."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT
from support.api import api_mesh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.api import ApiMesh

EXAMPLE = ROOT / "examples" / "node_client"
MODULES = ROOT / ".cache" / "node_client"
INSTALL_TIMEOUT_S = 300


@pytest.fixture(scope="module")
def node() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give what runs the example: node, and its packages installed once into the cache."""
    MODULES.mkdir(parents=True, exist_ok=True)
    with (MODULES / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = checked([str(ROOT / "scripts" / "tools.sh"), "node"]).strip()
        wanted = (EXAMPLE / "package.json").read_text()
        standing = MODULES / "package.json"
        if not (standing.exists() and standing.read_text() == wanted and (MODULES / ".complete").exists()):
            (MODULES / ".complete").unlink(missing_ok=True)
            shutil.copy(EXAMPLE / "package.json", standing)
            npm = str(Path(program).parent / "npm")
            os.environ["PATH"] = f"{Path(program).parent}:{os.environ['PATH']}"  # npm starts node by its name
            checked([npm, "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(MODULES)])
            (MODULES / ".complete").touch()

    def run(*args: str, server: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "NODE_PATH": str(MODULES / "node_modules"), "STEPFLOW_SERVER": server}
        return subprocess.run(
            [program, str(EXAMPLE / "client.js"), *args],
            check=False,
            capture_output=True,
            text=True,
            timeout=60,
            env=env,
            stdin=subprocess.DEVNULL,
        )

    return run


def checked(command: list[str]) -> str:
    done = subprocess.run(
        command,
        check=False,
        capture_output=True,
        text=True,
        timeout=INSTALL_TIMEOUT_S,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as given:
        yield given


@pytest.mark.timeout(400)
def test_a_node_program_submits_a_flow_and_streams_its_events(api: Any, node: Any) -> None:
    done = node(str(EXAMPLE / "flow.json"), '{"name": "Ada"}', server=api[0].address)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    durable = [line for line in lines if line["event"] != "step_started"]
    assert [line["event"] for line in durable] == [
        "run_adopted",
        "step_sleeping",
        "step_ended",
        "step_ended",
        "item_ended",
        "run_ended",
    ]
    messages = [{"role": "user", "content": "Ada"}]
    assert durable[-2]["result"] == {"messages": messages, "pause": {"duration_ms": 100}}
    assert durable[-1]["status"] == "RUN_STATUS_COMPLETED"


@pytest.mark.timeout(400)
def test_an_error_is_told_with_its_status(api: Any, node: Any, tmp_path: Path) -> None:
    flow = tmp_path / "flow.json"
    flow.write_text('{"output": {"$step": "missing"}}')
    done = node(str(flow), server=api[0].address)
    assert done.returncode == 2
    assert done.stderr.startswith("INVALID_ARGUMENT: ")
