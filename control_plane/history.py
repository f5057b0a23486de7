"""The history of one partition as events: its journal, replayed entry by entry, each read from the store once.

What an entry stands for follows from the state before it, so even whoever wants the newest events only has all entries
replayed, and those at or before the wanted position left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from stepflow.codec import Json
from stepflow.errors import DataLoss, Failure
from stepflow.journal import open_partition, replay_entry
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
    """An executor has become the owner of a partition."""

    at_ms: int
    partition: int
    executor_id: str
    handed_over: bool


@dataclass(frozen=True, slots=True)
class StepDone:
    """A step has its outcome. `result` is None where results are not wanted, and for a failure, which `event` has."""

    event: StepEvent
    result: Json | None


@dataclass(frozen=True, slots=True)
class SubRun:
    """A step has opened a sub-run."""

    event: StepEvent
    sub_run_id: str


@dataclass(frozen=True, slots=True)
class ItemDone:
    """An item of the run has its outcome; None for a result where results are not wanted."""

    at_ms: int
    item: int
    outcome: Json | Failure | None


@dataclass(frozen=True, slots=True)
class CancelAsked:
    at_ms: int


@dataclass(frozen=True, slots=True)
class Signalled:
    """A signal for this item has come in."""

    at_ms: int
    item: int
    name: str


@dataclass(frozen=True, slots=True)
class RunDone:
    """Nothing follows."""

    run: RunView


Happening: TypeAlias = Adopted | StepEvent | StepDone | SubRun | ItemDone | CancelAsked | Signalled | RunDone


@dataclass(frozen=True, slots=True)
class Moment:
    """What happened at once. `position`: partition and seq of the journal entry; None for what is not in a journal."""

    happenings: list[Happening]
    position: tuple[int, int] | None = None


class PartitionHistory:
    """Reads a partition's journal, further with every `read`."""

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
        """Moments of the entries up to the seq `after` are left out."""
        self.ended = False
        """The partition's last entry was read."""
        self._store = store
        self._get_blob = get_blob
        self._run_id = run_id
        self._partition = partition
        self._record = record
        self._plan = plan
        self._after = after
        self._with_results = with_results
        self._state: RunState | None = None
        self._seq = 0
        self._last_key = ""
        self._sub_runs = 0
        self._items_told: set[int] = set()

    async def read(self) -> AsyncIterator[Moment]:
        """Yield what the journal has beyond what was read. Raises: DataLoss."""
        prefix = keys.journal_of_partition(self._run_id, self._partition)
        more = not self.ended
        while more:
            page = await self._store.range(prefix, after=self._last_key, limit=BATCHES_AT_ONCE)
            for item in page.items:
                self._check_seq(keys.parse_journal(item.key)[2])
                for entry in pb.EntryBatch.FromString(item.value).entries:
                    happenings = await self._take(entry, wanted=self._seq > self._after)
                    if happenings:
                        yield Moment(happenings, (self._partition, self._seq))
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

    async def _take(self, entry: pb.Entry, *, wanted: bool) -> list[Happening]:
        """Apply an entry and return what it stands for, nothing unless `wanted`."""
        if self._state is None:
            self._state = await open_partition(self._run_id, self._partition, self._record, self._plan, self._get_blob)
        state = self._state
        event = step_event(state, entry) if wanted else None
        await replay_entry(state, entry, self._get_blob)
        kind = entry.WhichOneof("kind")
        if kind == "sub_run_started":
            self._sub_runs += 1
        elif kind == "run_completed":
            self.ended = True
        happenings: list[Happening] = []
        if event is not None:
            happenings.append(await self._step_happening(event, entry))
        elif wanted and kind == "adopted":
            adopted = entry.adopted
            happenings.append(Adopted(entry.at_ms, self._partition, adopted.executor_id, adopted.handed_over))
        elif wanted and kind == "inbox_taken" and entry.inbox_taken.cancel:
            happenings.append(CancelAsked(entry.at_ms))
        elif wanted and kind == "inbox_taken":
            item = state.root.first_item + entry.item
            happenings.append(Signalled(entry.at_ms, item, entry.inbox_taken.signal.name))
        happenings += await self._items_ended(entry.at_ms, wanted=wanted)
        if self.ended:
            self._state = None  # a batch has many partitions, and this one says nothing more
        return happenings

    async def _step_happening(self, event: StepEvent, entry: pb.Entry) -> Happening:
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

    async def _items_ended(self, at_ms: int, *, wanted: bool) -> list[Happening]:
        """Find the items that have ended since the last entry."""
        assert self._state is not None
        root = self._state.root
        found: list[Happening] = []
        if root.items_done == len(self._items_told):
            return found
        for item in root.items:
            outcome = item.outcome
            if outcome is None or item.index in self._items_told:
                continue
            self._items_told.add(item.index)
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
            raise DataLoss("RESULT_MISSING", f"a result of run {self._run_id} is gone from the blob store")
        return Json(content)
