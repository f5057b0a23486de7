"""Following a run: what has happened, then what happens, until it has ended.

- History comes from the journals alone, so whoever goes on behind a position misses nothing and gets nothing twice.
- A watch only says that there is something to read: register, then read, then wait.
- What is never stored (starts, progress) comes from a `LiveSource`, is shown between two readings, and may be lost.

One watch of the store, and one live source, serve all who follow the same run here.
"""

from __future__ import annotations

import asyncio
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from control_plane.history import Happening, Moment, PartitionHistory, RunDone, StepDone
from stepflow.errors import FailedPrecondition, NotFound, Unavailable
from stepflow.journal import blob_reader, partition_count, read_plan, read_record
from stepflow.store import keys
from stepflow.store.follow import follow

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Mapping, Sequence, Set

    from control_plane.control_plane import ControlPlane
    from control_plane.views import RunView
    from stepflow.run.views import StepEvent
    from stepflow.store import Store, StoreEvent
    from stepflow.store.blobs import BlobStore

LIVE_EVENTS_MAX = 1_000
"""Live events that wait for a slow reader; older ones are dropped."""


class LiveSource(Protocol):
    """Where starts and progress of calls come from. Never raises: a run can be followed without live events."""

    def follow(self, run_id: str, listener: Callable[[StepEvent], None]) -> Callable[[], None]:
        """Have the listener called with the events of the run's steps from now on; return what ends that."""
        ...


@dataclass(eq=False, slots=True)
class _Follower:
    """One who follows a run: partitions worth a look, and live events not yet shown."""

    wake: asyncio.Event
    dirty: set[int]
    live: deque[StepEvent] = field(default_factory=lambda: deque(maxlen=LIVE_EVENTS_MAX))


class _Feed:
    """Hints about one run for all who follow it here."""

    def __init__(self) -> None:
        self.followers: list[_Follower] = []
        self.task: asyncio.Task[None] | None = None
        self.end_live: Callable[[], None] = lambda: None

    def tell(self, partitions: Set[int]) -> None:
        for follower in self.followers:
            follower.dirty |= partitions
            follower.wake.set()

    def show(self, event: StepEvent) -> None:
        if event.kind in ("started", "progress"):
            for follower in self.followers:
                follower.live.append(event)
                follower.wake.set()


class Events:
    """Lets clients follow runs; `close` ends the watches."""

    def __init__(self, control: ControlPlane, store: Store, blobs: BlobStore, live: LiveSource | None = None) -> None:
        self._control = control
        self._store = store
        self._get_blob = blob_reader(store, blobs)
        self._live = live
        self._feeds: dict[str, _Feed] = {}
        self._closed = False

    async def close(self) -> None:
        """Send everybody away, with an error after which clients go on elsewhere."""
        self._closed = True
        for feed in self._feeds.values():
            feed.tell(set())
        tasks = [feed.task for feed in self._feeds.values() if feed.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def follow(
        self, run_id: str, after: Mapping[int, int], *, with_results: bool = False
    ) -> AsyncGenerator[Moment, None]:
        """Yield the run's moments behind the positions (partition → seq), in order within a partition, up to its end.

        Raises: NotFound; FailedPrecondition `HISTORY_GONE`, the run was deleted meanwhile; DataLoss;
        Unavailable, after `close`.
        """
        record = await read_record(self._store, run_id)
        plan = await read_plan(self._store, record)
        histories = [
            PartitionHistory(
                self._store, self._get_blob, run_id, p, record, plan, after=after.get(p, -1), with_results=with_results
            )
            for p in range(partition_count(record))
        ]
        done: set[tuple[str, int, int]] = set()
        with self._following(run_id, set(range(len(histories)))) as follower:
            while True:
                follower.wake.clear()
                if self._closed:
                    raise Unavailable("SERVER_ENDING", "this control plane ends; go on at another one")
                run = await self._run(run_id)  # before the journals: what has ended now is in them to its end
                if run.terminal:
                    follower.dirty |= {p for p, history in enumerate(histories) if not history.ended}
                while follower.dirty:
                    async for moment in histories[follower.dirty.pop()].read():
                        done |= _steps_done(moment)
                        yield moment
                live = _take_live(follower, done)
                if live:
                    yield Moment(live)
                if run.terminal:
                    yield Moment([RunDone(run)])
                    return
                await follower.wake.wait()

    async def _watch(self, run_id: str, feed: _Feed, partitions: frozenset[int]) -> None:
        def changed(events: Sequence[StoreEvent]) -> None:
            feed.tell({keys.parse_journal(event.kv.key)[1] for event in events if event.kind == "put"})

        journals = keys.journal_of_run(run_id)
        await follow(self._store, journals, listed=lambda _: feed.tell(partitions), changed=changed, read=False)

    async def _run(self, run_id: str) -> RunView:
        try:
            return await self._control.get_run(run_id)
        except NotFound:
            raise FailedPrecondition("HISTORY_GONE", f"run {run_id} was deleted meanwhile", run_id=run_id) from None

    @contextmanager
    def _following(self, run_id: str, partitions: set[int]) -> Iterator[_Follower]:
        with self._control.changes(run_id) as wake:
            follower = _Follower(wake, partitions)
            feed = self._feeds.get(run_id)
            if feed is None:
                feed = self._feeds[run_id] = _Feed()
                feed.task = asyncio.create_task(
                    self._watch(run_id, feed, frozenset(partitions)), name=f"follow {run_id}"
                )
                if self._live is not None:
                    feed.end_live = self._live.follow(run_id, feed.show)
            feed.followers.append(follower)
            try:
                yield follower
            finally:
                feed.followers.remove(follower)
                if not feed.followers:
                    del self._feeds[run_id]
                    feed.end_live()
                    assert feed.task is not None
                    feed.task.cancel()


def _steps_done(moment: Moment) -> set[tuple[str, int, int]]:
    events = [happening.event for happening in moment.happenings if isinstance(happening, StepDone)]
    return {(event.run_id, event.item, event.step_index) for event in events}


def _take_live(follower: _Follower, done: set[tuple[str, int, int]]) -> list[Happening]:
    """Take the live events; what is shown of a step after its end comes too late."""
    taken: list[Happening] = [
        event for event in follower.live if (event.run_id, event.item, event.step_index) not in done
    ]
    follower.live.clear()
    return taken
