"""The target of a command: one rule, told to a terminal, and the other places that have runs."""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stepflow.cli import remote, target
from stepflow.cli.__main__ import main
from stepflow.cli.app import run_command_line
from stepflow.cli.console import Usage
from stepflow.cli.options import DEFAULT_SERVER
from stepflow.cli.target import (
    choose_folder,
    choose_mesh,
    choose_target,
    folder_option,
    known_mesh,
    mesh_option,
    other_targets,
)
from stepflow.dev.folder import DevFolder, live_server
from stepflow.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Iterator

HERE = Path(".stepflow")
DEV = "localhost:7999"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEPFLOW_SERVER", raising=False)
    monkeypatch.delenv("STEPFLOW_STORE", raising=False)
    return tmp_path


@pytest.fixture
def dev() -> Iterator[DevFolder]:
    """Hold the folder of a mesh as `stepflow dev` does."""
    folder = DevFolder(HERE / "dev")
    folder.own(DEV)
    yield folder
    folder.release()


def place(server: str | None = None, store: Path | None = None) -> str | Path | None:
    found = choose_target(server, store)
    return found.server or found.folder


def test_the_rule_goes_from_the_option_to_the_usual_folder(dev: DevFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() == DEV
    monkeypatch.setenv("STEPFLOW_STORE", "elsewhere")
    assert place() == Path("elsewhere")
    monkeypatch.setenv("STEPFLOW_SERVER", "mesh:1")
    assert place() == "mesh:1"
    assert place("mesh:2") == "mesh:2"
    assert place(store=Path("here")) == Path("here")
    assert place("mesh:1", Path("here")) == Path("here"), "the parser fills the server of the environment in"

    monkeypatch.delenv("STEPFLOW_SERVER")
    monkeypatch.delenv("STEPFLOW_STORE")
    dev.release()
    assert place() == HERE


def test_two_targets_are_a_usage_error() -> None:
    with pytest.raises(Usage, match="--server and --store exclude each other"):
        choose_target("mesh:1", Path("here"))


def test_a_command_for_a_mesh_passes_over_folders(dev: DevFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPFLOW_STORE", "elsewhere")
    assert choose_mesh() == known_mesh() == DEV
    dev.release()
    assert choose_mesh() == DEFAULT_SERVER
    assert known_mesh() is None


@pytest.mark.parametrize(
    "command",
    [
        ("cluster", "status"),
        ("cluster", "drain", "host-1"),
        ("components", "list"),
        ("components", "restart", "hello"),
        ("flows", "list"),
        ("runs", "cancel", "last"),
    ],
    ids=" ".join,
)
def test_commands_ask_the_live_mesh_of_this_folder(
    dev: DevFolder, monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...]
) -> None:
    asked: list[str | None] = []

    def ask(server: str | None, work: object) -> None:
        del work
        asked.append(server)
        raise NotFound("RUN_NOT_FOUND", "nothing is here")

    monkeypatch.setattr(remote, "ask", ask)
    run_command_line(command)
    assert asked == [DEV]
    assert dev.path.exists()


def test_a_command_for_a_folder_passes_over_meshes(dev: DevFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPFLOW_SERVER", "mesh:1")
    assert choose_folder() == HERE
    monkeypatch.setenv("STEPFLOW_STORE", "elsewhere")
    assert choose_folder() == Path("elsewhere")
    assert choose_folder(Path("here")) == Path("here")
    assert dev.path.exists()


def test_a_mesh_is_live_only_while_its_process_holds_the_folder(dev: DevFolder) -> None:
    assert live_server(dev.path) == DEV
    dev.release()
    assert live_server(dev.path) is None
    (dev.path / "lock").write_text('{"pid": "x"}')
    assert live_server(dev.path) is None
    (dev.path / "lock").write_text("{")
    assert live_server(dev.path) is None
    assert live_server(dev.path / "missing") is None


def test_suggested_commands_name_a_target_only_where_they_must(
    dev: DevFolder, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    assert mesh_option(DEV) == ""
    assert mesh_option("mesh:1") == " --server mesh:1"
    assert folder_option(folder / HERE) == ""
    assert folder_option(Path("/a b")) == " --store '/a b'"
    monkeypatch.setenv("STEPFLOW_STORE", "elsewhere")
    assert folder_option(HERE) == " --store .stepflow"
    assert folder_option(folder / "elsewhere") == ""
    assert dev.path.exists()


def test_a_terminal_is_told_a_target_that_it_did_not_name(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    choose_target()
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setenv("NO_COLOR", "1")
    choose_target()
    assert capsys.readouterr().err == "target: .stepflow (the default)\n"
    choose_folder()
    choose_target("mesh:1")
    choose_target(quiet=True)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("STEPFLOW_SERVER", "mesh:1")
    choose_mesh()
    assert capsys.readouterr().err == "target: the mesh at mesh:1 (STEPFLOW_SERVER)\n"


def test_other_places_are_meshes_that_answer_and_folders(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        monkeypatch.setattr(target, "DEFAULT_SERVER", address)
        assert [str(each) for each in other_targets(choose_target())] == [f"the mesh at {address}"]
        assert [str(each) for each in other_targets(choose_target(address))] == [".stepflow"]
    assert list(other_targets(choose_target())) == []


def test_an_empty_list_names_the_other_place_that_has_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(target, "DEFAULT_SERVER", "127.0.0.1:1")
    (folder / "flow.yaml").write_text("output: 1\n")
    assert main(["run", "flow.yaml", "-q"]) == 0
    capfd.readouterr()
    assert main(["runs", "list", "--store", "elsewhere"]) == 0
    assert capfd.readouterr().err == (
        "no runs in elsewhere\n.stepflow has runs: stepflow runs list --store .stepflow\n"
    )
    assert main(["runs", "list", "--status", "failed"]) == 0
    assert capfd.readouterr().err == "no failed runs in .stepflow\n"
    assert not Path("elsewhere").exists()
