"""`stepflow schema`: JSON Schemas on stdout or in a file, the same as in the documentation."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from stepflow import telemetry
from stepflow.cli.__main__ import main


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


@pytest.mark.parametrize("kind", ["flow", "config"])
def test_the_documentation_has_the_schema_that_is_printed(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", kind]) == 0
    printed = capfd.readouterr().out
    assert json.loads(printed)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    written = (ROOT / "docs" / "reference" / "schemas" / f"{kind}.json").read_text("utf-8")
    assert printed == written, f"run: stepflow schema {kind} -o docs/reference/schemas/{kind}.json"


def test_a_schema_is_written_to_a_file(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "flow", "-o", str(tmp_path / "flow.json")]) == 0
    assert json.loads((tmp_path / "flow.json").read_text())["title"] == "StepFlow flow"
    assert capfd.readouterr().out == ""


def test_an_unknown_kind_is_refused_with_the_closest_one(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "flows"]) == 2
    assert "did you mean `flow`?" in capfd.readouterr().err


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["schema", "flow", "-o", str(tmp_path / "no" / "flow.json")]) == 1
    assert "cannot write to" in capfd.readouterr().err
