"""The folder of the runs of this machine (`.stepflow/`).

    <folder>/runs/<run_id>.db    one run: its request, journal and results (with `-wal`, `-shm` and `.lock`)
    <folder>/logs/<run_id>.jsonl what the components of the run have logged, bounded (`log_files`)
    <folder>/blobs/              payloads of all runs that are too large for a database
    <folder>/index.db            a hint for lists and retention (`folder_index`)

- A database is owned by one process at a time, the process that drives the run; other processes may read it meanwhile.
- The folder has mode 0700: journals contain the data of users' flows. One that others can change is refused.
- A damaged database does not affect the others. Damage of its log is found before SQLite would ignore it.

Not here: the keys in a database (`stepflow.store.keys`), and driving runs (`stepflow.embedded.mesh`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.embedded.folder_index import FolderIndex
from stepflow.embedded.run_files import DATABASE_SUFFIX, RunFiles
from stepflow.errors import DataLoss, FailedPrecondition, NotFound, StepflowError
from stepflow.ids import CANDIDATES_SHOWN, LAST, only_one

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from stepflow.store.blobs import BlobStore
    from stepflow.store.sqlite.store import SqliteStore

DEFAULT_FOLDER = Path(".stepflow")

_RUN_ID = re.compile("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
"""A UUID in canonical form. A folder may hold 100,000 of them, and more other files."""


class LocalRuns(RunFiles):
    """The runs in one folder. The folder is created by `create`."""

    def __init__(self, folder: Path, *, option: str | None = None) -> None:
        """`option`: names the folder in suggested commands, after a blank. Default: by path, unless it is the usual."""
        super().__init__(folder)
        usual = "" if self.folder == DEFAULT_FOLDER.absolute() else f" --store {shlex.quote(str(self.folder))}"
        self.option = usual if option is None else option

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
            with self.index() as index:
                index.add(run_id)
                with index.own_changes():
                    return await SqliteStore.open(self.database(run_id))
        except StepflowError:
            self.discard(run_id)
            raise

    async def own(self, run_id: str) -> SqliteStore:
        """Open the database of a run to continue the run, and own it until it is closed.

        Raises: NotFound, StoreUnreadable (another process drives the run, for example), DataLoss.
        """
        import asyncio

        from stepflow.store.sqlite.store import SqliteStore

        if not self.database(run_id).exists():
            raise self._not_found(run_id)
        _check_owner(self.folder)
        await asyncio.to_thread(_find_damage, self, run_id)
        with self.index() as index, index.own_changes():
            store = await SqliteStore.open(self.database(run_id))
        return await _with_run(self, run_id, store, complete=True)

    async def read(self, run_id: str) -> SqliteStore:
        """Open the database of a run for reading, also while another process owns it. Raises as `own`."""
        import asyncio

        from stepflow.store.sqlite.store import SqliteStore

        await asyncio.to_thread(_find_damage, self, run_id)
        store = await SqliteStore.open(self.database(run_id), read_only=True)
        return await _with_run(self, run_id, store, complete=False)

    @contextlib.asynccontextmanager
    async def reading(self, run_id: str) -> AsyncIterator[SqliteStore]:
        """Open the database of a run for reading, for the duration of the block. Raises as `own`."""
        with self.index() as index, index.own_changes():  # SQLite makes files beside the database, and removes them
            store = await self.read(run_id)
        try:
            yield store
        finally:
            await self.close(store)

    async def close(self, store: SqliteStore) -> None:
        """Close a database of the folder; the index stays complete."""
        with self.index() as index, index.own_changes():
            await store.close()

    def discard(self, run_id: str) -> None:
        """Remove the closed database of a run."""
        with self.index() as index:
            with index.own_changes():
                self.unlink(run_id)
            index.remove(run_id)

    @contextlib.contextmanager
    def index(self) -> Iterator[FolderIndex]:
        """Open the index of the folder for the duration of the block."""
        index = FolderIndex(self.folder)
        try:
            yield index
        finally:
            index.close()

    def run_ids(self) -> list[str]:
        """Return the ids of all runs, in no order. Other files are ignored. Raises: FailedPrecondition."""
        try:
            names = os.listdir(self.folder / "runs")  # noqa: PTH208  # a third of the time of Path.iterdir
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._unusable(error) from None
        ids = [name[: -len(DATABASE_SUFFIX)] for name in names if name.endswith(DATABASE_SUFFIX)]
        return list(filter(_RUN_ID.fullmatch, ids))

    def find(self, text: str) -> str:
        """Return the id of the run that a text names: its id, an end or a beginning of it, or `last`.

        Raises: NotFound, Invalid (ambiguous).
        """
        text = text.lower()
        if _RUN_ID.fullmatch(text) and self.database(text).exists():
            return text

        with self.index() as index:
            index.sync(self.run_ids)
            if text == LAST:
                found = list(islice((row.run_id for row in index.newest() if self.database(row.run_id).exists()), 1))
                count = len(found)
            else:
                count, found = index.named(text, CANDIDATES_SHOWN) if text else (0, [])
        if not found:
            raise self._not_found(text)
        return only_one(found, count, text)

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
        text = "no run" if run_id == LAST else f"no run {run_id[:80]}"
        return NotFound(
            "RUN_NOT_FOUND",
            f"there is {text} in {self.folder}; `stepflow runs list{self.option}` shows the runs",
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
    log = local.log(run_id)
    if local.is_driven(run_id):
        return

    from stepflow.store.sqlite.wal import lost_transactions

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
    from stepflow.store import keys

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
        f"with `stepflow runs delete {run_id} --force{local.option}`",
        path=str(path),
    )
