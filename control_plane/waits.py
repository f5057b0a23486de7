"""Waiting for runs: a single watch of `status/` serves all waiters of this replica.

- Register, then read, then wait: a change between the reading and the wait sets the event.
- Record and statuses of a run are read once for all waiters; the watch brings later changes. A stale status never
  replaces a newer one.
- After a gap in the watch, each run waited for is read again.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from control_plane.archive.due_runs import DueRuns
from control_plane.views import TERMINAL, RunView, run_view
from stepflow.errors import NotFound
from stepflow.journal import parse_record, without_inputs
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Get, KeyValue, Page, Range, Txn, keys, range_all
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from control_plane.activity import Activity
    from control_plane.archive.run_store import RunStore
    from stepflow.store import StoreEvent
    from stepflow.store.grouping import Grouping

log = get_logger(__name__)

FIRST_PARTITIONS = 16
"""Statuses read in one transaction with the record; a larger batch takes further reads."""


class _Waited:
    """A run with waiters, as far as read."""

    def __init__(self) -> None:
        self.events: set[asyncio.Event] = set()
        self.reading: asyncio.Task[None] | None = None
        self.record: state_pb2.RunRecord | None = None
        """Without its large fields; None until it is read, and after a gap in the watch."""
        self.statuses: dict[int, tuple[int, state_pb2.PartitionStatus]] = {}
        """By partition, with the revision of its last change."""
        self.view: RunView | None = None
        """As of `record` and `statuses`."""
        self.gaps = 0
        """Count of gaps in the watch. A reading that began before a gap is stale."""

    def note_status(self, item: KeyValue) -> None:
        """Replace a partition's status, unless a newer one is known."""
        partition = keys.parse_status(item.key)[1]
        if item.mod_revision > self.statuses.get(partition, (0,))[0]:
            self.statuses[partition] = (item.mod_revision, state_pb2.PartitionStatus.FromString(item.value))
            self.view = None

    def discard(self) -> None:
        """Discard record and statuses: a gap may have made them stale."""
        self.gaps += 1
        self.record = self.view = None
        self.statuses.clear()

    def wake(self) -> None:
        for event in self.events:
            event.set()


class Waits:
    """Wakes the waiters of runs. `on_change` is called whenever the status of any run may have changed."""

    def __init__(
        self,
        store: RunStore,
        grouping: Grouping,
        on_change: Callable[[], None],
        due_runs: DueRuns | None = None,
        activity: Activity | None = None,
    ) -> None:
        """`grouping`: of the store below `store`.

        `due_runs` and `activity` follow the statuses with the same watch; the latter counts runs.
        """
        self._store = store
        self._grouping = grouping
        self._on_change = on_change
        self._due_runs = DueRuns() if due_runs is None else due_runs
        self._activity = activity
        self._waited: dict[str, _Waited] = {}

    async def follow(self) -> None:
        """Watch the statuses until cancelled."""
        await follow(
            self._store,
            keys.STATUS,
            listed=lambda _: self._on_gap(),
            changed=self._on_changed,
            read=False,  # there may be 100,000 statuses; waiters read those of their run
        )

    async def view(self, run_id: str) -> RunView:
        """Read a run. Raises: NotFound, DataLoss."""
        record, statuses = await self._read(run_id)
        return run_view(run_id, record, [state_pb2.PartitionStatus.FromString(item.value) for item in statuses])

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> RunView:
        """Return the view of the run once it has ended, or after the time-out. Raises: NotFound."""
        with self.changes(run_id) as changed:
            waited = self._waited[run_id]
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        changed.clear()  # Before the read: a change during the read would be erased.
                        view = await self._view_of(run_id, waited)
                        if view.terminal:
                            return view
                        await changed.wait()
            except TimeoutError:
                return await self.view(run_id)

    @contextmanager
    def changes(self, run_id: str) -> Iterator[asyncio.Event]:
        """Yield an event that is set whenever the status of a partition of the run may have changed."""
        changed = asyncio.Event()
        waited = self._waited.setdefault(run_id, _Waited())
        waited.events.add(changed)
        try:
            yield changed
        finally:
            waited.events.discard(changed)
            if not waited.events:
                del self._waited[run_id]

    async def _view_of(self, run_id: str, waited: _Waited) -> RunView:
        """Return the view, read from the store at most once for all waiters."""
        while waited.record is None:
            if waited.reading is None:
                waited.reading = asyncio.create_task(self._fill(run_id, waited), name=f"read {run_id}")
                waited.reading.add_done_callback(_retrieve_error)
            await asyncio.shield(waited.reading)  # a waiter that leaves must not cancel the reading of the others

        if waited.view is None:
            statuses = [waited.statuses[partition][1] for partition in sorted(waited.statuses)]
            waited.view = run_view(run_id, waited.record, statuses)
        return waited.view

    async def _fill(self, run_id: str, waited: _Waited) -> None:
        """Read the run for all waiters."""
        gaps = waited.gaps
        try:
            record, statuses = await self._read(run_id)
        finally:
            waited.reading = None
        if gaps != waited.gaps:  # stale; `_view_of` reads again
            return

        for item in statuses:
            waited.note_status(item)
        for large in ("variables_json", "overrides_json"):
            record.ClearField(large)  # thousands of runs may have waiters
        waited.record = without_inputs(record)

    async def _read(self, run_id: str) -> tuple[state_pb2.RunRecord, list[KeyValue]]:
        # 1. Live runs, many callers together. Then runs in segments.
        status = keys.status_of_run(run_id)
        read = Txn((), (Get(keys.run(run_id)), Range(status, limit=FIRST_PARTITIONS)))
        record, page = (await self._grouping.txn(read)).responses
        if record is None:
            record, page = (await self._store.txn(read)).responses

        # 2. The rest of a large batch.

        if not isinstance(record, KeyValue):
            raise NotFound("RUN_NOT_FOUND", f"there is no run {run_id}", run_id=run_id)
        assert isinstance(page, Page)
        statuses = page.items if not page.more else [item async for item in range_all(self._store, status)]
        return parse_record(run_id, record.value), statuses

    def _on_changed(self, events: Sequence[StoreEvent]) -> None:
        if any(map(_matters, events)):
            self._on_change()
        self._due_runs.on_events(events)
        if self._activity is not None:
            guarded(log, "the count of runs", self._activity.note_statuses, events)
        for event in events:
            guarded(log, "a status", self._on_event, event)

    def _on_event(self, event: StoreEvent) -> None:
        run_id = keys.parse_status(event.kv.key)[0]
        waited = self._waited.get(run_id)
        if waited is None:
            return

        if event.kind == "put":
            waited.note_status(event.kv)
        else:  # the run was packed, or deleted: then the next reading raises NotFound
            waited.discard()
        waited.wake()

    def _on_gap(self) -> None:
        """Wake all waiters: the watch may have missed changes."""
        self._on_change()
        self._due_runs.missed()
        for waited in self._waited.values():
            waited.discard()
            waited.wake()


def _matters(event: StoreEvent) -> bool:
    """Return True if a change of a status may give the leader work: not if a live partition tells what it waits for."""
    if event.kind != "put" or event.kv.version == 1:
        return True
    try:
        return state_pb2.PartitionStatus.FromString(event.kv.value).status in TERMINAL
    except DecodeError:
        return True


def _retrieve_error(reading: asyncio.Task[None]) -> None:
    """Retrieve the error of a reading: without waiters left, asyncio would log the error as lost."""
    if not reading.cancelled():
        reading.exception()


__all__ = ["Waits"]
