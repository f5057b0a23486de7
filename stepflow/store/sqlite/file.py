"""The file of a SQLite store: folder, lock, schema, and the errors of opening it.

- One process owns a database, by an advisory lock on `<path>.lock` that the operating system releases with the process.
  Not SQLite's exclusive mode, which would shut out readers (`stepflow runs list` during a run).
- The lock file is never removed: otherwise two processes could lock different files of that name.
- A read-only handle takes no lock and reads one snapshot until it is closed.
- New folders get mode 0700 and new files 0600: journals hold users' data.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import sqlite3
from pathlib import Path

from stepflow.errors import DataLoss, NotFound, StepflowError
from stepflow.store.protocol import StoreUnavailable, StoreUnreadable
from stepflow.store.sqlite.table import SCHEMA

MEMORY = ":memory:"

APPLICATION_ID = 0x5374_666C
"""Mark in the header of a store ("Stfl"), which tells it from other SQLite databases."""

SCHEMA_VERSION = 1

BUSY_TIMEOUT_S = 5.0
"""Wait for a reader that recovers or checkpoints the log, which takes moments."""

LOG_BYTES = 512 * 1024
"""What `grow_log` writes and clears again, which puts twice that into the log: some 100 commits, in 6 ms. Under load
SQLite lets the log grow to 4 MiB."""

_MAGIC = b"SQLite format 3\0"
"""First bytes of every database (SQLite's file format, 1.3.1)."""

STATEMENTS_MAX = 512
"""Prepared statements kept: one for each number of rows, of three kinds (`ROWS_MAX`)."""


def open_file(path: str, *, read_only: bool) -> tuple[sqlite3.Connection, int | None]:
    """Return a connection in autocommit mode with the schema in place, and the descriptor of the lock, if one is held.

    Raises:
        StoreUnreadable: `STORE_LOCKED`, `STORE_NOT_A_STORE`, `STORE_VERSION_UNKNOWN`, `STORE_UNREADABLE`.
        NotFound: `STORE_NOT_FOUND`, read-only and no such file.
        DataLoss: `STORE_CORRUPT`.
    """
    if path == MEMORY:
        db = _connect(MEMORY)
        _create_schema(db)
        return db, None
    try:
        if read_only:
            return _open_snapshot(path), None
        return _open_owned(path)
    except (sqlite3.Error, OSError, ValueError) as error:  # ValueError: a null character in the path
        raise explain(error, path) from None


def grow_log(db: sqlite3.Connection) -> None:
    """Fill and restart the log once, so that later commits overwrite the file.

    A commit that lengthens the file costs its inode's journal too: 0.37 ms against 0.22 ms (ext4). The value of the
    revision's row means nothing, so a crash in between leaves nothing behind.
    """
    db.execute("UPDATE kv SET value = zeroblob(?) WHERE key = ''", (LOG_BYTES,))
    db.execute("UPDATE kv SET value = x'' WHERE key = ''")
    # Without it every run's file keeps half a megabyte of nothing. As a script, or only one page would be freed.
    db.executescript("PRAGMA incremental_vacuum;")
    db.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()


def unlock(lock: int | None) -> None:
    """Give the database free for another process; after the connection was closed."""
    if lock is not None:
        os.close(lock)


def explain(error: Exception, path: str) -> StepflowError:
    """Turn an error of SQLite or of the file system into ours."""
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the primary code
    if code == sqlite3.SQLITE_NOTADB:
        return _not_a_store(path)
    if code == sqlite3.SQLITE_CORRUPT:
        return DataLoss(
            "STORE_CORRUPT",
            f"{path} is damaged ({error}); keep the file, and start the run again or restore a copy",
            path=path,
        )
    if code == sqlite3.SQLITE_FULL:
        text = f"{path}: no space left on the device (ENOSPC); free some space there"
        return StoreUnavailable("STORE_IO_ERROR", text, path=path)
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_NOMEM):
        return StoreUnavailable("STORE_IO_ERROR", f"{path}: {error}", path=path)
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StoreUnreadable("STORE_UNREADABLE", f"{path} cannot be opened as a database: {text}", path=path)


