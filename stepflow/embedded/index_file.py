"""The file of the index of a folder: its schema, and what happens if it cannot be used.

- A damaged file is replaced by a new one, and so is its content while it is open. Of a file that cannot be opened or
  written, or of another version, an index in memory takes the place.
- Any number of processes use the file; transactions are short, and none is synced to the disk.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

_T = TypeVar("_T")

VERSION = 1
"""Kept as `user_version`. A file of another version is left alone."""

BUSY_TIMEOUT_S = 2.0
"""Wait for the transaction of another process, which takes milliseconds."""

UNKNOWN_NS = -1
"""`names_at_ns` of an index that has not read the names of its folder."""

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
    ended_bytes INTEGER NOT NULL DEFAULT 0
);
INSERT INTO folder (names_at_ns) SELECT NAMES_AT_NS WHERE NOT EXISTS (SELECT 1 FROM folder);
CREATE TRIGGER IF NOT EXISTS added AFTER INSERT ON runs WHEN NEW.size_bytes BEGIN
    UPDATE folder SET ended_bytes = ended_bytes + NEW.size_bytes; END;
CREATE TRIGGER IF NOT EXISTS resized AFTER UPDATE OF size_bytes ON runs BEGIN
    UPDATE folder SET ended_bytes = ended_bytes + NEW.size_bytes - OLD.size_bytes; END;
CREATE TRIGGER IF NOT EXISTS removed AFTER DELETE ON runs BEGIN
    UPDATE folder SET ended_bytes = ended_bytes - OLD.size_bytes;
    DELETE FROM mentions WHERE run_id = OLD.run_id; END;
CREATE TABLE IF NOT EXISTS mentions (run_id TEXT, blob TEXT, PRIMARY KEY (run_id, blob)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_blob ON mentions (blob);
CREATE TABLE IF NOT EXISTS done (what TEXT PRIMARY KEY, at_s INTEGER NOT NULL) WITHOUT ROWID;
PRAGMA user_version = VERSION;
COMMIT;
"""


class IndexFile:
    """The open file."""

    def __init__(self, path: Path, names_at_ns: int) -> None:
        """Open the file, or make it with `names_at_ns`."""
        self._path = path
        self._db = self._open(names_at_ns)

    def close(self) -> None:
        with contextlib.suppress(sqlite3.Error):
            self._db.close()

    def write(self, work: Callable[[sqlite3.Connection], object]) -> None:
        """Do `work` in a transaction."""

        def in_transaction(db: sqlite3.Connection) -> None:
            db.execute("BEGIN IMMEDIATE")
            with db:  # commits, or takes everything back
                work(db)

        self.read(in_transaction)

    def read(self, work: Callable[[sqlite3.Connection], _T]) -> _T:
        """Do `work`; if the file fails, on an empty index in its place."""
        try:
            return work(self._db)
        except sqlite3.Error as error:
            self.close()
            if _is_damaged(error):
                _delete(self._path)
                self._db = self._open(UNKNOWN_NS)
            else:
                self._db = _memory()
        with contextlib.suppress(sqlite3.Error):
            return work(self._db)
        self._db = _memory()
        return work(self._db)

    def _open(self, names_at_ns: int) -> sqlite3.Connection:
        if not self._path.parent.is_dir():
            return _memory()
        for _ in range(2):
            try:
                return _open_file(self._path, names_at_ns)
            except (sqlite3.Error, OSError) as error:
                if not _is_damaged(error):
                    break
                _delete(self._path)
        return _memory()


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
    _create(db, UNKNOWN_NS)
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


__all__ = ["UNKNOWN_NS", "IndexFile"]
