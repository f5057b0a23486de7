"""The example flows give the same results through a mesh as embedded, of the types that `infer` prints."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from support import ROOT, run_cli, server_venv
from support.dev import dev_mesh
from support.mcp import time_server

from stepflow.flow.schema import InputValidator

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", ["basic", "durability", "hello"])
def test_an_example_gives_the_same_result_through_the_mesh_as_embedded(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / name
    shutil.copytree(ROOT / "examples" / name, folder, ignore=shutil.ignore_patterns(".stepflow", "ledger.txt"))
    monkeypatch.setenv("STEPFLOW_PY", str(server_venv(["stepflow-py==0.7.0"], "stepflow-py-0.7.0") / "python"))
    given = ["--input", "input.json"] if (folder / "input.json").exists() else ["--input-json", "{}"]
    with dev_mesh(folder) as mesh:
        done = [mesh.cli(command, "--flow", "flow.yaml", *given, "-q") for command in ("run", "submit")]
    embedded, through = (json.loads(one.stdout) for one in done)
    assert embedded == through, [one.stderr for one in done]
    assert embedded["outcome"] == "success"


SERVERS = {
    "basic": lambda: {"STEPFLOW_PY": str(server_venv(["stepflow-py==0.7.0"], "stepflow-py-0.7.0") / "python")},
    "mcp_time": lambda: {"MCP_SERVER_TIME": time_server().command},
}


@pytest.mark.parametrize("name", ["basic", "durability", "hello", "mcp_time", "node_client", "template", "builtins"])
def test_the_real_outputs_of_an_example_have_the_inferred_types(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    if name == "builtins":
        folder.mkdir()
        (folder / "flow.yaml").write_text(BUILTINS, encoding="utf-8")
        (folder / "data.json").write_text("[1]", encoding="utf-8")
    else:
        source = ROOT / "stepflow" / "cli" / "template" if name == "template" else ROOT / "examples" / name
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(".stepflow", "ledger.txt", "__pycache__"))
    env = SERVERS.get(name, dict)()
    flow = "flow.json" if name == "node_client" else "flow.yaml"
    given = ["--input", "input.json"] if (folder / "input.json").exists() else ["--input-json", '{"name": "Ada"}']

    inferred = run_cli(["infer", flow, "--servers", "--json"], cwd=folder, env=env)
    ran = run_cli(["run", "--flow", flow, *given, "-q"], cwd=folder, env=env)
    assert (inferred.returncode, ran.returncode) == (0, 0), inferred.stderr + ran.stderr
    tree = json.loads(inferred.stdout)
    assert [item for item in tree["diagnostics"] if item["code"] in (2100, 2101)] == []  # no false alarm

    # The file of the run, with the results of its steps.
    (run,) = json.loads(run_cli(["runs", "list", "--json"], cwd=folder).stdout)["runs"]
    steps = json.loads(run_cli(["runs", "steps", run["run_id"], "--json"], cwd=folder).stdout)["steps"]
    results = {step["step_id"]: step["result"]["result"] for step in steps}
    parts = tree["flow"]["schemas"]
    schemas = {
        **parts["properties"].get("steps", {}).get("properties", {}),
        "": parts["properties"].get("output", {}),
    }
    assert len(schemas) > 1 or name in ("basic", "durability", "mcp_time")
    for step, schema in schemas.items():
        value = results[step] if step else json.loads(ran.stdout)["result"]
        assert InputValidator(schema, parts.get("$defs")).check(value) is None, step


BUILTINS = """
steps:
- {id: noop, component: /builtin/noop, input: {a: [1, x]}}
- {id: sleep, component: /builtin/sleep, input: {duration_ms: 1, passthrough: {$step: noop}}}
- {id: plain, component: /builtin/sleep, input: {duration_ms: 0}}
- {id: signal, component: /builtin/wait_for_signal, input: {name: s, timeout_ms: 1}}
- {id: messages, component: /builtin/create_messages, input: {user_prompt: u, system_instructions: s}}
- {id: put, component: /builtin/put_blob, input: {data: {a: 1}, blob_type: data}}
- {id: get, component: /builtin/get_blob, input: {blob_id: {$step: put, path: blob_id}}}
- {id: load, component: /builtin/load_file, input: {path: data.json}}
- {id: flow, component: /builtin/put_blob, input: {blob_type: flow, data: {$literal: {output: {x: {$input: n}}}}}}
- {id: eval, component: /builtin/eval, input: {flow_id: {$step: flow, path: blob_id}, input: {n: 1}}}
- id: evalbad
  component: /builtin/eval
  input: {flow_id: {$step: flow, path: blob_id}, input: {$step: get, path: data}}
- id: map
  component: /builtin/map
  input: {items: [{n: 1}, {}], workflow: {$literal: {output: {x: {$input: n}}}}}
- id: iterate
  component: /builtin/iterate
  input:
    initial_input: {n: 1}
    max_iterations: 2
    flow: {$literal: {output: {next: {n: {$input: n}}}}}
- id: broken
  component: /builtin/load_file
  input: {path: missing}
  onError: {action: useDefault, defaultValue: [1]}
output:
- [{$step: noop}, {$step: sleep}, {$step: plain}, {$step: signal}, {$step: messages}, {$step: put}, {$step: get}]
- [{$step: load}, {$step: eval}, {$step: evalbad}, {$step: map}, {$step: iterate}, {$step: broken}]
- {$if: {$step: noop, path: a}, then: 1, else: {$coalesce: [{$step: signal, path: payload}, done]}}
"""
