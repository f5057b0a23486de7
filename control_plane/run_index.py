"""The index of runs by age, under `by-age/`: a list of runs reads one range of it, however many runs there are.

- An entry is written with the admission of its run, and deleted with the run.
- Its value is the run's record without the members that no list shows. It is empty if the labels are large: lists then
  read the record.
- Early versions neither wrote nor deleted entries. So each leader adds what is missing when its term begins;
  `BY_AGE_COMPLETE` marks the first completion. Lists scan all statuses until then.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from stepflow.errors import FailedPrecondition
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Compare, Delete, Put, Txn, absent, keys, present, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepflow.store import Store

log = get_logger(__name__)

LABELS_LISTED_BYTES_MAX = 1024
"""Labels kept in an entry. Larger labels are read from the record."""

ENTRIES_PER_TXN = 100


def entry(run_id: str, record: state_pb2.RunRecord) -> Put:
    """Return the write of a run's entry."""
    key = keys.by_age(run_id, record.created_at_ms)
    if len(record.labels_json) > LABELS_LISTED_BYTES_MAX:
        return Put(key, b"")
    shown = state_pb2.RunRecord(
        flow_id=record.flow_id,
        flow_name=record.flow_name,
        labels_json=record.labels_json,
        items_total=record.items_total,
        items_per_partition=record.items_per_partition,
        created_at_ms=record.created_at_ms,
    )
    return Put(key, shown.SerializeToString())


def _entry_of(run_id: str, value: bytes, created_at_ms: int) -> Put:
    """Return the entry of a stored record, an unreadable one included: lists tell of it."""
    try:
        return entry(run_id, state_pb2.RunRecord.FromString(value))
    except DecodeError:
        return Put(keys.by_age(run_id, created_at_ms), b"")


async def complete_index(store: Store, fence: Compare, created: Mapping[str, int]) -> None:
    """Add the missing entries of all runs in the store, on behalf of a leader.

    `created`: by run, its creation time; 0: unknown. `fence`: this replica leads.

    Raises: FailedPrecondition `NOT_LEADING`; StepflowError.
    """
    # 1. Add the missing entries.
    runs = list(created.items())
    for start in range(0, len(runs), ENTRIES_PER_TXN):
        await _add(store, fence, runs[start : start + ENTRIES_PER_TXN])

    # 2. Tell the lists.
    if not (await store.txn(Txn((fence,), (Put(keys.BY_AGE_COMPLETE, b""),)))).succeeded:
        raise FailedPrecondition("NOT_LEADING", "another control plane leads now")

    # 3. Remove entries without a run, which an earlier version has deleted.
    await _prune(store, created)


async def _add(store: Store, fence: Compare, runs: Sequence[tuple[str, int]]) -> None:
    """Add those of the entries that are missing."""
    paths = [keys.by_age(run_id, at_ms) for run_id, at_ms in runs]
    if (await store.txn(Txn(tuple(map(present, paths)), ()))).succeeded:
        return

    for (run_id, at_ms), path in zip(runs, paths, strict=True):
        if at_ms and await store.get(path) is not None:
            continue
        found = await store.get(keys.run(run_id))
        if found is None:  # deleted since the list
            continue
        added = _entry_of(run_id, found.value, at_ms)
        await store.txn(Txn((fence, absent(added.key), present(keys.run(run_id))), (added,)))


async def _prune(store: Store, created: Mapping[str, int]) -> None:
    count = 0
    async for item in range_all(store, keys.BY_AGE):
        run_id = keys.parse_by_age(item.key)[1]
        if run_id not in created:  # admitted since the list, or deleted
            result = await store.txn(Txn((absent(keys.run(run_id)),), (Delete(item.key),)))
            count += result.succeeded
    if count:
        log.info("entries of deleted runs removed", count=count)


__all__ = ["complete_index", "entry"]
