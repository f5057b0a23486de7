"""Adopting a partition: replaying its journal, and joining the calls that hosts hold for it.

- `PartitionReader` writes nothing, and refuses data of later versions. It reads in two steps: `open` reads what tells
  how the journal may be read, `load` the journal.
- `HeldCalls` asks all hosts at once for held calls, and waits a bounded time for the answers.
- `rejoin` lets steps join held calls, and lets hosts drop superseded results.

`takeover` gives the order of these steps.
"""

from __future__ import annotations

import asyncio
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX
from stepflow.errors import FailedPrecondition, NotFound
from stepflow.journal import journal_entries, open_partition, parse_record, read_plan, replay_entry, without_inputs
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.run import Phase, find_step
from stepflow.run.large_values import (
    large_inputs,
    note_input_stored,
    note_outcome_stored,
    note_value_stored,
    take_large_outcomes,
    take_unstored,
)
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import Get, KeyValue, Page, Range, Txn, created_at, keys, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from executor.blobs import RunBlobs
    from executor.drive import PartitionDriver, PartitionId
    from executor.hosts.pool import HostPool
    from stepflow.flow import CompiledFlow
    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.run import RunState
    from stepflow.store import Store
    from stepflow.store.grouping import Grouping
    from stepflow.value_budget import ValueBudget

log = get_logger(__name__)

ATTACH_WAIT_S = 1.0
"""How long an adoption waits for the hosts to answer what they hold."""

PLANS_MAX = 256
"""Compiled flows kept."""

RECORD_KEPT_BYTES = 4 * 1024
"""Records kept with their inputs: of a larger one, each partition of a batch would hold a copy."""

INBOX_FIRST = 4
"""Messages read together with the run's record; few runs have any."""

INPUT_BYTES_MAX = 256 * 1024
"""Larger inputs of items are loaded when an expression reads them."""

REPLAY_ENTRIES = 1_000
"""Entries replayed before the event loop serves other runs."""

Held: TypeAlias = tuple[str, host_pb2.HeldCall]
"""The id of a host, and a call that it holds."""


@dataclass(slots=True, eq=False)
class OpenedPartition:
    """A partition whose journal is not read yet."""

    id: PartitionId
    record: state_pb2.RunRecord
    fresh: bool
    """Assigned when the run was admitted: it cannot have had an owner before."""
    inbox: list[KeyValue]
    """The messages found in the store."""
    adopting: state_pb2.Adopting
    """Owners that began to read the journal and did not get as far as `Adopted`."""
    adopting_version: int
    """Version of that key; 0 without one."""


@dataclass(slots=True, eq=False)
class LoadedPartition:
    """A partition, replayed from its journal."""

    record: state_pb2.RunRecord
    state: RunState
    fresh: bool
    inbox: list[KeyValue]
    failed_attempts: dict[str, int]
    """By key: the newest attempt whose failure is journaled."""
    first_seqs: array[int] = field(default_factory=lambda: array("I"))
    """Number of the first entry of each value of the journal."""


