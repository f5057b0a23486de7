"""The index of a folder of runs (`<folder>/index.db`): lists and retention read it instead of the databases.

- A hint. The databases in `runs/` are the truth; the file may be deleted at any time, and is made again from the names.
- A row per run. `status` is NULL until the run is known to have ended; from then on the row holds what lists show. Such
  a row counts only while the database is the same file, unchanged (`FileMark`).
- `names_at_ns` is the modification time of `runs/` at which every run has a row. At another time the names are read
  again: a command of a version without the index, or a person, has added or removed files.
- The row of a run is written before its database, so commands of this version keep `names_at_ns` (`own_changes`).
- The shared blobs that the request of an ended run refers to are noted with it, for their removal.

Limit: a change of `runs/` by others within the milliseconds of an own change is noticed with their next change.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from stepflow.embedded.index_file import UNKNOWN_NS, IndexFile
from stepflow.ids import END_CHARS_MIN

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from control_plane.view_records import RunView

PAGE_ROWS = 200
"""Rows read at once. No transaction stays open between pages."""

_COUNT_NAMED = """
SELECT count(*) FROM runs WHERE run_id >= ? AND run_id < ? OR substr(run_id, -length(?)) = ?"""
_NEWEST_NAMED = """
SELECT run_id FROM runs WHERE run_id >= ? AND run_id < ? OR substr(run_id, -length(?)) = ?
ORDER BY run_id DESC LIMIT ?"""

_NOTE = """
INSERT INTO runs (run_id, status, ended_at_ms, size_bytes, mark, view) VALUES (?, ?, ?, ?, ?, ?)
ON CONFLICT (run_id) DO UPDATE SET status = excluded.status, ended_at_ms = excluded.ended_at_ms,
    size_bytes = excluded.size_bytes, mark = excluded.mark, view = excluded.view
