"""Who is there and who has what: executors' sessions and assignments, followed by watches.

A hint, never the truth: every decision made from it is checked again by the compares of the transaction that acts on
it. After a compaction, or when the store was away, everything is listed anew.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.store import KeyValue, keys, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store import Event, Store

log = get_logger(__name__)

RELIST_PAUSE_S = 0.5


class Cluster:
    """Follows the store from `start` until `close`; `changed` is called after every change."""

    def __init__(self, store: Store, changed: Callable[[], None]) -> None:
        self._store = store
        self._changed = changed
        self.sessions: dict[str, state_pb2.ExecutorSession] = {}
        self.assignments: dict[str, dict[tuple[str, int], int]] = {}
        """By executor: the create revision of each assignment, by run and partition."""
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        ready = [asyncio.Event(), asyncio.Event()]
        self._tasks = [
            asyncio.create_task(self._follow(keys.EXECUTOR_SESSIONS, self._on_session, ready[0])),
            asyncio.create_task(self._follow(keys.ASSIGNED, self._on_assignment, ready[1])),
        ]
        await asyncio.gather(*(event.wait() for event in ready))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def with_room(self) -> str | None:
        """Return the executor with the fewest runs that can take another one."""
        loads = [
            (len(self.assignments.get(executor, ())), executor)
            for executor, session in self.sessions.items()
            if not session.draining and len(self.assignments.get(executor, ())) < session.runs_max
        ]
        return min(loads)[1] if loads else None

    def orphans(self) -> list[tuple[str, str, int, int]]:
        """Return the assignments of executors without a session: executor, run, partition, create revision."""
        return [
            (executor, run_id, partition, revision)
            for executor, assigned in self.assignments.items()
            if executor not in self.sessions
            for (run_id, partition), revision in assigned.items()
        ]

    async def _follow(self, prefix: str, take: Callable[[str, KeyValue | None], None], ready: asyncio.Event) -> None:
        while True:
            watch = self._store.watch(prefix)
            try:
                await self._list(prefix, take)
                ready.set()
                self._changed()
                async for batch in watch:
                    for event in batch.events:
                        take(event.kv.key, _standing(event))
                    self._changed()
            except StepflowError as error:
                log.info("watch begins anew", prefix=prefix, reason=error.reason)
                await asyncio.sleep(RELIST_PAUSE_S)
            finally:
                watch.close()

    async def _list(self, prefix: str, take: Callable[[str, KeyValue | None], None]) -> None:
        if prefix == keys.ASSIGNED:
            self.assignments.clear()
        else:
            self.sessions.clear()
        async for item in range_all(self._store, prefix):
            take(item.key, item)

    def _on_session(self, key: str, item: KeyValue | None) -> None:
        executor = keys.tail(keys.EXECUTOR_SESSIONS, key)
        if item is None:
            self.sessions.pop(executor, None)
        else:
            self.sessions[executor] = state_pb2.ExecutorSession.FromString(item.value)

    def _on_assignment(self, key: str, item: KeyValue | None) -> None:
        executor, run_id, partition = keys.parse_assigned(key)
        if item is not None:
            self.assignments.setdefault(executor, {})[(run_id, partition)] = item.create_revision
            return
        assigned = self.assignments.get(executor, {})
        assigned.pop((run_id, partition), None)
        if not assigned:
            self.assignments.pop(executor, None)


def _standing(event: Event) -> KeyValue | None:
    return event.kv if event.kind == "put" else None
