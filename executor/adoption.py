"""What an executor must know of a partition before it drives it: the journal replayed, and the calls that hosts hold.

- `load` reads; it writes nothing, and refuses what this version cannot understand.
- `Attaching` asks all hosts at once what they hold, and waits a bounded time for the answers.
- `rejoin` has the steps join the calls that were found, and lets hosts drop what nobody needs any more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepflow.errors import NotFound, Refused
from stepflow.journal import journal_entries, open_partition, parse_record, read_plan, replay_entry
from stepflow.run import Phase, find_step
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import Get, KeyValue, Page, Range, Txn, created_at, keys, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from executor.drive import Drive
    from executor.hosts.pool import Hosts
    from stepflow.flow import CompiledFlow
    from stepflow.journal import GetBlob
    from stepflow.mesh.v1 import host_pb2, state_pb2
    from stepflow.run import RunState
    from stepflow.store import Store
    from stepflow.store.grouping import Grouping

log = get_logger(__name__)

ATTACH_WAIT_S = 1.0
"""How long an adopted run waits for the hosts to say what they hold of it."""

PLANS_MAX = 256
"""Compiled flows kept."""

INBOX_FIRST = 4
"""Messages read with the run's record; few runs have any."""

REPLAY_ENTRIES = 1_000
"""Entries replayed before other runs get their turn."""


@dataclass(slots=True, eq=False)
class Loaded:
    """A partition as its journal leaves it."""

    record: state_pb2.RunRecord
    state: RunState
    fresh: bool
    """Placed when the run was admitted: nobody can have owned it before."""
    inbox: list[KeyValue]
    """The messages that were there."""
    failed_attempts: dict[str, int]
    """By key: the newest attempt whose failure is journaled."""


