"""Partitions replayed for reading: off the event loop, and kept for the next page.

- A partition is replayed from its journal once; a later reading applies only the entries that are new.
- Replays run in threads, `REPLAYS_AT_ONCE` at a time. What a thread has made is replaced by the next reading and never
  changed, so it is read without a lock.
- The newest value of the journal is read again each time: a journal that was deleted, or that another store has in its
  place, is replayed from its beginning.
- Kept partitions are bounded by `KEPT_BYTES_MAX`; the one read longest ago goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from control_plane.views import ItemView
from stepflow.errors import Code, Failure
from stepflow.journal import FIRST_KEYS, entries_of, journal_unread, open_partition, read_plan
from stepflow.run.replay import Replay
from stepflow.run.state import release_state
from stepflow.run.views import StepList
from stepflow.store import Get, KeyValue, Page, Range, Txn, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.errors import FailedPrecondition
    from stepflow.journal import GetBlob
    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.mesh.v1 import state_pb2
    from stepflow.run import RunState
    from stepflow.run.views import StepView
    from stepflow.store import Store

log = get_logger(__name__)

KEPT_BYTES_MAX = 128 * 1024 * 1024
"""Bound on the estimated memory of kept partitions. A larger one is kept alone."""

ENTRY_BYTES = 2048
"""Estimated memory of a replayed entry, beyond twice its size in the journal."""

REPLAYS_AT_ONCE = 2
"""Replays in threads: each takes turns with the event loop."""

INLINE_BYTES = 16 * 1024
"""Journal values that are replayed on the event loop, within a millisecond or two."""

INLINE_ENTRIES = 100
"""Entries of a partition whose lists are made on the event loop."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A partition as of its newest entry."""

    steps: Sequence[StepView] = ()
    items: dict[int, ItemView] = field(default_factory=dict)
    """The items that have ended, by index in the run. Results in the blob store are not loaded."""
    unknown: FailedPrecondition | None = None
    """Why the history ends early: a later version wrote the next entry."""


class Replays:
    """Reads partitions of any run."""

    def __init__(self, store: Store, get_blob: GetBlob) -> None:
        self._store = store
        self._get_blob = get_blob
        self._kept: OrderedDict[tuple[str, int], _Partition] = OrderedDict()
        self._slots = asyncio.Semaphore(REPLAYS_AT_ONCE)

    async def read(self, run_id: str, partition: int, record: state_pb2.RunRecord) -> Reading:
        """Replay what is new in a partition's journal. Raises: DataLoss."""
        name = (run_id, partition)
        while True:
            kept = self._kept.setdefault(name, _Partition(run_id, partition))
            self._kept.move_to_end(name)
            async with kept.lock:
                if self._kept.get(name) is not kept:  # discarded while this reader waited
                    continue
                try:
                    if not await self._refresh(kept, record):
                        del self._kept[name]
                        continue
                except BaseException:
                    del self._kept[name]  # half replayed; a thread may still be at work on it
                    raise
                if kept.newest is None:  # nothing to keep: a large batch has thousands of partitions that wait
                    del self._kept[name]
                self._make_room()
                return kept.reading

    async def _refresh(self, kept: _Partition, record: state_pb2.RunRecord) -> bool:
        """Replay what is new; return False if the journal is no longer the one that was replayed."""
        prefix = keys.journal_of_partition(kept.run_id, kept.partition)
        if kept.newest is None and await journal_unread(self._store, kept.run_id, kept.partition):
            return True  # read here, it might do to this process what it did to its executors
        page = await self._next_page(kept, prefix)
        if page is None:
            return False

        while page.items and kept.reading.unknown is None:
            if kept.replay is None:
                plan = await read_plan(self._store, record)
                state = await open_partition(kept.run_id, kept.partition, record, plan, self._get_blob)
                kept.replay = Replay(state, kept)
            await replay_values(kept.replay, kept.decode, page.items, self._get_blob, self._slots)
            await self._publish(kept, more=page.more)
            if not page.more:
                break
            page = await self._store.range(prefix, after=page.items[-1].key)
        return True

    async def _next_page(self, kept: _Partition, prefix: str) -> Page | None:
        """Return the first values behind the newest one; None if that one is no longer the same."""
        if kept.newest is None:
            return await self._store.range(prefix)
        read = Txn((), (Get(kept.newest.key), Range(prefix, FIRST_KEYS, kept.newest.key)))
        newest, page = (await self._store.txn(read)).responses
        assert isinstance(page, Page)
        return page if newest == kept.newest else None

    async def _publish(self, kept: _Partition, *, more: bool) -> None:
        """Make the lists of all that is replayed, unless more follows."""
        if more and kept.replay is not None and kept.replay.unknown is None:
            return
        if kept.entries <= INLINE_ENTRIES:
            kept.publish()
            return
        async with self._slots:
            await asyncio.to_thread(kept.publish)

    def _make_room(self) -> None:
        total = sum(kept.bytes for kept in self._kept.values())
        for name, kept in list(self._kept.items())[:-1]:
            if total <= KEPT_BYTES_MAX:
                return
            if not kept.lock.locked():
                del self._kept[name]
                total -= kept.bytes


