"""`--env-file`: what comes from the file, what wins over it, and errors that show no value."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from stepflow import telemetry
from stepflow.cli.__main__ import main
from stepflow.cli.console import Usage
from stepflow.cli.env_file import apply_env_file

if TYPE_CHECKING:
    from collections.abc import Iterator

FLOW = """
name: n
description: d
schemas:
  type: object
  properties:
    variables:
      type: object
      properties: {token: {type: string, is_secret: true, env_var: ENV_FILE_TOKEN}}
output: {$variable: token}
"""


@pytest.fixture(autouse=True)
def same_environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def applied(folder: Path, text: str | bytes, **environ: str) -> dict[str, str]:
    path = folder / "some.env"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    apply_env_file(path, environ)
    return environ


def test_the_values_of_the_file_are_added_and_the_real_environment_wins(tmp_path: Path) -> None:
    text = "# comment\nexport A=1\nB='two words'\nC=\"x\\ny\"\nD=\nE=file\nF=file\nG\n"
    assert applied(tmp_path, text, E="real", F="") == {
        "A": "1",
        "B": "two words",
        "C": "x\ny",
        "D": "",
        "E": "real",
        "F": "",
    }


def test_a_value_may_refer_to_the_environment_and_to_lines_above(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENV_FILE_HOST", "real")
    text = "ENV_FILE_HOST=file\nPORT=80\nURL=http://${ENV_FILE_HOST}:${PORT}/${NONE:-x}\n"
    assert applied(tmp_path, text)["URL"] == "http://real:80/x"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("A=1\n\n# c\nsecret words here\n", 4),
        ("A=1\nB='secret\nC=2\n", 2),
        ("A=1\nB=secret\0\n", 2),
        (b"A=1\nB=secret\xff\n", 2),
    ],
    ids=["no name", "open quote", "nul", "not UTF-8"],
)
def test_an_error_names_file_and_line_and_quotes_nothing(text: str | bytes, line: int, tmp_path: Path) -> None:
    with pytest.raises(Usage) as raised:
        applied(tmp_path, text)
    assert raised.value.message.startswith(f"{tmp_path}/some.env:{line}: ")
    assert "secret" not in raised.value.message


def test_a_missing_file_is_a_wrong_command_line(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.env")
    for command in (["run", "f.yaml"], ["submit", "f.yaml"], ["dev"], ["test"], ["call", "/a/b"]):
        assert main([*command, "--env-file", missing]) == 2
        assert "missing.env" in capfd.readouterr().err


def test_values_of_the_file_are_hidden_in_texts(tmp_path: Path) -> None:
    applied(tmp_path, "TOKEN=of-the-env-file-1234\n")
    assert telemetry.without_hidden("it is of-the-env-file-1234") == "it is [REDACTED]"


def test_run_takes_variables_from_the_file(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("flow.yaml").write_text(FLOW)
    Path(".env").write_text("ENV_FILE_TOKEN=from-file\n")
    command = ["run", "flow.yaml", "--env-variables", "--env-file", ".env", "-q"]
    assert main(command) == 0
    assert json.loads(capfd.readouterr().out)["result"] == "from-file"

    monkeypatch.setenv("ENV_FILE_TOKEN", "real")
    assert main(command) == 0
    assert json.loads(capfd.readouterr().out)["result"] == "real"
