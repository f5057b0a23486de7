"""Cancelling a run: by its inbox once it is placed, by its status while it is pending.

- One inbox key per run, however often it is cancelled: repeats take no room.
- A transaction compares the pending key, or the status of a partition that runs, so a run that is placed or ends
  meanwhile is never cancelled on stale facts.
- Cancelling an ended run changes nothing.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from control_plane.leader import new_status
from stepflow.errors import Conflict
from stepflow.journal import partition_count, read_record
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Delete, KeyValue, Op, Put, Txn, absent, keys, modified_at, range_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from control_plane.views import RunView
    from stepflow.store import Store

PARTITIONS_CANCELLED_PER_TXN = 100
CANCEL_TRIES_MAX = 20
CANCEL_ID = "cancel"


class Canceller:
    """Cancels runs on behalf of one control plane."""

    def __init__(self, store: Store, view: Callable[[str], Awaitable[RunView]]) -> None:
        self._store = store
        self._view = view

    async def cancel(self, run_id: str) -> RunView:
        """Ask for the run's end. Cancelling a run that has ended changes nothing. Raises: NotFound, Conflict."""
        # One key, however often a run is cancelled: what repeats add nothing must take no room.
        message = Put(keys.inbox(run_id, CANCEL_ID), state_pb2.InboxMessage(cancel=True).SerializeToString())
        tries = 0
        while tries < CANCEL_TRIES_MAX:
            pending = await self._store.get(keys.pending(run_id))
            if pending is not None:  # a long batch takes several transactions; each that succeeds is progress
                tries += not await self._cancel_pending(run_id, pending, message)
                continue
            view = await self._view(run_id)
            if view.terminal:
                return view
            running = await self._running_partition(run_id)
            compares = [absent(keys.pending(run_id))]
            if running is not None:  # placed, and not ended yet: only its owner changes the status, and only once
                compares.append(modified_at(running.key, running.mod_revision))
                if (await self._store.txn(Txn(tuple(compares), (message,)))).succeeded:
                    return await self._view(run_id)
            tries += 1
        raise Conflict("CANCEL_RACED", "the run changes too fast to be cancelled just now; try again")

    async def _running_partition(self, run_id: str) -> KeyValue | None:
        async for item in range_all(self._store, keys.status_of_run(run_id)):
            if state_pb2.PartitionStatus.FromString(item.value).status == pb.RUN_STATUS_RUNNING:
                return item
        return None

    async def _cancel_pending(self, run_id: str, pending: KeyValue, message: Put) -> bool:
        """End partitions that were never placed; those placed get the message. Return whether the store took it."""
        record = await read_record(self._store, run_id)
        first = state_pb2.PendingRun.FromString(pending.value).next_partition
        total = partition_count(record)
        end = min(total, first + PARTITIONS_CANCELLED_PER_TXN)
        writes: list[Op] = [message]
        for partition in range(first, end):
            status = new_status(record, partition)
            status.status = pb.RUN_STATUS_CANCELLED
            status.items_cancelled = status.items_total
            status.completed_at_ms = time.time_ns() // 1_000_000
            writes.append(Put(keys.status(run_id, partition), status.SerializeToString()))
        if end == total:
            writes.append(Delete(pending.key))
        else:  # what is placed of the rest meanwhile finds the message in its inbox
            writes.append(Put(pending.key, state_pb2.PendingRun(next_partition=end).SerializeToString()))
        return (await self._store.txn(Txn((modified_at(pending.key, pending.mod_revision),), tuple(writes)))).succeeded


__all__ = ["Canceller"]
