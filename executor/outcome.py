"""The final records of a partition: `PartitionStatus` (status, counts) and `PartitionResults` (each item's result).

A result or failure larger than its share of `RESULTS_INLINE_BYTES_MAX` becomes a blob or is cut. A result that the
journal and the run's blobs hold already is kept in parts (`result_parts`).

Not here: the write (`PartitionDriver._close`), and the status of a run, which readers compute from the statuses of its
partitions (`control_plane.views`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from executor.result_parts import result_parts
from stepflow.codec import encode
from stepflow.errors import Code, Failure
from stepflow.failure_data import failed_step, with_step, without_trace
from stepflow.flow.values import Composed, Journaled, Part, Stored
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run.entries import failure_to_pb, payload_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.blobs import RunBlobs
    from stepflow.run import RunState

RESULTS_INLINE_BYTES_MAX = 256 * 1024
"""Results of a partition that are kept in the store itself; larger shares go to the blob store."""

MESSAGE_CHARS_MAX = 1_000
"""Length of a failure's message whose share of those bytes is too small for its details."""


async def partition_results(
    state: RunState, blobs: RunBlobs, value_of: Callable[[int], tuple[int, int]]
) -> state_pb2.PartitionResults:
    """Return the results of all items; each result larger than its share is moved to a blob, or kept in parts.

    `value_of`: as in `result_parts`.

    Raises: StepflowError.
    """
    items = state.root.items
    inline_max = min(blobs.inline_bound.bytes_max, RESULTS_INLINE_BYTES_MAX // max(1, len(items)))
    results = state_pb2.PartitionResults()

    for item in items:
        result = results.items.add(item=state.root.first_item + item.index, completed_at_ms=item.completed_at_ms)
        outcome = item.outcome
        assert outcome is not None, "a run ended with an item that has not"
        if isinstance(outcome, Failure):
            result.status = pb.RUN_STATUS_CANCELLED if outcome.code is Code.CANCELLED else pb.RUN_STATUS_FAILED
            result.failure.CopyFrom(failure_to_pb(_shortened(outcome, inline_max)))
            continue

        result.status = pb.RUN_STATUS_COMPLETED
        if state.composes and isinstance(outcome, (Composed, Journaled, Part)):
            parts = await result_parts(outcome, state.run_id, blobs, value_of)
            await _list_parts(result, state.run_id, blobs, parts, inline_max)
        elif isinstance(outcome, Stored):
            if outcome.pending:
                await blobs.put_blob(state.run_id, outcome.raw)
            result.result.CopyFrom(payload_of(outcome))
        elif len(outcome.raw) > inline_max:
            result.result.blob = await blobs.put_blob(state.run_id, outcome.raw)
            result.result.blob_bytes = len(outcome.raw)
        else:
            result.result.json = outcome.raw

    return results


async def _list_parts(
    result: state_pb2.ItemResult, run_id: str, blobs: RunBlobs, parts: state_pb2.ResultParts, inline_max: int
) -> None:
    """Note the parts of a result, or a blob with their list if it is too long."""
    listed = parts.SerializeToString()
    if len(listed) <= inline_max:
        result.parts.CopyFrom(parts)
        return
    result.parts_blob = await blobs.put_blob(run_id, listed)
    result.parts_bytes = parts.bytes


def partition_status(state: RunState, record: state_pb2.RunRecord, paused_ms: int) -> state_pb2.PartitionStatus:
    """Return status and counts of an ended partition. `paused_ms`: see `PartitionStatus`."""
    items = state.root.items
    cancelled = sum(isinstance(item.outcome, Failure) and item.outcome.code is Code.CANCELLED for item in items)
    failed = sum(isinstance(item.outcome, Failure) for item in items) - cancelled
    return state_pb2.PartitionStatus(
        status=state.status or pb.RUN_STATUS_UNSPECIFIED,
        items_total=len(items),
        items_completed=len(items) - failed - cancelled,
        items_failed=failed,
        items_cancelled=cancelled,
        created_at_ms=record.created_at_ms,
        completed_at_ms=state.last_at_ms,
        paused_ms=paused_ms,
    )


def _shortened(failure: Failure, bytes_max: int) -> Failure:
    """Cut a failure down to its share of the partition's results; the journal keeps the whole failure."""
    if len(failure.data) + len(failure.message) <= bytes_max:
        return failure

    # 1. Without its trace.
    data = without_trace(failure.data)
    if len(data) + len(failure.message) <= bytes_max:
        return Failure(failure.code, failure.message, data)

    # 2. Without the details of the component.
    failed = failed_step(failure.data)
    data = encode({"reason": "DETAILS_TOO_LARGE", "bytes": len(failure.data)}) if failure.data else b""
    data = data if failed is None else with_step(data, failed)
    return Failure(failure.code, failure.message[:MESSAGE_CHARS_MAX], data)


__all__ = ["partition_results", "partition_status"]
