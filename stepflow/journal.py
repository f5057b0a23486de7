"""Reads a run from the store: record, flow, and the journal of each partition.

Executors replay a partition entry by entry before continuing. Readers replay in pieces, in threads
(`stepflow.run.replay`), with the parts of this module. It never writes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import msgspec
from google.protobuf.message import DecodeError

from stepflow.codec import Json, decode, encode
from stepflow.errors import DataLoss, NotFound
from stepflow.flow import apply_overrides, compile_flow, flow_from_tree
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run import apply, new_run
from stepflow.run.advance import advance
from stepflow.run.entries import json_of
from stepflow.run.values import unload_large
from stepflow.store import Page, Range, Txn, keys, range_all

if TYPE_CHECKING:
    from array import array
    from collections.abc import AsyncIterator, Sequence

    from stepflow.flow import CompiledFlow
    from stepflow.run import RunState
    from stepflow.store import KeyValue, Store
    from stepflow.store.blobs import BlobStore
    from stepflow.store.grouping import Grouping


FIRST_KEYS = 16
"""Keys of a journal to read in a common transaction with other runs; each may have 192 KiB."""


class GetBlob(Protocol):
    """Loads a blob of a run; None if it does not exist. `shared`: a user supplied the id, of a flow for instance."""

    async def __call__(self, run_id: str, blob: str, *, shared: bool) -> bytes | None: ...


def blob_reader(store: Store, blobs: BlobStore) -> GetBlob:
    """Return a loader that searches the run's own blobs, the shared blobs, and the stored flows, in this order."""

    async def read(run_id: str, blob: str, *, shared: bool) -> bytes | None:
        for scope in ("shared",) if shared else (run_id, "shared"):
            try:
                return (await blobs.get(blob, scope=scope))[0]
            except NotFound:
                continue
        stored = await store.get(keys.flow(blob))
        return None if stored is None else stored.value

    return read


