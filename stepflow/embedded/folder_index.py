"""The index of a folder of runs (`<folder>/index.db`): lists and retention read it instead of the databases.

- A hint. The databases in `runs/` are the truth; the file may be deleted at any time, and is made again from the names.
- A row per run. `status` is NULL until the run is known to have ended; from then on the row holds what lists show. Such
  a row counts only while the database is the same file, unchanged (`FileMark`).
- `names_at_ns` is the modification time of `runs/` at which every run has a row. At another time the names are read
  again: a command of a version without the index, or a person, has added or removed files.
- The row of a run is written before its database, so commands of this version keep `names_at_ns` (`own_changes`).
- Any number of processes use the file. If it cannot be used, an index in memory takes its place.

Limit: a change of `runs/` by others within the milliseconds of an own change is noticed with their next change.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator
    from pathlib import Path

    from control_plane.view_records import RunView

_T = TypeVar("_T")

VERSION = 1
"""Kept as `user_version`. An index of another version is left alone."""

BUSY_TIMEOUT_S = 2.0
"""Wait for the transaction of another process, which takes milliseconds."""

PAGE_ROWS = 200
"""Rows read at once. No transaction stays open between pages."""

_SCHEMA = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS runs (
    run_id TEXT PRIMARY KEY,
    status TEXT,
    ended_at_ms INTEGER,
    size_bytes INTEGER NOT NULL DEFAULT 0,
    checked_at_s INTEGER NOT NULL DEFAULT 0,
    mark TEXT,
    view TEXT
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_status ON runs (status);
CREATE INDEX IF NOT EXISTS by_end ON runs (ended_at_ms) WHERE status IS NOT NULL;
CREATE INDEX IF NOT EXISTS by_check ON runs (checked_at_s) WHERE status IS NULL;
CREATE TABLE IF NOT EXISTS folder (
    names_at_ns INTEGER NOT NULL,
    names_read_at_s INTEGER NOT NULL DEFAULT 0,
    ended_bytes INTEGER NOT NULL DEFAULT 0
);
INSERT INTO folder (names_at_ns) SELECT NAMES_AT_NS WHERE NOT EXISTS (SELECT 1 FROM folder);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON runs WHEN NEW.size_bytes BEGIN
    UPDATE folder SET ended_bytes = ended_bytes + NEW.size_bytes; END;
CREATE TRIGGER IF NOT EXISTS resized AFTER UPDATE OF size_bytes ON runs BEGIN
    UPDATE folder SET ended_bytes = ended_bytes + NEW.size_bytes - OLD.size_bytes; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON runs WHEN OLD.size_bytes BEGIN
    UPDATE folder SET ended_bytes = ended_bytes - OLD.size_bytes; END;
PRAGMA user_version = VERSION;
COMMIT;
"""

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


class _FolderRow(NamedTuple):
    names_at_ns: int
    names_read_at_s: int
    ended_bytes: int


