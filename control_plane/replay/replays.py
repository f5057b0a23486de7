"""Partitions replayed for reading, and kept for the next page.

- A partition is replayed from its journal once; a later reading applies only the entries that are new.
- A small partition is replayed on the event loop. Others go to a process of their own (`process`), or without one, in
  an embedded mesh, to a thread, `REPLAYS_AT_ONCE` at a time. What a thread has made is replaced by the next reading and
  never changed, so it is read without a lock.
- The newest value of the journal is read again each time: a journal that was deleted, or that another store has in its
  place, is replayed from its beginning.
- Kept partitions are bounded by `KEPT_BYTES_MAX`; the one read longest ago goes first.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar

from control_plane.replay.in_process import ReplayInProcess
from control_plane.replay.in_service import Outgrown, ReplayInService, are_short, are_small
from control_plane.replay.process import ReplayLost
from stepflow.codec import PAYLOAD_BYTES_MAX, RESULT_BYTES_MAX
from stepflow.errors import Unavailable
from stepflow.journal import FIRST_KEYS, journal_unread, read_flow, read_inputs
from stepflow.store import Get, KeyValue, Page, Range, Txn, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from control_plane.replay.process import ReplayProcess
    from control_plane.view_records import ItemView
    from stepflow.journal import GetBlob
    from stepflow.mesh.v1 import segments_pb2, state_pb2
    from stepflow.run.views import StepView
    from stepflow.store import Store

_T = TypeVar("_T")

log = get_logger(__name__)

KEPT_BYTES_MAX = 128 * 1024 * 1024
"""Bound on the estimated memory of kept partitions. A larger one is kept alone."""

ENTRY_BYTES = 2048
"""Estimated memory of a replayed entry, beyond twice its size in the journal."""

REPLAYS_AT_ONCE = 2
"""Replays in threads, which take turns with the event loop, and loads of blobs for replays."""

LOST_TRIES = 3
"""Processes that may end before a reader has its answer; the first of them perhaps because it was idle."""


class PartitionReplay(Protocol):
    """A partition while it is replayed."""

    unknown: str
    """Why the lists end early: a later version wrote the next entry. Empty if they do not."""

    @property
    def entries(self) -> int:
        """Entries replayed, as of the last `publish`."""
        ...

    async def add(self, values: Sequence[KeyValue]) -> None:
        """Replay the next values of the journal. Raises: DataLoss."""
        ...

    async def publish(self) -> None:
        """Make the lists of all that is replayed."""
        ...

    async def steps(self, start: int, count: int, *, with_results: bool) -> tuple[list[StepView], bool]:
        """Return a part of the list of steps, and True if more follow; with results at most a page of them."""
        ...

    async def items(self, start: int, count: int, bytes_max: int) -> dict[int, ItemView]:
        """Return the items that have ended, at least those of a range; results up to `bytes_max`."""
        ...

    async def index_rows(self, start: int, count: int, copy_room: int) -> tuple[segments_pb2.StepRows, int]:
        """Return rows of steps for a segment, and what is left of the room for copies (see `RowWriter`)."""
        ...

    async def text(self, row: int, bytes_max: int) -> bytes:
        """Return the serialized parts of a step's result; empty if they may have more than `bytes_max`."""
        ...

    def drop(self) -> None:
        """Give the memory back. The replay is not used any more."""
        ...


class StepsRead(NamedTuple):
    """Some steps of a partition."""

    steps: list[StepView]
    more: bool
    """True if more steps follow."""
    incomplete: str = ""
    """Why later steps are missing; empty if none are."""