def partition_count(record: state_pb2.RunRecord) -> int:
    """Return the number of partitions; a run without items has an empty partition."""
    return max(1, -(-record.items_total // record.items_per_partition))


def partition_window(record: state_pb2.RunRecord) -> tuple[int, int]:
    """Return the maximum of concurrently active partitions, and the concurrency window of each."""
    window = max(1, record.policy.concurrency_max)
    active = min(window, partition_count(record))
    return active, max(1, window // active)


async def read_record(store: Store, run_id: str) -> state_pb2.RunRecord:
    """Read the record of a run. Raises: NotFound, DataLoss."""
    found = await store.get(keys.run(run_id))
    if found is None:
        raise NotFound("RUN_NOT_FOUND", f"there is no run {run_id}", run_id=run_id)
    return parse_record(run_id, found.value)


def parse_record(run_id: str, value: bytes) -> state_pb2.RunRecord:
    """Decode the record of a run. Raises: DataLoss."""
    try:
        record = state_pb2.RunRecord.FromString(value)
    except DecodeError:
        raise DataLoss("RECORD_CORRUPT", f"the record of run {run_id} cannot be read", run_id=run_id) from None
    if not record.items_per_partition:
        raise DataLoss("RECORD_CORRUPT", f"the record of run {run_id} has no partition size", run_id=run_id)
    return record


def without_inputs(record: state_pb2.RunRecord) -> state_pb2.RunRecord:
    """Return the record without the inputs, which are most of it. `record` is changed, too.

    A copy, because a message keeps the memory of fields that are cleared.
    """
    record.ClearField("inputs")
    record.ClearField("partition_inputs")
    return state_pb2.RunRecord.FromString(record.SerializeToString())


async def read_plan(store: Store, record: state_pb2.RunRecord) -> CompiledFlow:
    """Read and compile the run's flow with the overrides. Raises: DataLoss."""
    return plan_of(await read_flow(store, record), record)


async def read_flow(store: Store, record: state_pb2.RunRecord) -> bytes:
    """Read the document of the run's flow. Raises: DataLoss."""
    stored = await store.get(keys.flow(record.flow_id))
    if stored is None:
        raise DataLoss("FLOW_MISSING", f"flow {record.flow_id} of a run is missing", flow_id=record.flow_id)
    return stored.value


def plan_of(document: bytes, record: state_pb2.RunRecord) -> CompiledFlow:
    """Compile the run's flow with the overrides."""
    flow = flow_from_tree(decode(document))
    if record.overrides_json:
        flow = apply_overrides(flow, decode(record.overrides_json))
    return compile_flow(flow)


async def journal_unread(store: Store, run_id: str, partition: int) -> bool:
    """Return True if the partition was ended without reading its journal, which others must not read either."""
    found = await store.get(keys.status(run_id, partition))
    return found is not None and state_pb2.PartitionStatus.FromString(found.value).journal_unread


async def open_partition(
    run_id: str, partition: int, record: state_pb2.RunRecord, plan: CompiledFlow, get_blob: GetBlob
) -> RunState:
    """Return the state of a partition before the first entry. Raises: DataLoss (the inputs are missing)."""
    content = await read_inputs(run_id, partition, record, get_blob)
    return state_before(run_id, partition, record, plan, content)


async def read_inputs(run_id: str, partition: int, record: state_pb2.RunRecord, get_blob: GetBlob) -> bytes | None:
    """Return the inputs of a partition from their blob; None if the record has them. Raises: DataLoss."""
    if not record.partition_inputs:
        return None
    content = await get_blob(run_id, record.partition_inputs[partition], shared=False)
    if content is None:
        raise DataLoss("INPUTS_MISSING", f"the inputs of run {run_id}, partition {partition}, are missing")
    return content


def state_before(
    run_id: str, partition: int, record: state_pb2.RunRecord, plan: CompiledFlow, content: bytes | None
) -> RunState:
    """Return the state of a partition before the first entry. `content`: as from `read_inputs`."""
    first = partition * record.items_per_partition
    if content is not None:
        inputs = [Json(bytes(raw)) for raw in msgspec.json.decode(content, type=list[msgspec.Raw])]
    else:
        inputs = [json_of(payload) for payload in record.inputs[first : first + record.items_per_partition]]

    policy = state_pb2.Policy()
    policy.CopyFrom(record.policy)
    policy.concurrency_max = partition_window(record)[1]
    variables = {name: Json(encode(value)) for name, value in decode(record.variables_json or b"{}").items()}

    return new_run(
        run_id,
        partition=partition,
        first_item=first,
        plan=plan,
        inputs=inputs,
        variables=variables,
        policy=policy,
        batch=record.items_total > 1,
    )


async def journal_entries(
    store: Store,
    run_id: str,
    partition: int,
    grouping: Grouping | None = None,
    *,
    first_seqs: array[int] | None = None,
) -> AsyncIterator[pb.Entry]:
    """Yield a partition's journal in order. With `grouping`, the first page is read together with other partitions.

    `first_seqs` gets the number of each value's first entry.

    Raises:
        DataLoss: an entry is missing or cannot be read.
    """
    seq = 0
    prefix = keys.journal_of_partition(run_id, partition)
    first_page: Page | None = None
    if grouping is not None:
        (response,) = (await grouping.txn(Txn((), (Range(prefix, limit=FIRST_KEYS),)))).responses
        assert isinstance(response, Page)
        first_page = response

    async for item in range_all(store, prefix, first=first_page):
        entries = entries_of(run_id, partition, seq, item)
        if first_seqs is not None:
            first_seqs.append(seq)
        for entry in entries:
            yield entry
        seq += len(entries)


def entries_of(run_id: str, partition: int, seq: int, item: KeyValue) -> Sequence[pb.Entry]:
    """Decode a value of a journal; `seq`: the number of the entry that must come first. Raises: DataLoss."""
    if keys.parse_journal(item.key)[2] != seq:
        raise DataLoss(
            "JOURNAL_GAP", f"journal of run {run_id}, partition {partition}: entry {seq} is missing", run_id=run_id
        )

    try:
        return pb.EntryBatch.FromString(item.value).entries
    except DecodeError:
        raise DataLoss(
            "JOURNAL_CORRUPT",
            f"journal of run {run_id}, partition {partition}: entries from {seq} on cannot be read",
            run_id=run_id,
        ) from None


async def replay_entry(state: RunState, entry: pb.Entry, get_blob: GetBlob) -> None:
    """Apply a journaled entry and work out the consequences, loading blobs on demand."""
    apply(state, entry)
    blobs: dict[str, bytes | None] = {}
    while not advance(state, blobs) and state.wanted:
        for blob, shared in state.take_wanted().items():
            blobs[blob] = await get_blob(state.run_id, blob, shared=shared)
    unload_large(state)