class Plans:
    """Compiled flows, by flow and overrides."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._plans: dict[tuple[str, bytes], CompiledFlow] = {}

    async def get(self, record: state_pb2.RunRecord) -> CompiledFlow:
        place = (record.flow_id, record.overrides_json)
        plan = self._plans.get(place)
        if plan is None:
            plan = await read_plan(self._store, record)
            if len(self._plans) >= PLANS_MAX:
                self._plans.pop(next(iter(self._plans)))
            self._plans[place] = plan
        return plan


async def load(
    store: Store,
    grouping: Grouping,
    plans: Plans,
    get_blob: GetBlob,
    run_id: str,
    partition: int,
    assignment: KeyValue,
    *,
    again: bool = False,
) -> Loaded | None:
    """Read a partition back; None when the assignment does not stand any more. `again`: it was driven here before.

    Lists and watches tell of assignments twice, and late. One that is gone is that of a run which has ended here
    meanwhile: to begin it again would write over its journal.

    Raises:
        Refused: ENGINE_VERSION_UNKNOWN, a newer executor must take it.
        DataLoss: what stands in the store cannot be understood.
    """
    stands = created_at(assignment.key, assignment.create_revision)
    inbox_prefix = keys.inbox_of_run(run_id)
    reads = (Get(keys.run(run_id)), Range(inbox_prefix, limit=INBOX_FIRST))
    result = await grouping.txn(Txn((stands,), reads))
    if not result.succeeded:
        return None
    found, page = result.responses
    assert isinstance(page, Page)
    inbox = page.items if not page.more else [item async for item in range_all(store, inbox_prefix)]
    if not isinstance(found, KeyValue):
        raise NotFound("RUN_NOT_FOUND", f"there is no run {run_id}", run_id=run_id)
    record = parse_record(run_id, found.value)
    if record.policy.engine_version > ENGINE_VERSION:
        raise Refused(
            "ENGINE_VERSION_UNKNOWN",
            f"run {run_id} needs engine version {record.policy.engine_version}; this executor has {ENGINE_VERSION}",
        )
    state = await open_partition(run_id, partition, record, await plans.get(record), get_blob)
    fresh = found.create_revision == assignment.create_revision and not again
    loaded = Loaded(record, state, fresh, inbox, {})
    if not loaded.fresh:
        await _replay(store, grouping, loaded, get_blob)
    return loaded


async def _replay(store: Store, grouping: Grouping, loaded: Loaded, get_blob: GetBlob) -> None:
    state = loaded.state
    count = 0
    async for entry in journal_entries(store, state.run_id, state.partition, grouping):
        if entry.HasField("attempt_failed"):
            step = state.scopes[entry.scope].items[entry.item].active.get(entry.step)
            if step is not None:
                loaded.failed_attempts[step.key] = entry.attempt_failed.attempt
        await replay_entry(state, entry, get_blob)
        state.note_journaled(entry.ByteSize())
        count += 1
        if count % REPLAY_ENTRIES == 0:
            await asyncio.sleep(0)


@dataclass(slots=True, eq=False)
class _Question:
    missing: set[str]
    """Hosts that have not answered."""
    calls: list[tuple[str, host_pb2.HeldCall]] = field(default_factory=list)
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Attaching:
    """The questions to hosts that have no answer yet. A host answers in the order in which it was asked."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts
        self._questions: dict[str, list[_Question]] = {}
        """By run; its partitions ask one after the other."""

    async def ask(self, run_id: str, partition: int, epoch: int) -> list[tuple[str, host_pb2.HeldCall]]:
        """Return what hosts hold of the run, with the host's id; of all its partitions, if several are asked for."""
        question = _Question(self._hosts.attach(run_id, partition, epoch))
        if not question.missing:
            return []
        questions = self._questions.setdefault(run_id, [])
        questions.append(question)
        try:
            async with asyncio.timeout(ATTACH_WAIT_S):
                await question.done.wait()
        except TimeoutError:
            log.warning("not every host has said what it holds", run_id=run_id, hosts=sorted(question.missing))
        finally:
            questions.remove(question)
            if not questions:
                del self._questions[run_id]
        return question.calls

    def answered(self, host_id: str, attached: host_pb2.Attached) -> None:
        for run_id in attached.run_ids:
            for question in self._questions.get(run_id, ()):
                if host_id in question.missing:
                    question.calls += [(host_id, call) for call in attached.calls if call.run_id == run_id]
                    self._settle(question, host_id)
                    break

    def host_gone(self, host_id: str) -> None:
        for questions in self._questions.values():
            for question in questions:
                self._settle(question, host_id)

    def _settle(self, question: _Question, host_id: str) -> None:
        question.missing.discard(host_id)
        if not question.missing:
            question.done.set()


def rejoin(
    drive: Drive, hosts: Hosts, held: list[tuple[str, host_pb2.HeldCall]], failed_attempts: dict[str, int]
) -> None:
    """Have the next dispatch of each step join the newest call that a host holds for it; let go what is not needed."""
    state = drive.state
    for host_id, call in held:
        if _partition_of(call.key, drive.record) != drive.partition:
            continue
        step = find_step(state, call.key)
        if step is None and (state.blocked or state.unopened):
            continue  # whose it is has not been found out yet; it may be wanted
        known = drive.holders.get(call.key)
        if (
            step is not None
            and step.phase in (Phase.READY, Phase.RETRYING)
            and call.attempt > failed_attempts.get(call.key, 0)
            and (known is None or call.attempt > known[0])
        ):
            if known is not None:
                hosts.ack(known[1], call.key, known[0])
            step.rejoin_attempt(call.attempt)
            drive.holders[call.key] = (call.attempt, host_id)
        else:
            hosts.ack(host_id, call.key, call.attempt)  # its outcome is journaled already, or superseded


def _partition_of(key: str, record: state_pb2.RunRecord) -> int:
    """Return the partition of an idempotency key: `run/item/...`."""
    item = key.split("/", 2)[1]
    return int(item) // record.items_per_partition if item.isdigit() else -1
