"""The table of slips, `tests/data/slips`: reading its files."""

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from support import ROOT

SLIPS = ROOT / "tests" / "data" / "slips"
COMPONENTS = SLIPS / "components"

_SECTION = re.compile(r"^--- (.*)\n", re.MULTILINE)


@dataclass(slots=True)
class Slip:
    """Files with a slip, the text that is shown for them, and the corrected files."""

    name: str
    wrong: dict[str, str] = field(default_factory=dict)
    corrected: dict[str, str] = field(default_factory=dict)
    exit_code: int = 0
    shown: str = ""
    variables: dict[str, Any] | None = None
    """The values given to a run, None if none is needed."""
    corrected_variables: dict[str, Any] | None = None

    @property
    def flow(self) -> str:
        return next(name for name in self.wrong if name.startswith("flow."))


def read_slip(path: Path) -> Slip:
    slip = Slip(path.stem)
    _, *parts = _SECTION.split(path.read_text("utf-8"))
    for head, text in zip(parts[::2], parts[1::2], strict=True):
        match head.split():
            case ["wrong", name]:
                slip.wrong[name] = text
            case ["corrected", "variables"]:
                slip.corrected_variables = json.loads(text)
            case ["corrected", name]:
                slip.corrected[name] = text
            case ["variables"]:
                slip.variables = json.loads(text)
            case ["shown,", "exit", "code", code]:
                slip.exit_code, slip.shown = int(code), text
            case _:
                raise AssertionError(f"{path}: section {head!r}")
    return slip


def slips_of(folder: Path) -> list[Slip]:
    return [read_slip(path) for path in sorted(folder.glob("*.slip"))]


def write(files: dict[str, str]) -> None:
    """Write files into the current folder."""
    for name, text in files.items():
        Path(name).write_text(text, "utf-8")


def options(variables: dict[str, Any] | None) -> list[str]:
    """Return the options of a command for the values of a slip."""
    return ["--variables-json", json.dumps(variables)] if variables else []
