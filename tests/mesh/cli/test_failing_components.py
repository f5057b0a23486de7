"""A component that raises three calls deep, in each kind of server: what a user is told by every surface.

One run of a flow with a step for each kind of server, here (`stepflow run`) and in a mesh (`stepflow submit`, the API).
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, run_cli, server_venv
from support.dev import Dev, dev_mesh

from stepflow.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DEEP = ROOT / "tests" / "data" / "deep"

pytestmark = pytest.mark.timeout(300)  # the first run installs the servers


def venv(requirement: str) -> str:
    return str(server_venv([requirement], requirement.replace("==", "-")) / "python")


def plugins() -> dict[str, dict[str, Any]]:
    own = {"command": sys.executable, "env": {"PYTHONPATH": str(ROOT)}}
    return {
        "sdk_stdio": {"type": "stepflow", "transport": "stdio", "args": [f"{DEEP}/own.py"], **own},
        "sdk_http": {"type": "stepflow", "transport": "http", "args": [f"{DEEP}/own.py", "--http"], **own},
        "sdk_pull": {"type": "grpc", "queueName": "own", "args": [f"{DEEP}/own.py"], **own},
        "py_stdio": {
            "type": "stepflow",
            "transport": "stdio",
            "command": venv("stepflow-py==0.7.0"),
            "args": [f"{DEEP}/upstream.py"],
        },
        "py_pull": {
            "type": "grpc",
            "queueName": "py",
            "command": venv("stepflow-py==0.13.0"),
            "args": [f"{DEEP}/upstream.py"],
        },
        "mcp_stdio": {"type": "mcp", "command": sys.executable, "args": [f"{DEEP}/mcp_tools.py"]},
        "mcp_http": {
            "type": "mcp",
            "transport": "streamable-http",
            "command": sys.executable,
            "args": [f"{DEEP}/mcp_tools.py", "{port}"],
            "url": "http://127.0.0.1:{port}/mcp",
        },
    }


KINDS = ("sdk_stdio", "sdk_http", "sdk_pull", "py_stdio", "py_pull", "mcp_stdio", "mcp_http")

MESSAGES = {
    **dict.fromkeys(KINDS[:3], "KeyError: 'x' (lookups.py:15 in row)"),
    **dict.fromkeys(KINDS[3:5], "'x'"),
    **dict.fromkeys(KINDS[5:], "Error executing tool greet"),
}
"""The message of the failure: our SDK's ends in the innermost frame of the author's code."""

FRAMES = """\
  own.py:12 in greet
    return look_up(name)
  lookups.py:11 in look_up
    return row(name, secret)
  lookups.py:15 in row
    return TABLE[name] if secret else None
