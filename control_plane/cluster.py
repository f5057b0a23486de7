"""This replica's view of the cluster: sessions and assignments of executors, and waiting runs, followed by watches.

A hint, never the truth: the transaction of each decision compares the facts behind the decision. A list replaces the
former view in a single step, so no reader sees half a view.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from stepflow.mesh.v1 import state_pb2
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import keys
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Coroutine, Iterator, Mapping, Sequence

    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)

Assignments = dict[str, dict[tuple[str, int], int]]
"""By executor: the create revision of each assignment, by run and partition."""


class Orphan(NamedTuple):
    """An assignment whose executor has no session."""

    executor_id: str
    run_id: str
    partition: int
    revision: int
    """Create revision of the assignment."""
    refused_by: tuple[str, ...] = ()
    """Executors that could not read the run."""


class Cluster:
    """Follows the store from `start` until `close`; `on_change` is called after every change."""

    def __init__(self, store: Store, on_change: Callable[[], None]) -> None:
        self._store = store
        self._on_change = on_change
        self.sessions: dict[str, state_pb2.ExecutorSession] = {}
        self.engine_version = ENGINE_VERSION
        """The newest engine version that every live executor has, and this service; of the last ones without any."""
        self.assignments: Assignments = {}
        self.owners: dict[str, Counter[str]] = {}
        """By run: how many of its partitions each executor has."""
        self.refused_by: dict[tuple[str, str, int], tuple[str, ...]] = {}
        """By returned assignment: the executors that could not read the run."""
        self.pending: set[str] = set()
        """Runs with partitions that wait for placement."""
        self._planned: Counter[str] = Counter()
        """Assignments in flight to the store, by executor."""
        self.tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Return once sessions, assignments and waiting runs have been listed."""
        ready = [asyncio.Event() for _ in range(3)]
        follows = (
            self._follow(keys.EXECUTOR_SESSIONS, self._list_sessions, self._on_session, ready[0]),
            self._follow(keys.ASSIGNED, self._list_assignments, self._on_assignment, ready[1]),
            self._follow(keys.PENDING, self._list_pending, self._on_pending, ready[2]),
        )
        self.tasks = [asyncio.create_task(following, name="follow the cluster") for following in follows]
        await asyncio.gather(*(event.wait() for event in ready))

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    def choose(
        self,
        planned: Mapping[str, int],
        *,
        engine_version: int = 0,
        avoid: str = "",
        refused_by: Collection[str] = (),
    ) -> str | None:
        """Return the least loaded executor with room; None if there is none.

        `planned`: assignments that the caller is about to make, by executor. `avoid`: an executor to choose only if no
        other has room. `refused_by`: executors not to choose.
        """
        best: tuple[bool, int, str] | None = None
        for executor_id, session in self.sessions.items():
            load = len(self.assignments.get(executor_id, ())) + planned.get(executor_id, 0) + self._planned[executor_id]
            if session.draining or load >= session.runs_max or session.engine_version < engine_version:
                continue
            if executor_id in refused_by:
                continue

            candidate = (executor_id == avoid, load, executor_id)
            if best is None or candidate < best:
                best = candidate
        return None if best is None else best[2]

    @contextmanager
    def planning(self, executor_id: str | None) -> Iterator[None]:
        """Count an assignment as made while its transaction is in flight, so that a burst of submissions spreads."""
        if executor_id is None:
            yield
            return

        self._planned[executor_id] += 1
        try:
            yield
        finally:
            self._planned[executor_id] -= 1
            if not self._planned[executor_id]:
                del self._planned[executor_id]

    def orphans(self) -> list[Orphan]:
        """Return the assignments of executors without a session."""
        return [
            Orphan(executor_id, run_id, partition, revision, self.refused_by.get((executor_id, run_id, partition), ()))
            for executor_id, assigned in self.assignments.items()
            if executor_id not in self.sessions
            for (run_id, partition), revision in assigned.items()
        ]

    def owner_addresses(self, run_id: str) -> dict[str, str]:
        """Return the known owners of a run's partitions: executor id to address."""
        return {
            executor_id: session.address
            for executor_id in self.owners.get(run_id, ())
            if (session := self.sessions.get(executor_id)) is not None
        }

    def accepts_runs(self, executor_id: str) -> bool:
        """Return True if the executor has a session and does not drain."""
        session = self.sessions.get(executor_id)
        return session is not None and not session.draining

    def _follow(
        self,
        prefix: str,
        on_list: Callable[[list[KeyValue]], None],
        on_key: Callable[[str, KeyValue | None], None],
        ready: asyncio.Event,
    ) -> Coroutine[None, None, None]:
        def listed(items: list[KeyValue]) -> None:
            on_list(items)
            ready.set()
            self._on_change()

        def changed(events: Sequence[StoreEvent]) -> None:
            for event in events:
                guarded(log, "a change", on_key, event.kv.key, event.kv if event.kind == "put" else None)
            self._on_change()

        return follow(self._store, prefix, listed=listed, changed=changed)

    def _list_sessions(self, items: list[KeyValue]) -> None:
        self.sessions = {}
        for item in items:
            guarded(log, "a session", self._on_session, item.key, item)

    def _list_assignments(self, items: list[KeyValue]) -> None:
        self.assignments, self.owners, self.refused_by = {}, {}, {}
        for item in items:
            guarded(log, "an assignment", self._on_assignment, item.key, item)

    def _list_pending(self, items: list[KeyValue]) -> None:
        self.pending = {keys.tail(keys.PENDING, item.key) for item in items}

    def _on_session(self, key: str, item: KeyValue | None) -> None:
        executor_id = keys.tail(keys.EXECUTOR_SESSIONS, key)
        if item is None:
            self.sessions.pop(executor_id, None)
        else:
            try:
                self.sessions[executor_id] = state_pb2.ExecutorSession.FromString(item.value)
            except DecodeError:  # A live session of a later version, say: it keeps its runs, and gets no new ones.
                log.error("an executor's session cannot be read", executor_id=executor_id)
                self.sessions[executor_id] = state_pb2.ExecutorSession(draining=True, engine_version=ENGINE_VERSION)
        if self.sessions:
            self.engine_version = min(ENGINE_VERSION, *(each.engine_version for each in self.sessions.values()))

    def _on_assignment(self, key: str, item: KeyValue | None) -> None:
        executor_id, run_id, partition = keys.parse_assigned(key)
        if item is not None:
            assigned = self.assignments.setdefault(executor_id, {})
            if (run_id, partition) not in assigned:  # a repeated event must not count twice
                self.owners.setdefault(run_id, Counter())[executor_id] += 1
            assigned[(run_id, partition)] = item.create_revision
            if item.value and executor_id.startswith(keys.RETURNED):
                refused_by = tuple(state_pb2.Assignment.FromString(item.value).refused_by)
                if refused_by:
                    self.refused_by[executor_id, run_id, partition] = refused_by
            return

        self.refused_by.pop((executor_id, run_id, partition), None)
        assigned = self.assignments.get(executor_id, {})
        if assigned.pop((run_id, partition), None) is not None:
            _release(self.owners, executor_id, run_id)
        if not assigned:
            self.assignments.pop(executor_id, None)

    def _on_pending(self, key: str, item: KeyValue | None) -> None:
        run_id = keys.tail(keys.PENDING, key)
        if item is None:
            self.pending.discard(run_id)
        else:
            self.pending.add(run_id)


def owner_epoch(cluster: Cluster, run_id: str, partition: int) -> int:
    """Return the epoch of a partition's present owner; 0 without a known one."""
    owners = cluster.owners.get(run_id, ())
    epochs = (cluster.assignments.get(owner, {}).get((run_id, partition), 0) for owner in owners)
    return next(filter(None, epochs), 0)


def _release(owners: dict[str, Counter[str]], executor_id: str, run_id: str) -> None:
    """Decrement the count of partitions of a run's owner; drop zero entries."""
    of_run = owners[run_id]
    of_run[executor_id] -= 1
    if not of_run[executor_id]:
        del of_run[executor_id]
    if not of_run:
        del owners[run_id]


__all__ = ["Cluster", "Orphan", "owner_epoch"]
