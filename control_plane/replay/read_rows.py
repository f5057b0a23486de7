"""Steps and items from the rows that `rows` writes."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.results import InParts
from control_plane.view_records import ItemView
from control_plane.views import status_name
from stepflow.codec import Json, LargeJson
from stepflow.mesh.v1 import state_pb2
from stepflow.run.entries import failure_from_pb, json_of
from stepflow.run.views import StepView

if TYPE_CHECKING:
    from stepflow.errors import Failure
    from stepflow.mesh.v1 import segments_pb2


def step_view(row: segments_pb2.StepRow, partition: int, *, with_result: bool) -> StepView:
    """Return the step of a row. A result that the row does not have is a `LargeJson`.

    Without `with_result`, the outcome is a failure or None.
    """
    return StepView(
        run_id=row.run_id,
        item=row.item,
        step_id=row.step_id,
        step_index=row.step_index,
        component=row.component,
        depth=row.depth,
        status=status_name(row.status),
        attempt=row.attempt,
        started_at_ms=row.started_at_ms if row.HasField("started_at_ms") else None,
        completed_at_ms=row.completed_at_ms if row.HasField("completed_at_ms") else None,
        duration_ms=row.duration_ms if row.HasField("duration_ms") else None,
        outcome=_outcome(row, partition) if with_result or row.HasField("failure") else None,
        retries=row.retries,
        path=row.path,
        skipped_for=row.skipped_for,
    )


def item_view(row: segments_pb2.StepRow, partition: int) -> ItemView:
    """Return the ended item of a row."""
    completed_at_ms = row.completed_at_ms if row.HasField("completed_at_ms") else None
    return ItemView(row.item, status_name(row.status), _outcome(row, partition), completed_at_ms)


def in_parts(parts: state_pb2.ResultParts, partition: int) -> InParts:
    """Return a result in parts."""
    return InParts(parts.bytes, partition, state_pb2.ItemResult(parts=parts))


def _outcome(row: segments_pb2.StepRow, partition: int) -> Json | Failure | LargeJson | None:
    match row.WhichOneof("outcome"):
        case "failure":
            return failure_from_pb(row.failure)
        case "result":
            return json_of(row.result)
        case "parts":
            return in_parts(row.parts, partition)
        case "text_bytes":
            return LargeJson(row.text_bytes)
        case _:
            return None


__all__ = ["in_parts", "item_view", "step_view"]
