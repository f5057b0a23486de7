"""The layout of a segment, an object with many ended runs, and the decoding of its parts. Pure.

    bodies | list blocks | id block | footer | trailer

- A *body* has the values of one run in the order of their keys, then their index (`BodyIndex`). The last value may be
  the lists of the run's steps, which end with an index of their own (`StepIndex`).
- *List blocks* have what a list of runs shows (`ListedRun`), newest run first, in the order of `by-age/`.
- The *id block* finds the body of a run by its id; the *footer* finds the blocks.
- The *trailer* has the size of the footer, its CRC-32 and `MAGIC`.

A run's *number* is its 0-based position in the order of run ids. Every part has a CRC-32, which its decoder checks.
All integers outside protobuf are big-endian. Documented for other readers in `docs/reference/segments.md`.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from itertools import accumulate, pairwise
from operator import attrgetter
from typing import TYPE_CHECKING, NamedTuple, TypeVar, overload

from google.protobuf.message import DecodeError, Message

from stepflow.errors import DataLoss, FailedPrecondition
from stepflow.mesh.v1 import segments_pb2 as pb
from stepflow.store import KeyValue, keys, prefix_end

if TYPE_CHECKING:
    from collections.abc import Iterator

_M = TypeVar("_M", bound=Message)

_BYTES_OF = attrgetter("bytes")

FORMAT = 1
"""Version of the layout that is written, and the newest that is read."""

FOLDER = "segments"
"""Folder of the objects in the blob store."""

MAGIC = b"stepseg\x01"
TRAILER = struct.Struct(">II8s")

FINGERPRINT_BYTES = 4

BLOB_ID_BYTES = 32
"""A blob id in a footer: a SHA-256."""

RUN_PREFIXES = (keys.ADOPTING, keys.INBOX, keys.JOURNAL, keys.RESULTS, keys.RUNS, keys.STATUS, keys.STEPS)
"""The keys that a body has, in the order of keys. The store has no key of the last kind."""

assert list(RUN_PREFIXES) == sorted(RUN_PREFIXES)


def object_name(segment_id: str) -> str:
    """Return the name of a segment's object in the blob store."""
    return f"{FOLDER}/{segment_id}"


def fingerprint(run_id: str) -> bytes:
    """Return the mark of a run id in manifests; two ids may share one."""
    return hashlib.sha256(run_id.encode()).digest()[:FINGERPRINT_BYTES]


def run_of(key: str) -> str | None:
    """Return the run id of a key, or of a prefix, that a body may have; None for all others."""
    prefix, _, rest = key.partition("/")
    if f"{prefix}/" not in RUN_PREFIXES:
        return None
    return rest.partition("/")[0] or None


def list_order(created_at_ms: int, run_id: str) -> tuple[int, str]:
    """Return the sort key of a run in lists: newest first, as under `by-age/`."""
    return -created_at_ms, run_id


class BodyPlace(NamedTuple):
    """The location of a run's body in its object."""

    offset: int
    bytes: int
    """Values and index."""
    index_bytes: int
    index_crc32: int
    step_index_bytes: int = 0
    """0 without lists of steps."""
    step_index_crc32: int = 0

    @property
    def index_offset(self) -> int:
        return self.offset + self.bytes - self.index_bytes

    @property
    def step_index_offset(self) -> int:
        return self.index_offset - self.step_index_bytes


