"""The folder of the runs of this machine (`.stepflow/`).

    <folder>/runs/<run_id>.db    one run: its request, journal and results (with `-wal`, `-shm` and `.lock`)
    <folder>/blobs/              payloads of all runs that are too large for a database
    <folder>/ended               what lists show of ended runs (`ended_runs`)

- A database is owned by one process at a time, the process that drives the run; other processes may read it meanwhile.
- The folder has mode 0700: journals contain the data of users' flows. One that others can change is refused.
- A damaged database does not affect the others. Damage of its log is found before SQLite would ignore it.

Not here: the keys in a database (`stepflow.store.keys`), and driving runs (`stepflow.embedded.mesh`).
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.errors import DataLoss, FailedPrecondition, Invalid, NotFound, StepflowError
from stepflow.store import keys
from stepflow.store.sqlite.wal import lost_transactions

if TYPE_CHECKING:
    from stepflow.store.blobs import BlobStore
    from stepflow.store.sqlite.store import SqliteStore

DEFAULT_FOLDER = Path(".stepflow")

_SUFFIX = ".db"
_RUN_ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""A UUID in canonical form. A folder may hold 50,000 of them, and more other files."""

_SIDE_FILES = ("-wal", "-shm", ".lock")
"""Suffixes of the files next to a database."""


class LocalRuns:
    """The runs in one folder. The folder is created by `create`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()

    def database(self, run_id: str) -> Path:
        """Return the file of a run, which may not exist."""
        return self.folder / "runs" / f"{run_id}{_SUFFIX}"

    def blobs(self) -> BlobStore:
        """Return the blob store of all runs. Raises: FailedPrecondition (not a folder)."""
        from stepflow.store.blobs import BlobStore

        return BlobStore.open(self.folder)

    async def create(self, run_id: str) -> SqliteStore:
        """Create the database of a new run, and own it until it is closed.

        Raises: FailedPrecondition, StoreUnreadable, StoreUnavailable; the message names the file.
        """
        from stepflow.store.sqlite.store import SqliteStore

        self._make_folder()
        try:
            return await SqliteStore.open(self.database(run_id))
        except StepflowError:
            self.discard(run_id)
            raise

    async def own(self, run_id: str) -> SqliteStore:
        """Open the database of a run to continue the run, and own it until it is closed.

        Raises: NotFound, StoreUnreadable (another process drives the run, for example), DataLoss.
        """
        from stepflow.store.sqlite.store import SqliteStore

        if not self.database(run_id).exists():
            raise self._not_found(run_id)
        _check_owner(self.folder)
        await asyncio.to_thread(_find_damage, self, run_id)
        return await _with_run(self, run_id, await SqliteStore.open(self.database(run_id)), complete=True)

    async def read(self, run_id: str) -> SqliteStore:
        """Open the database of a run for reading, also while another process owns it. Raises as `own`."""
        from stepflow.store.sqlite.store import SqliteStore

        await asyncio.to_thread(_find_damage, self, run_id)
        store = await SqliteStore.open(self.database(run_id), read_only=True)
        return await _with_run(self, run_id, store, complete=False)

    def discard(self, run_id: str) -> None:
        """Remove the closed database of a run."""
        path = self.database(run_id)
        for name in (path, *(Path(f"{path}{suffix}") for suffix in _SIDE_FILES)):
            with contextlib.suppress(OSError):
                name.unlink()

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

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, the newest first. Other files are ignored. Raises: FailedPrecondition."""
        try:
            with os.scandir(self.folder / "runs") as entries:
                names = [entry.name for entry in entries]
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from None
        ids = [name[: -len(_SUFFIX)] for name in names if name.endswith(_SUFFIX)]
        return sorted(filter(_RUN_ID.fullmatch, ids), reverse=True)

    def find(self, text: str) -> str:
        """Return the run id that equals `text` or begins with it. Raises: NotFound, Invalid (an ambiguous prefix)."""
        found = [run_id for run_id in self.run_ids() if run_id.startswith(text.lower())]
        if not found or not text:
            raise self._not_found(text)
        if len(found) > 1:
            shown = ", ".join(found[:5]) + (", …" if len(found) > 5 else "")
            raise Invalid("RUN_ID_AMBIGUOUS", f"{len(found)} run ids begin with {text}: {shown}; give a longer prefix")
        return found[0]

    def exposure(self) -> str:
        """Return a warning if other users can read the folder; empty without one."""
        try:
            mode = self.folder.stat().st_mode & 0o777
        except OSError:
            return ""
        if not mode & 0o077 or mode & 0o022:  # the latter is refused
            return ""
        return f"other users can read the runs in {self.folder} (mode {mode:o}): chmod 700 {self.folder}"

    def _not_found(self, run_id: str) -> NotFound:
        return NotFound(
            "RUN_NOT_FOUND",
            f"there is no run {run_id[:80]} in {self.folder}; `stepflow runs list` shows the runs",
            run_id=run_id[:80],
        )

    def _make_folder(self) -> None:
        if self.folder.is_dir():
            _check_owner(self.folder)
            return
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            (self.folder / ".gitignore").write_text("*\n", encoding="ascii")  # runs do not belong into version control
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> FailedPrecondition:
        return FailedPrecondition(
            "STORE_UNUSABLE",
            f"runs cannot be stored in {self.folder}: {error.strerror}; name another folder with --store",
            path=str(self.folder),
        )


def _check_owner(folder: Path) -> None:
    """Refuse a folder in which others could forge runs. Raises: FailedPrecondition `STORE_EXPOSED`."""
    try:
        found = folder.stat()
    except OSError:
        return

    foreign = found.st_uid not in (os.geteuid(), 0)
    if foreign or found.st_mode & 0o022:
        who = f"user {found.st_uid}" if foreign else "other users"
        raise FailedPrecondition(
            "STORE_EXPOSED",
            f"{who} can change the runs in {folder}: make it your own (chown) and private (chmod 700 {folder}), or "
            "name another folder with --store",
            path=str(folder),
        )


def _find_damage(local: LocalRuns, run_id: str) -> None:
    """Look for damage in the files of a run that no process drives. Raises: DataLoss `STORE_CORRUPT`."""
    database = local.database(run_id)
    log = Path(f"{database}-wal")
    if local.is_driven(run_id):
        return

    # Before SQLite opens it: beside an empty database, SQLite deletes the log.
    if database.is_file() and database.stat().st_size == 0:
        raise _without_run(local, run_id)
    if log.exists() and lost_transactions(log):
        raise DataLoss(
            "STORE_CORRUPT",
            f"{log} is damaged: results of steps are lost. Restore a copy, or delete the file to go on with what "
            "is left (steps run again)",
            path=str(log),
        )


async def _with_run(local: LocalRuns, run_id: str, store: SqliteStore, *, complete: bool) -> SqliteStore:
    """Return the store if it holds the run; close it otherwise. Without `complete`, the run may be beginning.

    Raises: DataLoss `STORE_CORRUPT`.
    """
    if await store.get(keys.run(run_id)) is None and (complete or not local.is_driven(run_id)):
        await store.close()
        raise _without_run(local, run_id)
    return store


class RunLost(DataLoss):
    """A database without its run: damaged, or of a process that was killed as the run began."""


def _without_run(local: LocalRuns, run_id: str) -> RunLost:
    path = local.database(run_id)
    return RunLost(
        "STORE_CORRUPT",
        f"{path} holds no run: its data is lost, or it was killed as it began. Restore a copy, or remove the rest "
        f"with `stepflow runs delete {run_id} --force`",
        path=str(path),
    )
