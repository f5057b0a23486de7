"""A server with our SDK in upstream's world: StepFlow's own orchestrator, 0.13.0, starts it and gives it work."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, server_venv

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)  # the orchestrator is installed first

DATA = ROOT / "tests" / "data"
REQUIREMENTS = ["stepflow-py==0.13.0", "stepflow-orchestrator==0.13.0"]


def upstream(servers: dict[str, Path], *runs: dict[str, Any]) -> dict[str, Any]:
    """Run flows on an orchestrator that starts `servers`, by their routes; return what came of them.

    Ends only when everything that holds its outputs has ended, the servers included.
    """
    workers = {
        name: {
            "type": "grpc",
            "queueName": name,
            "command": sys.executable,
            "args": [str(server)],
            "env": {"PYTHONPATH": str(ROOT)},
        }
        for name, server in servers.items()
    }
    asked = {
        "config": {"plugins": workers, "routes": {f"/{name}": [{"plugin": name}] for name in workers}},
        "runs": runs,
    }
    python = server_venv(REQUIREMENTS, "upstream-0.13.0") / "python"
    done = subprocess.run(
        [str(python), str(DATA / "stepflow_servers" / "upstream.py")],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def flow(*steps: tuple[str, str, Any]) -> dict[str, Any]:
    """Build a flow of independent steps that returns what each of them did."""
    return {
        "schemas": {},
        "steps": [{"id": name, "component": component, "input": value} for name, component, value in steps],
        "output": {name: {"$step": name} for name, _, _ in steps},
    }


def test_upstreams_orchestrator_drives_a_server_with_our_sdk() -> None:
    child = {
        "schemas": {},
        "steps": [{"id": "s", "component": "/ours/add", "input": {"a": {"$input": "x"}, "b": 1}}],
        "output": {"$step": "s"},
    }
    good = flow(
        ("sync", "/ours/add", {"a": 1, "b": {"$input": "n"}}),
        ("pattern", "/more/files/a/b", {"value": 5}),
        ("blob", "/ours/blob_async", {"value": [1, "é", 2**53]}),
        ("blob_in_thread", "/ours/blob_sync", {"value": {"a": 1.5}}),
        ("sub_flow", "/ours/flow_async", {"flow": {"$literal": child}, "value": {"x": 41}}),
        ("large", "/ours/big", {"count": 2 << 20}),
    )
    found = upstream(
        {"ours": DATA / "servers" / "behaviours.py", "more": DATA / "stepflow_servers" / "own.py"},
        {"flow": good, "input": {"n": 21}},
        {"flow": flow(("s", "/ours/fail", {"kind": "input"})), "input": {}},
        {"flow": flow(("s", "/ours/fail", {"kind": "own"})), "input": {}},
    )
    assert {"add", "flow_async", "files/{*rest}"} <= set(found["components"])
    first, refused, failed = found["runs"]
    output = first["output"]
    assert len(output.pop("large")) == 2 << 20
    assert output["blob"][1] == [1, "é", 2**53]
    assert output["blob_in_thread"][1] == {"a": 1.5}
    assert output["pattern"]["rest"] == "a/b"
    assert (output["sync"], output["sub_flow"]) == (22, 42)
    assert (refused["code"], refused["message"]) == (2, "the input is odd")
    assert (failed["code"], failed["message"]) == (3, "KeyError: 'secret place'")
