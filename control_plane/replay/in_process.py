"""Replays in the process for them: the service has rows of the pages that are read, and no more."""

from __future__ import annotations

from typing import TYPE_CHECKING

from control_plane.replay.messages import (
    AddBlobs,
    AddValues,
    OpenReplay,
    Publish,
    Published,
    ReadIndex,
    ReadItems,
    ReadSteps,
    ReadText,
    Rows,
    WantedBlobs,
)
from control_plane.replay.read_rows import item_view, step_view
from stepflow.mesh.v1 import segments_pb2, state_pb2

if TYPE_CHECKING:
    from collections.abc import Sequence

    from control_plane.replay.messages import Answer, Request
    from control_plane.replay.process import ReplayProcess
    from control_plane.view_records import ItemView
    from stepflow.journal import GetBlob
    from stepflow.run.views import StepView
    from stepflow.store import KeyValue

VALUES_BYTES = 1024 * 1024
"""Values of a journal in one request, so that the process serves other readers in between."""


class ReplayInProcess:
    """A partition that is replayed in a process. Implements `PartitionReplay`.

    Each method raises `ReplayLost` once that process has ended.
    """

    def __init__(self, process: ReplayProcess, run_id: str, partition: int, get_blob: GetBlob) -> None:
        self.unknown = ""
        self.entries = 0
        self._process = process
        self._generation: int | None = None
        self._number = process.new_number()
        self._run_id = run_id
        self._partition = partition
        self._get_blob = get_blob

    async def open(self, record: state_pb2.RunRecord, flow: bytes, inputs: bytes | None) -> None:
        """Begin the replay. `flow`: its document."""
        if inputs is not None:
            slim = state_pb2.RunRecord()
            slim.CopyFrom(record)
            slim.ClearField("partition_inputs")
            record = slim
        request = OpenReplay(self._number, self._run_id, self._partition, record.SerializeToString(), flow, inputs)
        _, self._generation = await self._process.ask(request)

    async def add(self, values: Sequence[KeyValue]) -> None:
        for some in _pieces(values):
            answer = await self._ask(AddValues(self._number, [(item.key, item.value) for item in some]))
            assert isinstance(answer, WantedBlobs)
            while answer.blobs:
                blobs = {
                    blob: await self._get_blob(self._run_id, blob, shared=shared)
                    for blob, shared in answer.blobs.items()
                }
                answer = await self._ask(AddBlobs(self._number, blobs))
                assert isinstance(answer, WantedBlobs)

    async def publish(self) -> None:
        answer = await self._ask(Publish(self._number))
        assert isinstance(answer, Published)
        self.entries, self.unknown = answer.entries, answer.unknown

    async def steps(self, start: int, count: int, *, with_results: bool) -> tuple[list[StepView], bool]:
        answer = await self._rows(ReadSteps(self._number, start, count, with_results))
        rows = segments_pb2.StepRows.FromString(answer.data)
        views = [step_view(row, self._partition, with_result=with_results) for row in rows.rows]
        return views, start + len(rows.rows) < rows.rows_total

    async def items(self, start: int, count: int, bytes_max: int) -> dict[int, ItemView]:
        rows = await self._rows(ReadItems(self._number, start, count, bytes_max))
        found = segments_pb2.StepRows.FromString(rows.data).rows
        return {row.item: item_view(row, self._partition) for row in found}

    async def index_rows(self, start: int, count: int, copy_room: int) -> tuple[segments_pb2.StepRows, int]:
        rows = await self._rows(ReadIndex(self._number, start, count, copy_room))
        return segments_pb2.StepRows.FromString(rows.data), rows.copy_room

    async def text(self, row: int, bytes_max: int) -> bytes:
        return (await self._rows(ReadText(self._number, row, bytes_max))).data

    def drop(self) -> None:
        self._process.drop(self._number)

    async def _rows(self, request: Request) -> Rows:
        answer = await self._ask(request)
        assert isinstance(answer, Rows)
        return answer

    async def _ask(self, request: Request) -> Answer:
        assert self._generation is not None
        answer, _ = await self._process.ask(request, self._generation)
        return answer


def _pieces(values: Sequence[KeyValue]) -> list[list[KeyValue]]:
    """Group values so that each group ends with the value that reaches `VALUES_BYTES`."""
    groups: list[list[KeyValue]] = [[]]
    size = 0
    for item in values:
        if size >= VALUES_BYTES:
            groups.append([])
            size = 0
        groups[-1].append(item)
        size += len(item.value)
    return groups


__all__ = ["ReplayInProcess"]
