"""A server with this project's SDK in upstream's mesh: the published orchestrators that speak HTTP to servers."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.client import HTTPConnection
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, server_venv
from support.stepflow_servers import SCRIPTS

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(400)  # the first test of a version installs its orchestrator

INNER = {
    "name": "inner",
    "steps": [{"id": "t", "component": "/kit/add", "input": {"a": {"$input": "n"}, "b": 1}}],
    "output": {"$step": "t"},
}


class Orchestrator:
    """A client of upstream's REST API."""

    def __init__(self, port: int) -> None:
        self._port = port

    def ask(self, path: str, tree: Any) -> Any:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=60)
        try:
            connection.request("POST", f"/api/v1{path}", json.dumps(tree), {"Content-Type": "application/json"})
            response = connection.getresponse()
            text = response.read()
            assert response.status == 200, text
            return json.loads(text)
        finally:
            connection.close()

    def run(self, component: str, input: Any, **step: Any) -> Any:  # a step has this member
        """Run a flow of one step, and return its FlowResult."""
        flow = {
            "name": "one",
            "steps": [{"id": "s", "component": component, "input": input, **step}],
            "output": {"$step": "s"},
        }
        flow_id = self.ask("/flows", {"flow": flow})["flowId"]
        run = self.ask("/runs", {"flowId": flow_id, "input": [{}], "wait": True})
        return run["result"] if "result" in run else run["results"][0]["result"]  # the former in 0.9


@contextmanager
def orchestrator(version: str) -> Iterator[Orchestrator]:
    bin_folder = server_venv([f"stepflow-orchestrator=={version}"], f"stepflow-orchestrator-{version}")
    (binary,) = bin_folder.parent.glob("lib/*/site-packages/stepflow_orchestrator/bin/stepflow-server")
    kit = {
        "type": "stepflow",
        "command": sys.executable,
        "args": [str(SCRIPTS / "kit_sdk.py"), "--http"],
        "env": {"PYTHONPATH": str(ROOT)},
    }
    config = {
        "plugins": {"kit": kit, "builtin": {"type": "builtin"}},
        "routes": {"/kit/{*component}": [{"plugin": "kit"}]},
    }
    with subprocess.Popen(
        [str(binary), "--port", "0", "--config-stdin", "--log-level", "warn"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(json.dumps(config))
            process.stdin.close()
            printed: list[str] = []
            for line in process.stdout:
                printed.append(line)
                if line.startswith('{"port"'):
                    break
            assert line.startswith('{"port"'), "".join(printed)
            drain = threading.Thread(target=process.stdout.read)
            drain.start()
            yield Orchestrator(json.loads(line)["port"])
        finally:
            process.terminate()
            process.wait(20)
    drain.join(20)


@pytest.mark.parametrize("version", ["0.9.0", "0.10.0", "0.11.1"])
def test_upstreams_orchestrator_drives_a_server_with_our_sdk(version: str) -> None:
    with orchestrator(version) as upstream:
        assert upstream.run("/kit/add", {"a": 2, "b": 3}) == {"outcome": "success", "result": {"sum": 5}}
        kept = upstream.run("/kit/blob_roundtrip", {"value": [1, "é"]})
        assert kept["result"]["value"] == [1, "é"]
        inner = {"$literal": INNER}
        assert upstream.run("/kit/evaluate", {"flow": inner, "input": {"n": 41}})["result"] == {"sum": 42}
        batch = upstream.run("/kit/batch", {"flow": inner, "inputs": [{"n": 41}, {"n": 1}]})
        assert batch["result"] == [{"sum": 42}, {"sum": 2}]
        failed = upstream.run("/kit/fail", {"text": "oh no"})
        assert failed["outcome"] == "failed"
        if version == "0.11.1":  # the earlier ones say only which step it was
            assert failed["error"]["message"] == "oh no"
        assert len(upstream.run("/kit/big", {"size": 2 << 20})["result"]["text"]) == 2 << 20
