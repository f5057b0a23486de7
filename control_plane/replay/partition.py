"""A partition while it is replayed for reading: its journal goes in, and the lists of its steps and items come out."""

from __future__ import annotations

from array import array
from bisect import bisect_right
from typing import TYPE_CHECKING

from control_plane.paging import PAGE_BYTES_MAX
from control_plane.replay.rows import RowWriter, step_row
from control_plane.view_records import ItemView
from stepflow.codec import INLINE_BYTES_MAX, PAYLOAD_BYTES_MAX, Json
from stepflow.errors import Code, DataLoss, Failure
from stepflow.journal import entries_of
from stepflow.mesh.v1 import segments_pb2
from stepflow.run.replay import Replay
from stepflow.run.state import release_state
from stepflow.run.views import StepList

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from stepflow.errors import FailedPrecondition
    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.run import RunState
    from stepflow.run.views import StepView
    from stepflow.store import KeyValue


class ReplayedPartition:
    """The progress of a replay, and the lists as of the last `publish`. One thread at a time may use it.

    Implements `ReplayListener`.
    """

    def __init__(self, run_id: str, partition: int) -> None:
        self.run_id = run_id
        self.partition = partition
        self.entries = 0
        self.steps: Sequence[StepView] = ()
        """All started steps, in the order of lists. Replaced by `publish`, and never changed."""
        self.items: dict[int, ItemView] = {}
        """The items that have ended, by index in the run. Results in the blob store are not loaded."""
        self.unknown: FailedPrecondition | None = None
        """Why the lists end early: a later version wrote the next entry."""
        self._replay: Replay | None = None
        self._steps = StepList()
        self._first_seqs = array("I")
        """Number of the first entry of each value of the journal."""

    def open(self, state: RunState) -> None:
        """Begin the replay. `state`: before the first entry."""
        self._replay = Replay(state, self)

    def add(self, values: Sequence[KeyValue]) -> dict[str, bool]:
        """Replay the next values of the journal; return the blobs to load before `go_on`. Raises: DataLoss."""
        if self._replay is None:
            where = f"journal of run {self.run_id}, partition {self.partition}"
            raise DataLoss("JOURNAL_INCONSISTENT", f"{where}: there are entries behind its end", run_id=self.run_id)
        entries: list[pb.Entry] = []
        for item in values:
            first_seq = self.entries + len(entries)
            entries += entries_of(self.run_id, self.partition, first_seq, item)
            self._first_seqs.append(first_seq)
        self.entries += len(entries)
        self._replay.add(entries)
        return self.go_on({})

    def go_on(self, blobs: Mapping[str, bytes | None]) -> dict[str, bool]:
        """Continue with the blobs of the former answer; return the next blobs to load. Raises: DataLoss."""
        assert self._replay is not None
        wanted = self._replay.run(blobs)
        self.unknown = self._replay.unknown
        return wanted

    def replayed(self, state: RunState, entry: pb.Entry) -> None:
        self._steps.add(state, entry)

    def publish(self) -> None:
        """Make the lists of all that is replayed."""
        assert self._replay is not None
        state = self._replay.state
        root = state.root
        self.unknown = self._replay.unknown
        self.items = {
            root.first_item + item.index: ItemView(
                root.first_item + item.index, _status(item.outcome), item.outcome, item.completed_at_ms
            )
            for item in root.items
            if item.outcome is not None
        }
        self.steps = self._steps.views(state)
        if state.status is not None:
            release_state(state)
            self._replay, self._steps = None, StepList()

    def page(self, start: int, count: int, *, with_results: bool) -> segments_pb2.StepRows:
        """Return rows of steps for a page, as `RowWriter.page`."""
        rows = RowWriter(self.value_of, PAGE_BYTES_MAX).page(
            self.steps[start : start + count], with_results=with_results
        )
        return segments_pb2.StepRows(rows=rows, rows_total=len(self.steps))

    def item_page(self, start: int, count: int, bytes_max: int) -> segments_pb2.StepRows:
        """Return rows of the ended items between two indexes, as `RowWriter.items`."""
        wanted = range(start, start + count)
        writer = RowWriter(self.value_of, PAGE_BYTES_MAX)
        rows = writer.items([view for index, view in self.items.items() if index in wanted], bytes_max)
        return segments_pb2.StepRows(rows=rows)

    def index_rows(self, start: int, count: int, copy_room: int) -> tuple[segments_pb2.StepRows, int]:
        """Return rows of steps for a segment, and what is left of the room for copies (see `RowWriter`)."""
        writer = RowWriter(self.value_of, copy_room)
        rows = segments_pb2.StepRows(rows_total=len(self.steps))
        for view in self.steps[start : start + count]:
            row = step_row(view)
            writer.add_outcome(row, view.outcome, PAYLOAD_BYTES_MAX, INLINE_BYTES_MAX)
            rows.rows.append(row)
        return rows, writer.copy_room

    def text(self, row: int, bytes_max: int) -> bytes:
        """Return the serialized parts of a step's result; empty if they may have more than `bytes_max`."""
        outcome = self.steps[row].outcome
        writer = RowWriter(self.value_of, 0)
        if not isinstance(outcome, Json) or writer.estimate(outcome, bytes_max) > bytes_max:
            return b""
        return writer.parts(outcome).SerializeToString()

    def value_of(self, entry: int) -> tuple[int, int]:
        """Return the first entry of the journal's value that has an entry, and the index of the entry in it."""
        first_seq = self._first_seqs[bisect_right(self._first_seqs, entry) - 1]
        return first_seq, entry - first_seq


def _status(outcome: object) -> str:
    """Return the status of an ended item, as its final record will have it."""
    if not isinstance(outcome, Failure):
        return "completed"
    return "cancelled" if outcome.code is Code.CANCELLED else "failed"


__all__ = ["ReplayedPartition"]
