"""Ended runs whose results lie in parts, written into a store as an executor leaves them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from control_plane.flow_store import FlowStore
from control_plane.run_index import entry
from stepflow.errors import Failure
from stepflow.flow import flow_from_tree
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run.entries import failure_to_pb
from stepflow.store import keys, put

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

BEGAN_MS = 1_700_000_000_000
FLOW = {"output": {"$input": "$"}}


@dataclass(frozen=True)
class Part:
    """A part of a result: the bytes of `source` from `offset` on, up to `end` (None: to its end)."""

    kind: Literal["json", "journal", "blob"]
    source: bytes
    offset: int = 0
    end: int | None = None

    @property
    def text(self) -> bytes:
        return self.source[self.offset : self.end]


@dataclass(frozen=True)
class Composed:
    """A result in parts. `listed_in_blob`: the list of the parts is a blob."""

    parts: Sequence[Part]
    listed_in_blob: bool = False

    @property
    def text(self) -> bytes:
        return b"".join(part.text for part in self.parts)


@dataclass
class PartsWriter:
    """Writes one partition of a run; entries with the same bytes are written once, `entries_per_value` to a value."""

    store: Store
    blobs: BlobStore
    run_id: str = field(default_factory=new_run_id)
    entries_per_value: int = 3

    async def parts(self, composed: Composed) -> state_pb2.ResultParts:
        """Write the journal values and blobs of a result, and return its parts."""
        sources = list(dict.fromkeys(part.source for part in composed.parts if part.kind == "journal"))
        for first in range(0, len(sources), self.entries_per_value):
            batch = pb.EntryBatch()
            for source in sources[first : first + self.entries_per_value]:
                batch.entries.add(step_completed=pb.StepCompleted(attempt=1, result=pb.Payload(json=source)))
            await put(self.store, keys.journal(self.run_id, 0, first), batch.SerializeToString())

        numbers = {source: number for number, source in enumerate(sources)}
        listed = state_pb2.ResultParts(bytes=sum(len(part.text) for part in composed.parts))
        for part in composed.parts:
            message = listed.parts.add()
            if part.kind == "json":
                message.json = part.text
            elif part.kind == "blob":
                message.blob.blob = await self.blobs.put(part.source, scope=self.run_id)
                message.blob.offset, message.blob.length = part.offset, len(part.text)
            else:
                number = numbers[part.source]
                message.journal.index = number % self.entries_per_value
                message.journal.first_seq = number - message.journal.index
                message.journal.offset, message.journal.length = part.offset, len(part.text)
        return listed

    async def item(self, number: int, outcome: Composed | Failure | bytes) -> state_pb2.ItemResult:
        """Write what an outcome refers to, and return the outcome as it is stored."""
        result = state_pb2.ItemResult(item=number, status=pb.RUN_STATUS_COMPLETED, completed_at_ms=BEGAN_MS + 1)
        if isinstance(outcome, Failure):
            result.status = pb.RUN_STATUS_FAILED
            result.failure.CopyFrom(failure_to_pb(outcome))
        elif isinstance(outcome, bytes):
            result.result.json = outcome
        elif outcome.listed_in_blob:
            listed = await self.parts(outcome)
            result.parts_blob = await self.blobs.put(listed.SerializeToString(), scope=self.run_id)
            result.parts_bytes = listed.bytes
        else:
            result.parts.CopyFrom(await self.parts(outcome))
        return result


async def add_ended_run(
    store: Store, blobs: BlobStore, outcomes: Iterable[Composed | Failure | bytes], *, run_id: str = ""
) -> str:
    """Write an ended run of one partition and return its id. At most one outcome may have parts in the journal."""
    writer = PartsWriter(store, blobs, run_id or new_run_id())
    items = [await writer.item(number, outcome) for number, outcome in enumerate(outcomes)]

    record = state_pb2.RunRecord(
        flow_id=await FlowStore(store).put(flow_from_tree(FLOW)),
        items_total=len(items),
        items_per_partition=len(items) or 1,
        created_at_ms=BEGAN_MS,
    )
    record.inputs.extend(pb.Payload(json=b"1") for _ in items)
    failed = sum(item.HasField("failure") for item in items)
    status = state_pb2.PartitionStatus(
        status=pb.RUN_STATUS_FAILED if failed else pb.RUN_STATUS_COMPLETED,
        items_total=len(items),
        items_completed=len(items) - failed,
        items_failed=failed,
        created_at_ms=BEGAN_MS,
        completed_at_ms=BEGAN_MS + 1,
    )
    results = state_pb2.PartitionResults(items=items)
    await put(store, keys.results(writer.run_id, 0), results.SerializeToString())
    await put(store, keys.status(writer.run_id, 0), status.SerializeToString())
    await put(store, keys.run(writer.run_id), record.SerializeToString())
    listed = entry(writer.run_id, record)
    await put(store, listed.key, listed.value)
    return writer.run_id