class SegmentTail:
    """The id block and the footer of an object: where its bodies and list blocks are."""

    def __init__(self, ids: pb.SegmentIds, footer: pb.SegmentFooter) -> None:
        self.run_ids: Sequence[str] = ids.run_ids
        """In order; the number of a run is its index."""
        self.lists: Sequence[pb.SegmentBlock] = footer.lists
        """Locations of the list blocks."""
        self.named_blobs: frozenset[bytes] | None = None
        """Ids of the shared blobs that the requests of the runs may name; None for any."""
        if not footer.names_any_blob:
            raw = footer.named_blobs
            self.named_blobs = frozenset(raw[at : at + BLOB_ID_BYTES] for at in range(0, len(raw), BLOB_ID_BYTES))
        self.bytes = ids.ByteSize() + footer.ByteSize()
        self._ids = ids

    def number(self, run_id: str) -> int | None:
        """Return the number of a run; None if the segment does not have it."""
        number = bisect_left(self.run_ids, run_id)
        return number if number < len(self.run_ids) and self.run_ids[number] == run_id else None

    def body(self, number: int) -> BodyPlace:
        """Return the location of a run's body."""
        ids = self._ids
        place = BodyPlace(
            ids.body_offsets[number], ids.body_bytes[number], ids.index_bytes[number], ids.index_crc32s[number]
        )
        if not ids.step_index_bytes:
            return place
        return place._replace(
            step_index_bytes=ids.step_index_bytes[number], step_index_crc32=ids.step_index_crc32s[number]
        )

    def list_position(self, number: int) -> tuple[int, int]:
        """Return the list block of a run, and its position in the block."""
        position: int = self._ids.list_positions[number]
        for block, place in enumerate(self.lists):
            if position < place.runs:
                return block, position
            position -= place.runs
        raise _corrupt("a list position")

    def list_behind(self, order: tuple[int, str]) -> int:
        """Return the first list block that may have runs behind a position in lists (`list_order`)."""
        return bisect_left(
            range(len(self.lists)),
            order,
            key=lambda index: list_order(self.lists[index].last_created_at_ms, self.lists[index].last_run_id),
        )


class _FullKeys(Sequence[str]):
    """The keys of a body, made when they are read: a long journal has 50,000."""

    def __init__(self, run_id: str, index: pb.BodyIndex) -> None:
        self._run_id = run_id
        self._keys = index.keys

    def __len__(self) -> int:
        return len(self._keys)

    @overload
    def __getitem__(self, position: int) -> str: ...

    @overload
    def __getitem__(self, position: slice) -> list[str]: ...

    def __getitem__(self, position: int | slice) -> str | list[str]:
        if isinstance(position, slice):
            return [self._full(each.key) for each in self._keys[position]]
        return self._full(self._keys[position].key)

    def _full(self, key: str) -> str:
        head, slash, rest = key.partition("/")
        return f"{head}/{self._run_id}{slash}{rest}"


class RunBody:
    """The index of a run's body: its keys, and where their values are."""

    def __init__(self, run_id: str, index: pb.BodyIndex) -> None:
        self.run_id = run_id
        self.keys: Sequence[str] = _FullKeys(run_id, index)
        """Full keys, in order."""
        self.offsets = [0, *accumulate(map(_BYTES_OF, index.keys))]
        """Of each value in the body, and at last the offset of the index."""
        self._index = index

    def positions(self, prefix: str, after: str = "", before: str = "") -> range:
        """Return the positions of the keys under `prefix` between `after` and `before`, both exclusive."""
        first = bisect_left(self.keys, prefix)
        if after:
            first = max(first, bisect_right(self.keys, after))
        end = len(self.keys)
        for bound in (prefix_end(prefix), before):
            if bound:
                end = min(end, bisect_left(self.keys, bound))
        return range(first, max(first, end))

    def find(self, key: str) -> int | None:
        """Return the position of a key."""
        position = bisect_left(self.keys, key)
        return position if position < len(self.keys) and self.keys[position] == key else None

    def key_value(self, position: int, value: bytes) -> KeyValue:
        """Return the key-value at a position; `value`: its bytes in the body. Raises: DataLoss."""
        entry = self._index.keys[position]
        _check(value, entry.bytes, entry.crc32, "a value")
        return KeyValue(self.keys[position], value, entry.create_revision, entry.mod_revision, entry.version)

    def key_values(self, values: bytes) -> Iterator[KeyValue]:
        """Yield all key-values; `values`: the body from its beginning. Raises: DataLoss."""
        for position, (start, end) in enumerate(pairwise(self.offsets)):
            yield self.key_value(position, values[start:end])


