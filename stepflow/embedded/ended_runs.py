"""What lists show of ended runs, kept in `<folder>/ended`: a listing opens only the databases of other runs.

- A line per run: its id, the identity of its database, and the view as JSON. Lines are appended; once most of them are
  of deleted runs, the file is rewritten.
- A line counts only while the database is the same file, unchanged.
- The file may be deleted at any time, and may miss runs. A line that cannot be read is ignored.
"""

from __future__ import annotations

import os
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from control_plane.views import RunView

if TYPE_CHECKING:
    from pathlib import Path

STALE_LINES = 1_000
"""Lines of deleted runs that stay, beyond as many as there are runs."""

_RUN_ID_BYTES = 36


class EndedRuns:
    """The file, read once. `save` adds what was found since."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "ended"
        self._lines: dict[bytes, bytes] = {}
        """By run id: the rest of its newest line."""
        self._count = 0
        self._added: list[bytes] = []
        with suppress(OSError):
            for line in self._path.read_bytes().splitlines():
                self._lines[line[:_RUN_ID_BYTES]] = line[_RUN_ID_BYTES:]
                self._count += 1

    def find(self, run_id: str, database: Path) -> RunView | None:
        """Return the view of an ended run; None if it is not known of this database."""
        line = self._lines.get(run_id.encode())
        if line is None:
            return None
        with suppress(OSError, msgspec.MsgspecError):
            identity, view = msgspec.json.decode(line, type=tuple[list[int], RunView])
            if identity == _identity(database) and view.run_id == run_id:
                return view
        return None

    def add(self, database: Path, view: RunView) -> None:
        """Note the view of an ended run."""
        with suppress(OSError):
            line = msgspec.json.encode((_identity(database), view))
            self._lines[view.run_id.encode()] = line
            self._added.append(view.run_id.encode() + line)

    def save(self, run_ids: list[str]) -> None:
        """Write what was added, as far as possible. `run_ids`: all runs of the folder."""
        if not self._added:
            return
        with suppress(OSError):  # a list is shown all the same
            if self._count + len(self._added) > 2 * len(run_ids) + STALE_LINES:
                known = [run_id.encode() for run_id in run_ids]
                self._rewrite([run_id + self._lines[run_id] for run_id in known if run_id in self._lines])
            else:
                _write(self._path, self._added, os.O_APPEND)
        self._added = []

    def _rewrite(self, lines: list[bytes]) -> None:
        draft = self._path.with_suffix(f".{os.getpid()}")
        _write(draft, lines, os.O_TRUNC)
        draft.replace(self._path)


def _write(path: Path, lines: list[bytes], flag: int) -> None:
    """Write lines with a single request, so that those of two processes do not mix."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | flag, 0o600)
    try:
        os.write(file, b"".join(line + b"\n" for line in lines))
    finally:
        os.close(file)


def _identity(database: Path) -> list[int]:
    """Return what changes with the content of a file. Raises: OSError."""
    found = database.stat()
    return [found.st_ino, found.st_size, found.st_mtime_ns]


__all__ = ["EndedRuns"]
