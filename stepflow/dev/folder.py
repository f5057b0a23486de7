"""The folder of a mesh on this machine: one owner at a time, private to the user.

    <folder>/etcd/        data of etcd: flows, runs, journals
    <folder>/blobs/       payloads too large for etcd
    <folder>/logs/        one log per service (`host-1.log`), and those of earlier starts (`host-1.log.1` to `.4`)
    <folder>/lock         held by the owner; contains the owner's pid and the address of the mesh

The lock file is never removed: after a removal, two processes could lock two files of the same name.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from pathlib import Path

from stepflow.errors import FailedPrecondition

SUBFOLDERS = ("etcd", "blobs", "logs")

LOGS_KEPT = 4
"""Earlier starts whose logs are kept."""

LOG_BYTES_MAX = 8 * 1024 * 1024
"""Kept of the log of an earlier start: its end."""


class DevFolder:
    """The folder of one mesh, from `own` to `release`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: int | None = None

    @property
    def blobs(self) -> Path:
        return self.path / "blobs"

    def log(self, service: str) -> Path:
        """Return the log file of a service."""
        return self.path / "logs" / f"{service}.log"

    def own(self, server: str) -> None:
        """Take the lock, and write down that the mesh listens at `server`.

        Raises: FailedPrecondition `DEV_RUNNING` (another mesh uses the folder), `STORE_UNUSABLE`.
        """
        try:
            make_private(self.path)
            lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(self.path, error) from None

        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(lock, 4096)
            os.close(lock)
            raise _running(self.path, owner) from None

        os.ftruncate(lock, 0)
        os.write(lock, json.dumps({"pid": os.getpid(), "server": server}).encode())
        self._lock = lock

    def release(self) -> None:
        """Give the lock back. Idempotent."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def clear(self) -> None:
        """Delete the data of an earlier mesh. Blocks."""
        for name in SUBFOLDERS:
            shutil.rmtree(self.path / name, ignore_errors=True)

    def make_subfolders(self) -> None:
        """Create the missing subfolders, and put the logs of the last start behind those of earlier starts.

        Raises: FailedPrecondition `STORE_UNUSABLE`.
        """
        try:
            for name in SUBFOLDERS:
                (self.path / name).mkdir(mode=0o700, exist_ok=True)
            for log in (self.path / "logs").glob("*.log"):
                keep_log(log)
        except OSError as error:
            raise _unusable(self.path, error) from None


def live_server(folder: Path) -> str | None:
    """Return the address of this user's mesh that runs in a folder; None if none does. Changes nothing."""
    try:
        lock = os.open(folder / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None

    try:
        known = json.loads(os.read(lock, 4096) or b"{}")
        pid, server = known.get("pid"), known.get("server")
        # The process first: trying the lock of a dead one could refuse a mesh that starts at this moment.
        if not isinstance(pid, int) or not isinstance(server, str) or not _is_alive(pid):
            return None

        if os.fstat(lock).st_uid != os.geteuid():  # runs must not go to the mesh of someone else in a shared folder
            return None

        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return server
    except (OSError, ValueError, AttributeError):
        return None
    finally:
        os.close(lock)
    return None


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def keep_log(log: Path) -> None:
    """Rename the log of the last start, and drop that of the oldest one. Raises: OSError."""
    for number in range(LOGS_KEPT, 1, -1):
        earlier = Path(f"{log}.{number - 1}")
        if earlier.exists():
            earlier.replace(f"{log}.{number}")

    size = log.stat().st_size
    if size > LOG_BYTES_MAX:
        with log.open("rb") as file:
            file.seek(size - LOG_BYTES_MAX)
            file.readline()  # the rest of a line
            end = file.read()
        log.write_bytes(end)
    log.replace(f"{log}.1")


def make_private(folder: Path) -> None:
    """Create a folder that only its owner can enter, ignored by git. Raises: OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if missing:
        (missing[-1] / ".gitignore").write_text("*\n", encoding="ascii")


def _unusable(folder: Path, error: OSError) -> FailedPrecondition:
    return FailedPrecondition(
        "STORE_UNUSABLE",
        f"the mesh cannot use the folder {folder}: {error.strerror}; name another folder with --data",
        path=str(folder),
    )


def _running(folder: Path, owner: bytes) -> FailedPrecondition:
    where = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):  # the owner has the lock and has not written yet
        known = json.loads(owner)
        where = f" (process {known['pid']}, at {known['server']})"
    return FailedPrecondition(
        "DEV_RUNNING",
        f"a mesh is running in {folder} already{where}: use it, stop it, or start another one with --data and --port",
        path=str(folder),
    )
