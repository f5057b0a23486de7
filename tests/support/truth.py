"""What really happened in a run: its journal, and the executions that its component servers recorded.

The journal is read from the store and replayed: a gap, an invalid sequence of entries, or a second result of one step
raises DataLoss. The ledger is written by the component servers (`tests/data/servers/ledger.py`), independently of the
mesh. `faults_of` compares the two.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from stepflow.journal import (
    blob_reader,
    journal_entries,
    open_partition,
    partition_count,
    read_plan,
    read_record,
    replay_entry,
)
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store import keys, range_all

from . import text_of

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.run import RunState
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore


@dataclass(frozen=True)
class Outcome:
    """The journaled outcome of one attempt."""

    key: str
    attempt: int
    at_ms: int
    host: str
    """Empty if the engine executed the step itself, or no host accepted the call."""
    failed: bool


@dataclass(frozen=True)
class Adoption:
    executor_id: str
    at_ms: int
    handed_over: bool


@dataclass
class Journal:
    """The contents of the journal of one run, over all partitions."""

    run_id: str
    boundaries: list[int] = field(default_factory=list)
    """Number of entries of partition 0 after each flush."""
    completed: dict[str, Outcome] = field(default_factory=dict)
    """Completed steps, by key."""
    failed: list[Outcome] = field(default_factory=list)
    """Failed attempts that were retried."""
    adoptions: dict[int, list[Adoption]] = field(default_factory=dict)
    """By partition, in journal order."""
    ends: int = 0

    @property
    def length(self) -> int:
        return self.boundaries[-1] if self.boundaries else 0

    @property
    def attempts(self) -> set[tuple[str, int]]:
        """Key and attempt of each execution with a journaled outcome."""
        return {(outcome.key, outcome.attempt) for outcome in (*self.completed.values(), *self.failed)}


async def read_journal(store: Store, blobs: BlobStore, run_id: str) -> Journal:
    """Read and replay the journal of a run. Raises: NotFound; DataLoss for an inconsistent journal."""
    journal = Journal(run_id)
    record = await read_record(store, run_id)
    plan = await read_plan(store, record)
    get_blob = blob_reader(store, blobs)
    async for item in range_all(store, keys.journal_of_partition(run_id, 0)):
        journal.boundaries.append(journal.length + len(pb.EntryBatch.FromString(item.value).entries))
    for partition in range(partition_count(record)):
        state = await open_partition(run_id, partition, record, plan, get_blob)
        async for entry in journal_entries(store, run_id, partition):
            await replay_entry(state, entry, get_blob)
            _note(journal, state, entry)
    return journal


def _note(journal: Journal, state: RunState, entry: pb.Entry) -> None:
    kind = entry.WhichOneof("kind")
    if kind == "adopted":
        fact = entry.adopted
        adoption = Adoption(fact.executor_id, entry.at_ms, fact.handed_over)
        journal.adoptions.setdefault(state.partition, []).append(adoption)
    elif kind == "step_completed":
        done, key = entry.step_completed, _key(state, entry)
        journal.completed[key] = Outcome(key, done.attempt, entry.at_ms, done.host, done.HasField("failure"))
    elif kind == "attempt_failed":
        lost = entry.attempt_failed
        journal.failed.append(Outcome(_key(state, entry), lost.attempt, entry.at_ms, lost.host, failed=True))
    elif kind == "run_completed":
        journal.ends += 1


def _key(state: RunState, entry: pb.Entry) -> str:
    """Return the idempotency key of an entry's step."""
    scope = state.scopes[entry.scope]
    return f"{scope.key}/{scope.first_item + entry.item}/{scope.plan.steps[entry.step].id}"


@dataclass(frozen=True)
class Execution:
    """One line of the ledger: the begin or the end of an attempt."""

    what: str
    key: str
    attempt: int
    at_ns: int
    pid: int


class Ledger:
    """The file to which the component servers of a mesh write."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def lines(self) -> list[Execution]:
        """All complete lines so far, in file order; a partially written last line is skipped."""
        whole = text_of(self.path).rpartition("\n")[0].splitlines()
        return [_execution(line) for line in whole]

    @property
    def begun(self) -> list[tuple[str, int]]:
        """Key and attempt of each execution, in start order."""
        return [(line.key, line.attempt) for line in self.lines if line.what == "begin"]

    def by_run(self) -> dict[str, list[Execution]]:
        """Return the lines, grouped by the root run in their keys."""
        found: dict[str, list[Execution]] = {}
        for line in self.lines:
            found.setdefault(line.key.partition("/")[0], []).append(line)
        return found


def _execution(line: str) -> Execution:
    what, _, rest = line.partition(" ")
    key, attempt, at_ns, pid = rest.rsplit(" ", 3)  # a key may contain spaces
    return Execution(what, key, int(attempt), int(at_ns), int(pid))


def faults_of(journal: Journal, executions: list[Execution]) -> list[str]:
    """Return the violated guarantees, one sentence each; `executions` are those of this run."""
    faults: list[str] = []
    begun = [line for line in executions if line.what == "begin"]
    for (key, attempt), count in Counter((line.key, line.attempt) for line in begun).items():
        if count > 1:
            faults.append(f"attempt {attempt} of {key} was executed {count} times")
    for line in begun:
        done = journal.completed.get(line.key)
        if done is None or line.attempt == done.attempt:
            continue  # its second execution is found above, whatever the clocks say
        if line.at_ns // 1_000_000 > done.at_ms:
            late_ms = line.at_ns // 1_000_000 - done.at_ms
            faults.append(
                f"{line.key} was journaled with attempt {done.attempt} and ran again {late_ms} ms later, "
                f"attempt {line.attempt}"
            )
    ended = {(line.key, line.attempt) for line in executions if line.what == "end"}
    faults += [
        f"{outcome.key} has a result of attempt {outcome.attempt}, which never ended"
        for outcome in journal.completed.values()
        if outcome.host and not outcome.failed and (outcome.key, outcome.attempt) not in ended
    ]
    if journal.ends > len(journal.adoptions):
        faults.append(f"run {journal.run_id} ended {journal.ends} times")
    return faults


__all__ = ["Adoption", "Execution", "Journal", "Ledger", "Outcome", "faults_of", "read_journal"]
