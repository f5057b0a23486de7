"""Steps and items as rows: `StepRow` messages, in the order of lists, with results only as far as they have room.

A row has its whole result, or the result in parts that refer to the journal and to blobs (`ResultParts`), or only the
length of the result. `read_rows` is the way back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.paging import PAGE_BYTES_MAX
from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX
from stepflow.errors import Failure
from stepflow.flow.values import REFERENCE_BYTES_MIN, Composed, Journaled, Part, Stored, flat, unloaded
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import segments_pb2, state_pb2
from stepflow.run.entries import failure_to_pb, payload_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from control_plane.view_records import ItemView
    from stepflow.codec import Json, LargeJson
    from stepflow.run.views import StepView

PART_BYTES = 80
"""Estimated size of a part, without its own text."""


class RowWriter:
    """Writes the rows of one partition.

    Composed results are copied into rows up to `INLINE_BYTES_MAX` each while `copy_room` lasts, else kept in parts:
    the rows of a partition whose results share values must not have these values again and again.
    """

    def __init__(self, value_of: Callable[[int], tuple[int, int]], copy_room: int) -> None:
        """`value_of`: first entry and index within the journal's value of an entry."""
        self.copy_room = copy_room
        self._value_of = value_of

    def page(self, views: Iterable[StepView], *, with_results: bool) -> list[segments_pb2.StepRow]:
        """Return rows for a page: with all failures, and `with_results` up to the result that fills the page.

        A page is full with `PAGE_BYTES_MAX` of results.
        """
        rows: list[segments_pb2.StepRow] = []
        room = PAGE_BYTES_MAX
        for view in views:
            row = step_row(view)
            rows.append(row)
            if with_results or isinstance(view.outcome, Failure):
                room -= self.add_outcome(row, view.outcome, PAYLOAD_BYTES_MAX)
            if room <= 0:
                break
        return rows

    def items(self, views: Sequence[ItemView], bytes_max: int) -> list[segments_pb2.StepRow]:
        """Return rows of items, with results until the page is full. `bytes_max`: longer results are left out."""
        rows: list[segments_pb2.StepRow] = []
        room = PAGE_BYTES_MAX
        for view in views:
            row = segments_pb2.StepRow(
                item=view.item, status=_STATUSES[view.status], completed_at_ms=view.completed_at_ms
            )
            rows.append(row)
            if isinstance(view.outcome, Failure) or room > 0:
                room -= self.add_outcome(row, view.outcome, bytes_max)
        return rows

    def add_outcome(
        self,
        row: segments_pb2.StepRow,
        outcome: Json | Failure | LargeJson | None,
        bytes_max: int,
        parts_bytes_max: int = PAYLOAD_BYTES_MAX,
    ) -> int:
        """Add an outcome to a row; return the length of the result, as far as the row has it.

        Of a result longer than `bytes_max`, or with a list of parts longer than `parts_bytes_max`, only the length.
        """
        match outcome:
            case None:
                return 0
            case Failure():
                row.failure.CopyFrom(failure_to_pb(outcome))
                return 0
            case Stored(pending=False):
                row.result.CopyFrom(payload_of(outcome))
                return outcome.size
            case Composed() | Part() | Stored():
                return self._add_composed(row, outcome, bytes_max, parts_bytes_max)
            case _:
                row.result.json = outcome.raw  # type: ignore[union-attr]  # a replay knows every result
                return len(row.result.json)

    def _add_composed(self, row: segments_pb2.StepRow, outcome: Json, bytes_max: int, parts_bytes_max: int) -> int:
        size = outcome.size
        if size > bytes_max:
            row.text_bytes = size
            return 0

        if size <= min(INLINE_BYTES_MAX, self.copy_room) and not unloaded(outcome):
            self.copy_room -= size
            row.result.json = outcome.raw
            return size

        if self.estimate(outcome, parts_bytes_max) > parts_bytes_max:
            row.text_bytes = size
            return 0
        row.parts.CopyFrom(self.parts(outcome))
        return size

    def estimate(self, value: Json, enough: int) -> int:
        """Return the estimated size of the parts of a value; counting ends at `enough`."""
        total = 0
        for piece in flat(value):
            source = piece.source if isinstance(piece, Part) else piece
            if isinstance(source, bytes):
                total += len(source)
            elif not _is_referred(source, piece):
                total += piece.size  # type: ignore[union-attr]  # no bytes
            total += PART_BYTES
            if total > enough:
                break
        return total

    def parts(self, value: Json) -> state_pb2.ResultParts:
        """Return a value in parts: references to the journal and to blobs, and the text in between."""
        parts = state_pb2.ResultParts(bytes=value.size)
        texts: list[bytes] = []

        def end_text() -> None:
            if texts:
                parts.parts.add(json=b"".join(texts))
                texts.clear()

        for piece in flat(value):
            if isinstance(piece, bytes):
                texts.append(piece)
                continue

            source = piece.source if isinstance(piece, Part) else piece
            offset = piece.offset if isinstance(piece, Part) else 0
            if not _is_referred(source, piece):
                texts.append(piece.raw)
            elif isinstance(source, Stored):
                end_text()
                parts.parts.add(blob=state_pb2.BlobPart(blob=source.blob, offset=offset, length=piece.size))
            else:
                assert isinstance(source, Journaled)
                end_text()
                first_seq, index = self._value_of(source.entry)
                at = state_pb2.JournalPart(first_seq=first_seq, index=index, offset=offset, length=piece.size)
                parts.parts.add(journal=at)
        end_text()
        return parts


def step_row(view: StepView) -> segments_pb2.StepRow:
    """Return the row of a step, without its outcome."""
    return segments_pb2.StepRow(
        run_id=view.run_id,
        item=view.item,
        step_id=view.step_id,
        step_index=view.step_index,
        component=view.component,
        depth=view.depth,
        status=_STATUSES[view.status],
        attempt=view.attempt,
        retries=view.retries,
        started_at_ms=view.started_at_ms,
        completed_at_ms=view.completed_at_ms,
        duration_ms=view.duration_ms,
        path=view.path,
        skipped_for=view.skipped_for,
    )


_STATUSES: dict[str, pb.RunStatus] = {
    "running": pb.RUN_STATUS_RUNNING,
    "completed": pb.RUN_STATUS_COMPLETED,
    "failed": pb.RUN_STATUS_FAILED,
    "skipped": pb.RUN_STATUS_SKIPPED,
    "cancelled": pb.RUN_STATUS_CANCELLED,
}


def _is_referred(source: object, piece: object) -> bool:
    """Return True for a value that parts refer to; the text of others is copied."""
    if isinstance(source, Stored):
        return not source.pending
    return isinstance(source, Journaled) and piece.size >= REFERENCE_BYTES_MIN  # type: ignore[attr-defined]  # a `Json`


__all__ = ["RowWriter", "step_row"]
