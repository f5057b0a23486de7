"""Upstream's own orchestrator, 0.13.0, which starts servers with this project's SDK and dispatches to them."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from support import ROOT, server_venv

if TYPE_CHECKING:
    from pathlib import Path

DATA = ROOT / "tests" / "data"
REQUIREMENTS = ["stepflow-py==0.13.0", "stepflow-orchestrator==0.13.0"]


def run_upstream(servers: dict[str, Path], *runs: dict[str, Any]) -> dict[str, Any]:
    """Run flows on an orchestrator that starts `servers`, given by route; return its output.

    Returns only when every process that inherited its stdout has ended, the servers included.
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
    """Build a flow of independent steps that returns the result of each."""
    return {
        "schemas": {},
        "steps": [{"id": name, "component": component, "input": value} for name, component, value in steps],
        "output": {name: {"$step": name} for name, _, _ in steps},
    }
