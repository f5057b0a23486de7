"""`python -m control_plane.replay.worker`: the process that replays partitions for a control plane.

It reads requests from stdin, and writes an answer to stdout for each. It ends with the end of stdin, so it does not
outlive its service. It opens no file, no socket and no store.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
from typing import TYPE_CHECKING, assert_never

from control_plane.replay.messages import (
    LENGTH,
    AddBlobs,
    AddValues,
    Answer,
    Done,
    OpenReplay,
    Publish,
    Published,
    ReadIndex,
    ReadItems,
    ReadSteps,
    ReadText,
    Request,
    RequestFailed,
    Rows,
    WantedBlobs,
    decode_frame,
    packed,
)
from control_plane.replay.partition import ReplayedPartition
from stepflow.errors import StepflowError
from stepflow.journal import plan_of, state_before
from stepflow.mesh.v1 import state_pb2
from stepflow.process_privacy import apply_switch
from stepflow.store import KeyValue

if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import BinaryIO

GC_THRESHOLD = 200_000
"""Allocations between collections: a replay makes many objects, few of them in cycles."""

NICENESS = 5
"""The service itself comes first."""


class ReplayWorker:
    """The partitions that are replayed."""

    def __init__(self) -> None:
        self._partitions: dict[int, ReplayedPartition] = {}

    def drop(self, numbers: Iterable[int]) -> None:
        """Forget partitions."""
        for number in numbers:
            self._partitions.pop(number, None)

    def answer(self, request: Request) -> Answer:
        """Carry out a request."""
        try:
            return self._answer(request)
        except StepflowError as error:
            details = {name: str(value) for name, value in error.details.items()}
            return RequestFailed(type(error).__name__, error.reason, error.message, details)
        except Exception as error:  # a defect must not end the replays of other runs
            return RequestFailed("", type(error).__name__, _location(error), {})

    def _answer(self, request: Request) -> Answer:
        if isinstance(request, OpenReplay):
            self._partitions[request.number] = _opened(request)
            return Done()

        partition = self._partitions[request.number]
        match request:
            case AddValues(_, values):
                wanted = partition.add([KeyValue(key, value, 0, 0, 0) for key, value in values])
                return WantedBlobs(wanted)
            case AddBlobs(_, blobs):
                return WantedBlobs(partition.go_on(blobs))
            case Publish():
                partition.publish()
                unknown = "" if partition.unknown is None else partition.unknown.message
                return Published(partition.entries, unknown)
            case ReadSteps(_, start, count, with_results):
                return Rows(partition.page(start, count, with_results=with_results).SerializeToString())
            case ReadIndex(_, start, count, copy_room):
                rows, copy_room = partition.index_rows(start, count, copy_room)
                return Rows(rows.SerializeToString(), copy_room)
            case ReadText(_, row, bytes_max):
                return Rows(partition.text(row, bytes_max))
            case ReadItems(_, start, count, bytes_max):
                return Rows(partition.item_page(start, count, bytes_max).SerializeToString())
            case _:
                assert_never(request)


def _opened(request: OpenReplay) -> ReplayedPartition:
    record = state_pb2.RunRecord.FromString(request.record)
    plan = plan_of(request.flow, record)
    partition = ReplayedPartition(request.run_id, request.partition)
    partition.open(state_before(request.run_id, request.partition, record, plan, request.inputs))
    return partition


def _location(error: BaseException) -> str:
    """Return where an error was raised. Not its text, which may have values."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"  # noqa: PTH119  # no path is opened


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until they end."""
    worker = ReplayWorker()
    while head := requests.read(LENGTH.size):
        frame = decode_frame(requests.read(*LENGTH.unpack(head)))
        worker.drop(frame.dropped)
        answers.writelines(packed(worker.answer(frame.request)))
        answers.flush()


def main() -> None:
    """Serve the parent process."""
    apply_switch()
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 20, 100)
    with contextlib.suppress(BrokenPipeError):  # the service has ended
        serve(sys.stdin.buffer, sys.stdout.buffer)


if __name__ == "__main__":
    main()
