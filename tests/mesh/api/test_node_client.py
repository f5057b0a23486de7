"""The Node.js example against a real server: a client in another language."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, node_packages
from support.api import api_mesh

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.api import ApiMesh

EXAMPLE = ROOT / "examples" / "node_client"


@pytest.fixture(scope="module")
def node() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give what runs the example: node, and its packages installed once into the cache."""
    wanted = json.loads((EXAMPLE / "package.json").read_text())["dependencies"]
    program, folder = node_packages([f"{package}@{version}" for package, version in wanted.items()], "node_client")

    def run(*args: str, server: str) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "NODE_PATH": str(folder / "node_modules"), "STEPFLOW_SERVER": server}
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
