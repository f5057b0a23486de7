"""The formats gate: from when on the mesh may write what only newer versions can read.

- The leader writes the key `formats` once. In a new store it holds at once; in a store that earlier versions have used,
  after a grace, in which a rolling update replaces all control planes.
- Until then nothing is packed into segments, and new runs get the engine version and the results that older versions
  read.
- Every replica follows the key. Its clock decides, and never goes back, so replicas may differ by the difference of
  their clocks; each of them reads all formats at any time.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from google.protobuf.message import DecodeError

from stepflow.errors import FailedPrecondition
from stepflow.mesh.v1 import formats_pb2
from stepflow.store import Get, KeyValue, Page, Put, Range, Txn, absent, keys
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.store import Compare, Store, StoreEvent

log = get_logger(__name__)

FORMATS_LEVEL = 2
"""Ended runs in segments, and results that refer to the journal."""

FORMATS_GRACE_S = 600.0
"""Default time for a rolling update of all control planes."""


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Formats:
    """Follows the key `formats`."""

    def __init__(self, store: Store, now_ms: Callable[[], int] = _now_ms) -> None:
        self._store = store
        self._now_ms = now_ms
        self._latest_ms = 0
        """The latest reading of the clock: setting it back does not end what has begun."""
        self._since_ms: int | None = None
        """None: the key does not exist, or names another level."""

    @property
    def active(self) -> bool:
        """True if this replica may write the formats of `FORMATS_LEVEL`."""
        self._latest_ms = max(self._latest_ms, self._now_ms())
        return self._since_ms is not None and self._latest_ms >= self._since_ms

    async def follow(self) -> None:
        """Watch the key until cancelled."""
        await follow(self._store, keys.formats(), listed=self._on_list, changed=self._on_change)

    async def announce(self, fence: Compare, grace_s: float) -> None:
        """Write the key on behalf of a leader, if it does not exist.

        `grace_s`: time for the update of the other replicas, in a store that earlier versions have used. Such a store
        has runs, or the index by age of an earlier leader: this version completes it only after this call.

        Raises: FailedPrecondition `NOT_LEADING`; StepflowError.
        """
        key = keys.formats()
        reads = (Get(key), Range(keys.RUNS, limit=1), Get(keys.BY_AGE_COMPLETE), Get(keys.segments_head()))
        existing, runs, *used = (await self._store.txn(Txn((), reads))).responses
        if isinstance(existing, KeyValue):
            self._on_list([existing])
            return

        assert isinstance(runs, Page)
        fresh = not runs.items and used == [None, None]
        value = formats_pb2.Formats(
            level=FORMATS_LEVEL, since_ms=0 if fresh else self._now_ms() + round(grace_s * 1000)
        )
        written = Txn((fence, absent(key)), (Put(key, value.SerializeToString()),), (Get(key),))
        result = await self._store.txn(written)
        if result.succeeded:
            self._since_ms = value.since_ms
            log.info("formats announced", level=FORMATS_LEVEL, grace_s=0 if fresh else grace_s)
            return
        if not isinstance(result.responses[0], KeyValue):
            raise FailedPrecondition("NOT_LEADING", "another control plane leads now")
        self._on_list([result.responses[0]])

    def _on_list(self, items: list[KeyValue]) -> None:
        self._since_ms = None
        for item in items:
            self._note(item)

    def _on_change(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kv.key != keys.formats():
                continue
            if event.kind == "put":
                self._note(event.kv)
            else:  # the store was wiped: its next leader announces the formats again
                self._since_ms = None

    def _note(self, item: KeyValue) -> None:
        if item.key != keys.formats():
            return
        try:
            value = formats_pb2.Formats.FromString(item.value)
        except DecodeError:
            log.error("the key `formats` cannot be read: ended runs stay in the store")
            return
        # A later level contains this one: its versions read what this version writes.
        self._since_ms = value.since_ms if value.level >= FORMATS_LEVEL else None


__all__ = ["FORMATS_GRACE_S", "FORMATS_LEVEL", "Formats"]
