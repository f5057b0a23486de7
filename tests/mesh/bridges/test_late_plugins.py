"""A component builds a flow that needs a server unknown to the outer flow: the server is started on demand."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, run_cli

if TYPE_CHECKING:
    from pathlib import Path

SERVER = """
from pathlib import Path
from stepflow.component import Context, component, serve

Path(__file__).with_suffix(".started").touch()

@component
def outer(ctx: Context, path: str, count: int) -> list:
    flow = {"steps": [{"id": "s", "component": path, "input": {"text": "hey"}}], "output": {"$step": "s"}}
    return [result.value if result.ok else result.code for result in ctx.run_flows(flow, [None] * count).result()]

@component
def shout(text: str) -> str:
    return text.upper()

serve()
"""
CONFIG = """
plugins:
  first: {type: stepflow, command: %(python)s, args: [first.py], env: {PYTHONPATH: "%(root)s"}}
  second: {type: stepflow, command: %(python)s, args: [second.py], env: {PYTHONPATH: "%(root)s"}}
  third: {type: stepflow, command: %(python)s, args: ["${NO_SUCH_VARIABLE}"]}
  fourth: {type: stepflow, command: ./no-such-program}
routes:
  /first: [{plugin: first}]
  /second: [{plugin: second}]
  /third: [{plugin: third}]
  /fourth: [{plugin: fourth}]
retry: {transportMaxRetries: 0}
"""
FLOW = """
steps:
  - {id: o, component: /first/outer, input: {path: {$input: path}, count: 3}}
output: {$step: o}
"""


def outer(folder: Path, path: str) -> Any:
    for name in ("first", "second"):
        (folder / f"{name}.py").write_text(SERVER)
    (folder / "stepflow-config.yml").write_text(CONFIG % {"python": sys.executable, "root": ROOT})
    (folder / "flow.yaml").write_text(FLOW)
    done = run_cli(["run", "--flow", "flow.yaml", "--input-json", json.dumps({"path": path}), "-q"], cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    return json.loads(done.stdout)["result"]


def test_a_server_that_only_a_flow_built_at_run_time_names_is_started_for_it(tmp_path: Path) -> None:
    assert outer(tmp_path, "/second/shout") == ["HEY"] * 3


def test_a_server_that_nobody_wants_is_not_started(tmp_path: Path) -> None:
    assert outer(tmp_path, "/first/shout") == ["HEY"] * 3
    assert (tmp_path / "first.started").exists()
    assert not (tmp_path / "second.started").exists()


@pytest.mark.parametrize("path", ["/third/x", "/fourth/x"])
def test_one_that_cannot_be_started_fails_the_calls_for_it_and_nothing_else(tmp_path: Path, path: str) -> None:
    assert outer(tmp_path, path) == ["UNREACHABLE"] * 3


def test_a_path_without_a_route_fails_at_once(tmp_path: Path) -> None:
    assert outer(tmp_path, "/nowhere/x") == ["ORCHESTRATOR_ERROR"] * 3
