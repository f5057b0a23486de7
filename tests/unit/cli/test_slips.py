"""The table of slips: for each, the exact text that `validate` shows, and the corrected file, which passes.

A slip is a file of `tests/data/slips`: the wrong files, the text on stderr, the corrected files. Folder `file` holds
what `validate` finds by the files alone; each other folder is for slips that need more, such as lists of components.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

from stepflow import telemetry
from stepflow.cli.__main__ import main

SLIPS = sorted((ROOT / "tests" / "data" / "slips" / "file").glob("*.slip"))
SECTION = re.compile(r"^--- (wrong|shown|corrected),? ?(.*)\n", re.MULTILINE)


@pytest.fixture(autouse=True)
def default_logging() -> Iterator[None]:
    yield
    telemetry.configure()


def sections(slip: Path) -> list[tuple[str, str, str]]:
    """Return the kind, the file or exit code, and the text of each section."""
    _, *parts = SECTION.split(slip.read_text("utf-8"))
    return list(zip(parts[::3], parts[1::3], parts[2::3], strict=True))


@pytest.mark.parametrize("slip", SLIPS, ids=lambda slip: slip.stem)
def test_a_slip_is_named_and_its_correction_passes(
    slip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    found = sections(slip)
    for kind, name, text in found:
        if kind == "wrong":
            Path(name).write_text(text, "utf-8")
    flow = next(name for _, name, _ in found if name.startswith("flow."))

    status = main(["validate", "--flow", flow])
    shown = next(section for section in found if section[0] == "shown")
    assert capfd.readouterr().err == shown[2]
    assert f"exit code {status}" == shown[1]

    for kind, name, text in found:
        if kind == "corrected":
            Path(name).write_text(text, "utf-8")
    assert main(["validate", "--flow", flow]) == 0
    assert capfd.readouterr().err == "✅ Validation passed with no errors\n"


def test_the_table_has_sixty_slips() -> None:
    assert len(SLIPS) >= 60
