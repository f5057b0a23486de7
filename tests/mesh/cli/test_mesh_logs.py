"""What components print, against one real mesh: submit, runs logs, watches, `stepflow dev`, and the log of the host."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, text_of, wait_until
from support.dev import Dev, dev_mesh

from stepflow.client import Client

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepflow.client import ClientEvent

SERVER = ROOT / "tests" / "data" / "servers" / "logging_server.py"
PASSWORD, PW = "the-password-of-the-server", "hunter2-the-input"

CONFIG = """
plugins:
  mine: {{type: stepflow, transport: stdio, command: {python}, args: [{server}], env: {env}}}
routes:
  /mine: [{{plugin: mine}}]
"""

SAYS = """
name: says
steps:
  - {id: say, component: /mine/printing, input: {name: mesh}}
output: {$step: say}
"""

TOLD = """
name: told
schemas:
  properties:
    input: {type: object, properties: {pw: {type: string, is_secret: true}}}
steps:
  - {id: tell, component: /mine/told, input: {$input: $}}
output: {$step: tell}
"""

FLOOD = """
name: flood
steps:
  - {id: flood, component: /mine/flood, input: {lines: 200000}}
output: {$step: flood}
"""

GATED = """
name: gated
steps:
  - {id: wait, component: /mine/gated, input: {$input: $}}
output: {$step: wait}
"""


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Dev]:
    folder = tmp_path_factory.mktemp("mesh")
    env = json.dumps({"PYTHONPATH": str(ROOT), "SERVER_PASSWORD": PASSWORD})
    (folder / "stepflow-config.yml").write_text(CONFIG.format(python=sys.executable, server=SERVER, env=env))
    for name, text in (("says", SAYS), ("told", TOLD), ("flood", FLOOD), ("gated", GATED)):
        (folder / f"{name}.yaml").write_text(text)
    with dev_mesh(folder) as dev:
        yield dev


def submit(mesh: Dev, flow: str, value: Any = None, *more: str) -> tuple[str, str]:
    """Submit a flow; return what it told on stderr, and the id of the run."""
    done = mesh.cli("submit", "--flow", f"{flow}.yaml", "--input-json", json.dumps(value or {}), *more)
    if "--no-wait" in more:
        return done.stderr, done.stdout.strip()
    told = next(line for line in done.stderr.splitlines() if line.startswith("run_id: "))
    return done.stderr, told.removeprefix("run_id: ")


def texts(mesh: Dev, run_id: str, *more: str) -> list[str]:
    done = mesh.cli("runs", "logs", run_id, "--json", *more)
    assert done.returncode == 0, done.stderr
    return [json.loads(line)["text"] for line in done.stdout.splitlines()]


def test_submit_tells_the_lines_of_a_short_run_all_of_them(mesh: Dev) -> None:
    told, run_id = submit(mesh, "says")
    expected = ["printed mesh", "to stderr", "warned", "library: an error", "of two lines", "without an end"]
    shown = [line.removeprefix("say | ") for line in told.splitlines() if line.startswith("say | ")]
    assert [line.removeprefix("WARNING ").removeprefix("ERROR ") for line in shown] == expected
    assert texts(mesh, run_id) == expected, "the host has them still"
    assert texts(mesh, run_id, "say") == expected
    assert texts(mesh, run_id, "other") == []


def test_a_running_run_shows_what_there_is_and_is_followed_to_its_end(mesh: Dev, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    _, run_id = submit(mesh, "gated", {"gate": str(gate)}, "--no-wait")
    wait_until(lambda: texts(mesh, run_id) == ["waits for the gate"], "the line is there", 30)

    async def follow() -> list[str]:
        found: list[str] = []
        async with Client(mesh.server) as client:
            async for event in client.watch(run_id, include_logs=True):
                found += [line.text for line in event.lines]
                if found == ["waits for the gate"]:
                    gate.touch()
        return found

    assert asyncio.run(asyncio.wait_for(follow(), 60)) == ["waits for the gate", "has passed the gate"]


def test_watchers_that_ask_for_no_logs_get_none(mesh: Dev) -> None:
    _, run_id = submit(mesh, "told", {"pw": PW})
    plain, with_logs = events(mesh, run_id), events(mesh, run_id, include_logs=True)
    assert not any(event.lines for event in plain)
    assert "step_logged" not in {event.kind for event in plain}
    [failed] = [event for event in with_logs if event.kind == "step_failed"]
    assert [line.text for line in failed.lines] == [
        "the environment says [REDACTED]",
        "the input says [REDACTED]",
    ], "the journal has the last lines of a failure"


def test_secrets_are_in_no_log(mesh: Dev) -> None:
    told, run_id = submit(mesh, "told", {"pw": PW})
    assert "tell | the input says [REDACTED]" in told
    wait_until(lambda: run_id in host_log(mesh), "the host has logged the lines")
    wait_until(lambda: "mine | the input says [REDACTED]" in mesh.said, "dev has shown the lines")
    for text in (told, host_log(mesh), mesh.said, *texts(mesh, run_id)):
        assert PASSWORD not in text
        assert PW not in text


def test_the_log_of_the_host_has_the_lines_as_fields(mesh: Dev) -> None:
    _, run_id = submit(mesh, "says")
    fields = f"plugin=mine run_id={run_id} item=0 step_id=say attempt=1"
    wait_until(lambda: f"{fields} line='printed mesh'" in host_log(mesh), "the host has logged the line")


def test_a_flood_does_not_hold_up_the_result_and_its_end_is_told(mesh: Dev) -> None:
    told, run_id = submit(mesh, "flood")
    shown = [line for line in told.splitlines() if line.startswith("flood | ")]
    assert shown[-1] == "flood | line 199999"
    assert any("lines left out" in line for line in shown)
    assert len(shown) < 20_000
    assert texts(mesh, run_id)[-1] == "line 199999"


def host_log(mesh: Dev) -> str:
    return text_of(mesh.folder / ".stepflow" / "dev" / "logs" / "host-1.log")


def events(mesh: Dev, run_id: str, **options: Any) -> list[ClientEvent]:
    async def read() -> list[ClientEvent]:
        async with Client(mesh.server) as client:
            return [event async for event in client.watch(run_id, **options)]

    return asyncio.run(asyncio.wait_for(read(), 60))
