"""Cancellation: through the inbox of a placed run, through the statuses of waiting partitions.

- One inbox key per run: repeated requests take no room.
- Each transaction compares the pending key, or the status of a running partition: a concurrent placement or end makes
  the transaction fail, and the next try sees the change.
- Partitions that no executor can read are ended here (`unreadable`).
- An ended run stays as it is.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from control_plane.placement import new_status
from control_plane.unreadable import CANCEL_ID, end_unreadable
from stepflow.errors import Conflict
from stepflow.journal import partition_count, read_record
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Delete, KeyValue, Op, Put, Txn, absent, keys, modified_at, range_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from control_plane.cluster import Orphan
    from control_plane.views import RunView
    from stepflow.store import Store

PARTITIONS_CANCELLED_PER_TXN = 100
CANCEL_TRIES_MAX = 20


class Canceller:
    """Cancels the runs of a control plane."""

    def __init__(
        self,
        store: Store,
        view: Callable[[str], Awaitable[RunView]],
        unreadable: Callable[[str], Sequence[Orphan]],
    ) -> None:
        """`unreadable`: returns the partitions of a run that no executor can read, as far as known."""
        self._store = store
        self._view = view
        self._unreadable = unreadable

    async def cancel(self, run_id: str) -> RunView:
        """Request the run's end; an ended run stays as it is. Raises: NotFound, Conflict."""
        message = Put(keys.inbox(run_id, CANCEL_ID), state_pb2.InboxMessage(cancel=True).SerializeToString())
        tries = 0
        while tries < CANCEL_TRIES_MAX:
            # 1. Partitions wait: end them. A long batch takes several transactions; only failed ones count as tries.
            pending = await self._store.get(keys.pending(run_id))
            if pending is not None:
                tries += not await self._cancel_pending(run_id, pending, message)
                continue

            # 2. The run has ended: nothing to do.
            view = await self._view(run_id)
            if view.terminal:
                return view

            # 3. Partitions that no executor can read: end them.
            for orphan in self._unreadable(run_id):
                await end_unreadable(self._store, orphan, message)

            # 4. A partition runs: put the message, unless that partition ends first. Its status changes only once.
            running = await self._running_partition(run_id)
            compares = [absent(keys.pending(run_id))]
            if running is not None:
                compares.append(modified_at(running.key, running.mod_revision))
                if (await self._store.txn(Txn(tuple(compares), (message,)))).succeeded:
                    return await self._view(run_id)
            tries += 1
        raise Conflict(
            "CANCEL_RACED", f"run {run_id} changed during all {CANCEL_TRIES_MAX} tries to cancel it; try again"
        )

    async def _running_partition(self, run_id: str) -> KeyValue | None:
        """Return the status of any running partition."""
        async for item in range_all(self._store, keys.status_of_run(run_id)):
            if state_pb2.PartitionStatus.FromString(item.value).status == pb.RUN_STATUS_RUNNING:
                return item
        return None

    async def _cancel_pending(self, run_id: str, pending: KeyValue, message: Put) -> bool:
        """End waiting partitions, and put the message for placed ones; return True if the transaction succeeded."""
        # 1. Choose the next partitions.
        record = await read_record(self._store, run_id)
        first = state_pb2.PendingRun.FromString(pending.value).next_partition
        total = partition_count(record)
        end = min(total, first + PARTITIONS_CANCELLED_PER_TXN)

        # 2. Write their end, and the message.
        writes: list[Op] = [message]
        for partition in range(first, end):
            status = new_status(record, partition)
            status.status = pb.RUN_STATUS_CANCELLED
            status.items_cancelled = status.items_total
            status.completed_at_ms = time.time_ns() // 1_000_000
            writes.append(Put(keys.status(run_id, partition), status.SerializeToString()))

        # 3. Move the pending key on. A partition that is placed later finds the message in the inbox.
        if end == total:
            writes.append(Delete(pending.key))
        else:
            writes.append(Put(pending.key, state_pb2.PendingRun(next_partition=end).SerializeToString()))
        return (await self._store.txn(Txn((modified_at(pending.key, pending.mod_revision),), tuple(writes)))).succeeded


__all__ = ["Canceller"]