"""


@dataclass(frozen=True)
class Told:
    """What a command printed about the run of all kinds."""

    out: str
    err: str
    run_id: str


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deep")
    config = {"plugins": plugins(), "routes": {f"/{name}": [{"plugin": name}] for name in plugins()}}
    (folder / "stepflow-config.yml").write_text(json.dumps(config))
    steps = [{"id": name, "component": f"/{name}/greet", "input": {"name": "x"}} for name in KINDS]
    steps.append({"id": "after", "component": "/sdk_stdio/greet", "input": {"name": {"$step": "py_pull"}}})
    output = [{"$step": name} for name in (*KINDS, "after")]
    (folder / "flow.json").write_text(json.dumps({"name": "deep", "steps": steps, "output": output}))
    return folder


@pytest.fixture(scope="module")
def here(folder: Path) -> Told:
    """Run the flow with `stepflow run`."""
    done = run_cli(["run", "flow.json", "--input", "{}"], folder)
    assert done.returncode == 1, done.stderr
    return Told(done.stdout, done.stderr, done.stderr.split("run_id: ")[1].split()[0])


@pytest.fixture(scope="module")
def mesh(folder: Path) -> Iterator[Dev]:
    with dev_mesh(folder) as dev:
        yield dev


@pytest.fixture(scope="module")
def submitted(mesh: Dev) -> Told:
    """Run the flow with `stepflow submit`."""
    done = mesh.cli("submit", "flow.json", "--input", "{}")
    assert done.returncode == 1, done.stderr
    return Told(done.stdout, done.stderr, done.stderr.split("run_id: ")[1].split()[0])


@pytest.fixture(params=["here", "submitted"])
def told(request: pytest.FixtureRequest) -> Told:
    found: Told = request.getfixturevalue(request.param)
    return found


def lines_of(text: str) -> list[str]:
    """Return lines without what differs between runs."""
    text = re.sub(r" in [\d.]+ m?s\b", "", text)
    return re.sub(r"host [\w.-]+", "host H", text).splitlines()


def test_run_and_submit_tell_each_step_why_it_failed(told: Told) -> None:
    lines = lines_of(told.err)
    for kind in KINDS:
        assert f"failed  {kind}: COMPONENT_FAILED: {MESSAGES[kind]}" in lines
    assert "skipped after (py_pull failed)" in lines


def test_the_last_line_names_step_component_attempt_and_host(told: Told) -> None:
    assert lines_of(told.err)[-1] == (
        "COMPONENT_FAILED: KeyError: 'x' (lookups.py:15 in row); "
        "step sdk_stdio, component /sdk_stdio/greet, attempt 1, host H"
    )


def test_the_result_names_the_step_and_has_the_frames(told: Told) -> None:
    error = json.loads(told.out)["error"]
    assert (error["code"], error["message"]) == ("COMPONENT_FAILED", MESSAGES["sdk_stdio"])
    data = error["data"]
    assert (data["step"], data["component"], data["attempt"]) == ("sdk_stdio", "/sdk_stdio/greet", 1)
    assert data["host"]
    assert [(frame["file"], frame["line"], frame["function"]) for frame in data["frames"]] == [
        ("own.py", 12, "greet"),
        ("lookups.py", 11, "look_up"),
        ("lookups.py", 15, "row"),
    ]
    assert "hunter2" not in told.out


def test_the_command_for_the_trace_works_when_pasted(here: Told, submitted: Told, folder: Path) -> None:
    for told in (here, submitted):
        command = told.err.split("its trace: stepflow ")[1].splitlines()[0]
        done = run_cli(command.split(), folder)
        assert done.returncode == 0, done.stderr
        check_errors(done.stdout)


def check_errors(shown: str) -> None:
    """Check the output of `runs get --error`."""
    parts = dict(zip(KINDS, re.split(r"^step ", shown, flags=re.MULTILINE)[1:], strict=True))
    for kind, part in parts.items():
        first, where = lines_of(part)[:2]
        assert first == f"{kind}: COMPONENT_FAILED: {MESSAGES[kind]}"
        assert where == f"  component /{kind}/greet, attempt 1, host H"

    for kind in KINDS[:3]:
        assert parts[kind].endswith(FRAMES)
    for kind, title in (("py_stdio", "end of the server's stderr"), ("py_pull", "traceback of the server")):
        assert f"  {title}:\n" in parts[kind]
        assert 'lookups.py", line 15, in row' in parts[kind]
        assert parts[kind].rstrip().endswith("KeyError: 'x'")
    for kind in KINDS[5:]:
        assert "  end of the server's stderr:\n" in parts[kind]
        assert "Error executing" in parts[kind]
    assert "hunter2" not in shown


def test_the_list_of_steps_calls_what_never_ran_skipped(here: Told, submitted: Told, folder: Path, mesh: Dev) -> None:
    for done in (
        run_cli(["runs", "show", here.run_id, "--store", ".stepflow"], folder),
        mesh.cli("runs", "show", submitted.run_id),
    ):
        (after,) = [line for line in done.stdout.splitlines() if line.startswith("after ")]
        assert re.search(r"/sdk_stdio/greet +skipped \(py_pull failed\)$", after)
        assert len(re.findall(r"^\w+ +0 +/\w+/greet +failed +1 ", done.stdout, re.MULTILINE)) == len(KINDS)


def test_the_api_tells_the_same(submitted: Told, mesh: Dev) -> None:
    async def read() -> tuple[Any, Any, Any]:
        async with Client(mesh.server) as client:
            steps = {step.step_id: step async for step in client.steps(submitted.run_id)}
            events = [event async for event in client.watch(submitted.run_id)]
            (item,) = [item async for item in client.items(submitted.run_id)]
            return steps, events, item

    steps, events, item = asyncio.run(read())
    for kind in KINDS:
        step = steps[kind]
        assert (step.status, step.path, step.failure.message) == ("failed", kind, MESSAGES[kind])
        data = json.loads(step.failure.data)
        assert (data["step"], data["component"], data["attempt"]) == (kind, f"/{kind}/greet", 1)
        assert {"frames", "traceback", "stderr"} & set(data)
    assert (steps["after"].status, steps["after"].skipped_for) == ("skipped", "py_pull")
    assert json.loads(item.failure.data)["step"] == "sdk_stdio"

    kinds = {event.step_id: event.kind for event in events if event.kind in ("step_failed", "step_skipped")}
    assert kinds == {**dict.fromkeys(KINDS, "step_failed"), "after": "step_skipped"}
    (skipped,) = [event for event in events if event.kind == "step_skipped"]
    assert (skipped.message, skipped.path, skipped.failure.message) == ("py_pull", "after", MESSAGES["py_pull"])
