"""Following a run: past events, then new events as they happen, to the end of the run.

- Durable events come from the journals alone, so a follower that continues behind a position loses and repeats nothing.
- A watch of the store is only a hint to read: register, then read, then wait.
- Starts and progress are never stored: they come from a `LiveSource`, between two readings, and may be lost. So are log
  lines, of a `LogSource`.
- A single watch and a single live source serve all followers of a run at this replica.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeAlias

from msgspec import structs

from control_plane.history import EventBatch, PartitionHistory, RunDone, RunEvent, StepDone
from control_plane.replay.replays import REPLAYS_AT_ONCE
from stepflow.errors import FailedPrecondition, NotFound, Unavailable
from stepflow.journal import blob_reader, partition_count, read_plan, read_record
from stepflow.log_lines import StepLog
from stepflow.store import keys
from stepflow.store.follow import follow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Container, Iterator, Mapping, Sequence, Set

    from control_plane.control_plane import ControlPlane
    from control_plane.views import RunView
    from stepflow.run.views import StepEvent
    from stepflow.store import Store, StoreEvent
    from stepflow.store.blobs import BlobStore

LOG_LINES_MAX = 2_000
"""Log lines held for a slow follower; further ones are dropped and counted."""

LIVE_EVENTS_MAX = 1_000
"""Live events held for a slow follower; the oldest are dropped."""

STEPS_DONE_MAX = 10_000
"""Ended steps that a follower remembers, to drop their late live events. A batch may have millions."""

_StepId: TypeAlias = tuple[str, int, int]
"""Run, item, step."""


class LiveSource(Protocol):
    """The source of starts and progress of calls. Never raises: live events are best effort."""

    def follow(self, run_id: str, listener: Callable[[StepEvent], None]) -> Callable[[], None]:
        """Call `listener` with each new event of the run's steps; return a function to stop."""
        ...


class LogSource(Protocol):
    """The source of log lines. Never raises: they are best effort."""

    def follow(self, run_id: str, listener: Callable[[StepLog], None]) -> Callable[[], None]:
        """Call `listener` with the log lines of the run's steps, the kept ones first; return a function to stop."""
        ...

    async def sync(self) -> None:
        """Return once all lines until now were told, or after a bounded time."""
        ...


@dataclass(eq=False, slots=True)
class _Follower:
    """A follower of a run."""

    wake: asyncio.Event
    dirty: set[int]
    """Partitions whose journals may have new entries."""
    doubtful: bool = False
    """The watch had a gap: what was read may be gone."""
    live: deque[StepEvent | StepLog] = field(default_factory=lambda: deque(maxlen=LIVE_EVENTS_MAX))
    with_logs: bool = False
    _log_lines: int = 0
    """Log lines among the live events."""
    _log_dropped: int = 0
    """Log lines left out since the last ones."""

    def add_log(self, log: StepLog) -> None:
        """Add log lines, unless too many wait: they must displace no other events."""
        if not self.with_logs:
            return
        if self._log_lines >= LOG_LINES_MAX or len(self.live) >= LIVE_EVENTS_MAX // 2:
            self._log_dropped += len(log.lines) + log.dropped
            return

        if self._log_dropped:
            log = structs.replace(log, dropped=log.dropped + self._log_dropped)
            self._log_dropped = 0
        self.live.append(log)
        self._log_lines += len(log.lines)
        self.wake.set()

    def take_live(self) -> list[StepEvent | StepLog]:
        """Remove and return the live events."""
        taken = list(self.live)
        self.live.clear()
        self._log_lines = 0
        return taken


class _Feed:
    """Distributes hints and live events of a run to the followers at this replica."""

    def __init__(self) -> None:
        self.followers: list[_Follower] = []
        self.task: asyncio.Task[None] | None = None
        self.end_live: Callable[[], None] = lambda: None
        self._end_logs: Callable[[], None] | None = None
        self._logs: deque[StepLog] = deque()
        """The latest log lines, for later followers."""
        self._log_lines = 0

    def mark_dirty(self, partitions: Set[int]) -> None:
        for follower in self.followers:
            follower.dirty |= partitions
            follower.wake.set()

    def mark_doubtful(self, partitions: Set[int]) -> None:
        for follower in self.followers:
            follower.doubtful = True
        self.mark_dirty(partitions)

    def add_live(self, event: StepEvent) -> None:
        if event.kind in ("started", "progress"):
            for follower in self.followers:
                follower.live.append(event)
                follower.wake.set()

    def add_log(self, log: StepLog) -> None:
        for follower in self.followers:
            follower.add_log(log)

        self._logs.append(log)
        self._log_lines += len(log.lines)
        while self._log_lines > LOG_LINES_MAX:
            self._log_lines -= len(self._logs.popleft().lines)

    def follow_logs(self, follower: _Follower, source: LogSource, run_id: str) -> None:
        """Give a follower the log lines of the run: those that have come already, and all further ones."""
        follower.with_logs = True
        for log in self._logs:
            follower.add_log(log)
        if self._end_logs is None:
            self._end_logs = source.follow(run_id, self.add_log)

    def end(self) -> None:
        """End the sources; there is no follower any more."""
        self.end_live()
        if self._end_logs is not None:
            self._end_logs()


