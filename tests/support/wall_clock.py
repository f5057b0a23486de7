"""A wall clock that a test can set while a process runs: `tests/data/clocks/sitecustomize.py` reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from . import ROOT

if TYPE_CHECKING:
    from pathlib import Path

HOUR_MS = 3_600_000


class WallClock:
    """The wall clock of the processes that are started with `env`."""

    def __init__(self, folder: Path, name: str = "clock", *, ahead_ms: int = 0) -> None:
        self._file = folder / name
        self.env = {"WALL_CLOCK_FILE": str(self._file), "PYTHONPATH": f"{ROOT / 'tests/data/clocks'}:{ROOT}"}
        self.set(ahead_ms)

    def set(self, ahead_ms: int) -> None:
        """Set the clock ahead of this machine's, or back with a negative number."""
        new = self._file.with_suffix(".new")
        new.write_text(str(ahead_ms), encoding="ascii")
        new.replace(self._file)


__all__ = ["HOUR_MS", "WallClock"]
