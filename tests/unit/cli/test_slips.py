"""The table of slips: for each, the exact text that is shown, and the corrected file, which passes.

Folder `file` holds what `validate` finds by the files alone; `components` what needs components and values.
"""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.slips import COMPONENTS, SLIPS, Slip, options, slips_of, write

from stepflow import telemetry
from stepflow.cli.__main__ import main

OF_FILES = slips_of(SLIPS / "file")
OF_COMPONENTS = slips_of(COMPONENTS)
PASSED = "✅ Validation passed with no errors\n"
REFUSED = "the flow was not run; correct the errors listed above\n"


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


@pytest.mark.parametrize("slip", OF_FILES, ids=lambda slip: slip.name)
def test_a_slip_is_named_and_its_correction_passes(
    slip: Slip, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write(slip.wrong)
    status = main(["validate", "--flow", slip.flow])
    assert capfd.readouterr().err == slip.shown
    assert status == slip.exit_code

    write(slip.corrected)
    assert main(["validate", "--flow", slip.flow]) == 0
    assert capfd.readouterr().err == PASSED


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with the configuration of the slips of components."""
    config = (COMPONENTS / "stepflow-config.yml").read_text("utf-8")
    (tmp_path / "stepflow-config.yml").write_text(config.replace("command: python", f"command: {sys.executable}"))
    shutil.copy(COMPONENTS / "components.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("STEPFLOW_SERVER", raising=False)
    return tmp_path


@pytest.mark.parametrize("slip", OF_COMPONENTS, ids=lambda slip: slip.name)
def test_a_slip_is_named_before_a_component_is_called_and_its_correction_runs(
    slip: Slip, shop: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    # 1. `validate` shows it, unless it is in the values.
    write(slip.wrong)
    if slip.variables is None:
        status = main(["validate", "--flow", slip.flow, *servers(slip)])
        assert (capfd.readouterr().err, status) == (slip.shown, slip.exit_code)

    # 2. `run` refuses errors with the same text, calls no component and stores nothing.
    status = main(["run", "--flow", slip.flow, *options(slip.variables)])
    shown = capfd.readouterr().err
    if slip.exit_code:
        code = "error[VARIABLES_INVALID]: " if slip.exit_code == 2 else "error[FLOW_INVALID]: "
        expected = slip.shown if slip.variables is not None else slip.shown + code + REFUSED
        assert (shown, status) == (expected, slip.exit_code)
        assert not (shop / "called").exists()
        assert not list(shop.glob(".stepflow/runs/*"))
    else:
        first, *_ = shown.splitlines()
        assert first.removeprefix("warning: ") in slip.shown.replace("  WARNING ", "")

    # 3. The corrected flow passes and runs.
    write(slip.corrected)
    assert main(["validate", "--flow", slip.flow, *servers(slip)]) == 0
    assert capfd.readouterr().err == PASSED
    assert main(["run", "--flow", slip.flow, "--quiet", *options(slip.corrected_variables)]) == 0


def servers(slip: Slip) -> list[str]:
    """Return the option that a slip with components of a server needs."""
    return ["--servers"] if "/mine/" in slip.wrong[slip.flow] else []


def test_the_table_has_a_hundred_slips() -> None:
    assert len(OF_FILES) >= 60
    assert len(OF_COMPONENTS) >= 50