class PartitionReader:
    """Reads partitions back from the store, with a cache of compiled flows."""

    def __init__(self, store: Store, grouping: Grouping, blobs: RunBlobs, budget: ValueBudget) -> None:
        self._store = store
        self._grouping = grouping
        self._blobs = blobs
        self._budget = budget
        self._plans: dict[tuple[str, bytes], CompiledFlow] = {}
        """By flow id and overrides."""

    async def open(
        self, partition_id: PartitionId, assignment: KeyValue, *, driven_before: bool
    ) -> OpenedPartition | None:
        """Read all but the journal; None if the assignment is gone. `driven_before`: by this executor.

        Lists and watches may deliver an assignment twice, and late. A stale assignment belongs to a run that has ended
        here meanwhile: driving the run once more would write over its journal.

        Raises:
            FailedPrecondition: ENGINE_VERSION_UNKNOWN, a newer executor must take the run.
            NotFound, DataLoss: the store's data of the run is missing or unreadable.
        """
        run_id, partition = partition_id

        # 1. Read record, inbox and the count of lost readers, provided that the assignment stands.
        stands = created_at(assignment.key, assignment.create_revision)
        inbox_prefix = keys.inbox_of_run(run_id)
        reads = (
            Get(keys.run(run_id)),
            Range(inbox_prefix, limit=INBOX_FIRST),
            Get(keys.adopting(run_id, partition)),
        )
        result = await self._grouping.txn(Txn((stands,), reads))
        if not result.succeeded:
            return None
        found, page, adopting = result.responses
        assert isinstance(page, Page)
        inbox = page.items if not page.more else [item async for item in range_all(self._store, inbox_prefix)]

        # 2. Refuse runs that this version cannot understand.
        if not isinstance(found, KeyValue):
            raise NotFound("RUN_NOT_FOUND", f"there is no run {run_id}", run_id=run_id)
        record = parse_record(run_id, found.value)
        if record.policy.engine_version > ENGINE_VERSION:
            raise FailedPrecondition(
                "ENGINE_VERSION_UNKNOWN",
                f"run {run_id} needs engine version {record.policy.engine_version}; this executor has {ENGINE_VERSION}",
            )

        # 3. Count the readers that were lost.
        opened = OpenedPartition(
            id=partition_id,
            record=record,
            fresh=found.create_revision == assignment.create_revision and not driven_before,
            inbox=inbox,
            adopting=state_pb2.Adopting(),
            adopting_version=0,
        )
        if isinstance(adopting, KeyValue):
            opened.adopting = state_pb2.Adopting.FromString(adopting.value)
            opened.adopting_version = adopting.version
        return opened

    async def load(self, opened: OpenedPartition) -> LoadedPartition:
        """Replay the journal, if there can be one. Raises: NotFound, DataLoss."""
        # 1. Read the inputs. Large ones do not stay in memory for as long as the run lives.
        record = opened.record
        plan = await self._plan(record)
        size = PAYLOAD_BYTES_MAX if record.partition_inputs else 0
        await self._budget.take(size)
        try:
            state = await open_partition(*opened.id, record, plan, self._blobs.get_blob)
            for index, raw in large_inputs(state, INPUT_BYTES_MAX):
                note_input_stored(state, index, await self._blobs.put_blob(state.run_id, raw), len(raw))
        finally:
            self._budget.release(size)
        if record.ByteSize() > RECORD_KEPT_BYTES:
            record = without_inputs(record)

        # 2. Replay.
        loaded = LoadedPartition(record, state, opened.fresh, opened.inbox, {})
        if not opened.fresh:
            await self._replay(loaded)
        return loaded

    async def _plan(self, record: state_pb2.RunRecord) -> CompiledFlow:
        key = (record.flow_id, record.overrides_json)
        plan = self._plans.get(key)
        if plan is None:
            plan = await read_plan(self._store, record)
            if len(self._plans) >= PLANS_MAX:
                self._plans.pop(next(iter(self._plans)))
            self._plans[key] = plan
        return plan

    async def _replay(self, loaded: LoadedPartition) -> None:
        state = loaded.state
        count = 0
        entries = journal_entries(
            self._store, state.run_id, state.partition, self._grouping, first_seqs=loaded.first_seqs
        )
        async for entry in entries:
            if entry.HasField("attempt_failed"):
                step = state.scopes[entry.scope].items[entry.item].active.get(entry.step)
                if step is not None:
                    loaded.failed_attempts[step.key] = entry.attempt_failed.attempt
            await self._replay_entry(state, entry)
            for item, outcome in take_large_outcomes(state) if state.large_outcomes else ():
                blob = await self._blobs.put_blob(state.run_id, outcome.raw)
                note_outcome_stored(item, blob, len(outcome.raw))
            for value in take_unstored(state) if state.unstored else ():
                await self._blobs.put_blob(state.run_id, value.raw)
                note_value_stored(value)
            state.note_journaled(entry.ByteSize())

            count += 1
            if count % REPLAY_ENTRIES == 0:
                await asyncio.sleep(0)

    async def _replay_entry(self, state: RunState, entry: pb.Entry) -> None:
        """Replay an entry; memory for its blobs is held until they have served."""
        held = 0

        async def get_blob(run_id: str, blob: str, *, shared: bool) -> bytes | None:
            nonlocal held
            size = state.wanted_bytes.get(blob, INLINE_BYTES_MAX)
            if held:
                self._budget.add(size)  # a holder that waits would block those that wait for it
            else:
                await self._budget.take(size)
            held += size
            return await self._blobs.get_blob(run_id, blob, shared=shared)

        try:
            await replay_entry(state, entry, get_blob)
        finally:
            if held:
                self._budget.release(held)


