"""One direction of a stream of frames: what gathers while one frame is being written goes into the next.

- Whoever puts a frame never waits. `pump` keeps one write outstanding and takes what has gathered since.
- A written frame has at most `FRAME_BYTES_MAX`, unless a single element is larger. A larger one is split between the
  elements of its lists; small ones are joined: frames hold lists (and scalars that only grow), and the encoding of two
  messages, one behind the other, is the encoding of their union.
- Bounded: who is `QUEUE_BYTES_MAX` behind is not reading, and its stream is broken off (`Overloaded`). Nothing is lost
  by that: what matters is sent again on the next stream.

Does not know what carries the bytes, nor what the frames mean.
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
"""Encoded and not written: more than the results that a host holds in half of its room for them."""

assert FRAME_BYTES_MAX < QUEUE_BYTES_MAX


class FrameQueue:
    """Frames on their way out. For one event loop; `take` for one reader."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._bytes = 0
        self._arrival: asyncio.Future[None] | None = None
        self.overrun = False
        """More was put than the other side reads; what came after that was dropped."""

    def put(self, frame: Message) -> None:
        """Queue a frame, which is encoded at once and may be changed afterwards."""
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

    async def take(self) -> bytes:
        """Wait until something is there and return one frame's worth of it. Raises: Overloaded STREAM_OVERRUN."""
        while not self._frames and not self.overrun:
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
    """Write what is queued, a frame at a time, until cancelled. Raises: Overloaded, and what `write` raises."""
    while True:
        await write(await queue.take())


def split(frame: Message) -> list[bytes]:
    """Encode a frame as several of at most `FRAME_BYTES_MAX`, each with some elements of its lists, in order.

    What is no list goes into the first one.
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
    """Say whether a field's value is a list; descriptors tell it by other names in each version of protobuf."""
    return hasattr(value, "extend")


__all__ = ["FRAME_BYTES_MAX", "FrameQueue", "pump", "split"]
