"""From the key-values of ended runs to a segment: the chunks of its object, and its manifest. Pure.

    builder = SegmentBuilder()
    for run in runs:
        await write(builder.add_run(run_id, items))
    await write(builder.finish())
    manifest = builder.manifest()

A run that does not fit memory is added in parts: `begin_run`, `add_items` in the order of keys, `end_run`; each returns
bytes of the object. Lists of steps follow the key-values (`add_steps`, `end_steps`). `copy_run` takes a run of another
segment as it is. Memory holds the lists of the segment (about 300 bytes a run), and the index of one body.

Runs may come in any order, each once. A rewrite takes the runs that remain, with fewer keys if journals expire.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, NamedTuple

from google.protobuf.message import DecodeError

from control_plane.archive.format import (
    FORMAT,
    MAGIC,
    TRAILER,
    BodyPlace,
    fingerprint,
    list_order,
    run_of,
)
from control_plane.run_index import entry
from control_plane.views import summary
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from stepflow.store import KeyValue

LIST_BLOCK_RUNS = 256
LIST_BLOCK_BYTES = 64 * 1024
"""A list block ends with the run that reaches one of these."""

NAMED_BLOBS_MAX = 65_536
"""Ids of shared blobs in a footer; with more, the segment counts as one that names all of them."""

TIME_SPANS_MAX = 16
"""Intervals of creation times in a manifest."""


class StepLists(NamedTuple):
    """The lists of steps of a run that fits memory."""

    data: bytes
    step_index: pb.StepIndex


class SegmentBuilder:
    """Builds one segment. Bound to no thread, but used by one at a time."""

    def __init__(self) -> None:
        self.bytes = 0
        """Size of the object so far."""
        self._runs: dict[str, tuple[pb.ListedRun, BodyPlace]] = {}
        self._named: set[bytes] | None = set()
        self._open: _OpenBody | None = None
        self._manifest: pb.SegmentManifest | None = None

    @property
    def run_ids(self) -> Collection[str]:
        """Runs added so far."""
        return self._runs.keys()

    def add_run(
        self,
        run_id: str,
        items: Sequence[KeyValue],
        *,
        has_blobs: bool = True,
        named: Collection[bytes] | None = (),
        steps: StepLists | None = None,
    ) -> bytes:
        """Add a run with all its key-values, in any order, those of `by-age/` excepted; return the bytes to write.

        `has_blobs`: the blob store may have blobs of the run. `named`: ids of shared blobs that its request may name
        (`blob_ids`); None for any.
        """
        self.add_named(named)
        self.begin_run(run_id, has_blobs=has_blobs)
        chunks = [self.add_items(sorted(items, key=lambda item: item.key))]
        if steps is not None:
            chunks += [self.add_steps(steps.data), self.end_steps(steps.step_index)]
        return b"".join([*chunks, self.end_run()])

    def add_named(self, named: Collection[bytes] | None) -> None:
        """Add ids of shared blobs that the requests of runs may name; None for any."""
        if named is None or self._named is None:
            self._named = None
        else:
            self._named.update(named)
            if len(self._named) > NAMED_BLOBS_MAX:
                self._named = None

    def begin_run(self, run_id: str, *, has_blobs: bool = True) -> None:
        """Begin a run that is added in parts."""
        assert self._open is None, "the run before has not ended"
        assert run_id not in self._runs, f"run {run_id} is added twice"
        self._open = _OpenBody(run_id, self.bytes, has_blobs)

    def add_items(self, items: Iterable[KeyValue]) -> bytes:
        """Add the next key-values of the run, in the order of keys; return the bytes to write."""
        assert self._open is not None
        chunk = self._open.add(items)
        self.bytes += len(chunk)
        return chunk

    def add_steps(self, chunk: bytes) -> bytes:
        """Add to the lists of steps of the run, behind its key-values; return the bytes to write."""
        assert self._open is not None
        self._open.add_steps(chunk)
        self.bytes += len(chunk)
        return chunk

    def end_steps(self, index: pb.StepIndex) -> bytes:
        """End the lists of steps; return the bytes to write. `index`: where they are."""
        assert self._open is not None
        chunk = self._open.end_steps(index)
        self.bytes += len(chunk)
        return chunk

    def end_run(self) -> bytes:
        """End the run; return the bytes to write."""
        body, self._open = self._open, None
        assert body is not None
        chunk = body.index.SerializeToString()
        self.bytes += len(chunk)
        place = BodyPlace(
            body.offset,
            self.bytes - body.offset,
            len(chunk),
            zlib.crc32(chunk),
            body.step_index_bytes,
            body.step_index_crc32,
        )
        self._runs[body.run_id] = (body.listed(), place)
        return chunk

    def copy_run(self, listed: pb.ListedRun, place: BodyPlace) -> None:
        """Add a run of another segment unchanged. The caller writes its body next: `place.bytes` bytes."""
        assert self._open is None, "the run before has not ended"
        assert listed.run_id not in self._runs, f"run {listed.run_id} is added twice"
        copied = pb.ListedRun()
        copied.CopyFrom(listed)
        self._runs[listed.run_id] = (copied, place._replace(offset=self.bytes))
        self.bytes += place.bytes

    def finish(self) -> bytes:
        """Return the rest of the object: list blocks, id block, footer and trailer."""
        assert self._open is None, "the last run has not ended"
        assert self._runs, "a segment has at least one run"
        footer = pb.SegmentFooter(format=FORMAT)
        chunks: list[bytes] = []

        # 1. Numbers, and the list blocks.
        run_ids = sorted(self._runs)
        for number, run_id in enumerate(run_ids):
            self._runs[run_id][0].number = number
        positions: dict[str, int] = {}
        for block in self._list_blocks():
            for listed in block:
                positions[listed.run_id] = len(positions)
            packed = pb.SegmentList(runs=block).SerializeToString()
            place = self._place(packed, len(block))
            place.last_created_at_ms, place.last_run_id = block[-1].created_at_ms, block[-1].run_id
            footer.lists.append(place)
            chunks.append(packed)

        # 2. The id block.
        tail_offset = self.bytes
        places = [self._runs[run_id][1] for run_id in run_ids]
        ids = pb.SegmentIds(
            run_ids=run_ids,
            body_offsets=[place.offset for place in places],
            body_bytes=[place.bytes for place in places],
            index_bytes=[place.index_bytes for place in places],
            index_crc32s=[place.index_crc32 for place in places],
            list_positions=[positions[run_id] for run_id in run_ids],
        )
        if any(place.step_index_bytes for place in places):
            ids.step_index_bytes.extend(place.step_index_bytes for place in places)
            ids.step_index_crc32s.extend(place.step_index_crc32 for place in places)
        packed = ids.SerializeToString()
        footer.ids.CopyFrom(self._place(packed, len(run_ids)))
        chunks.append(packed)

        # 3. The footer and the trailer.
        if self._named is None:
            footer.names_any_blob = True
        else:
            footer.named_blobs = b"".join(sorted(self._named))
        packed = footer.SerializeToString()
        chunks += packed, TRAILER.pack(len(packed), zlib.crc32(packed), MAGIC)
        self.bytes += len(packed) + TRAILER.size
        self._manifest = self._summarized(run_ids, tail_offset)
        return b"".join(chunks)

    def manifest(self) -> pb.SegmentManifest:
        """Return the manifest, after `finish`. `stripped` is the caller's to set."""
        assert self._manifest is not None, "finish the segment first"
        return self._manifest

    def _place(self, packed: bytes, runs: int) -> pb.SegmentBlock:
        place = pb.SegmentBlock(offset=self.bytes, bytes=len(packed), crc32=zlib.crc32(packed), runs=runs)
        self.bytes += len(packed)
        return place

    def _list_blocks(self) -> Iterable[list[pb.ListedRun]]:
        block: list[pb.ListedRun] = []
        size = 0
        for listed in sorted(
            (listed for listed, _ in self._runs.values()),
            key=lambda listed: list_order(listed.created_at_ms, listed.run_id),
        ):
            block.append(listed)
            size += listed.ByteSize()
            if len(block) == LIST_BLOCK_RUNS or size >= LIST_BLOCK_BYTES:
                yield block
                block, size = [], 0
        if block:
            yield block

    def _summarized(self, run_ids: Sequence[str], tail_offset: int) -> pb.SegmentManifest:
        shown = [listed for listed, _ in self._runs.values()]
        return pb.SegmentManifest(
            format=FORMAT,
            bytes=self.bytes,
            runs=len(run_ids),
            first_run_id=run_ids[0],
            last_run_id=run_ids[-1],
            fingerprints=b"".join(sorted(map(fingerprint, run_ids))),
            created=time_spans([listed.created_at_ms for listed in shown]),
            ended_first_ms=min(listed.ended_at_ms for listed in shown),
            ended_last_ms=max(listed.ended_at_ms for listed in shown),
            tail_offset=tail_offset,
        )


