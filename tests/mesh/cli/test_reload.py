"""`stepflow dev --reload` and `stepflow components restart`: a running mesh takes over changed files."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until
from support.dev import Dev, dev_mesh, running

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

WAIT_S = 40.0

SERVER = """
import time
from pathlib import Path
from stepflow.component import component, serve
import version

@component
def tell(input: dict) -> str:
    return version.VERSION

@component
def gated(input: dict) -> str:
    Path("begun").touch()
    while not Path("gate").exists():
        time.sleep(0.02)
    return version.VERSION

serve()
"""
OTHER = """
import os
from stepflow.component import component, serve

@component
def tell(input: dict) -> str:
    return os.environ["MARK"]

serve()
"""
CONFIG = """
plugins:
  builtin: {type: builtin}
  own: {type: stepflow, command: python, args: [server.py]}
routes:
  /own: [{plugin: own}]
  /builtin: [{plugin: builtin}]
"""
CONFIG_OTHER = """
plugins:
  builtin: {type: builtin}
  own: {type: stepflow, command: python, args: [server.py]}
  other: {type: stepflow, command: python, args: [other.py], env: {MARK: %s}}
routes:
  /own: [{plugin: own}]
  /other: [{plugin: other}]
  /builtin: [{plugin: builtin}]
"""


class Project:
    """The folder of a mesh. Each change is awaited by what the mesh says about it."""

    def __init__(self, dev: Dev) -> None:
        self.dev = dev
        self.folder = dev.folder

    def write(self, name: str, text: str, *said: str) -> str:
        """Change a file as editors do, and return what the mesh says, once it says all of these."""
        before = len(self.dev.said)
        beside = self.folder / f".{name}.new"
        beside.write_text(text)
        beside.replace(self.folder / name)

        def news() -> str:
            return self.dev.said[before:]

        wait_until(lambda: all(each in news() for each in said), f"it says {said}", WAIT_S)
        return news()

    def result(self, component: str) -> Any:
        """Run one component in the mesh and return the result."""
        (self.folder / "one.yaml").write_text(
            f"steps: [{{id: a, component: {component}, input: {{}}}}]\noutput: {{$step: a}}\n"
        )
        done = self.dev.cli("submit", "one.yaml", "--input", "{}", "--no-check")
        outcome = json.loads(done.stdout)
        return outcome.get("result", outcome.get("error", {}).get("message"))

    def restarts(self, plugin: str) -> list[int]:
        return [each["restarts"] for each in self.dev.json("components", "list")["plugins"] if each["plugin"] == plugin]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    folder: Path = tmp_path_factory.mktemp("reload")
    (folder / "server.py").write_text(SERVER)
    (folder / "other.py").write_text(OTHER)
    (folder / "version.py").write_text("VERSION = 'first'\n")
    (folder / "stepflow-config.yml").write_text(CONFIG)
    with dev_mesh(folder, "--reload", "--hosts", "2") as dev:
        dev.wait_for("watching stepflow-config.yml, the files of own", WAIT_S)
        yield Project(dev)


def test_a_changed_file_restarts_its_plugin_while_a_run_goes_on(project: Project) -> None:
    (project.folder / "two.yaml").write_text(
        "steps:\n  - {id: a, component: /own/gated, input: {}}\n"
        "  - {id: b, component: /own/tell, input: {after: {$step: a}}}\n"
        "output: [{$step: a}, {$step: b}]\n"
    )
    before = project.result("/own/tell")
    with running(project.dev, "submit", "--flow", "two.yaml", "--input-json", "{}") as command:
        wait_until((project.folder / "begun").exists, "the call is in flight", WAIT_S)
        said = project.write("version.py", "VERSION = 'second'\n", ") restarted\n", "ends after its 1 call\n")
        assert "version.py changed: restarting own" in said
        assert project.result("/own/tell") == "second", "the new server serves although a call is in the former one"

        (project.folder / "gate").touch()
        assert command.wait(WAIT_S) == 0
        assert command.process.stdout is not None
        assert json.loads(command.process.stdout.read())["result"] == [before, "second"]


def test_a_syntax_error_leaves_the_former_server_serving_and_says_so(project: Project) -> None:
    project.write("version.py", "VERSION = 'good'\n", "own restarted")
    said = project.write("version.py", "VERSION = 'bad\n", "the former server serves on")
    assert "SyntaxError" in said
    assert "version.py" in said
    assert project.result("/own/tell") == "good"
    assert project.dev.cli("components", "restart", "own").returncode == 1
    project.write("version.py", "VERSION = 'better'\n", "own restarted")
    assert project.result("/own/tell") == "better"


def test_a_broken_configuration_leaves_the_former_one_in_force_and_names_the_line(project: Project) -> None:
    said = project.write("stepflow-config.yml", CONFIG.replace("command: python", "comand: python"), "stays in force")
    assert "stepflow-config.yml:4:" in said
    project.write("stepflow-config.yml", CONFIG, "nothing to apply")
    assert isinstance(project.result("/own/tell"), str)


def test_plugins_and_routes_of_a_changed_configuration_come_change_and_go(project: Project) -> None:
    own = project.restarts("own")
    project.write("stepflow-config.yml", CONFIG_OTHER % "one", "route /other added", "other added")
    assert project.result("/other/tell") == "one"
    project.write("stepflow-config.yml", CONFIG_OTHER % "two", "plugin other", "other restarted")
    assert project.result("/other/tell") == "two"

    kept = project.write("stepflow-config.yml", CONFIG_OTHER % "$NOT_THERE", "other not restarted")
    assert "environment variable `NOT_THERE` is not set" in kept
    assert project.result("/other/tell") == "two"

    text = (CONFIG_OTHER % "two").replace("  /other:", "  /renamed:") + "retry: {transportMaxRetries: 1}\n"
    project.write(
        "stepflow-config.yml", text, "route /renamed added", "route /other removed", "retries", "control_plane is back"
    )
    assert project.result("/renamed/tell") == "two"
    assert project.result("/other/tell") == "error routing component"

    project.write("stepflow-config.yml", CONFIG, "route /renamed removed", "other removed")
    assert project.restarts("other") == []
    assert project.restarts("own") == own, "a plugin that does not differ is left alone"


def test_a_restart_by_hand_tells_what_each_host_did(project: Project) -> None:
    before = project.restarts("own")
    done = project.dev.json("components", "restart", "own")
    assert [host["outcome"] for host in done["hosts"]] == ["restarted", "restarted"]
    assert project.restarts("own") == [count + 1 for count in before]

    host = done["hosts"][0]["host"]
    one = project.dev.cli("components", "restart", "own", "--host", host[:8])
    assert (one.returncode, one.stdout) == (0, f"{host}: restarted\n")

    both = project.dev.cli("components", "restart", "own", "--host", "host-")
    assert "error[ID_AMBIGUOUS]" in both.stderr

    builtin = project.dev.cli("components", "restart", "builtin")
    assert builtin.returncode == 1
    assert "nothing to restart: builtin components are part of the host" in builtin.stdout
    unknown = project.dev.cli("components", "restart", "nope")
    assert unknown.returncode == 2
    assert "error[PLUGIN_UNKNOWN]: no plugin 'nope': the live hosts have builtin, own" in unknown.stderr