class Events:
    """Follows runs for clients, until `close`."""

    def __init__(
        self,
        control: ControlPlane,
        store: Store,
        blobs: BlobStore,
        live: LiveSource | None = None,
        logs: LogSource | None = None,
    ) -> None:
        self._control = control
        self._store = store
        self._get_blob = blob_reader(store, blobs)
        self._live = live
        self._logs = logs
        self._slots = asyncio.Semaphore(REPLAYS_AT_ONCE)
        self._feeds: dict[str, _Feed] = {}
        self._closed = False

    async def close(self) -> None:
        """End all follows with Unavailable, so that clients continue at another replica."""
        self._closed = True
        for feed in self._feeds.values():
            feed.mark_dirty(set())
        tasks = [feed.task for feed in self._feeds.values() if feed.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def follow(
        self,
        run_id: str,
        after: Mapping[int, int],
        *,
        with_results: bool = False,
        with_logs: bool = False,
        until_now: bool = False,
    ) -> AsyncGenerator[EventBatch, None]:
        """Yield the run's events behind the positions (partition → seq) to its end; ordered within a partition.

        `with_logs`: log lines, too, as far as hosts have them. `until_now`: stop behind what is known now.

        Raises: NotFound; FailedPrecondition `HISTORY_GONE` (the run was deleted, or an older copy of the store was
        restored); DataLoss; Unavailable (after `close`).
        """
        # 1. Open the history of each partition.
        histories = await self._histories(run_id, after, with_results=with_results)
        steps_done: dict[_StepId, None] = {}

        # 2. Register for changes.
        with self._following(run_id, set(range(len(histories))), with_logs=with_logs) as follower:
            while True:
                follower.wake.clear()  # Before the read: a change during the read would be erased.
                if self._closed:
                    raise Unavailable("SERVER_ENDING", "this control plane is stopping; continue at another one")

                # 3. Read the run before the journals: once the run has ended, the journals are complete.
                run = await self._run(run_id)
                if run.terminal:
                    follower.dirty |= {p for p, history in enumerate(histories) if not history.ended}

                # 4. Read the journals that may have new entries.
                if follower.doubtful:
                    follower.doubtful = False
                    for history in histories:
                        if not history.ended:
                            await history.check()
                while follower.dirty:
                    async for batch in histories[follower.dirty.pop()].read():
                        _note_ended(steps_done, batch)
                        yield batch

                # 5. Show live events, then wait for a change.
                if with_logs and self._logs is not None and (run.terminal or until_now):
                    await self._logs.sync()
                live = _drain_live(follower, steps_done)
                if live:
                    yield EventBatch(live)
                if run.terminal:
                    yield EventBatch([RunDone(run)])
                if run.terminal or until_now:
                    return
                await follower.wake.wait()

    async def _histories(self, run_id: str, after: Mapping[int, int], *, with_results: bool) -> list[PartitionHistory]:
        """Return the histories of all partitions of a run, each behind its position."""
        record = await read_record(self._store, run_id)
        plan = await read_plan(self._store, record)
        return [
            PartitionHistory(
                self._store,
                self._get_blob,
                run_id,
                partition,
                record,
                plan,
                slots=self._slots,
                after=after.get(partition, -1),
                with_results=with_results,
            )
            for partition in range(partition_count(record))
        ]

    async def _watch(self, run_id: str, feed: _Feed, partitions: frozenset[int]) -> None:
        def changed(events: Sequence[StoreEvent]) -> None:
            feed.mark_dirty({keys.parse_journal(event.kv.key)[1] for event in events if event.kind == "put"})

        journals = keys.journal_of_run(run_id)
        await follow(
            self._store, journals, listed=lambda _: feed.mark_doubtful(partitions), changed=changed, read=False
        )

    async def _run(self, run_id: str) -> RunView:
        try:
            return await self._control.get_run(run_id)
        except NotFound:
            raise FailedPrecondition("HISTORY_GONE", f"run {run_id} was deleted", run_id=run_id) from None

    @contextmanager
    def _following(self, run_id: str, partitions: set[int], *, with_logs: bool) -> Iterator[_Follower]:
        with self._control.changes(run_id) as wake:
            follower = _Follower(wake, partitions)

            # The first follower starts the feed of the run, the last one ends it.
            feed = self._feeds.get(run_id)
            if feed is None:
                feed = self._feeds[run_id] = _Feed()
                feed.task = asyncio.create_task(
                    self._watch(run_id, feed, frozenset(partitions)), name=f"follow {run_id}"
                )
                if self._live is not None:
                    feed.end_live = self._live.follow(run_id, feed.add_live)

            feed.followers.append(follower)
            if with_logs and self._logs is not None:
                feed.follow_logs(follower, self._logs, run_id)
            try:
                yield follower
            finally:
                feed.followers.remove(follower)
                if not feed.followers:
                    del self._feeds[run_id]
                    feed.end()
                    assert feed.task is not None
                    feed.task.cancel()


def _note_ended(steps_done: dict[_StepId, None], batch: EventBatch) -> None:
    """Note the steps that end in a batch of events; the oldest notes go."""
    for each in batch.events:
        if isinstance(each, StepDone):
            steps_done[each.event.run_id, each.event.item, each.event.step_index] = None
            if len(steps_done) > STEPS_DONE_MAX:
                del steps_done[next(iter(steps_done))]


def _drain_live(follower: _Follower, steps_done: Container[_StepId]) -> list[RunEvent]:
    """Remove the live events and return them, except starts and progress of steps already shown as ended."""
    return [
        event
        for event in follower.take_live()
        if isinstance(event, StepLog) or (event.run_id, event.item, event.step_index) not in steps_done
    ]


__all__ = ["Events", "LiveSource", "LogSource"]
