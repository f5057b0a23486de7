"""The key-values of ended runs in the store, and their deletion once they are packed. `run_reader` reads them.

- Readers find a packed run through its record: the record goes first, in one transaction with the run's entry in the
  index by age, and the statuses go last. So a deletion that broke off is found by its statuses.
- Every deletion compares the leader's fence, and that the record is the one that was read, or gone: a run that was
  deleted and admitted again keeps its keys.
"""

from __future__ import annotations

import asyncio
import re
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import msgspec

from control_plane.shared_blobs import blob_ids
from stepflow.errors import FailedPrecondition
from stepflow.store import (
    Delete,
    DeletePrefix,
    KeyValue,
    Txn,
    absent,
    keys,
    modified_at,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from control_plane.archive.due_runs import DueRun
    from stepflow.store import Compare, Op, Store

SMALL_RUN_KEYS = 7
"""A run of so many keys is deleted key by key: etcd deletes keys faster than ranges."""

TXN_OPS = 120
"""Operations, and compares, of one transaction here."""

STREAMS = 4
"""Transactions in flight at once."""

KINDS = (
    keys.adopting_of_run,
    keys.inbox_of_run,
    keys.journal_of_run,
    keys.results_of_run,
    keys.status_of_run,
)
"""Prefixes of a run besides its record, in the order of keys."""

_BLOB = re.compile(rb"@[0-9a-f]{64}")
"""The id of a blob in a message: a string of 64 digits, behind its length."""


@dataclass(slots=True)
class RunKeys:
    """An ended run as read at `revision`."""

    run: DueRun
    revision: int
    record: KeyValue | None
    """None: the run was deleted, or its packing broke off after the record."""
    deleted: bool
    """A deletion of an earlier run of this id is not finished yet."""
    ended: bool = False
    partitions: int = 1
    by_age: str = ""
    """Key of the entry in the index by age."""
    items: list[KeyValue] = field(default_factory=list)
    """The key-values, in order; if not `whole`, the record and those of `status/` only."""
    names: list[str] = field(default_factory=list)
    """The keys of `items`, which stay when `release` drops those."""
    whole: bool = True
    input_blobs: tuple[str, ...] = ()
    """Blobs of the run that hold its inputs."""
    hashes: tuple[str, ...] = ()
    """What looks like the id of a shared blob in the record, and is none."""

    def release(self) -> None:
        """Drop the values: only the deletion follows."""
        self.items = []
        if self.record is not None:
            self.record = msgspec.structs.replace(self.record, value=b"")


def has_blobs(read: RunKeys) -> bool:
    """Return True if the key-values of a run may name a blob of the run; also True for a run that is not whole."""
    if not read.whole or read.input_blobs:
        return True
    # Not the record: its hashes look like blobs.
    return any(
        b"@" in item.value and _BLOB.search(item.value)  # the first test is 30 times as fast
        for item in read.items
        if not item.key.startswith(keys.RUNS)
    )


def named_blobs(read: RunKeys) -> set[bytes]:
    """Return the ids of the shared blobs that the record of a run may name: any 64 hexadecimal digits."""
    if read.record is None:
        return set()
    return blob_ids(read.record.value) - {bytes.fromhex(text) for text in read.hashes if len(text) == 64}


async def delete_runs(store: Store, fence: Compare, runs: Sequence[RunKeys]) -> None:
    """Delete the keys of packed runs. A run that a client has deleted since the read is left alone.

    Raises: FailedPrecondition `NOT_LEADING`; StepflowError: some of them are deleted.
    """
    # 1. Small runs, many in a transaction.
    groups = _groups([read for read in runs if read.record is not None and _is_small(read)])
    while some := list(islice(groups, STREAMS)):
        await asyncio.gather(*(_delete_group(store, fence, group) for group in some))

    # 2. The others, one after the other.
    for read in runs:
        if read.record is None or not _is_small(read):
            await delete_large(store, fence, read)


def _groups(runs: Sequence[RunKeys]) -> Iterator[list[tuple[RunKeys, list[Op]]]]:
    """Yield small runs with their deletions, grouped into transactions."""
    group: list[tuple[RunKeys, list[Op]]] = []
    ops_left = TXN_OPS
    for read in runs:
        ops = _deletes(read)
        ops_left -= len(ops)
        if ops_left < 0:
            yield group
            group, ops_left = [], TXN_OPS - len(ops)
        group.append((read, ops))
    if group:
        yield group


def _is_small(read: RunKeys) -> bool:
    return read.whole and read.partitions == 1


def _deletes(read: RunKeys) -> list[Op]:
    """Return the deletions of all keys of a small run."""
    assert read.record is not None
    if len(read.names) <= SMALL_RUN_KEYS:
        return [Delete(key) for key in (*read.names, read.by_age)]

    ops: list[Op] = [Delete(read.record.key), Delete(read.by_age)]
    run_id = read.run.run_id
    present_kinds = {name.partition("/")[0] for name in read.names}
    ops += [DeletePrefix(prefix) for kind in KINDS if (prefix := kind(run_id)).partition("/")[0] in present_kinds]
    return ops


async def _delete_group(store: Store, fence: Compare, group: Sequence[tuple[RunKeys, list[Op]]]) -> None:
    compares = [modified_at(read.record.key, read.record.mod_revision) for read, _ in group if read.record is not None]
    ops = [op for _, ops in group for op in ops]
    if (await store.txn(Txn((fence, *compares), tuple(ops)))).succeeded or not group:
        return
    if len(group) > 1:  # find the run that has changed
        for each in group:
            await _delete_group(store, fence, [each])
        return
    await check_leading(store, fence)


async def delete_large(store: Store, fence: Compare, read: RunKeys) -> None:
    """Delete the keys of a packed run in several transactions, or what a deletion that broke off has left.

    Raises: FailedPrecondition `NOT_LEADING`; StepflowError.
    """
    # 1. The record: readers turn to the segment. And the entry of lists.
    run_id = read.run.run_id
    record_key = keys.run(run_id)
    if read.record is not None:
        first = Delete(record_key), Delete(read.by_age)
        unchanged = modified_at(record_key, read.record.mod_revision)
        if not (await store.txn(Txn((fence, unchanged), first))).succeeded:
            await check_leading(store, fence)
            return  # a client has deleted it

    # 2. The bulk, by partition; while no run is admitted under the id.
    gone = (fence, absent(record_key))
    partitions = [keys.parse_status(name)[1] for name in read.names if name.startswith(keys.STATUS)]
    steps: list[tuple[Op, ...]] = [
        tuple(DeletePrefix(keys.journal_of_partition(run_id, partition)) for partition in partitions[start : start + 8])
        for start in range(0, len(partitions), 8)
    ]
    steps += [(DeletePrefix(kind(run_id)),) for kind in KINDS[:-1]]

    # 3. The statuses last: while one exists, a later leader finds the rest. An entry of lists without a run goes, too.
    steps.append((DeletePrefix(keys.status_of_run(run_id)), Delete(read.by_age)))
    for ops in steps:
        if not (await store.txn(Txn(gone, ops))).succeeded:
            await check_leading(store, fence)
            return  # the id is in use again


async def check_leading(store: Store, fence: Compare) -> None:
    """Raises: FailedPrecondition `NOT_LEADING`."""
    if not (await store.txn(Txn((fence,), ()))).succeeded:
        raise FailedPrecondition("NOT_LEADING", "another control plane leads now")


__all__ = [
    "RunKeys",
    "check_leading",
    "delete_large",
    "delete_runs",
    "has_blobs",
    "named_blobs",
]
