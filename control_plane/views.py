"""Views of runs and items, for clients.

The status of a run is computed from the partitions at each reading, and stored nowhere.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from control_plane.view_records import HostWait, ItemView, RunView
from stepflow.codec import decode
from stepflow.errors import Code, Failure
from stepflow.journal import partition_count
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence


TERMINAL = frozenset(
    (pb.RUN_STATUS_COMPLETED, pb.RUN_STATUS_FAILED, pb.RUN_STATUS_CANCELLED, pb.RUN_STATUS_RECOVERY_FAILED)
)

NEVER_STARTED = Failure(Code.CANCELLED, "the run was cancelled before this item was started")


def run_view(run_id: str, record: state_pb2.RunRecord, partitions: Sequence[state_pb2.PartitionStatus]) -> RunView:
    """Compute a run's view from the record and the statuses of placed partitions."""
    ended = len(partitions) == partition_count(record) and all(each.status in TERMINAL for each in partitions)
    view = view_of(run_id, record, summary(partitions), ended=ended)
    waits = () if ended else _host_waits(partitions)
    return replace(view, host_waits=waits) if waits else view


def _host_waits(partitions: Sequence[state_pb2.PartitionStatus]) -> tuple[HostWait, ...]:
    """Return what the partitions wait for, by partition; empty unless all that have not ended wait."""
    live = [(number, each) for number, each in enumerate(partitions) if each.status not in TERMINAL]
    if not all(each.queued_reason for _, each in live):
        return ()
    return tuple(HostWait(number, each.queued_epoch, each.queued_reason) for number, each in live)


def summary(partitions: Sequence[state_pb2.PartitionStatus]) -> state_pb2.PartitionStatus:
    """Return the status of a whole run, as if it were one partition: the worst status, sums, the latest end."""
    return state_pb2.PartitionStatus(
        status=_combined([partition.status for partition in partitions]),
        items_total=sum(partition.items_total for partition in partitions),
        items_completed=sum(partition.items_completed for partition in partitions),
        items_failed=sum(partition.items_failed for partition in partitions),
        items_cancelled=sum(partition.items_cancelled for partition in partitions),
        created_at_ms=min((partition.created_at_ms for partition in partitions), default=0),
        completed_at_ms=max((partition.completed_at_ms for partition in partitions), default=0),
        paused_ms=max((partition.paused_ms for partition in partitions), default=0),
    )


def view_of(run_id: str, record: state_pb2.RunRecord, total: state_pb2.PartitionStatus, *, ended: bool) -> RunView:
    """Compute a run's view from the record and the summary of its partitions."""
    return RunView(
        run_id=run_id,
        flow_id=record.flow_id,
        flow_name=record.flow_name,
        status=status_name(total.status) if ended else "running",
        items_total=record.items_total,
        items_completed=total.items_completed,
        items_failed=total.items_failed,
        items_cancelled=total.items_cancelled,
        created_at_ms=record.created_at_ms,
        completed_at_ms=total.completed_at_ms if ended else None,
        labels=decode(record.labels_json) if record.labels_json else {},
        paused_ms=total.paused_ms if ended else 0,
    )


def _combined(statuses: Sequence[pb.RunStatus]) -> pb.RunStatus:
    """Return the status of an ended run: the worst among its partitions."""
    for status in (pb.RUN_STATUS_RECOVERY_FAILED, pb.RUN_STATUS_CANCELLED, pb.RUN_STATUS_FAILED):
        if status in statuses:
            return status
    return pb.RUN_STATUS_COMPLETED


def status_name(status: pb.RunStatus) -> str:
    """Return a status as clients read it, such as `failed`."""
    return pb.RunStatus.Name(status).removeprefix("RUN_STATUS_").lower()


__all__ = ["NEVER_STARTED", "TERMINAL", "ItemView", "RunView", "run_view", "status_name"]