class _Partition:
    """A kept partition. Implements `ReplayListener`."""

    def __init__(self, run_id: str, partition: int) -> None:
        self.run_id = run_id
        self.partition = partition
        self.lock = asyncio.Lock()
        self.newest: KeyValue | None = None
        """The newest value of the journal that was read."""
        self.replay: Replay | None = None
        """None before the first entry and behind the last one of the run."""
        self.reading = Reading()
        self.entries = 0
        self.bytes = 0
        self._steps = StepList()

    def decode(self, values: Sequence[KeyValue]) -> list[pb.Entry]:
        """Decode the next values of the journal. Raises: DataLoss."""
        entries: list[pb.Entry] = []
        for item in values:
            entries += entries_of(self.run_id, self.partition, self.entries + len(entries), item)
        self.entries += len(entries)
        self.bytes += sum(2 * len(item.value) for item in values) + ENTRY_BYTES * len(entries)
        self.newest = values[-1]
        return entries

    def replayed(self, state: RunState, entry: pb.Entry) -> None:
        self._steps.add(state, entry)

    def publish(self) -> None:
        assert self.replay is not None
        root = self.replay.state.root
        items = {
            root.first_item + item.index: ItemView(
                root.first_item + item.index, _status(item.outcome), item.outcome, item.completed_at_ms
            )
            for item in root.items
            if item.outcome is not None
        }
        unknown = self.replay.unknown
        if unknown is not None:
            log.warning("a journal ends with an entry of a later version", run_id=self.run_id, error=unknown.message)
        self.reading = Reading(self._steps.views(self.replay.state), items, unknown)
        if self.replay.state.status is not None:
            release_state(self.replay.state)
            self.replay, self._steps = None, StepList()


def _status(outcome: object) -> str:
    """Return the status of an ended item, as its final record will have it."""
    if not isinstance(outcome, Failure):
        return "completed"
    return "cancelled" if outcome.code is Code.CANCELLED else "failed"


async def replay_values(
    replay: Replay,
    decode: Callable[[Sequence[KeyValue]], list[pb.Entry]],
    values: Sequence[KeyValue],
    get_blob: GetBlob,
    slots: asyncio.Semaphore,
) -> None:
    """Replay the next values of a journal, in a thread unless they are few. Raises: DataLoss."""

    def first() -> dict[str, bool]:
        replay.add(decode(values))
        return replay.run({})

    few = sum(len(item.value) for item in values) <= INLINE_BYTES
    if few:
        wanted = first()
    else:
        async with slots:
            wanted = await asyncio.to_thread(first)
    while wanted:
        run_id = replay.state.run_id
        async with slots:  # bounds the large values in memory, too
            blobs = {blob: await get_blob(run_id, blob, shared=shared) for blob, shared in wanted.items()}
            wanted = replay.run(blobs) if few else await asyncio.to_thread(replay.run, blobs)


__all__ = ["REPLAYS_AT_ONCE", "Reading", "Replays", "replay_values"]
