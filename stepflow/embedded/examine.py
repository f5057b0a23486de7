"""Reads the view of a stored run from its database, and notes ended runs in the index of the folder."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING

from stepflow.embedded.expired_blobs import mentioned_blobs
from stepflow.embedded.mesh import RunView, reader
from stepflow.errors import StepflowError

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.embedded.folder_index import FolderIndex
    from stepflow.embedded.runs_folder import LocalRuns
    from stepflow.store.sqlite.store import SqliteStore

_BLOCK_BYTES = 512
"""Unit of `st_blocks`."""


async def examine(local: LocalRuns, index: FolderIndex, run_id: str) -> RunView:
    """Return the view of a run, and note a run that has ended. Raises: NotFound, StoreUnreadable, DataLoss."""
    with index.own_changes():  # SQLite makes and removes files while it reads
        store = await local.read(run_id)
        try:
            run = await reader(store, local.blobs()).get_run(run_id)
            mentions = await mentioned_blobs(local, store) if run.terminal else set()
        finally:
            await store.close()

    if run.terminal:
        index.note_ended(local.database(run_id), run, disk_bytes(local, run_id), mentions)
    return run


async def close_ended(local: LocalRuns, store: SqliteStore, run: RunView) -> None:
    """Close the database of a run that has ended, and note its end."""
    mentions: set[str] | None = None
    with contextlib.suppress(StepflowError):  # the end is found when the run is examined
        mentions = await mentioned_blobs(local, store)
    with local.index() as index:
        with index.own_changes():
            await store.close()
        if mentions is not None:
            index.note_ended(local.database(run.run_id), run, disk_bytes(local, run.run_id), mentions)


def disk_bytes(local: LocalRuns, run_id: str) -> int:
    """Return the space that a run takes: its files, and its blobs."""
    total = sum(map(_file_bytes, local.files(run_id)))
    try:
        with os.scandir(local.run_blobs(run_id)) as entries:
            return total + sum(_file_bytes(entry) for entry in entries)
    except OSError:
        return total


def _file_bytes(file: Path | os.DirEntry[str]) -> int:
    try:
        return file.stat().st_blocks * _BLOCK_BYTES
    except OSError:
        return 0


__all__ = ["close_ended", "disk_bytes", "examine"]
