"""The end of a cancelled run that no live executor can read.

Such a run waits under `assigned/returned-by.…`: no executor takes the cancellation from its inbox. It is ended by its
status alone, and the assignment is deleted in the same transaction, which compares both. Its journal stays as it is,
without `RunCompleted`: readers believe the status.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from control_plane.cluster import Orphan
from stepflow.errors import Code, Failure
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run.entries import failure_to_pb
from stepflow.store import Delete, Op, Put, Txn, created_at, keys, modified_at
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from control_plane.cluster import Cluster
    from stepflow.store import Store

log = get_logger(__name__)

CANCEL_ID = "cancel"
"""Id of the message that cancels a run."""

UNREAD = Failure(Code.CANCELLED, "the run was cancelled while no executor could read its journal")


def unreadable_partitions(cluster: Cluster, run_id: str) -> list[Orphan]:
    """Return the partitions of a run that wait for an executor that can read them, as far as known."""
    return [
        Orphan(*partition_id, cluster.assignments[partition_id[0]][partition_id[1:]], refused_by)
        for partition_id, refused_by in cluster.refused_by.items()
        if partition_id[1] == run_id
    ]


async def is_cancel_requested(store: Store, run_id: str) -> bool:
    """Return True if the cancellation of the run was requested."""
    return await store.get(keys.inbox(run_id, CANCEL_ID)) is not None


async def end_unreadable(store: Store, orphan: Orphan, *more: Op) -> bool:
    """End a partition as cancelled, with `more` writes; return False if it has ended, or has an owner again."""
    # 1. Read the status; it changes once.
    existing = await store.get(keys.status(orphan.run_id, orphan.partition))
    if existing is None:
        return False
    status = state_pb2.PartitionStatus.FromString(existing.value)
    if status.status != pb.RUN_STATUS_RUNNING:
        return False

    # 2. End it.
    status.status = pb.RUN_STATUS_CANCELLED
    status.items_cancelled = status.items_total
    status.completed_at_ms = max(time.time_ns() // 1_000_000, status.created_at_ms)
    status.failure.CopyFrom(failure_to_pb(UNREAD))

    # 3. Write, unless it has got an owner meanwhile.
    assignment = keys.assigned(orphan.executor_id, orphan.run_id, orphan.partition)
    compares = (created_at(assignment, orphan.revision), modified_at(existing.key, existing.mod_revision))
    writes = (Delete(assignment), Put(existing.key, status.SerializeToString()), *more)
    ended = (await store.txn(Txn(compares, writes))).succeeded
    if ended:
        log.info("an unreadable run was cancelled", run_id=orphan.run_id, partition=orphan.partition)
    return ended


__all__ = ["CANCEL_ID", "end_unreadable", "is_cancel_requested", "unreadable_partitions"]
