"""Who is there and who has what: executors' sessions and assignments, and runs that wait, followed by watches.

A hint, never the truth: every decision made from it is checked again by the compares of the transaction that acts on
it. What a list shows replaces what was known in one go, so nobody ever sees half a picture.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence

    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)

Assignments = dict[str, dict[tuple[str, int], int]]


class Cluster:
    """Follows the store from `start` until `close`; `changed` is called after every change."""

    def __init__(self, store: Store, changed: Callable[[], None]) -> None:
        self._store = store
        self._changed = changed
        self.sessions: dict[str, state_pb2.ExecutorSession] = {}
        self.assignments: Assignments = {}
        """By executor: the create revision of each assignment, by run and partition."""
        self.owners: dict[str, Counter[str]] = {}
        """By run: how many of its partitions each executor has."""
        self.pending: set[str] = set()
        """Runs that wait, or some of whose partitions do."""
        self._planned: Counter[str] = Counter()
        """Assignments on their way into the store."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Return once everything has been listed."""
        ready = [asyncio.Event() for _ in range(3)]
        follows = (
            self._follow(keys.EXECUTOR_SESSIONS, self._list_sessions, self._on_session, ready[0]),
            self._follow(keys.ASSIGNED, self._list_assignments, self._on_assignment, ready[1]),
            self._follow(keys.PENDING, self._list_pending, self._on_pending, ready[2]),
        )
        self._tasks = [asyncio.create_task(one, name="follow the cluster") for one in follows]
        await asyncio.gather(*(event.wait() for event in ready))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def choose(self, planned: Mapping[str, int], *, engine_version: int = 0, avoid: str = "") -> str | None:
        """Return the executor with the fewest runs that can take another one, None when there is none.

        `planned` are assignments that somebody is about to make, by executor. `avoid` is chosen only if nobody else is.
        """
        best: tuple[bool, int, str] | None = None
        for executor, session in self.sessions.items():
            load = len(self.assignments.get(executor, ())) + planned.get(executor, 0) + self._planned[executor]
            if session.draining or load >= session.runs_max or session.engine_version < engine_version:
                continue
            candidate = (executor == avoid, load, executor)
            if best is None or candidate < best:
                best = candidate
        return None if best is None else best[2]

    @contextmanager
    def planning(self, executor: str | None) -> Iterator[None]:
        """Count an assignment as made while its transaction is on its way, so that a burst of them spreads."""
        if executor is None:
            yield
            return
        self._planned[executor] += 1
        try:
            yield
        finally:
            self._planned[executor] -= 1
            if not self._planned[executor]:
                del self._planned[executor]

    def orphans(self) -> list[tuple[str, str, int, int]]:
        """Return the assignments of executors without a session: executor, run, partition, create revision."""
        return [
            (executor, run_id, partition, revision)
            for executor, assigned in self.assignments.items()
            if executor not in self.sessions
            for (run_id, partition), revision in assigned.items()
        ]

    def _follow(
        self,
        prefix: str,
        take_all: Callable[[list[KeyValue]], None],
        take: Callable[[str, KeyValue | None], None],
        ready: asyncio.Event,
    ) -> Coroutine[None, None, None]:
        def listed(items: list[KeyValue]) -> None:
            take_all(items)
            ready.set()
            self._changed()

        def changed(events: Sequence[StoreEvent]) -> None:
            for event in events:
                take(event.kv.key, event.kv if event.kind == "put" else None)
            self._changed()

        return follow(self._store, prefix, listed=listed, changed=changed)

    def _list_sessions(self, items: list[KeyValue]) -> None:
        self.sessions = {}
        for item in items:
            self._on_session(item.key, item)

    def _list_assignments(self, items: list[KeyValue]) -> None:
        self.assignments, self.owners = {}, {}
        for item in items:
            self._on_assignment(item.key, item)

    def _list_pending(self, items: list[KeyValue]) -> None:
        self.pending = {keys.tail(keys.PENDING, item.key) for item in items}

    def _on_session(self, key: str, item: KeyValue | None) -> None:
        executor = keys.tail(keys.EXECUTOR_SESSIONS, key)
        if item is None:
            self.sessions.pop(executor, None)
            return
        try:
            self.sessions[executor] = state_pb2.ExecutorSession.FromString(item.value)
        except DecodeError:  # it lives, so its runs are its own; it gets no new ones
            log.error("an executor's session cannot be read", executor_id=executor)
            self.sessions[executor] = state_pb2.ExecutorSession(draining=True)

    def _on_assignment(self, key: str, item: KeyValue | None) -> None:
        executor, run_id, partition = keys.parse_assigned(key)
        if item is not None:
            assigned = self.assignments.setdefault(executor, {})
            if (run_id, partition) not in assigned:
                self.owners.setdefault(run_id, Counter())[executor] += 1
            assigned[(run_id, partition)] = item.create_revision
            return
        assigned = self.assignments.get(executor, {})
        if assigned.pop((run_id, partition), None) is not None:
            self._disown(executor, run_id)
        if not assigned:
            self.assignments.pop(executor, None)

    def _disown(self, executor: str, run_id: str) -> None:
        owners = self.owners[run_id]
        owners[executor] -= 1
        if not owners[executor]:
            del owners[executor]
        if not owners:
            del self.owners[run_id]

    def _on_pending(self, key: str, item: KeyValue | None) -> None:
        run_id = keys.tail(keys.PENDING, key)
        if item is None:
            self.pending.discard(run_id)
        else:
            self.pending.add(run_id)
