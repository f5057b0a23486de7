"""Packing for tests: puts ended runs into a store, packs them into segments, and asks all readers about them."""

from __future__ import annotations

from bisect import bisect_right
from contextlib import aclosing
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from uuid import UUID

from control_plane.admission import RunRequest
from control_plane.archive.builder import SegmentBuilder
from control_plane.archive.format import RUN_PREFIXES, object_name
from control_plane.events import Events
from control_plane.history import RunDone
from control_plane.placement import new_status
from control_plane.run_index import entry
from control_plane.run_list import RunFilter
from control_plane.signals import signal
from executor.outcome import partition_results, partition_status
from stepflow.codec import Json, blob_id, encode
from stepflow.errors import StepflowError
from stepflow.flow import compile_flow, flow_bytes, flow_from_tree
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import segments_pb2, state_pb2
from stepflow.run import new_run
from stepflow.store import Delete, Put, Txn, keys, range_all
from stepflow.store.inline_bound import InlineBound
from support.engine import World

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Sequence

    from control_plane.control_plane import ControlPlane
    from stepflow.run import RunState
    from stepflow.store import KeyValue, Op, Store
    from stepflow.store.blobs import BlobStore

CREATED_AT_MS = 900_000


class RunWorld(World):
    """A simulated run with an id of its own."""

    run_id = ""

    def _fresh(self) -> RunState:
        return new_run(
            self.run_id,
            partition=0,
            first_item=0,
            plan=compile_flow(flow_from_tree(self.tree)),
            inputs=[Json(encode(value)) for value in self.inputs],
            variables={name: Json(encode(value)) for name, value in self.variables.items()},
            policy=self.policy,
        )


def run_world(number: int, tree: dict[str, Any], **options: Any) -> RunWorld:
    """Return a simulated run. `number`: of its run id."""
    made = type("NumberedWorld", (RunWorld,), {"run_id": str(UUID(int=0x018F << 112 | 7 << 76 | 2 << 62 | number))})
    world: RunWorld = made(tree, **options)
    return world


class _Blobs:
    def __init__(self, blobs: BlobStore) -> None:
        self._blobs = blobs
        self.inline_bound = InlineBound()

    async def put_blob(self, run_id: str, content: bytes) -> str:
        return await self._blobs.put(content, scope=run_id)


async def store_run(
    store: Store, blobs: BlobStore, world: RunWorld, flushes: Iterable[int] = (), created_at_ms: int = CREATED_AT_MS
) -> str:
    """Put a simulated run into a store as its admission and its owner do; return the run id.

    `flushes`: numbers of entries per value of the journal; the last value has the rest.
    """
    # 1. Flow, record, first status.
    run_id, document = world.run_id, flow_bytes(flow_from_tree(world.tree))
    record = state_pb2.RunRecord(
        flow_id=blob_id(document),
        flow_name=str(world.tree.get("name", "")),
        inputs=[pb.Payload(json=encode(value)) for value in world.inputs],
        policy=world.policy,
        request_hash="h",
        created_at_ms=created_at_ms,
        items_per_partition=64,
        items_total=len(world.inputs),
        labels_json=encode({"n": created_at_ms}),
    )
    writes: list[Op] = [
        Put(keys.flow(record.flow_id), document),
        Put(keys.run(run_id), record.SerializeToString()),
        entry(run_id, record),
        Put(keys.status(run_id, 0), new_status(record, 0).SerializeToString()),
        Put(keys.BY_AGE_COMPLETE, b""),
    ]
    await store.txn(Txn((), tuple(writes)))

    # 2. Blobs, journal, and with its last value the end.
    for content in world.blobs.values():
        await blobs.put(content, scope=run_id)
    last: list[Op] = []
    if world.state.status is not None:
        flushes = [*flushes]
        firsts = [0, *accumulate(flushes)]

        def value_of(seq: int) -> tuple[int, int]:
            first = firsts[bisect_right(firsts, seq) - 1]
            return first, seq - first

        results = await partition_results(
            world.state,
            _Blobs(blobs),  # type: ignore[arg-type]  # all that it calls
            value_of,
        )
        last = [
            Put(keys.status(run_id, 0), partition_status(world.state, record, 0).SerializeToString()),
            Put(keys.results(run_id, 0), results.SerializeToString()),
        ]
    seq = 0
    for count in [*flushes, len(world.journal)]:
        entries = [pb.Entry.FromString(raw) for raw in world.journal[seq : seq + count]]
        if entries:
            value = pb.EntryBatch(entries=entries).SerializeToString()
            seq += len(entries)
            final = last if seq == len(world.journal) else []
            await store.txn(Txn((), (Put(keys.journal(run_id, 0, seq - len(entries)), value), *final)))
    return run_id


async def keys_of_run(store: Store, run_id: str) -> list[KeyValue]:
    """Return the key-values that a segment has of a run."""
    return [item for prefix in RUN_PREFIXES async for item in range_all(store, prefix + run_id)]


async def write_segment(store: Store, blobs: BlobStore, segment_id: str, runs: dict[str, list[KeyValue]]) -> None:
    """Write an object with runs, and publish its manifest. The runs stay in the store."""
    builder = SegmentBuilder()

    async def chunks() -> AsyncIterator[bytes]:
        for run_id, items in runs.items():
            yield builder.add_run(run_id, items)
        yield builder.finish()

    await blobs.objects.write(object_name(segment_id), chunks())
    await publish(store, {segment_id: builder.manifest()})


