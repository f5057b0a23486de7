"""The history of one partition as events: its journal, replayed entry by entry, each entry read once.

The events of an entry follow from the state before the entry. So a reader that continues behind a position replays the
whole journal, too; the events up to the position are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from control_plane.replay.in_service import replay_values
from control_plane.results import Results
from stepflow.codec import Json, LargeJson
from stepflow.errors import FailedPrecondition, Failure
from stepflow.journal import entries_of, journal_unread, open_partition
from stepflow.log_lines import StepLog
from stepflow.run.replay import Replay
from stepflow.run.state import release_state
from stepflow.run.views import StepEvent, result_of, step_event
from stepflow.store import keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Sequence

    from control_plane.views import RunView
    from stepflow.flow import CompiledFlow
    from stepflow.journal import GetBlob
    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.mesh.v1 import state_pb2
    from stepflow.run import RunState
    from stepflow.store import KeyValue, Store

log = get_logger(__name__)

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
    result: Json | LargeJson | None


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
    outcome: Json | Failure | LargeJson | None


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
class HistoryEndsEarly:
    """Further events of a partition cannot be told: a later version wrote them."""

    at_ms: int
    partition: int
    reason: str


@dataclass(frozen=True, slots=True)
class RunDone:
    """The run ended. The last event."""

    run: RunView


RunEvent: TypeAlias = (
    Adopted
    | StepEvent
    | StepLog
    | StepDone
    | SubRun
    | ItemDone
    | CancelRequested
    | Signalled
    | HistoryEndsEarly
    | RunDone
)


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
        slots: asyncio.Semaphore,
        after: int = -1,
        with_results: bool = False,
    ) -> None:
        """`slots`: bound on replays in threads. `after`: seq of the last entry whose events are left out."""
        self.ended = False
        """True once the partition's last entry was read."""
        self._store = store
        self._get_blob = get_blob
        self._results = Results(store, get_blob)
        self._run_id = run_id
        self._partition = partition
        self._record = record
        self._plan = plan
        self._after = after
        self._with_results = with_results

        # The progress of the replay.
        self._replay: Replay | None = None
        self._slots = slots
        self._seq = 0
        """Number of the next entry to replay."""
        self._decoded = 0
        self._newest: KeyValue | None = None
        """The newest value of the journal that was read."""
        self._sub_runs = 0
        self._items_reported: set[int] = set()
        self._last_at_ms = 0
        self._found: list[EventBatch] = []
        """Events of the entries replayed since they were last yielded. Results in the blob store are not loaded."""

    async def read(self) -> AsyncIterator[EventBatch]:
        """Yield the events of the entries that are new since the last reading. Raises: DataLoss."""
        prefix = keys.journal_of_partition(self._run_id, self._partition)
        if self._newest is None and await journal_unread(self._store, self._run_id, self._partition):
            self.ended = True
        more = not self.ended
        while more:
            # 1. Replay the next values, off the event loop.
            page = await self._store.range(
                prefix, after="" if self._newest is None else self._newest.key, limit=BATCHES_AT_ONCE
            )
            if page.items and not self._is_unknown():
                await self._replay_values(page.items)

            # 2. Yield their events.
            found, self._found = self._found, []
            for batch in found:
                yield await self._loaded(batch) if self._with_results else batch
            more = page.more and not self._is_unknown()

        if self.ended and self._replay is not None:
            release_state(self._replay.state)  # a batch has many partitions; the state of an ended one is not needed
            self._replay = None
            self._items_reported = set()

    async def check(self) -> None:
        """Check that the store still has what was read. Raises: FailedPrecondition `HISTORY_GONE`."""
        newest = self._newest
        if newest is not None and await self._store.get(newest.key) != newest:
            raise FailedPrecondition(
                "HISTORY_GONE",
                f"the journal of run {self._run_id} was deleted, or an older copy of it was restored; follow the run "
                "again from its beginning",
                run_id=self._run_id,
            )

    async def _replay_values(self, values: list[KeyValue]) -> None:
        if self._replay is None:
            state = await open_partition(self._run_id, self._partition, self._record, self._plan, self._get_blob)
            self._replay = Replay(state, self)
        await replay_values(self._replay, self._decode, values, self._get_blob, self._slots)
        self._newest = values[-1]

        if self._replay.unknown is not None:
            reason = self._replay.unknown.message
            log.warning("the events of a run end early", run_id=self._run_id, error=reason)
            self._found.append(EventBatch([HistoryEndsEarly(self._last_at_ms, self._partition, reason)]))

    def _is_unknown(self) -> bool:
        """Return True if a later version wrote the next entry: then no further event can be told."""
        return self._replay is not None and self._replay.unknown is not None

    def _decode(self, values: Sequence[KeyValue]) -> list[pb.Entry]:
        entries: list[pb.Entry] = []
        for item in values:
            entries += entries_of(self._run_id, self._partition, self._decoded + len(entries), item)
        self._decoded += len(entries)
        return entries

    def replayed(self, state: RunState, entry: pb.Entry) -> None:
        """Note the events of an entry. Implements `ReplayListener`."""
        wanted = self._seq > self._after
        self._last_at_ms = entry.at_ms
        kind = entry.WhichOneof("kind")
        events: list[RunEvent] = []

        if wanted:
            events += self._events_of(state, entry, kind)
        if kind == "sub_run_started":
            self._sub_runs += 1
        elif kind == "run_completed":
            self.ended = True
        events += self._items_ended(state, entry.at_ms, wanted=wanted)

        if events:
            self._found.append(EventBatch(events, (self._partition, self._seq)))
        self._seq += 1

    def _events_of(self, state: RunState, entry: pb.Entry, kind: str | None) -> list[RunEvent]:
        event = step_event(state, entry)
        if event is not None:
            return [self._of_step(state, event, entry)]
        if kind == "adopted":
            adopted = entry.adopted
            return [Adopted(entry.at_ms, self._partition, adopted.executor_id, adopted.handed_over)]
        if kind == "inbox_taken" and entry.inbox_taken.cancel:
            return [CancelRequested(entry.at_ms)]
        if kind == "inbox_taken":
            return [Signalled(entry.at_ms, state.root.first_item + entry.item, entry.inbox_taken.signal.name)]
        return []

    def _of_step(self, state: RunState, event: StepEvent, entry: pb.Entry) -> RunEvent:
        """Complete a step's event from the replay: with the result, or with the id of the sub-run."""
        if event.kind == "completed":
            return StepDone(event, result_of(state, entry) if self._with_results else None)
        if event.kind == "failed":
            return StepDone(event, None)
        if event.kind == "sub_run":
            # Scopes are opened in the order of the entries; the root is the first.
            opened = self._sub_runs + 1
            return SubRun(event, state.scopes[opened].run_id if opened < len(state.scopes) else "")
        return event

    def _items_ended(self, state: RunState, at_ms: int, *, wanted: bool) -> list[RunEvent]:
        """Return an event for each item that has ended since the last entry."""
        root = state.root
        found: list[RunEvent] = []
        if root.items_done == len(self._items_reported):
            return found

        for item in root.items:
            outcome = item.outcome
            if outcome is None or item.index in self._items_reported:
                continue
            self._items_reported.add(item.index)
            if wanted:
                shown = outcome if isinstance(outcome, Failure) or self._with_results else None
                found.append(ItemDone(at_ms, root.first_item + item.index, shown))
        return found

    async def _loaded(self, batch: EventBatch) -> EventBatch:
        """Return the events with the results that are in the blob store."""
        events: list[RunEvent] = []
        for event in batch.events:
            match event:
                case StepDone(step, Json() as result):
                    events.append(StepDone(step, await self._results.load(self._run_id, result)))
                case ItemDone(at_ms, item, Json() as outcome):
                    events.append(ItemDone(at_ms, item, await self._results.load(self._run_id, outcome)))
                case _:
                    events.append(event)
        return EventBatch(events, batch.position)


__all__ = [
    "Adopted",
    "CancelRequested",
    "EventBatch",
    "HistoryEndsEarly",
    "ItemDone",
    "PartitionHistory",
    "RunDone",
    "RunEvent",
    "Signalled",
    "StepDone",
    "SubRun",
]
