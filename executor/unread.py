"""The end of a partition without a replay, because reading its journal crashes executors or exhausts their memory.

Only status and results are written; the journal stays as it is. The status says that the journal was not read
(`PartitionStatus.journal_unread`), so that no reader reads it either.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.adoption import partition_of_key
from stepflow.journal import read_record
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run.entries import failure_to_pb
from stepflow.store import Delete, Put, created_at, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from executor.adoption import HeldCalls
    from executor.drive import PartitionDriver, PartitionId
    from executor.hosts.pool import HostPool
    from executor.session import Session
    from stepflow.errors import Failure
    from stepflow.store import KeyValue, Store

log = get_logger(__name__)


class UnreadEnd:
    """Ends partitions of an executor whose journals must not be read again."""

    def __init__(self, store: Store, hosts: HostPool[PartitionDriver], held_calls: HeldCalls) -> None:
        self._store = store
        self._hosts = hosts
        self._held_calls = held_calls

    async def end(
        self,
        session: Session,
        partition_id: PartitionId,
        assignment: KeyValue,
        status: pb.RunStatus,
        failure: Failure,
        now_ms: int,
    ) -> None:
        """Write the end of a partition and of its assignment; hosts release its calls. Raises: StepflowError."""
        run_id, partition = partition_id
        record = await read_record(self._store, run_id)
        log.error("run ended without reading its journal", run_id=run_id, partition=partition, failure=failure.message)

        # 1. Write status, results and the end of the assignment, provided that the assignment stands.
        ended = final_records(run_id, partition, record, status, failure, now_ms)
        await session.write(
            [*ended, Delete(assignment.key), Delete(keys.adopting(run_id, partition))],
            (created_at(assignment.key, assignment.create_revision),),
        )

        # 2. Release the calls that hosts hold: no owner will ask for them again.
        for host_id, call in await self._held_calls.ask(run_id, partition, assignment.create_revision):
            if partition_of_key(call.key, record) == partition:
                self._hosts.ack_result(host_id, call.key, call.attempt)


def final_records(
    run_id: str, partition: int, record: state_pb2.RunRecord, status: pb.RunStatus, failure: Failure, now_ms: int
) -> list[Put]:
    """Return status and results of a partition in which every item failed with `failure`."""
    first = partition * record.items_per_partition
    last = min(record.items_total, first + record.items_per_partition)
    failed = state_pb2.ItemResult(status=pb.RUN_STATUS_FAILED, failure=failure_to_pb(failure), completed_at_ms=now_ms)

    results = state_pb2.PartitionResults()
    for item in range(first, last):
        result = results.items.add()
        result.CopyFrom(failed)
        result.item = item

    ended = state_pb2.PartitionStatus(
        status=status,
        items_total=last - first,
        items_failed=last - first,
        created_at_ms=record.created_at_ms,
        completed_at_ms=now_ms,
        journal_unread=True,
    )
    return [
        Put(keys.status(run_id, partition), ended.SerializeToString()),
        Put(keys.results(run_id, partition), results.SerializeToString()),
    ]


__all__ = ["UnreadEnd", "final_records"]