async def publish(store: Store, manifests: dict[str, segments_pb2.SegmentManifest | None], *more: Op) -> None:
    """Put manifests, or with None delete them, in one transaction with a new version of the set of segments."""
    writes: list[Op] = [
        Delete(keys.segment(segment_id))
        if manifest is None
        else Put(keys.segment(segment_id), manifest.SerializeToString())
        for segment_id, manifest in manifests.items()
    ]
    await store.txn(Txn((), (*writes, Put(keys.segments_head(), b""), *more)))


async def delete_keys(store: Store, run_id: str) -> None:
    """Delete a packed run from the store: the record and the entry by age first."""
    items = await keys_of_run(store, run_id)
    record = next(state_pb2.RunRecord.FromString(item.value) for item in items if item.key == keys.run(run_id))
    first = Delete(keys.run(run_id)), Delete(keys.by_age(run_id, record.created_at_ms))
    await store.txn(Txn((), first))
    for item in items:
        await store.txn(Txn((), (Delete(item.key),)))


async def pack(store: Store, blobs: BlobStore, segment_id: str, run_ids: Sequence[str]) -> dict[str, list[KeyValue]]:
    """Move runs from the store into a segment; return their key-values."""
    runs = {run_id: await keys_of_run(store, run_id) for run_id in run_ids}
    await write_segment(store, blobs, segment_id, runs)
    for run_id in run_ids:
        await delete_keys(store, run_id)
    return runs


async def manifest_of(store: Store, segment_id: str) -> segments_pb2.SegmentManifest:
    found = await store.get(keys.segment(segment_id))
    assert found is not None
    return segments_pb2.SegmentManifest.FromString(found.value)


# --- answers ------------------------------------------------------------------------------------------------------


async def answers(control: ControlPlane, blobs: BlobStore, run_id: str) -> dict[str, Any]:
    """Return what all readers answer about an ended run."""
    found: dict[str, Any] = {
        "get": await control.get_run(run_id),
        "wait": await control.wait(run_id, timeout_s=10),
        "cancel": await control.cancel(run_id),
    }
    for size in (1, 3, 1000):
        found[f"items by {size}"] = await _pages(partial(control.listing.items, run_id, size))
    for size in (2, 1000):
        for with_results in (False, True):
            steps = partial(control.listing.steps, run_id, size, with_results=with_results)
            found[f"steps by {size}, {with_results}"] = await _pages(steps)
    found["events"] = await _events(control, blobs, run_id)

    # What an ended run refuses.
    for name, identity in (("go", ""), ("go", str(UUID(int=1)))):
        found[f"signal {identity}"] = await _outcome(
            signal(control.run_store, blobs, run_id, name, b"1", signal_id=identity)
        )
    again = RunRequest(flow_from_tree({"output": 1}), [b"1"], run_id=run_id)
    found["resubmission"] = await _outcome(control.submit(again))
    return found


async def _events(control: ControlPlane, blobs: BlobStore, run_id: str) -> dict[str, Any]:
    events = Events(control, control.run_store, blobs)
    try:
        found: dict[str, Any] = {}
        positions: list[dict[int, int]] = [{}]
        for with_results in (True, False):
            batches = await _followed(events, run_id, {}, with_results=with_results)
            found[f"all, {with_results}"] = batches
            positions += [{at[0]: at[1]} for at in (batch.position for batch in batches) if at is not None][::5]
        for after in positions:
            found[f"after {after}"] = await _followed(events, run_id, after, with_results=True)
        return found
    finally:
        await events.close()


async def _followed(events: Events, run_id: str, after: dict[int, int], *, with_results: bool) -> list[Any]:
    async with aclosing(events.follow(run_id, after, with_results=with_results)) as batches:
        found = [batch async for batch in batches]
    assert isinstance(found[-1].events[-1], RunDone)
    # Partitions are read in any order.
    return sorted(found, key=lambda batch: (batch.position is None, batch.position))


async def _pages(read: Callable[[str], Any]) -> list[Any]:
    pages, token = [], ""
    while True:
        page = await read(token)
        pages.append(page)
        token = page[1]
        if not token:
            return pages


async def _outcome(work: Any) -> Any:
    try:
        return await work
    except StepflowError as error:
        return type(error).__name__, error.reason, error.message


FILTERS = (
    RunFilter(),
    RunFilter(statuses=frozenset(("failed",))),
    RunFilter(statuses=frozenset(("completed", "cancelled"))),
    RunFilter(flow_name="named"),
    RunFilter(created_since_ms=CREATED_AT_MS + 3),
)


async def listings(control: ControlPlane) -> dict[str, Any]:
    """Return all pages of runs, in several sizes, with several filters."""
    return {
        f"{wanted} by {size}": await _pages(partial(control.run_list.page, wanted, size))
        for wanted in FILTERS
        for size in (1, 2, 1000)
    }


__all__ = [
    "RunWorld",
    "answers",
    "delete_keys",
    "keys_of_run",
    "listings",
    "manifest_of",
    "pack",
    "publish",
    "run_world",
    "store_run",
    "write_segment",
]
