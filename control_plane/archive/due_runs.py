"""The runs in the store that have ended, in the order of their ends: what the leader packs next.

- Fed by the watch of `status/` that serves waiters, and by a list of `status/` when leadership begins and after each
  gap of the watch. The store holds only runs that live or linger, so the list is short.
- A hint: whoever packs a run reads it, and checks that it has ended.
- A clock that is ahead of this one, of an executor, counts as this one: its runs linger no longer than others.
- A run of several partitions is here while none of those that were seen is running; the reader finds out if there are
  others.
"""

from __future__ import annotations

import heapq
import time
from typing import TYPE_CHECKING, NamedTuple

from control_plane.views import TERMINAL
from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys, range_all
from stepflow.telemetry import get_logger
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class DueRun(NamedTuple):
    """A run that has probably ended. Times are milliseconds since 1970."""

    run_id: str
    created_at_ms: int
    ended_at_ms: int
    listed: bool
    """Written before a list, or put back after a failure: it may be in a segment already."""


class DueRuns:
    """Collects while `collecting`; otherwise it stays empty."""

    def __init__(self, now_ms: Callable[[], int] = _now_ms) -> None:
        self.stale = True
        """The watch may have missed changes: list the statuses."""
        self._now_ms = now_ms
        self._collecting = False
        self._listed_revision = 0
        """What was written up to it may have been packed by a former leader, however late the watch tells of it."""
        self._running: dict[str, set[int]] = {}
        """By run: the partitions that are known to run."""
        self._ended: dict[str, DueRun] = {}
        self._by_end: list[tuple[int, str]] = []
        """Heap of end and run id; entries that `_ended` does not confirm are stale."""

    def __len__(self) -> int:
        return len(self._ended)

    def begin(self) -> None:
        """Collect from now on, for a new leader."""
        self.end()
        self._collecting = True

    def end(self) -> None:
        """Stop, and discard everything."""
        self._collecting, self.stale = False, True
        self._listed_revision = 0
        self._running.clear()
        self._ended.clear()
        self._by_end.clear()

    def missed(self) -> None:
        """Note a gap of the watch."""
        self.stale = True

    def on_events(self, events: Sequence[StoreEvent]) -> None:
        """Note changes of statuses."""
        if not self._collecting:
            return
        for event in events:
            if event.kind == "put":
                guarded(log, "a status", self._on_status, event.kv)
            else:
                self._discard(*keys.parse_status(event.kv.key))

    async def list_all(self, store: Store) -> dict[str, tuple[int, int]]:
        """List the statuses. Return, by run, its creation time and the create revision of a status.

        Raises: StepflowError.
        """
        self.stale = False  # Before the list: a gap during the list needs another one.
        self._listed_revision = await store.revision()
        created: dict[str, tuple[int, int]] = {}
        async for item in range_all(store, keys.STATUS):
            try:
                run_id, created_at_ms = self._note(item)
            except Exception as error:
                log.error("a status cannot be read", key=item.key, error=str(error))
                continue
            created.setdefault(run_id, (created_at_ms, item.create_revision))
        return created

    def take(self, before_ms: int, limit: int, span_ms: int) -> list[DueRun]:
        """Remove and return up to `limit` runs that ended at `before_ms` or earlier, the oldest first.

        `span_ms`: bound on the time between the first and the last of these ends.
        """
        taken: list[DueRun] = []
        while len(taken) < limit and (oldest := self._oldest()) is not None:
            if oldest.ended_at_ms > (min(before_ms, taken[0].ended_at_ms + span_ms) if taken else before_ms):
                break
            heapq.heappop(self._by_end)
            taken.append(self._ended.pop(oldest.run_id))
        return taken

    def put_back(self, runs: Iterable[DueRun]) -> None:
        """Return runs that were taken, for a later try."""
        if self._collecting:
            for run in runs:
                self._add(run)

    def oldest_ms(self) -> int | None:
        """Return the end of the run that ended first; None without a run."""
        oldest = self._oldest()
        return None if oldest is None else oldest.ended_at_ms

    def _oldest(self) -> DueRun | None:
        while self._by_end:
            ended_at_ms, run_id = self._by_end[0]
            run = self._ended.get(run_id)
            if run is not None and run.ended_at_ms == ended_at_ms:
                return run
            heapq.heappop(self._by_end)
        return None

    def _on_status(self, item: KeyValue) -> None:
        self._note(item)

    def _note(self, item: KeyValue) -> tuple[str, int]:
        run_id, partition = keys.parse_status(item.key)
        status = state_pb2.PartitionStatus.FromString(item.value)
        created_at_ms = status.created_at_ms
        if status.status not in TERMINAL:
            self._running.setdefault(run_id, set()).add(partition)
            self._ended.pop(run_id, None)
            return run_id, created_at_ms

        running = self._running.get(run_id)
        if running is not None:
            running.discard(partition)
            if running:
                return run_id, created_at_ms
            del self._running[run_id]

        ended_at_ms = min(status.completed_at_ms, self._now_ms())
        self._add(DueRun(run_id, created_at_ms, ended_at_ms, item.mod_revision <= self._listed_revision))
        return run_id, created_at_ms

    def _add(self, run: DueRun) -> None:
        """Add a run; of one that is known, the later end counts, and any doubt stays."""
        known = self._ended.get(run.run_id)
        if known is not None:
            listed = known.listed or run.listed
            if known.ended_at_ms >= run.ended_at_ms:
                self._ended[run.run_id] = known._replace(listed=listed)
                return
            run = run._replace(listed=listed)
        self._ended[run.run_id] = run
        heapq.heappush(self._by_end, (run.ended_at_ms, run.run_id))

    def _discard(self, run_id: str, partition: int) -> None:
        """Discard a run whose status was deleted: it was packed, or deleted by a client."""
        self._ended.pop(run_id, None)
        running = self._running.get(run_id)
        if running is not None:
            running.discard(partition)
            if not running:
                del self._running[run_id]


__all__ = ["DueRun", "DueRuns"]
