"""Removal of old shared blobs from a folder of runs: blobs of components, which belong to no run.

- Each put of a blob restarts its age.
- A blob stays while it is referenced as `control_plane.shared_blobs` defines it: by the request of an ended run, or by
  anything of a run that has not ended. The references of ended runs are noted in the index with their ends.
- Every blob stays while a run of the folder cannot be read, was not looked at yet, or too many have not ended.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.shared_blobs import referenced_blobs
from stepflow.embedded.runs_folder import RunLost
from stepflow.errors import NotFound
from stepflow.store.blobs import SHARED

if TYPE_CHECKING:
    from collections.abc import Container
    from pathlib import Path

    from stepflow.embedded.folder_index import FolderIndex
    from stepflow.embedded.runs_folder import LocalRuns
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

BLOBS_REMOVED_MAX = 1_000
"""Blobs removed by one call; the next one removes more."""

RUNS_SEARCHED_MAX = 100
"""Runs that have not ended and are searched for references. With more, every blob stays."""


class _StoredNames:
    """The ids of the blobs in a folder, without reading the folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, identity: object) -> bool:
        return (self._folder / str(identity)).exists()


async def mentioned_blobs(local: LocalRuns, store: Store) -> set[str]:
    """Return the shared blobs of the folder that the run in `store` refers to. Raises: StepflowError."""
    folder = local.run_blobs(SHARED)
    if not folder.is_dir():
        return set()
    return await referenced_blobs(store, local.blobs(), _StoredNames(folder))


async def remove_expired_blobs(local: LocalRuns, index: FolderIndex, blobs: BlobStore, before_s: float) -> list[str]:
    """Remove the shared blobs that were last put before `before_s` and that nothing refers to; return their ids.

    Raises: StepflowError, a run that may refer to them cannot be read.
    """
    dates = await blobs.dates()
    old = sorted((put_at_s, identity) for identity, put_at_s in dates.items() if put_at_s < before_s)
    if not old or index.unchecked(1, 1):  # a run that was never looked at
        return []
    kept = await _kept_by_unfinished(local, index, blobs, dates)
    if kept is None:
        return []

    removed: list[str] = []
    for _, identity in old:
        if identity in kept or index.is_mentioned(identity) or len(removed) == BLOBS_REMOVED_MAX:
            continue
        if await blobs.delete_shared(identity, before_s):
            removed.append(identity)
    return removed


async def _kept_by_unfinished(
    local: LocalRuns, index: FolderIndex, blobs: BlobStore, shared: Container[str]
) -> set[str] | None:
    """Return the blobs that runs refer to which have not ended; None if there are too many of these runs."""
    kept: set[str] = set()
    for number, row in enumerate(index.newest(("running",))):
        if number == RUNS_SEARCHED_MAX:
            return None
        if not local.database(row.run_id).exists():
            continue
        try:
            async with local.reading(row.run_id) as store:
                kept |= await referenced_blobs(store, blobs, shared)
        except (NotFound, RunLost):  # nothing was submitted
            continue
    return kept


__all__ = ["mentioned_blobs", "remove_expired_blobs"]
