"""`stepflow call`: one component, called by hand on this machine."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from support import ROOT

from stepflow.cli.__main__ import main

MOCK = """
plugins:
  fake:
    type: mock
    components:
      /greet:
        input_schema: {}
        output_schema: {}
        behaviors:
          ? {name: Ada}
          : {outcome: success, result: {greeting: "Hello, Ada!"}}
          ? {name: Bob}
          : {outcome: success, result: "Hello, Bob!"}
          ? {}
          : {outcome: failed, error: {code: COMPONENT_FAILED, message: "who?"}}
routes:
  /fake: [{plugin: fake}]
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("stepflow-config.yml").write_text(MOCK)
    return tmp_path


def test_the_result_of_the_component_is_printed_alone(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "/fake/greet", "--input", '{"name": "Ada"}']) == 0
    assert capfd.readouterr().out == '{"greeting":"Hello, Ada!"}\n'
    assert not Path(".stepflow").exists()


def test_a_result_that_is_no_object_is_printed_whole(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "/fake/greet", "--input", '{"name": "Bob"}']) == 0
    assert capfd.readouterr().out == '"Hello, Bob!"\n'


def test_the_input_may_be_a_file_and_the_output_too(capfd: pytest.CaptureFixture[str]) -> None:
    Path("input.yaml").write_text("name: Ada\n")
    assert main(["call", "/fake/greet", "--input", "input.yaml", "-o", "result.json"]) == 0
    assert json.loads(Path("result.json").read_text()) == {"greeting": "Hello, Ada!"}
    assert capfd.readouterr().out == ""


def test_a_failure_shows_code_and_reason_and_ends_with_1(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["call", "/fake/greet"]) == 1
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "COMPONENT_FAILED: who?" in shown.err


@pytest.mark.parametrize(
    ("arguments", "code", "text"),
    [
        (["fake/greet"], 2, "/fake/greet; it begins with a slash"),
        (["/fake/greet", "--input", "{"], 2, "--input"),
        (["/fake/greet", "--input", "missing.json"], 2, "missing.json"),
        (["/fake/gret"], 1, "/fake/gret"),
        (["/nowhere/greet"], 1, "/nowhere/greet"),
    ],
    ids=["no slash", "not JSON", "no file", "no such component", "no route"],
)
def test_what_cannot_be_called_is_named(
    arguments: list[str], code: int, text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["call", *arguments]) == code
    shown = capfd.readouterr()
    assert shown.out == ""
    assert text in shown.err
    assert "Traceback" not in shown.err


def test_a_tool_of_an_mcp_server_is_called_by_its_path(capfd: pytest.CaptureFixture[str]) -> None:
    server = ROOT / "tests" / "data" / "mcp_servers" / "tools.py"
    plugin = {"type": "mcp", "transport": "stdio", "command": sys.executable, "args": [str(server)]}
    Path("stepflow-config.yml").write_text(
        json.dumps({"plugins": {"tools": plugin}, "routes": {"/tools": [{"plugin": "tools"}]}})
    )
    assert main(["call", "/tools/add", "--input", '{"a": 2, "b": 3}']) == 0
    assert "5" in capfd.readouterr().out
