"""What the service and the process of replays tell each other: a request, its answer, the next request.

A frame is the length of a message (4 bytes, big-endian), and the message as MessagePack. Only a service and a process
that it has started itself use it, both of the same version.
"""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

LENGTH = struct.Struct(">I")

FRAME_BYTES_LIMIT = 256 * 1024 * 1024
"""A longer answer ends the process. A page of a journal has 4 MiB, a page of results 17 MiB."""


class _Message(msgspec.Struct, array_like=True, tag=True):
    """A request or an answer."""


class OpenReplay(_Message):
    """Begin to replay a partition. `number`: its name in later requests."""

    number: int
    run_id: str
    partition: int
    record: bytes
    flow: bytes
    inputs: bytes | None


class AddValues(_Message):
    """Replay the next values of a journal: keys and values. Answer: WantedBlobs."""

    number: int
    values: list[tuple[str, bytes]]


class AddBlobs(_Message):
    """Continue with these blobs. Answer: WantedBlobs."""

    number: int
    blobs: dict[str, bytes | None]


class Publish(_Message):
    """Make the lists of all that is replayed. Answer: Published."""

    number: int


class ReadSteps(_Message):
    """Return rows of steps for a page. Answer: Rows."""

    number: int
    start: int
    count: int
    with_results: bool


class ReadIndex(_Message):
    """Return rows of steps for a segment. `copy_room`: as of `RowWriter`. Answer: Rows."""

    number: int
    start: int
    count: int
    copy_room: int


class ReadText(_Message):
    """Return the parts of a step's result, if they have at most `bytes_max`. Answer: Rows, empty if they have more."""

    number: int
    row: int
    bytes_max: int


class ReadItems(_Message):
    """Return rows of the ended items between two indexes. Answer: Rows."""

    number: int
    start: int
    count: int
    bytes_max: int


class Done(_Message):
    """The request is carried out."""


class WantedBlobs(_Message):
    """Blobs to load, each with True if a user supplied the id. None: the values are replayed."""

    blobs: dict[str, bool]


class Published(_Message):
    """The lists are made. `unknown`: why they end early; empty if they do not."""

    entries: int
    unknown: str


class Rows(_Message):
    """Serialized rows (`StepRows`), or a serialized `ResultParts`."""

    data: bytes
    copy_room: int = 0


class RequestFailed(_Message):
    """The request failed with an error of class `error`; empty for a defect."""

    error: str
    reason: str
    message: str
    details: dict[str, str]


Request: TypeAlias = OpenReplay | AddValues | AddBlobs | Publish | ReadSteps | ReadIndex | ReadText | ReadItems
Answer: TypeAlias = Done | WantedBlobs | Published | Rows | RequestFailed


class Frame(msgspec.Struct, array_like=True, frozen=True):
    """A request, and the numbers of partitions that are not needed any more."""

    dropped: list[int]
    request: Request


_encode = msgspec.msgpack.Encoder().encode
decode_frame = msgspec.msgpack.Decoder(Frame).decode
decode_answer = msgspec.msgpack.Decoder(Answer).decode


def packed(message: Frame | Answer) -> tuple[bytes, bytes]:
    """Return the two parts of a frame."""
    body = _encode(message)
    return LENGTH.pack(len(body)), body


__all__ = [
    "FRAME_BYTES_LIMIT",
    "LENGTH",
    "AddBlobs",
    "AddValues",
    "Answer",
    "Done",
    "Frame",
    "OpenReplay",
    "Publish",
    "Published",
    "ReadIndex",
    "ReadItems",
    "ReadSteps",
    "ReadText",
    "Request",
    "RequestFailed",
    "Rows",
    "WantedBlobs",
    "decode_answer",
    "decode_frame",
    "packed",
]