"""


class FileMark(NamedTuple):
    """What changes with the content of a file."""

    inode: int
    size_bytes: int
    modified_at_ns: int

    @classmethod
    def of(cls, path: Path) -> FileMark | None:
        """Return the mark of a file; None if it cannot be read."""
        try:
            found = path.stat()
        except OSError:
            return None
        return cls(found.st_ino, found.st_size, found.st_mtime_ns)

    def __str__(self) -> str:
        return f"{self.inode} {self.size_bytes} {self.modified_at_ns}"


@dataclass(frozen=True, slots=True)
class IndexedRun:
    """A row. `mark` and `view` are None until the run is known to have ended."""

    run_id: str
    mark: str | None
    view: str | None

    def ended_view(self, database: Path) -> RunView | None:
        """Return the view of an ended run; None if it is not known of this database."""
        if self.view is None or str(FileMark.of(database)) != self.mark:
            return None

        import msgspec

        from control_plane.view_records import RunView

        with contextlib.suppress(msgspec.MsgspecError):
            view = msgspec.json.decode(self.view, type=RunView)
            if view.run_id == self.run_id:
                return view
        return None


class EndedRow(NamedTuple):
    """A run that has ended, for retention."""

    run_id: str
    ended_at_ms: int
    size_bytes: int
    mark: str


class FolderIndex:
    """The open index of a folder. Its methods raise nothing, but for `names` of `sync`."""

    def __init__(self, folder: Path) -> None:
        self._runs = folder / "runs"
        self._blobs = folder / "blobs"
        self._file = IndexFile(folder / "index.db", UNKNOWN_NS if self._runs.exists() else 0)

    def close(self) -> None:
        self._file.close()

    # Names.

    def sync(self, names: Callable[[], Collection[str]]) -> None:
        """Give every run a row, and no other: if `runs/` has changed, from `names()`, the ids of all runs.

        A run that was removed in part keeps its row: retention removes the rest.
        """
        changed_at_ns = _changed_at_ns(self._runs)  # before the names: a later change is found by the next call
        if changed_at_ns == self._file.read(_names_at_ns):
            return
        present = set(names())

        def has_rest(run_id: str) -> bool:
            return (self._runs / f"{run_id}.db.lock").exists() or (self._blobs / run_id).exists()

        def reconcile(db: sqlite3.Connection) -> None:
            known = {run_id for (run_id,) in db.execute("SELECT run_id FROM runs")}
            db.executemany("INSERT OR IGNORE INTO runs (run_id) VALUES (?)", [(name,) for name in present - known])
            gone = [(run_id,) for run_id in known - present if not has_rest(run_id)]
            db.executemany("DELETE FROM runs WHERE run_id = ?", gone)
            db.execute("UPDATE folder SET names_at_ns = ?", (changed_at_ns,))

        self._file.write(reconcile)

    @contextlib.contextmanager
    def own_changes(self) -> Iterator[None]:
        """Keep the index complete over changes of `runs/` in this block, whose runs have rows already."""
        was_complete = _changed_at_ns(self._runs) == self._file.read(_names_at_ns)
        try:
            yield
        finally:
            if was_complete:
                changed_at_ns = _changed_at_ns(self._runs)
                self._file.write(lambda db: db.execute("UPDATE folder SET names_at_ns = ?", (changed_at_ns,)))

    # Rows.

    def add(self, run_id: str) -> None:
        """Add a run that begins."""
        self._file.write(lambda db: db.execute("INSERT OR IGNORE INTO runs (run_id) VALUES (?)", (run_id,)))

    def note_ended(self, database: Path, view: RunView, size_bytes: int, mentions: Collection[str] = ()) -> None:
        """Note how a run ended, once its database is closed.

        `size_bytes`: of all its files. `mentions`: the shared blobs that its request refers to.
        """
        import msgspec

        mark = FileMark.of(database)
        if mark is None:
            return
        text = msgspec.json.encode(view).decode()
        row = (view.run_id, view.status, view.completed_at_ms or 0, size_bytes, str(mark), text)

        def note(db: sqlite3.Connection) -> None:
            db.execute(_NOTE, row)
            pairs = [(view.run_id, blob) for blob in mentions]
            db.executemany("INSERT OR IGNORE INTO mentions (run_id, blob) VALUES (?, ?)", pairs)

        self._file.write(note)

    def note_checked(self, run_id: str, at_s: int) -> None:
        """Note that a run was looked at and has not ended, or cannot be read."""
        statement = (
            "UPDATE runs SET status = NULL, ended_at_ms = NULL, size_bytes = 0, mark = NULL, view = NULL, "
            "checked_at_s = ? WHERE run_id = ?"
        )
        self._file.write(lambda db: db.execute(statement, (at_s, run_id)))

    def remove(self, run_id: str) -> None:
        """Remove the row of a run whose files are gone."""
        self._file.write(lambda db: db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,)))

    # Reads.

    def newest(self, statuses: Collection[str] = ()) -> Iterator[IndexedRun]:
        """Yield the runs, the newest first. With statuses: ended runs of these, and all not known to have ended."""
        before = "~"
        while page := self._file.read(partial(_page, before=before, statuses=statuses)):
            yield from page
            before = page[-1].run_id

    def named(self, text: str, limit: int) -> tuple[int, list[str]]:
        """Return the number of runs whose ids begin or end with a text (`ids.is_named`), and the newest of them."""
        end = text if len(text) >= END_CHARS_MIN else "~"  # no id ends with this
        values = (text, f"{text}~", end, end)

        def search(db: sqlite3.Connection) -> tuple[int, list[str]]:
            ((count,),) = db.execute(_COUNT_NAMED, values)
            return count, [run_id for (run_id,) in db.execute(_NEWEST_NAMED, (*values, limit))]

        return self._file.read(search)

    def unchecked(self, before_s: int, limit: int) -> list[str]:
        """Return runs not known to have ended that were last looked at before `before_s`, the longest ago first."""
        statement = (
            "SELECT run_id FROM runs WHERE status IS NULL AND checked_at_s < ? ORDER BY checked_at_s, run_id LIMIT ?"
        )
        return [run_id for (run_id,) in self._file.read(lambda db: db.execute(statement, (before_s, limit)).fetchall())]

    def longest_ended(self, before_ms: int, limit: int) -> list[EndedRow]:
        """Return the runs that ended before `before_ms`, the longest ago first."""
        statement = (
            "SELECT run_id, ended_at_ms, size_bytes, mark FROM runs "
            "WHERE status IS NOT NULL AND ended_at_ms < ? ORDER BY ended_at_ms LIMIT ?"
        )
        return [
            EndedRow(*row) for row in self._file.read(lambda db: db.execute(statement, (before_ms, limit)).fetchall())
        ]

    def ended_bytes(self) -> int:
        """Return the size of all ended runs in bytes."""
        return int(self._file.read(lambda db: db.execute("SELECT ended_bytes FROM folder").fetchone()[0]))

    def is_mentioned(self, blob: str) -> bool:
        """Return True if the request of an ended run refers to a shared blob."""
        statement = "SELECT EXISTS (SELECT 1 FROM mentions WHERE blob = ?)"
        return bool(self._file.read(lambda db: db.execute(statement, (blob,)).fetchone()[0]))

    def is_due(self, what: str, every_s: int, now_s: int) -> bool:
        """Return True at most once in `every_s`, in all processes together."""
        found: list[bool] = []

        def claim(db: sqlite3.Connection) -> None:
            last = db.execute("SELECT at_s FROM done WHERE what = ?", (what,)).fetchone()
            found.append(last is None or not 0 <= now_s - last[0] < every_s)
            if found[-1]:
                db.execute("INSERT OR REPLACE INTO done (what, at_s) VALUES (?, ?)", (what, now_s))

        self._file.write(claim)
        return found[-1]


def _changed_at_ns(runs: Path) -> int:
    """Return when names were last added or removed; 0 without the folder."""
    try:
        return runs.stat().st_mtime_ns
    except OSError:
        return 0


def _names_at_ns(db: sqlite3.Connection) -> int:
    return int(db.execute("SELECT names_at_ns FROM folder").fetchone()[0])


def _page(db: sqlite3.Connection, before: str, statuses: Collection[str]) -> list[IndexedRun]:
    """Return the next rows of `FolderIndex.newest`, which are older than `before`."""
    select = "SELECT run_id, mark, view FROM runs WHERE run_id < ?"
    newest = " ORDER BY run_id DESC LIMIT ?"
    if not statuses:
        return [IndexedRun(*row) for row in db.execute(select + newest, (before, PAGE_ROWS))]

    # A search per status, each on the index of statuses: `IN` with this order would read all rows.
    rows = db.execute(f"{select} AND status IS NULL{newest}", (before, PAGE_ROWS)).fetchall()
    for status in statuses:
        rows += db.execute(f"{select} AND status = ?{newest}", (before, status, PAGE_ROWS)).fetchall()
    return [IndexedRun(*row) for row in sorted(rows, reverse=True)[:PAGE_ROWS]]


__all__ = ["EndedRow", "FileMark", "FolderIndex", "IndexedRun"]