def _open_owned(path: str) -> tuple[sqlite3.Connection, int]:
    _make_folder(Path(path).parent)
    lock = _lock(path)
    try:
        _create_or_check(path)
        db = _connect(f"{Path(path).absolute().as_uri()}?mode=rw")
        try:
            is_new = db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0] == 0
            if not is_new:
                _check_header(db, path)  # first: another program's database stays as it is
            if is_new:
                db.execute("PRAGMA auto_vacuum = INCREMENTAL")  # takes effect only before the first table
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = FULL")
            if is_new:
                _create_schema(db)
        except BaseException:
            db.close()
            raise
    except BaseException:
        unlock(lock)
        raise
    return db, lock


def _create_or_check(path: str) -> None:
    """Create the file with its mode, or refuse one that SQLite would take for new and overwrite, such as a short text.

    For the owner only: closing a file drops this process's POSIX locks on it, on which a second connection relies.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        if os.pread(handle, len(_MAGIC), 0) not in (b"", _MAGIC):
            raise _not_a_store(path)
    finally:
        os.close(handle)


def _not_a_store(path: str) -> StoreUnreadable:
    return StoreUnreadable("STORE_NOT_A_STORE", f"{path} is not a database of stepflow", path=path)


def _open_snapshot(path: str) -> sqlite3.Connection:
    if not Path(path).exists() or Path(path).stat().st_size == 0:  # empty: just being created
        raise NotFound("STORE_NOT_FOUND", f"there is no store at {path}", path=path)
    # Not `mode=ro`: after a crash a reader must be able to recover the log, which writes the shared index.
    mode = "rw" if os.access(path, os.W_OK) else "ro"
    db = _connect(f"{Path(path).absolute().as_uri()}?mode={mode}")
    try:
        db.execute("PRAGMA query_only = ON")
        _check_header(db, path)
        db.execute("BEGIN")  # the snapshot is taken by the first read, that of the revision
    except BaseException:
        db.close()
        raise
    return db


def _connect(uri: str) -> sqlite3.Connection:
    return sqlite3.connect(
        uri,
        uri=uri != MEMORY,
        isolation_level=None,
        timeout=BUSY_TIMEOUT_S,
        cached_statements=STATEMENTS_MAX,
    )


def _create_schema(db: sqlite3.Connection) -> None:
    # One transaction: a process killed inside leaves an empty database, not half of one.
    db.executescript(
        f"BEGIN IMMEDIATE; {SCHEMA} PRAGMA application_id = {APPLICATION_ID};"
        f" PRAGMA user_version = {SCHEMA_VERSION}; COMMIT;"
    )


def _check_header(db: sqlite3.Connection, path: str) -> None:
    if db.execute("PRAGMA application_id").fetchone()[0] != APPLICATION_ID:
        raise _not_a_store(path)
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version != SCHEMA_VERSION:
        raise StoreUnreadable(
            "STORE_VERSION_UNKNOWN",
            f"{path} was written by another version of stepflow (format {version}; this one reads {SCHEMA_VERSION})",
            path=path,
            version=version,
        )


def _make_folder(folder: Path) -> None:
    if not folder.is_dir():
        _make_folder(folder.parent)
        with contextlib.suppress(FileExistsError):  # another process makes it at the same time
            folder.mkdir(mode=0o700)


def _lock(path: str) -> int:
    lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 32, 0).decode("ascii", "replace").strip()
        os.close(lock)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        raise StoreUnreadable(
            "STORE_LOCKED",
            f"{path} is in use by another process{f' ({holder})' if holder else ''}; wait for it or end it",
            path=path,
            process=holder,
        ) from None
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)
    return lock
