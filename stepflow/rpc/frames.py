"""One direction of a stream of frames. Frames queued during a write are joined into the next one.

- `put` never waits. `pump` keeps one write outstanding, then takes the frames queued meanwhile.
- A written frame has at most `FRAME_BYTES_MAX`, unless a single element is larger. Large frames are split between the
  elements of their lists, small ones joined: frames hold lists (and scalars that only grow), and the concatenated
  encodings of two messages are the encoding of their union.
- Bounded: a reader `QUEUE_BYTES_MAX` behind has stopped reading, and its stream ends (`Overloaded`). The next stream
  sends everything that matters again.

Not here: the transport, and the meaning of frames.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING, Any

from stepflow.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

FRAME_BYTES_MAX = 1024 * 1024

QUEUE_BYTES_MAX = 128 * 1024 * 1024
"""Encoded, unwritten bytes: more than half of the results that a host may hold."""

assert FRAME_BYTES_MAX < QUEUE_BYTES_MAX


class FrameQueue:
    """Frames to be written. For one event loop; `take_frame` for one reader."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._arrival: asyncio.Future[None] | None = None
        self.overrun = False
        """True once the other side has stopped reading; later frames are dropped."""
        self._closed = False

    @property
    def waiting_bytes(self) -> int:
        """Encoded, unwritten bytes."""
        return self._bytes

    def put(self, frame: Message) -> None:
        """Queue a frame. It is encoded at once, so the caller may change it afterwards."""
        encoded = frame.SerializeToString()
        if not encoded:
            return
        pieces = [encoded] if len(encoded) <= FRAME_BYTES_MAX else split(frame)
        if self._bytes + len(encoded) > QUEUE_BYTES_MAX:
            self.overrun = True
        else:
            self._frames.extend(pieces)
            self._bytes += sum(map(len, pieces))
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    def close(self) -> None:
        """End `pump` once the queued frames are written."""
        self._closed = True
        if self._arrival is not None and not self._arrival.done():
            self._arrival.set_result(None)

    async def take_frame(self) -> bytes:
        """Wait for frames and return one write of them, joined; empty after the last one of a closed queue.

        Raises: Overloaded STREAM_OVERRUN.
        """
        while not self._frames and not self.overrun:
            if self._closed:
                return b""
            self._arrival = asyncio.get_running_loop().create_future()
            await self._arrival
        if self.overrun:
            raise Overloaded("STREAM_OVERRUN", f"the other side is {QUEUE_BYTES_MAX:,} bytes behind")

        frames = self._frames
        first = frames.popleft()
        size = len(first)
        if frames and size + len(frames[0]) <= FRAME_BYTES_MAX:
            joined = [first]
            while frames and size + len(frames[0]) <= FRAME_BYTES_MAX:
                size += len(frames[0])
                joined.append(frames.popleft())
            first = b"".join(joined)
        self._bytes -= size
        return first


async def pump(queue: FrameQueue, write: Callable[[bytes], Awaitable[Any]]) -> None:
    """Write queued frames, one write at a time, until the queue is closed. Raises: Overloaded; any error of `write`."""
    while frame := await queue.take_frame():
        await write(frame)


def split(frame: Message) -> list[bytes]:
    """Encode a frame as several of at most `FRAME_BYTES_MAX`, each with some elements of its lists, in order.

    The first piece has all fields that are not lists.
    """
    pieces: list[bytes] = []
    piece = type(frame)()
    room = FRAME_BYTES_MAX
    for field, value in frame.ListFields():
        if not is_list(value):
            if field.message_type is not None:
                getattr(piece, field.name).CopyFrom(value)
            else:
                setattr(piece, field.name, value)
            room -= 64

    for field, value in frame.ListFields():
        if not is_list(value):
            continue

        for element in value:
            size = element.ByteSize() + 8  # tag and length
            if size > room and piece.ListFields():  # an oversized first element leaves no empty piece behind
                pieces.append(piece.SerializeToString())
                piece, room = type(frame)(), FRAME_BYTES_MAX
            getattr(piece, field.name).append(element)
            room -= size
    pieces.append(piece.SerializeToString())
    return pieces


def is_list(value: object) -> bool:
    """Return True if a field's value is a list. Descriptors differ between versions of protobuf."""
    return hasattr(value, "extend")


__all__ = ["FRAME_BYTES_MAX", "FrameQueue", "pump", "split"]