class Replays:
    """Reads partitions of any run."""

    def __init__(self, store: Store, get_blob: GetBlob, process: ReplayProcess | None = None) -> None:
        """`process`: for partitions that are not small; None: threads."""
        self._store = store
        self._get_blob = get_blob
        self._process = process
        self._kept: OrderedDict[tuple[str, int], KeptPartition] = OrderedDict()
        self._slots = asyncio.Semaphore(REPLAYS_AT_ONCE)

    async def steps(
        self, run_id: str, partition: int, record: state_pb2.RunRecord, start: int, count: int, *, with_results: bool
    ) -> StepsRead:
        """Return steps of a partition, in the order of lists. Raises: DataLoss, Unavailable.

        `with_results`: until the page is full (`PAGE_BYTES_MAX`), so they may be fewer than `count`. A result above
        16 MiB is a `LargeJson`.
        """

        async def read(kept: KeptPartition) -> StepsRead:
            if kept.replay is None:
                return StepsRead([], False)
            steps, more = await kept.replay.steps(start, count, with_results=with_results)
            return StepsRead(steps, more, kept.replay.unknown)

        return await self._read(run_id, partition, record, read)

    async def items(
        self, run_id: str, partition: int, record: state_pb2.RunRecord, start: int, count: int, *, whole: bool = False
    ) -> dict[int, ItemView]:
        """Return the items that have ended, by index in the run. Raises: DataLoss, Unavailable.

        With results until the page is full; `whole`: with those above 16 MiB, too.
        """
        bytes_max = RESULT_BYTES_MAX if whole else PAYLOAD_BYTES_MAX

        async def read(kept: KeptPartition) -> dict[int, ItemView]:
            return {} if kept.replay is None else await kept.replay.items(start, count, bytes_max)

        return await self._read(run_id, partition, record, read)

    async def _read(
        self, run_id: str, partition: int, record: state_pb2.RunRecord, read: Callable[[KeptPartition], Awaitable[_T]]
    ) -> _T:
        """Read from a partition once all of its journal is replayed."""
        for _ in range(LOST_TRIES):
            try:
                async with self.current(run_id, partition, record) as kept:
                    return await read(kept)
            except ReplayLost:
                continue
        text = f"the process that replays run {run_id} for readers has ended {LOST_TRIES} times; see its log"
        raise Unavailable("REPLAY_FAILED", text, run_id=run_id)

    @asynccontextmanager
    async def current(self, run_id: str, partition: int, record: state_pb2.RunRecord) -> AsyncIterator[KeptPartition]:
        """Replay what is new in a partition's journal, and keep other readers out. Raises: DataLoss, ReplayLost."""
        name = (run_id, partition)
        while True:
            kept = self._kept.setdefault(name, KeptPartition(run_id, partition))
            self._kept.move_to_end(name)
            async with kept.lock:
                if self._kept.get(name) is not kept:  # discarded while this reader waited
                    continue

                try:
                    if not await self._refresh(kept, record):
                        self._forget(name)
                        continue
                    if kept.newest is None:  # nothing to keep: a large batch has thousands of partitions that wait
                        self._forget(name)
                    self._make_room()
                    yield kept
                    return
                except BaseException:
                    if self._kept.get(name) is kept:
                        self._forget(name)  # half replayed; a thread may still be at work on it
                    raise

    async def _refresh(self, kept: KeptPartition, record: state_pb2.RunRecord) -> bool:
        """Replay what is new; return False if the replay must begin again."""
        prefix = keys.journal_of_partition(kept.run_id, kept.partition)
        if kept.newest is None and await journal_unread(self._store, kept.run_id, kept.partition):
            return True  # read here, it might do to this process what it did to its executors
        page = await self._next_page(kept, prefix)
        if page is None:
            return False

        replay = kept.replay
        added = False
        while page.items and (replay is None or not replay.unknown):
            if replay is None:
                replay = kept.replay = await self._opened(kept, record, page)
            elif self._outgrows(kept, page):
                return False
            try:
                await replay.add(page.items)
            except Outgrown:
                if kept.newest is not None:
                    return False
                replay = kept.replay = await self._opened(kept, record, page, small=False)
                await replay.add(page.items)
            kept.note_values(page.items)
            added = True
            if not page.more:
                break
            page = await self._store.range(prefix, after=page.items[-1].key)

        if replay is not None and added:
            await replay.publish()
            kept.entries = replay.entries
            if replay.unknown:
                log.warning("a journal ends with an entry of a later version", run_id=kept.run_id, error=replay.unknown)
        return True

    async def _opened(
        self, kept: KeptPartition, record: state_pb2.RunRecord, page: Page, *, small: bool = True
    ) -> PartitionReplay:
        """Return a replay that begins. `page`: the first values of the journal. `small`: False if it was too large."""
        flow = await read_flow(self._store, record)
        inputs = await read_inputs(kept.run_id, kept.partition, record, self._get_blob)
        if self._process is None:
            return ReplayInService(kept.run_id, kept.partition, record, flow, inputs, self._get_blob, self._slots)

        small = small and not page.more and are_small(page.items)
        if small and are_short(flow, *([inputs] if inputs is not None else [item.json for item in record.inputs])):
            return ReplayInService(kept.run_id, kept.partition, record, flow, inputs, None, self._slots)

        replay = ReplayInProcess(self._process, kept.run_id, kept.partition, self._get_blob, self._slots)
        await replay.open(record, flow, inputs)
        return replay

    def _outgrows(self, kept: KeptPartition, page: Page) -> bool:
        """Return True if a partition is not small any more: it begins again in the process."""
        if self._process is None or not isinstance(kept.replay, ReplayInService):
            return False
        return not are_small(page.items, kept.value_bytes)

    async def _next_page(self, kept: KeptPartition, prefix: str) -> Page | None:
        """Return the first values behind the newest one; None if that one is no longer the same."""
        if kept.newest is None:
            return await self._store.range(prefix)
        read = Txn((), (Get(kept.newest.key), Range(prefix, FIRST_KEYS, kept.newest.key)))
        newest, page = (await self._store.txn(read)).responses
        assert isinstance(page, Page)
        return page if newest == kept.newest else None

    def _make_room(self) -> None:
        total = sum(kept.bytes for kept in self._kept.values())
        for name, kept in list(self._kept.items())[:-1]:
            if total <= KEPT_BYTES_MAX:
                return
            if not kept.lock.locked():
                self._forget(name)
                total -= kept.bytes

    def _forget(self, name: tuple[str, int]) -> None:
        kept = self._kept.pop(name)
        if kept.replay is not None:
            kept.replay.drop()


class KeptPartition:
    """A kept partition."""

    def __init__(self, run_id: str, partition: int) -> None:
        self.run_id = run_id
        self.partition = partition
        self.lock = asyncio.Lock()
        self.newest: KeyValue | None = None
        """The newest value of the journal that was read."""
        self.replay: PartitionReplay | None = None
        """None before the first entry."""
        self.entries = 0
        self.value_bytes = 0

    @property
    def bytes(self) -> int:
        """Estimated memory."""
        return 2 * self.value_bytes + ENTRY_BYTES * self.entries

    def note_values(self, values: Sequence[KeyValue]) -> None:
        """Note values of the journal that are replayed."""
        self.newest = values[-1]
        self.value_bytes += sum(len(item.value) for item in values)


__all__ = ["REPLAYS_AT_ONCE", "KeptPartition", "Replays", "StepsRead"]