@dataclass(slots=True, eq=False)
class _Question:
    missing: set[str]
    """Hosts that have not answered."""
    calls: list[Held] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class HeldCalls:
    """Questions to hosts about held calls. A host answers in the order of the questions."""

    def __init__(self, hosts: HostPool[PartitionDriver]) -> None:
        self._hosts = hosts
        self._questions: dict[str, list[_Question]] = {}
        """Questions without all answers, by run; its partitions ask one after the other."""

    async def ask(self, run_id: str, partition: int, epoch: int) -> list[Held]:
        """Return the calls that hosts hold for a run; for all its partitions, if several ask.

        A host without an answer within `ATTACH_WAIT_S` is left out. The calls are dispatched again, and the host joins
        the attempts in flight there.
        """
        question = _Question(self._hosts.ask_held(run_id, partition, epoch))
        if not question.missing:
            return []

        questions = self._questions.setdefault(run_id, [])
        questions.append(question)
        try:
            async with asyncio.timeout(ATTACH_WAIT_S):
                await question.done.wait()
        except TimeoutError:
            log.warning("hosts did not answer what they hold", run_id=run_id, hosts=sorted(question.missing))
        finally:
            questions.remove(question)
            if not questions:
                del self._questions[run_id]
        return question.calls

    def on_answer(self, host_id: str, attached: host_pb2.Attached) -> None:
        for run_id in attached.run_ids:
            for question in self._questions.get(run_id, ()):
                if host_id in question.missing:
                    question.calls += [(host_id, call) for call in attached.calls if call.run_id == run_id]
                    _note_answer(question, host_id)
                    break  # the oldest question of this host: it answers in order

    def on_host_gone(self, host_id: str) -> None:
        """Stop waiting for the answer of a host."""
        for questions in self._questions.values():
            for question in questions:
                _note_answer(question, host_id)


def _note_answer(question: _Question, host_id: str) -> None:
    question.missing.discard(host_id)
    if not question.missing:
        question.done.set()


def rejoin(
    driver: PartitionDriver, hosts: HostPool[PartitionDriver], held: list[Held], failed_attempts: dict[str, int]
) -> None:
    """Let the next dispatch of each step join the newest held call, and acknowledge all other held calls.

    Call before the first `turn`.
    """
    state = driver.state
    for host_id, call in held:
        if partition_of_key(call.key, driver.record) != driver.partition:
            continue
        step = find_step(state, call.key)
        if step is None and (state.blocked or state.unopened):
            continue  # its step may come to light once a blob is fetched: keep the call

        known = driver.calls.holders.get(call.key)
        if (
            step is not None
            and step.phase in (Phase.READY, Phase.RETRYING)
            and call.attempt > failed_attempts.get(call.key, 0)
            and (known is None or call.attempt > known[0])
        ):
            if known is not None:
                hosts.ack_result(known[1], call.key, known[0])
            step.rejoin_attempt(call.attempt)
            driver.calls.holders[call.key] = (call.attempt, host_id)
        else:
            hosts.ack_result(host_id, call.key, call.attempt)  # its outcome is journaled already, or superseded


def partition_of_key(key: str, record: state_pb2.RunRecord) -> int:
    """Return the partition of an idempotency key (`run/item/…`), -1 for a key without an item."""
    item = key.split("/", 2)[1]
    return int(item) // record.items_per_partition if item.isdigit() else -1


__all__ = ["Held", "HeldCalls", "LoadedPartition", "OpenedPartition", "PartitionReader", "partition_of_key", "rejoin"]