class _OpenBody:
    """The run that is being added."""

    def __init__(self, run_id: str, offset: int, has_blobs: bool) -> None:
        self.run_id = run_id
        self.offset = offset
        self.index = pb.BodyIndex()
        self.step_index_bytes = 0
        self.step_index_crc32 = 0
        self._steps_bytes = 0
        self._steps_crc32 = 0
        self._has_blobs = has_blobs
        self._last_key = ""
        self._record = b""
        self._statuses: list[state_pb2.PartitionStatus] = []

    def add(self, items: Iterable[KeyValue]) -> bytes:
        values = []
        for item in items:
            assert run_of(item.key) == self.run_id, f"{item.key} is no key of run {self.run_id}"
            assert item.key > self._last_key, f"{item.key} is out of order"
            self._last_key = item.key
            self._note(item)
            self.index.keys.add(
                key=item.key.replace(f"/{self.run_id}", "", 1),
                bytes=len(item.value),
                crc32=zlib.crc32(item.value),
                create_revision=item.create_revision,
                mod_revision=item.mod_revision,
                version=item.version,
            )
            values.append(item.value)
        return b"".join(values)

    def add_steps(self, chunk: bytes) -> None:
        self._steps_bytes += len(chunk)
        self._steps_crc32 = zlib.crc32(chunk, self._steps_crc32)

    def end_steps(self, index: pb.StepIndex) -> bytes:
        """Return the index, with the size of what is before it."""
        index.bytes = self._steps_bytes
        chunk = index.SerializeToString()
        self.step_index_bytes, self.step_index_crc32 = len(chunk), zlib.crc32(chunk)
        self.add_steps(chunk)
        self.index.keys.add(key=keys.STEPS.rstrip("/"), bytes=self._steps_bytes, crc32=self._steps_crc32)
        return chunk

    def _note(self, item: KeyValue) -> None:
        """Keep what lists show."""
        if item.key == keys.run(self.run_id):
            self._record = item.value
        elif item.key.startswith(keys.STATUS):
            status = state_pb2.PartitionStatus.FromString(item.value)
            status.ClearField("failure")
            self._statuses.append(status)

    def listed(self) -> pb.ListedRun:
        """Return what lists show of the run."""
        total = summary(self._statuses)
        created_at_ms, shown = total.created_at_ms, b""
        try:
            record = state_pb2.RunRecord.FromString(self._record)
        except DecodeError:
            pass  # lists tell of the damaged record when they read it
        else:
            created_at_ms = record.created_at_ms or created_at_ms
            shown = entry(self.run_id, record).value

        return pb.ListedRun(
            run_id=self.run_id,
            created_at_ms=created_at_ms,
            ended_at_ms=total.completed_at_ms,
            shown=shown,
            status=total.status,
            items_completed=total.items_completed,
            items_failed=total.items_failed,
            items_cancelled=total.items_cancelled,
            paused_ms=total.paused_ms,
            partitions=len(self._statuses),
            has_blobs=self._has_blobs,
        )


def time_spans(times_ms: Iterable[int]) -> list[pb.TimeSpan]:
    """Return at most `TIME_SPANS_MAX` intervals that have all of the times, split at the largest gaps."""
    ordered = sorted(times_ms)
    gaps = sorted(range(1, len(ordered)), key=lambda index: ordered[index - 1] - ordered[index])
    splits = sorted(index for index in gaps[: TIME_SPANS_MAX - 1] if ordered[index] > ordered[index - 1])
    return [
        pb.TimeSpan(first_ms=ordered[start], last_ms=ordered[end - 1])
        for start, end in zip([0, *splits], [*splits, len(ordered)], strict=True)
    ]


__all__ = ["LIST_BLOCK_RUNS", "SegmentBuilder", "StepLists", "time_spans"]
