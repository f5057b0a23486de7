"""The files of a run in a folder: its database with the files next to it, its logs, its blobs, and its lock.

- The process that drives a run holds its lock, and so does the process that removes the run.
- The lock is removed last, and by its holder: a process that locks a file checks that it still is the lock of the run.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.embedded.log_files import older_file

if TYPE_CHECKING:
    from collections.abc import Iterator

DATABASE_SUFFIX = ".db"

_SIDE_FILES = ("-wal", "-shm")
"""Suffixes of the files next to a database."""


class RunFiles:
    """Where the files of each run in a folder are. `folder` is absolute."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def database(self, run_id: str) -> Path:
        """Return the file of a run, which may not exist."""
        return self.folder / "runs" / f"{run_id}{DATABASE_SUFFIX}"

    def log(self, run_id: str) -> Path:
        """Return the write-ahead log of a run's database, which may not exist."""
        return Path(f"{self.database(run_id)}-wal")

    def component_log(self, run_id: str) -> Path:
        """Return the file of the log lines of a run's components, which may not exist."""
        return self.folder / "logs" / f"{run_id}.jsonl"

    def files(self, run_id: str) -> list[Path]:
        """Return the files of a run: database, logs, and the lock last; any of them may not exist."""
        log = self.component_log(run_id)
        beside = [Path(f"{self.database(run_id)}{suffix}") for suffix in ("", *_SIDE_FILES)]
        return [*beside, log, older_file(log), Path(f"{self.database(run_id)}.lock")]

    def run_blobs(self, run_id: str) -> Path:
        """Return the folder of a run's blobs, which may not exist."""
        return self.folder / "blobs" / run_id

    def unlink(self, run_id: str) -> None:
        """Remove the files of a run, the lock last."""
        for file in self.files(run_id):
            with contextlib.suppress(OSError):
                file.unlink()

    def is_driven(self, run_id: str) -> bool:
        """Return True if a process owns the run's database at the moment."""
        try:
            lock = os.open(f"{self.database(run_id)}.lock", os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(lock)
        return False

    @contextlib.contextmanager
    def lock(self, run_id: str) -> Iterator[bool]:
        """Lock a run for the duration of the block. Yields False if a process has locked it, or removes it."""
        path = f"{self.database(run_id)}.lock"
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError:
            yield False
            return
        try:
            yield _locks(lock, path)
        finally:
            os.close(lock)


def _locks(lock: int, path: str) -> bool:
    """Lock an open file. Return True if it is still the file at `path`: who removes a run removes its lock too."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(lock), os.stat(path))  # noqa: PTH116  # the same call for both
    except OSError:
        return False


__all__ = ["DATABASE_SUFFIX", "RunFiles"]