class FolderIndex:
    """The open index of a folder. Its methods raise nothing, but for `names` of `sync`."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "index.db"
        self._runs = folder / "runs"
        self._blobs = folder / "blobs"
        self._db = self._open()

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    # Names.

    def sync(self, names: Callable[[], Collection[str]], at_most_every_s: int = 0) -> None:
        """Give every run a row, and no other: if `runs/` has changed, from `names()`, the ids of all runs.

        A run that was removed in part keeps its row: retention removes the rest.

        With `at_most_every_s`, not if the names were read since.
        """
        changed_at_ns = self._changed_at_ns()  # before the names: a later change is found by the next call
        read_at_s = int(time.time())
        row = self._folder()
        if changed_at_ns == row.names_at_ns or 0 <= read_at_s - row.names_read_at_s < at_most_every_s:
            return
        present = set(names())

        def reconcile(db: sqlite3.Connection) -> None:
            known = {run_id for (run_id,) in db.execute("SELECT run_id FROM runs")}
            db.executemany("INSERT OR IGNORE INTO runs (run_id) VALUES (?)", [(name,) for name in present - known])
            gone = [(run_id,) for run_id in known - present if not self._has_rest(run_id)]
            db.executemany("DELETE FROM runs WHERE run_id = ?", gone)
            db.execute("UPDATE folder SET names_at_ns = ?, names_read_at_s = ?", (changed_at_ns, read_at_s))

        self._write(reconcile)

    def _has_rest(self, run_id: str) -> bool:
        return (self._runs / f"{run_id}.db.lock").exists() or (self._blobs / run_id).exists()

    @contextlib.contextmanager
    def own_changes(self) -> Iterator[None]:
        """Keep the index complete over changes of `runs/` in this block, whose runs have rows already."""
        was_complete = self._changed_at_ns() == self._folder().names_at_ns
        try:
            yield
        finally:
            if was_complete:
                changed_at_ns = self._changed_at_ns()
                self._write(lambda db: db.execute("UPDATE folder SET names_at_ns = ?", (changed_at_ns,)))

    # Rows.

    def add(self, run_id: str) -> None:
        """Add a run that begins."""
        self._write(lambda db: db.execute("INSERT OR IGNORE INTO runs (run_id) VALUES (?)", (run_id,)))

    def note_ended(self, database: Path, view: RunView, size_bytes: int) -> None:
        """Note how a run ended, once its database is closed. `size_bytes`: of all its files."""
        import msgspec

        mark = FileMark.of(database)
        if mark is not None:
            text = msgspec.json.encode(view).decode()
            row = (view.run_id, view.status, view.completed_at_ms or 0, size_bytes, str(mark), text)
            self._write(lambda db: db.execute(_NOTE, row))

    def note_checked(self, run_id: str, at_s: int) -> None:
        """Note that a run was looked at and has not ended, or cannot be read."""
        statement = (
            "UPDATE runs SET status = NULL, ended_at_ms = NULL, size_bytes = 0, mark = NULL, view = NULL, "
            "checked_at_s = ? WHERE run_id = ?"
        )
        self._write(lambda db: db.execute(statement, (at_s, run_id)))

    def remove(self, run_id: str) -> None:
        """Remove the row of a run whose files are gone."""
        self._write(lambda db: db.execute("DELETE FROM runs WHERE run_id = ?", (run_id,)))

    # Reads.

    def newest(self, statuses: Collection[str] = ()) -> Iterator[IndexedRun]:
        """Yield the runs, the newest first. With statuses: ended runs of these, and all not known to have ended."""
        before = "~"
        while page := self._read(partial(_page, before=before, statuses=statuses)):
            yield from page
            before = page[-1].run_id

    def starting_with(self, prefix: str, limit: int) -> tuple[int, list[str]]:
        """Return the number of runs whose ids begin with `prefix`, and the newest of them."""
        bounds = (prefix, f"{prefix}~")

        def search(db: sqlite3.Connection) -> tuple[int, list[str]]:
            ((count,),) = db.execute("SELECT count(*) FROM runs WHERE run_id >= ? AND run_id < ?", bounds)
            statement = "SELECT run_id FROM runs WHERE run_id >= ? AND run_id < ? ORDER BY run_id DESC LIMIT ?"
            return count, [run_id for (run_id,) in db.execute(statement, (*bounds, limit))]

        return self._read(search)

    def unchecked(self, before_s: int, limit: int) -> list[str]:
        """Return runs not known to have ended that were last looked at before `before_s`, the longest ago first."""
        statement = (
            "SELECT run_id FROM runs WHERE status IS NULL AND checked_at_s < ? ORDER BY checked_at_s, run_id LIMIT ?"
        )
        return [run_id for (run_id,) in self._read(lambda db: db.execute(statement, (before_s, limit)).fetchall())]

    def longest_ended(self, before_ms: int, limit: int) -> list[EndedRow]:
        """Return the runs that ended before `before_ms`, the longest ago first."""
        statement = (
            "SELECT run_id, ended_at_ms, size_bytes, mark FROM runs "
            "WHERE status IS NOT NULL AND ended_at_ms < ? ORDER BY ended_at_ms LIMIT ?"
        )
        return [EndedRow(*row) for row in self._read(lambda db: db.execute(statement, (before_ms, limit)).fetchall())]

    def ended_bytes(self) -> int:
        """Return the size of all ended runs in bytes."""
        return self._folder().ended_bytes

    def _folder(self) -> _FolderRow:
        statement = "SELECT names_at_ns, names_read_at_s, ended_bytes FROM folder"
        return _FolderRow(*self._read(lambda db: db.execute(statement).fetchone()))

    def _changed_at_ns(self) -> int:
        try:
            return self._runs.stat().st_mtime_ns
        except OSError:
            return 0

    # The file.

    def _write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do `work` in a transaction."""

        def in_transaction(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            with db:  # commits, or takes everything back
                work(db)

        self._read(in_transaction)

    def _read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do `work`; on an index that fails, do it on a new one."""
        try:
            return work(self._db)
        except sqlite3.Error as error:
            self.close()
            if _is_damaged(error):
                _delete(self._path)
                self._db = self._open()
            else:
                self._db = _memory()
            with contextlib.suppress(sqlite3.Error):
                return work(self._db)
            self._db = _memory()
            return work(self._db)

    def _open(self) -> sqlite3.Connection:
        """Open the file, or make it; an index in memory if neither is possible."""
        if not self._path.parent.is_dir():
            return _memory()
        for _ in range(2):
            try:
                return _open_file(self._path, 0 if not self._runs.exists() else -1)
            except (sqlite3.Error, OSError) as error:
                if not _is_damaged(error):
                    break
                _delete(self._path)
        return _memory()


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


def _open_file(path: Path, names_at_ns: int) -> sqlite3.Connection:
    with contextlib.suppress(FileExistsError):  # an existing file stays closed: this process may hold locks on it
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    db = sqlite3.connect(path, isolation_level=None, timeout=BUSY_TIMEOUT_S)
    try:
        # Durable only with the next checkpoint: after a power failure the names of `runs/` show what is missing.
        db.execute("PRAGMA synchronous = NORMAL")
        ((version,),) = db.execute("PRAGMA user_version")
        if version == 0:
            db.execute("PRAGMA journal_mode = WAL")
            _create(db, names_at_ns)
        elif version != VERSION:
            raise sqlite3.NotSupportedError(f"{path} has format {version}")
    except BaseException:
        db.close()
        raise
    return db


def _memory() -> sqlite3.Connection:
    db = sqlite3.connect(":memory:", isolation_level=None)
    _create(db, -1)
    return db


def _create(db: sqlite3.Connection, names_at_ns: int) -> None:
    # As a script, which takes no parameters.
    db.executescript(_SCHEMA.replace("NAMES_AT_NS", str(names_at_ns)).replace("VERSION", str(VERSION)))


def _is_damaged(error: Exception) -> bool:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    return code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _delete(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        with contextlib.suppress(OSError):
            os.unlink(f"{path}{suffix}")  # noqa: PTH108  # a name made of text


__all__ = ["EndedRow", "FileMark", "FolderIndex", "IndexedRun"]
