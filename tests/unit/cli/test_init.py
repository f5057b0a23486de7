"""`stepflow init`: it writes a valid project and overwrites no file."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jsonschema_rs
import pytest

from stepflow import telemetry
from stepflow.cli.__main__ import main
from stepflow.cli.commands.init import FILES, SCHEMAS
from stepflow.flow import parse_tree

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


def test_it_writes_a_flow_a_config_and_a_component(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "hello"
    assert main(["init", str(folder)]) == 0
    assert sorted(path.name for path in folder.iterdir()) == sorted([*FILES, SCHEMAS])
    shown = capfd.readouterr()
    assert shown.out == ""
    assert f"stepflow run {folder / 'flow.yaml'} --input " in shown.err


def test_the_folder_is_the_current_one_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert (tmp_path / "flow.yaml").is_file()
    assert "stepflow run flow.yaml " in capfd.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_written_where_a_file_exists(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("mine")
    assert main(["init", str(tmp_path)]) == 2
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "mine"
    assert name in capfd.readouterr().err


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["init", str(tmp_path / "file" / "hello")]) == 1
    assert "cannot write" in capfd.readouterr().err


def test_the_new_flow_has_no_errors(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["init", str(tmp_path)])
    capfd.readouterr()
    assert main(["validate", "--json", "--flow", str(tmp_path / "flow.yaml")]) == 0
    tree = json.loads(capfd.readouterr().out)
    assert {item["kind"] for item in tree["diagnostics"]} <= {"unvalidatedFieldAccess"}


def test_the_new_components_can_be_called(tmp_path: Path) -> None:
    main(["init", str(tmp_path)])
    command = [sys.executable, str(tmp_path / "components.py"), "--call", "greet"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}  # also where the package is not installed
    done = subprocess.run(
        command, input='{"name": "Ada"}', capture_output=True, text=True, timeout=60, check=True, env=environ
    )
    assert json.loads(done.stdout) == {"text": "Hello, Ada!"}


@pytest.mark.parametrize(("name", "kind"), [("flow.yaml", "flow"), ("stepflow-config.yml", "config")])
def test_the_first_line_names_a_schema_that_the_file_fits(tmp_path: Path, name: str, kind: str) -> None:
    main(["init", str(tmp_path)])
    text = (tmp_path / name).read_text()
    assert text.splitlines()[0] == f"# yaml-language-server: $schema=.schemas/{kind}.json"

    schema = json.loads((tmp_path / ".schemas" / f"{kind}.json").read_text())
    jsonschema_rs.validate(schema, parse_tree(text, source=name, format="yaml").value)
