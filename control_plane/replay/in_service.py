"""Replays in the service itself: small ones on the event loop, and without a process for them others in a thread."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from control_plane.replay.partition import ReplayedPartition
from stepflow.journal import plan_of, state_before

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from control_plane.view_records import ItemView
    from stepflow.journal import GetBlob
    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.mesh.v1 import segments_pb2, state_pb2
    from stepflow.run.replay import Replay
    from stepflow.run.views import StepView
    from stepflow.store import KeyValue

INLINE_BYTES = 16 * 1024
"""Journal values that are replayed on the event loop, within a millisecond or two."""

INLINE_ENTRIES = 100
"""Entries of a partition whose lists are made on the event loop."""


INLINE_ELEMENTS = 1_000
"""Elements of the texts of a partition that is replayed on the event loop: a `map` makes a sub-run's item of each."""


class Outgrown(Exception):
    """The replay needs a blob: the list of a `map`, for instance, with a step for each of its elements."""


class ReplayInService:
    """A partition that is replayed here. Implements `PartitionReplay`."""

    def __init__(
        self,
        run_id: str,
        partition: int,
        record: state_pb2.RunRecord,
        flow: bytes,
        inputs: bytes | None,
        get_blob: GetBlob | None,
        slots: asyncio.Semaphore,
    ) -> None:
        """`flow`: its document. `get_blob`: None if a process takes what needs blobs: `add` raises `Outgrown`.

        `slots`: bound on replays in threads.
        """
        self.unknown = ""
        self._get_blob = get_blob
        self._slots = slots
        self._partition = ReplayedPartition(run_id, partition)
        self._partition.open(state_before(run_id, partition, record, plan_of(flow, record), inputs))

    @property
    def entries(self) -> int:
        return self._partition.entries

    async def add(self, values: Sequence[KeyValue]) -> None:
        partition = self._partition
        await _replay(
            lambda: partition.add(values), partition.go_on, partition.run_id, values, self._get_blob, self._slots
        )
        self.unknown = "" if partition.unknown is None else partition.unknown.message

    async def publish(self) -> None:
        if self.entries <= INLINE_ENTRIES:
            self._partition.publish()
            return
        async with self._slots:
            await asyncio.to_thread(self._partition.publish)

    async def steps(self, start: int, count: int, *, with_results: bool) -> tuple[list[StepView], bool]:  # noqa: ARG002  # they are in memory
        steps = self._partition.steps
        return list(steps[start : start + count]), start + count < len(steps)

    async def items(self, start: int, count: int, bytes_max: int) -> dict[int, ItemView]:  # noqa: ARG002  # they are in memory
        return self._partition.items

    async def index_rows(self, start: int, count: int, copy_room: int) -> tuple[segments_pb2.StepRows, int]:
        return await asyncio.to_thread(self._partition.index_rows, start, count, copy_room)

    async def text(self, row: int, bytes_max: int) -> bytes:
        return await asyncio.to_thread(self._partition.text, row, bytes_max)

    def drop(self) -> None:
        pass


def are_small(values: Sequence[KeyValue], bytes_before: int = 0) -> bool:
    """Return True for values of a journal that are replayed on the event loop, behind `bytes_before` of others."""
    return bytes_before + sum(len(item.value) for item in values) <= INLINE_BYTES


def are_short(*texts: bytes) -> bool:
    """Return True for JSON texts, of a flow and its inputs, with few elements."""
    return sum(text.count(b",") for text in texts) <= INLINE_ELEMENTS


async def replay_values(
    replay: Replay,
    decode: Callable[[Sequence[KeyValue]], list[pb.Entry]],
    values: Sequence[KeyValue],
    get_blob: GetBlob,
    slots: asyncio.Semaphore,
) -> None:
    """Replay the next values of a journal, in a thread unless they are few. Raises: DataLoss."""

    def first() -> dict[str, bool]:
        replay.add(decode(values))
        return replay.run({})

    await _replay(first, replay.run, replay.state.run_id, values, get_blob, slots)


async def _replay(
    first: Callable[[], dict[str, bool]],
    go_on: Callable[[dict[str, bytes | None]], dict[str, bool]],
    run_id: str,
    values: Sequence[KeyValue],
    get_blob: GetBlob | None,
    slots: asyncio.Semaphore,
) -> None:
    """Call `first`, then `go_on` with the blobs that the last call has returned, until none is wanted."""
    few = are_small(values)
    if few:
        wanted = first()
    else:
        async with slots:
            wanted = await asyncio.to_thread(first)
    if wanted and get_blob is None:
        raise Outgrown
    while wanted:
        assert get_blob is not None
        async with slots:  # bounds the large values in memory, too
            blobs = {blob: await get_blob(run_id, blob, shared=shared) for blob, shared in wanted.items()}
            wanted = go_on(blobs) if few else await asyncio.to_thread(go_on, blobs)


__all__ = ["Outgrown", "ReplayInService", "are_short", "are_small", "replay_values"]
