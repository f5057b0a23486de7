"""Removal of ended runs from a folder, after the end of each run (`retention` of a configuration) or by hand.

- The runs that ended the longest ago go first: those beyond the age, and more of them while all ended runs take more
  space than allowed.
- Never removed: a run that has not ended, one that a process has locked, one whose database changed since it ended or
  cannot be read (it is reported), and one that ended within the last minute: its process may be reading its results.
- Shared blobs older than the age go, too, unless something refers to them (`expired_blobs`): once an hour.
- The work of a call is bounded. The index says what to remove; the names of the folder are read at most once an hour,
  and only if commands without the index have changed them.
- Crash-safe: a row of the index outlives the files of its run. The next call removes what an interrupted one leaves.
- Several processes may do this at once: the lock of a run decides which of them removes it.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from stepflow.embedded.examine import examine
from stepflow.embedded.expired_blobs import remove_expired_blobs
from stepflow.embedded.folder_index import FileMark
from stepflow.errors import NotFound, StepflowError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    from stepflow.config import RetentionConfig
    from stepflow.embedded.folder_index import EndedRow, FolderIndex
    from stepflow.embedded.runs_folder import LocalRuns
    from stepflow.store.blobs import BlobStore

RUNS_REMOVED_MAX = 200
"""Runs removed by one call; the next one removes more."""

RUNS_EXAMINED_MAX = 20
"""Databases opened by one call, to find out whether their runs have ended."""

SPARED_MS = 60_000
"""A run that ended so recently stays."""

RECHECK_S = 3600
"""Interval of reading the names of the folder, of looking at a run that has not ended, and of removing shared blobs."""


async def apply_retention(
    local: LocalRuns, retention: RetentionConfig, report: Callable[[StepflowError], None], now_ms: int | None = None
) -> list[str]:
    """Remove what the retention does not keep; return the ids of the removed runs.

    `report` is called with the error of each run that cannot be read or removed. `now_ms` is for tests.
    """
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    if retention.age_ms is None and retention.size_bytes is None:
        return []

    removed: list[str] = []
    try:
        with local.index() as index:
            if index.is_due("names", RECHECK_S, now_ms // 1000):
                index.sync(local.run_ids)
            await _examine_some(local, index, now_ms // 1000, report)
            with index.own_changes():
                removed = await _remove_old(local, index, retention, now_ms, report)
            if retention.age_ms is not None and index.is_due("shared blobs", RECHECK_S, now_ms // 1000):
                await remove_expired_blobs(local, index, local.blobs(), (now_ms - retention.age_ms) / 1000)
    except StepflowError as error:  # the folder or its blobs cannot be used
        report(error)
    return removed


async def expired_runs(
    local: LocalRuns, age_ms: int, report: Callable[[StepflowError], None], now_ms: int | None = None
) -> list[EndedRow]:
    """Return the runs that ended longer ago than `age_ms`, the longest ago first; those of the last minute are spared.

    `report` is called with the error of each run that cannot be read. Raises: FailedPrecondition.
    """
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    with local.index() as index:
        index.sync(local.run_ids)
        while await _examine_some(local, index, now_ms // 1000, report, again_s=0):
            pass
        return index.longest_ended(now_ms - max(age_ms, SPARED_MS), -1)


async def remove_expired(
    local: LocalRuns, rows: Iterable[EndedRow], report: Callable[[StepflowError], None]
) -> AsyncIterator[EndedRow]:
    """Remove runs of `expired_runs`; yield those that are gone, as they go. Others have changed, or are reported."""
    with local.index() as index:
        blobs = local.blobs()
        for row in rows:
            try:
                with index.own_changes():
                    removed = await _remove(local, index, blobs, row)
            except StepflowError as error:
                report(error)
            else:
                if removed:
                    yield row


async def _examine_some(
    local: LocalRuns,
    index: FolderIndex,
    now_s: int,
    report: Callable[[StepflowError], None],
    *,
    again_s: int = RECHECK_S,
) -> bool:
    """Look at some of the runs that no process noted as ended, such as those of killed processes and other versions.

    Return False if there were none that were not looked at within `again_s`.
    """
    some = index.unchecked(now_s - again_s, RUNS_EXAMINED_MAX)
    for run_id in some:
        try:
            if not local.is_driven(run_id) and (await examine(local, index, run_id)).terminal:
                continue
        except NotFound:  # nothing was submitted yet, or the files are gone
            pass
        except StepflowError as error:
            report(error)
        index.note_checked(run_id, now_s)
    return bool(some)


async def _remove_old(
    local: LocalRuns,
    index: FolderIndex,
    retention: RetentionConfig,
    now_ms: int,
    report: Callable[[StepflowError], None],
) -> list[str]:
    """Remove the runs that ended the longest ago, as far as the retention demands."""
    ended_since_ms = 0 if retention.age_ms is None else now_ms - retention.age_ms
    excess_bytes = 0 if retention.size_bytes is None else index.ended_bytes() - retention.size_bytes
    blobs = local.blobs()
    removed = []
    for row in index.longest_ended(now_ms - SPARED_MS, RUNS_REMOVED_MAX):
        if row.ended_at_ms >= ended_since_ms and excess_bytes <= 0:
            break
        try:
            if await _remove(local, index, blobs, row):
                removed.append(row.run_id)
                excess_bytes -= row.size_bytes
        except StepflowError as error:
            report(error)
    return removed


async def _remove(local: LocalRuns, index: FolderIndex, blobs: BlobStore, row: EndedRow) -> bool:
    """Remove a run with its blobs; return False if that is not possible now. Raises: StepflowError, blobs are left."""
    run_id, database = row.run_id, local.database(row.run_id)
    with local.lock(run_id) as held:
        if not held:
            return False

        # 1. Is it the run that ended? Without a database, it is what an interrupted removal left.
        mark = FileMark.of(database)
        if mark is not None and (str(mark) != row.mark or _has_log(local, run_id)):
            index.note_checked(run_id, 0)
            return False

        # 2. Remove the database first, so that no run without its blobs is left. The row goes last.
        local.unlink(run_id)
        if database.exists():  # the folder cannot be written
            return False
        await blobs.delete_scope(run_id)
        index.remove(run_id)
    return True


def _has_log(local: LocalRuns, run_id: str) -> bool:
    """Return True if transactions are only in the log: the process that made them was killed."""
    log = FileMark.of(local.log(run_id))
    return log is not None and log.size_bytes > 0


__all__ = ["apply_retention", "expired_runs", "remove_expired"]