def decode_tail(raw: bytes) -> SegmentTail:
    """Decode an object from the `tail_offset` of its manifest to its end. Raises: DataLoss, FailedPrecondition."""
    # 1. The trailer.
    if len(raw) < TRAILER.size:
        raise _corrupt("the trailer")
    footer_bytes, footer_crc32, magic = TRAILER.unpack(raw[-TRAILER.size :])
    if magic[:-1] != MAGIC[:-1]:
        raise _corrupt("the trailer")
    check_format(magic[-1])

    # 2. The footer.
    footer_end = len(raw) - TRAILER.size
    packed = raw[footer_end - footer_bytes : footer_end] if footer_bytes <= footer_end else b""
    _check(packed, footer_bytes, footer_crc32, "the footer")
    footer = _parse(pb.SegmentFooter, packed, "the footer")

    # 3. The id block.
    ids = _parse(pb.SegmentIds, _checked_block(footer.ids, raw[: footer_end - footer_bytes], "the id block"), "the ids")
    numbers = (ids.body_offsets, ids.body_bytes, ids.index_bytes, ids.index_crc32s, ids.list_positions)
    of_steps = {len(ids.step_index_bytes), len(ids.step_index_crc32s)}
    if {len(ids.run_ids), *map(len, numbers)} != {footer.ids.runs} or of_steps not in ({0}, {footer.ids.runs}):
        raise _corrupt("the id block")
    return SegmentTail(ids, footer)


def decode_list(place: pb.SegmentBlock, raw: bytes) -> Sequence[pb.ListedRun]:
    """Decode a list block. Raises: DataLoss."""
    return _parse(pb.SegmentList, _checked_block(place, raw, "a list block"), "a list block").runs


def decode_index(run_id: str, place: BodyPlace, raw: bytes) -> RunBody:
    """Decode the index of a body. Raises: DataLoss."""
    _check(raw, place.index_bytes, place.index_crc32, "the index of a run")
    body = RunBody(run_id, _parse(pb.BodyIndex, raw, "the index of a run"))
    if body.offsets[-1] != place.bytes - place.index_bytes:
        raise _corrupt("the index of a run")
    return body


def decode_step_index(place: BodyPlace, raw: bytes) -> pb.StepIndex:
    """Decode where the lists of steps of a body are. Raises: DataLoss."""
    _check(raw, place.step_index_bytes, place.step_index_crc32, "the lists of steps")
    return _parse(pb.StepIndex, raw, "the lists of steps")


def decode_steps(message_type: type[_M], crc32: int, raw: bytes) -> _M:
    """Decode a part of a list of steps. Raises: DataLoss."""
    _check(raw, len(raw), crc32, "a list of steps")
    return _parse(message_type, raw, "a list of steps")


def check_format(version: int) -> None:
    """Refuse a layout of a later version. Raises: FailedPrecondition."""
    if version > FORMAT:
        raise FailedPrecondition(
            "SEGMENT_UNKNOWN",
            f"a segment of ended runs has format {version}, from a later version of the control plane; this one reads "
            f"up to {FORMAT}: update it",
        )


def _parse(message_type: type[_M], raw: bytes, what: str) -> _M:
    try:
        return message_type.FromString(raw)
    except DecodeError:
        raise _corrupt(what) from None


def _checked_block(place: pb.SegmentBlock, raw: bytes, what: str) -> bytes:
    _check(raw, place.bytes, place.crc32, what)
    return raw


def _check(raw: bytes, size: int, crc32: int, what: str) -> None:
    if len(raw) != size or zlib.crc32(raw) != crc32:
        raise _corrupt(what)


def _corrupt(what: str) -> DataLoss:
    return DataLoss("SEGMENT_CORRUPT", f"{what} of a segment of ended runs is damaged in the blob store")


__all__ = [
    "FOLDER",
    "FORMAT",
    "RUN_PREFIXES",
    "BodyPlace",
    "RunBody",
    "SegmentTail",
    "check_format",
    "decode_index",
    "decode_list",
    "decode_step_index",
    "decode_steps",
    "decode_tail",
    "fingerprint",
    "list_order",
    "object_name",
    "run_of",
]
