"""The history of one partition as events: its journal, replayed entry by entry, each entry read once.

The events of an entry follow from the state before the entry. So a reader that continues behind a position replays the
whole journal, too; the events up to the position are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stepflow.codec import Json
from stepflow.errors import DataLoss, Failure
from stepflow.journal import journal_unread, open_partition, replay_entry
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run.entries import json_of
from stepflow.run.state import Stored
from stepflow.run.views import StepEvent, step_event
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from control_plane.views import RunView
    from stepflow.flow import CompiledFlow
    from stepflow.journal import GetBlob
    from stepflow.mesh.v1 import state_pb2
    from stepflow.run import RunState
    from stepflow.store import Store

BATCHES_AT_ONCE = 100
"""Values of the store read with one request, of up to 256 KiB each."""


@dataclass(frozen=True, slots=True)
class Adopted:
    """An executor became the owner of a partition."""

    at_ms: int
    partition: int
    executor_id: str
    handed_over: bool


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step ended. `result`: None if results are not requested, and for a failure, which is in `event`."""

    event: StepEvent
    result: Json | None


@dataclass(frozen=True, slots=True)
class SubRun:
    """A step opened a sub-run."""

    event: StepEvent
    sub_run_id: str


@dataclass(frozen=True, slots=True)
class ItemDone:
    """An item of the run ended. `outcome`: None for a result if results are not requested."""

    at_ms: int
    item: int
    outcome: Json | Failure | None


@dataclass(frozen=True, slots=True)
class CancelRequested:
    """The owner received a request to cancel the run."""

    at_ms: int


@dataclass(frozen=True, slots=True)
class Signalled:
    """The owner received a signal for an item."""

    at_ms: int
    item: int
    name: str


@dataclass(frozen=True, slots=True)
class RunDone:
    """The run ended. The last event."""

    run: RunView


RunEvent: TypeAlias = Adopted | StepEvent | StepDone | SubRun | ItemDone | CancelRequested | Signalled | RunDone


@dataclass(frozen=True, slots=True)
class EventBatch:
    """The events of a journal entry, or events without an entry."""

    events: list[RunEvent]
    position: tuple[int, int] | None = None
    """Partition and seq of the journal entry; None without one."""


class PartitionHistory:
    """Reads a partition's journal; each `read` continues behind the last one."""

    def __init__(
        self,
        store: Store,
        get_blob: GetBlob,
        run_id: str,
        partition: int,
        record: state_pb2.RunRecord,
        plan: CompiledFlow,
        *,
        after: int = -1,
        with_results: bool = False,
    ) -> None:
        """`after`: seq of the last entry whose events are left out."""
        self.ended = False
        """True once the partition's last entry was read."""
        self._store = store
        self._get_blob = get_blob
        self._run_id = run_id
        self._partition = partition
        self._record = record
        self._plan = plan
        self._after = after
        self._with_results = with_results

        # The progress of the replay.
        self._state: RunState | None = None
        self._seq = 0
        self._last_key = ""
        self._sub_runs = 0
        self._items_reported: set[int] = set()

    async def read(self) -> AsyncIterator[EventBatch]:
        """Yield the events of the entries that are new since the last reading. Raises: DataLoss."""
        prefix = keys.journal_of_partition(self._run_id, self._partition)
        if not self._last_key and await journal_unread(self._store, self._run_id, self._partition):
            self.ended = True
        more = not self.ended
        while more:
            page = await self._store.range(prefix, after=self._last_key, limit=BATCHES_AT_ONCE)

            for item in page.items:
                self._check_seq(keys.parse_journal(item.key)[2])
                for entry in pb.EntryBatch.FromString(item.value).entries:
                    events = await self._apply_entry(entry, wanted=self._seq > self._after)
                    if events:
                        yield EventBatch(events, (self._partition, self._seq))
                    self._seq += 1
                self._last_key = item.key

            more = page.more

    def _check_seq(self, first: int) -> None:
        if first != self._seq:
            raise DataLoss(
                "JOURNAL_GAP",
                f"journal of run {self._run_id}, partition {self._partition}: entry {self._seq} is missing",
                run_id=self._run_id,
            )

    async def _apply_entry(self, entry: pb.Entry, *, wanted: bool) -> list[RunEvent]:
        """Apply an entry to the state and return its events; none unless `wanted`."""
        if self._state is None:
            self._state = await open_partition(self._run_id, self._partition, self._record, self._plan, self._get_blob)
        state = self._state

        # 1. Find the step's event before the entry changes the state; then replay the entry.
        event = step_event(state, entry) if wanted else None
        await replay_entry(state, entry, self._get_blob)

        # 2. Note what later entries depend on.
        kind = entry.WhichOneof("kind")
        if kind == "sub_run_started":
            self._sub_runs += 1
        elif kind == "run_completed":
            self.ended = True

        # 3. Collect the events.
        events: list[RunEvent] = []
        if event is not None:
            events.append(await self._of_step(event, entry))
        elif wanted and kind == "adopted":
            adopted = entry.adopted
            events.append(Adopted(entry.at_ms, self._partition, adopted.executor_id, adopted.handed_over))
        elif wanted and kind == "inbox_taken" and entry.inbox_taken.cancel:
            events.append(CancelRequested(entry.at_ms))
        elif wanted and kind == "inbox_taken":
            item = state.root.first_item + entry.item
            events.append(Signalled(entry.at_ms, item, entry.inbox_taken.signal.name))
        events += await self._items_ended(entry.at_ms, wanted=wanted)

        if self.ended:
            self._state = None  # a batch has many partitions; the state of an ended one is not needed
        return events

    async def _of_step(self, event: StepEvent, entry: pb.Entry) -> RunEvent:
        """Complete a step's event from the replay: with the result, or with the id of the sub-run."""
        assert self._state is not None
        if event.kind == "completed":
            result = await self._json(entry.step_completed.result) if self._with_results else None
            return StepDone(event, result)
        if event.kind == "failed":
            return StepDone(event, None)
        if event.kind == "sub_run":
            scopes = self._state.scopes
            return SubRun(event, scopes[self._sub_runs].run_id if self._sub_runs < len(scopes) else "")
        return event

    async def _items_ended(self, at_ms: int, *, wanted: bool) -> list[RunEvent]:
        """Return an event for each item that has ended since the last entry."""
        assert self._state is not None
        root = self._state.root
        found: list[RunEvent] = []
        if root.items_done == len(self._items_reported):
            return found

        for item in root.items:
            outcome = item.outcome
            if outcome is None or item.index in self._items_reported:
                continue
            self._items_reported.add(item.index)
            if not wanted:
                continue

            if not isinstance(outcome, Failure):
                outcome = await self._loaded(outcome) if self._with_results else None
            found.append(ItemDone(at_ms, root.first_item + item.index, outcome))
        return found

    async def _loaded(self, outcome: Json) -> Json:
        if isinstance(outcome, Stored) and not outcome.loaded:
            return await self._json(pb.Payload(blob=outcome.blob))
        return outcome

    async def _json(self, payload: pb.Payload) -> Json:
        if not payload.blob:
            return json_of(payload)
        content = await self._get_blob(self._run_id, payload.blob, shared=False)
        if content is None:
            raise DataLoss("RESULT_MISSING", f"a result of run {self._run_id} is missing from the blob store")
        return Json(content)


__all__ = [
    "Adopted",
    "CancelRequested",
    "EventBatch",
    "ItemDone",
    "PartitionHistory",
    "RunDone",
    "RunEvent",
    "Signalled",
    "StepDone",
    "SubRun",
]
