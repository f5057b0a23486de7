"""Waiting for runs: one watch of `status/` tells everybody who waits here, however many they are.

- Register, then read, then wait: no change slips through.
- What a run was asked and how its partitions stand is read once for all who wait for it; from then on the watch brings
  what changes. A status that comes late never replaces a newer one.
- After a gap in the watch everything is read again.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING

from control_plane.views import RunView, run_view
from stepflow.errors import NotFound
from stepflow.journal import parse_record
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Get, KeyValue, Page, Range, Txn, keys, range_all
from stepflow.store.follow import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from stepflow.store import Store, StoreEvent
    from stepflow.store.grouping import Grouping

FIRST_PARTITIONS = 16
"""Statuses read with the record; a batch with more of them takes further reads."""


class _Waited:
    """A run that somebody waits for."""

    def __init__(self) -> None:
        self.events: set[asyncio.Event] = set()
        self.reading: asyncio.Task[None] | None = None
        self.record: state_pb2.RunRecord | None = None
        """None: to be read, again if the watch had a gap."""
        self.statuses: dict[int, tuple[int, state_pb2.PartitionStatus]] = {}
        """By partition, with the revision of its last change."""
        self.view: RunView | None = None
        """As of `record` and `statuses`."""
        self.gaps = 0
        """How often what is known has been thrown away: what was being read meanwhile is too old as well."""

    def take(self, item: KeyValue) -> None:
        """Take in a status, unless a newer one is known."""
        partition = keys.parse_status(item.key)[1]
        if item.mod_revision > self.statuses.get(partition, (0,))[0]:
            self.statuses[partition] = (item.mod_revision, state_pb2.PartitionStatus.FromString(item.value))
            self.view = None

    def forget(self) -> None:
        self.gaps += 1
        self.record = self.view = None
        self.statuses.clear()

    def wake(self) -> None:
        for event in self.events:
            event.set()


class Waits:
    """Tells who waits. `changed` is called whenever any run's status may have changed."""

    def __init__(self, store: Store, grouping: Grouping, changed: Callable[[], None]) -> None:
        self._store = store
        self._grouping = grouping
        self._changed = changed
        self._waited: dict[str, _Waited] = {}

    async def follow(self) -> None:
        """Watch the statuses until cancelled."""
        await follow(
            self._store,
            keys.STATUS,
            listed=lambda _: self._tell_all(),
            changed=self._tell,
            read=False,  # there may be a hundred thousand of them; those who wait read what they wait for
        )

    async def view(self, run_id: str) -> RunView:
        """Read a run. Raises: NotFound, DataLoss."""
        record, statuses = await self._read(run_id)
        return run_view(run_id, record, [state_pb2.PartitionStatus.FromString(item.value) for item in statuses])

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> RunView:
        """Return once the run has ended, or after the time-out, with its view as it is then. Raises: NotFound."""
        with self.changes(run_id) as changed:
            waited = self._waited[run_id]
            try:
                async with asyncio.timeout(timeout_s):
                    while True:
                        changed.clear()
                        view = await self._view_of(run_id, waited)
                        if view.terminal:
                            return view
                        await changed.wait()
            except TimeoutError:
                return await self.view(run_id)

    @contextmanager
    def changes(self, run_id: str) -> Iterator[asyncio.Event]:
        """Give an event that is set whenever the status of a partition of the run may have changed."""
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
        while waited.record is None:
            if waited.reading is None:
                waited.reading = asyncio.create_task(self._fill(run_id, waited), name=f"read {run_id}")
                waited.reading.add_done_callback(_seen)
            await asyncio.shield(waited.reading)
        if waited.view is None:
            statuses = [waited.statuses[partition][1] for partition in sorted(waited.statuses)]
            waited.view = run_view(run_id, waited.record, statuses)
        return waited.view

    async def _fill(self, run_id: str, waited: _Waited) -> None:
        """Read the run for all who wait for it."""
        gaps = waited.gaps
        try:
            record, statuses = await self._read(run_id)
        finally:
            waited.reading = None
        if gaps == waited.gaps:
            for item in statuses:
                waited.take(item)
            for large in ("inputs", "partition_inputs", "variables_json", "overrides_json"):
                record.ClearField(large)  # thousands may be waited for
            waited.record = record

    async def _read(self, run_id: str) -> tuple[state_pb2.RunRecord, list[KeyValue]]:
        status = keys.status_of_run(run_id)
        result = await self._grouping.txn(Txn((), (Get(keys.run(run_id)), Range(status, limit=FIRST_PARTITIONS))))
        record, page = result.responses
        if not isinstance(record, KeyValue):
            raise NotFound("RUN_NOT_FOUND", f"there is no run {run_id}", run_id=run_id)
        assert isinstance(page, Page)
        statuses = page.items if not page.more else [item async for item in range_all(self._store, status)]
        return parse_record(run_id, record.value), statuses

    def _tell(self, events: Sequence[StoreEvent]) -> None:
        self._changed()
        for event in events:
            run_id = keys.parse_status(event.kv.key)[0]
            waited = self._waited.get(run_id)
            if waited is not None:
                if event.kind == "put":
                    waited.take(event.kv)
                else:
                    waited.forget()  # deleted; whoever reads it now finds nothing
                waited.wake()

    def _tell_all(self) -> None:
        """Changes may have been missed: wake everybody."""
        self._changed()
        for waited in self._waited.values():
            waited.forget()
            waited.wake()


def _seen(reading: asyncio.Task[None]) -> None:
    """Look at how a reading ended, even if those who waited for it have left."""
    if not reading.cancelled():
        reading.exception()


__all__ = ["Waits"]
