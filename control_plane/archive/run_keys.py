"""The key-values of ended runs in the store: read together for packing, and deleted once they are packed.

- A read is of one revision. What belongs to an ended run never changes; a client may delete it meanwhile.
- A small run is read whole. Of a large one, this module yields the key-values page by page.
- Readers find a packed run through its record: the record goes first, in one transaction with the run's entry in the
  index by age, and the statuses go last. So a deletion that broke off is found by its statuses.
- Every deletion compares the leader's fence, and that the record is the one that was read, or gone: a run that was
  deleted and admitted again keeps its keys.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import msgspec
from google.protobuf.message import DecodeError

from control_plane.shared_blobs import blob_ids
from control_plane.views import TERMINAL
from stepflow.errors import DataLoss, FailedPrecondition
from stepflow.journal import parse_record, partition_count
from stepflow.mesh.v1 import state_pb2
from stepflow.store import (
    Delete,
    DeletePrefix,
    Get,
    KeyValue,
    Page,
    Range,
    Txn,
    absent,
    keys,
    modified_at,
)
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from control_plane.archive.due_runs import DueRun
    from stepflow.store import Compare, Op, Store

log = get_logger(__name__)

RUNS_PER_READ = 17
"""Runs read in one transaction, with seven operations each."""

FIRST_KEYS = 8
"""Keys of each kind read with the run; further ones take reads of their own."""

WHOLE_RUN_BYTES_MAX = 1024 * 1024
"""A run above this size is packed page by page, so that memory holds a page of it."""

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

assert RUNS_PER_READ * (len(KINDS) + 2) <= TXN_OPS
assert FIRST_KEYS > SMALL_RUN_KEYS


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
    """The key-values, in order; if not `whole`, those of `status/` only."""
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


async def read_runs(store: Store, runs: Sequence[DueRun]) -> list[RunKeys]:
    """Read ended runs, in the order given. Raises: StepflowError."""
    groups = [runs[start : start + RUNS_PER_READ] for start in range(0, len(runs), RUNS_PER_READ)]
    found: list[RunKeys] = []
    for start in range(0, len(groups), STREAMS):
        for some in await asyncio.gather(*(_read_group(store, group) for group in groups[start : start + STREAMS])):
            found += some
    return found


async def _read_group(store: Store, runs: Sequence[DueRun]) -> list[RunKeys]:
    ops: list[Op] = []
    for run in runs:
        ops += Get(keys.run(run.run_id)), Get(keys.deleted(run.run_id))
        ops += [Range(prefix(run.run_id), limit=FIRST_KEYS) for prefix in KINDS]
    result = await store.txn(Txn((), tuple(ops)))

    found: list[RunKeys] = []
    per_run = len(KINDS) + 2
    for index, run in enumerate(runs):
        record, deleted, *pages = result.responses[index * per_run : (index + 1) * per_run]
        assert record is None or isinstance(record, KeyValue)
        read = RunKeys(run, result.revision, record, deleted is not None)
        read.by_age = keys.by_age(run.run_id, run.created_at_ms)
        await _fill(store, read, [page for page in pages if isinstance(page, Page)])
        found.append(read)
    return found


async def _fill(store: Store, read: RunKeys, pages: Sequence[Page]) -> None:
    """Add the key-values to a run; `pages`: the first ones of each kind."""
    # 1. The statuses, and from them whether the run has ended.
    run_id = read.run.run_id
    statuses = [item async for item in _each(store, keys.status_of_run(run_id), read.revision, pages[-1])]
    read.ended = _has_ended(read, statuses)
    read.items, read.names = statuses, [item.key for item in statuses]
    if not read.ended:
        return

    # 2. The others, in order, as far as they fit memory.
    items: list[KeyValue] = []
    size = sum(len(item.value) for item in statuses)
    for prefix, page in zip(KINDS[:-1], pages[:-1], strict=True):
        async for item in _each(store, prefix(run_id), read.revision, page):
            items.append(item)
            size += len(item.value)
            if size > WHOLE_RUN_BYTES_MAX:
                read.whole = False
                return
    if read.record is not None:
        items.append(read.record)
    read.items = items + statuses
    read.names = [item.key for item in read.items]


def _has_ended(read: RunKeys, statuses: Sequence[KeyValue]) -> bool:
    try:
        terminal = all(state_pb2.PartitionStatus.FromString(item.value).status in TERMINAL for item in statuses)
    except DecodeError:
        log.error("a run stays in the store: its status cannot be read", run_id=read.run.run_id)
        return False
    read.partitions = max(1, len(statuses))
    if read.record is not None:
        with contextlib.suppress(DataLoss):  # packed as it is: readers tell of it as before
            record = parse_record(read.run.run_id, read.record.value)
            read.partitions = partition_count(record)
            # Not as listed: it may be another run of the same id.
            read.by_age = keys.by_age(read.run.run_id, record.created_at_ms)
            inputs = [payload.blob for payload in record.inputs if payload.blob]
            read.input_blobs = (*record.partition_inputs, *inputs)
            read.hashes = (record.flow_id, record.request_hash, *read.input_blobs)
    return bool(statuses) and terminal and len(statuses) == read.partitions


async def _each(store: Store, prefix: str, revision: int, page: Page) -> AsyncIterator[KeyValue]:
    """Yield the keys under a prefix as of a revision, of which `page` has the first."""
    while True:
        for item in page.items:
            yield item
        if not page.more:
            return
        page = await store.range(prefix, after=page.items[-1].key, revision=revision)


async def pages_of(store: Store, read: RunKeys) -> AsyncIterator[list[KeyValue]]:
    """Yield all key-values of a large run in the order of keys, in pages. Raises: StepflowError.

    Each page is of its own moment: the read may take longer than the store keeps history. What a client deletes
    meanwhile is missing, as it would be in the store.
    """
    run_id = read.run.run_id
    for prefix in KINDS:
        if prefix is keys.status_of_run and read.record is not None:
            yield [read.record]
        after = ""
        while True:
            page = await store.range(prefix(run_id), after=after)
            if page.items:
                yield page.items
            if not page.more:
                break
            after = page.items[-1].key


def has_blobs(read: RunKeys) -> bool:
    """Return True if the key-values of a run may name a blob of the run; also True for a run that is not whole."""
    if not read.whole or read.input_blobs:
        return True
    # Not the record: its hashes look like blobs.
    return any(_BLOB.search(item.value) for item in read.items if not item.key.startswith(keys.RUNS))


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
    small = [(read, _deletes(read)) for read in runs if read.record is not None and _is_small(read)]
    groups: list[list[tuple[RunKeys, list[Op]]]] = []
    ops_left = 0
    for read, ops in small:
        if len(ops) + 1 > ops_left:
            groups.append([])
            ops_left = TXN_OPS
        groups[-1].append((read, ops))
        ops_left -= len(ops) + 1  # the compare, too, so that neither exceeds the bound
    for start in range(0, len(groups), STREAMS):
        await asyncio.gather(*(_delete_group(store, fence, group) for group in groups[start : start + STREAMS]))

    # 2. The others, one after the other.
    for read in runs:
        if read.record is None or not _is_small(read):
            await delete_large(store, fence, read)


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
    "pages_of",
    "read_runs",
]
