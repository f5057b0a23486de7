"""Lists of the runs in `.stepflow/`.

- Ended runs come from the index of the folder; only databases of other runs are opened, read-only and one at a time,
  also while another process owns the database.
- An unreadable database is reported with its file name, and its run is listed as `damaged`.
- Starting is fast: the engine is imported with the first database that must be opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.view_records import RunView
from stepflow.cli import console
from stepflow.errors import NotFound, StepflowError
from stepflow.ids import begun_at_ms

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from stepflow.embedded.folder_index import FolderIndex
    from stepflow.embedded.runs_folder import LocalRuns

DAMAGED = "damaged"
"""Status of a run that cannot be read."""

INTERRUPTED = "interrupted"
"""Status of a run that has not ended and that no process drives."""


def status_of(local: LocalRuns, run: RunView) -> str:
    """Return a run's status, `interrupted` included."""
    return INTERRUPTED if not run.terminal and not local.is_driven(run.run_id) else run.status


def list_runs(local: LocalRuns, statuses: Collection[str] = ()) -> Iterator[tuple[RunView, str]]:
    """Yield runs with their status, the newest first; of the given statuses only, if any are given.

    Raises: FailedPrecondition, the folder cannot be read.
    """
    with local.index() as index:
        index.sync(local.run_ids)
        for row in index.newest(statuses):
            run = row.ended_view(local.database(row.run_id)) or _readable_view(local, index, row.run_id)
            if run is None:
                continue
            status = status_of(local, run)
            if not statuses or status in statuses:
                yield run, status


def list_known(local: LocalRuns) -> Iterator[tuple[RunView, str]]:
    """Yield runs with their status, the newest first. No database is opened.

    Of runs that have not ended, only id, status and time are known.

    Raises: FailedPrecondition, the folder cannot be read.
    """
    with local.index() as index:
        index.sync(local.run_ids)
        for row in index.newest():
            database = local.database(row.run_id)
            run = row.ended_view(database)
            if run is not None:
                yield run, run.status
            elif database.exists():
                status = "running" if local.is_driven(row.run_id) else INTERRUPTED
                created_at_ms = begun_at_ms(row.run_id)
                yield RunView(row.run_id, "", "", status, 0, 0, 0, 0, created_at_ms, completed_at_ms=None), status


def _readable_view(local: LocalRuns, index: FolderIndex, run_id: str) -> RunView | None:
    """Read a run; None if there is nothing to show. An unreadable database is reported, and the run is `DAMAGED`."""
    if not local.database(run_id).exists():
        return None

    import asyncio

    from stepflow.embedded.examine import examine

    try:
        return asyncio.run(examine(local, index, run_id))
    except NotFound:  # nothing was submitted yet, or the process was killed before the submission
        return None
    except StepflowError as error:
        if local.is_driven(run_id):  # the database may be in the middle of its creation
            return None
        console.error(error)
        return RunView(run_id, "", "", DAMAGED, 0, 0, 0, 0, created_at_ms=begun_at_ms(run_id), completed_at_ms=None)


__all__ = ["DAMAGED", "INTERRUPTED", "list_known", "list_runs", "status_of"]
