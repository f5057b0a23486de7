"""The service's side of the process that replays partitions.

- The process starts with the first request, and ends after `IDLE_S` without one. What it had replayed is then replayed
  again when it is asked for: `ReplayLost`.
- One request is in flight at a time; others wait, FIFO. A long journal is sent in pages, so that a short one does not
  wait for its whole replay.
- A request that takes longer than `ANSWER_S`, or more memory than there is, costs the process, and not the service.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from typing import TYPE_CHECKING

import msgspec

from control_plane.replay.messages import FRAME_BYTES_LIMIT, LENGTH, Frame, RequestFailed, decode_answer, packed
from stepflow import errors
from stepflow.errors import StepflowError, Unavailable
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from control_plane.replay.messages import Answer, Request

log = get_logger(__name__)

IDLE_S = 300.0
"""Time without a request after which the process ends, and gives its memory back."""

ANSWER_S = 60.0
"""Longest time for an answer: pages of a journal and blobs are bounded, so replays of them take a second or two."""

COMMAND = (sys.executable, "-P", "-m", "control_plane.replay.worker")


class ReplayLost(Exception):
    """The process with a replay has ended: begin again."""


class ReplayProcess:
    """The process, started when it is needed. Bound to the event loop of the first request."""

    def __init__(self) -> None:
        self.generation = 0
        """Number of starts. What was sent to an earlier process is lost."""
        self._process: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()
        self._dropped: list[int] = []
        self._numbers = 0
        self._idle: asyncio.TimerHandle | None = None
        self._closing: asyncio.Task[None] | None = None
        self._exchanges: set[asyncio.Task[tuple[Answer, int]]] = set()

    def new_number(self) -> int:
        """Return the number of another partition."""
        self._numbers += 1
        return self._numbers

    def drop(self, number: int) -> None:
        """Forget a partition, with the next request."""
        self._dropped.append(number)

    async def ask(self, request: Request, generation: int | None = None) -> tuple[Answer, int]:
        """Return the answer, and the generation of the process that gave it.

        `generation`: the request is for this one only.

        Raises: ReplayLost; Unavailable `REPLAY_FAILED`, the process cannot be started; the error of a refused request.
        """
        # A task of its own: if this reader is cancelled, the answer must be read all the same.
        exchange = asyncio.create_task(self._exchange(request, generation), name="replay")
        self._exchanges.add(exchange)
        exchange.add_done_callback(self._exchanged)
        answer, answered_by = await asyncio.shield(exchange)
        if isinstance(answer, RequestFailed):
            raise _error_of(answer)
        return answer, answered_by

    async def close(self) -> None:
        """End the process."""
        if self._idle is not None:
            self._idle.cancel()
        for exchange in self._exchanges:
            exchange.cancel()
        ending = () if self._closing is None else (self._closing,)
        await asyncio.gather(*self._exchanges, *ending, return_exceptions=True)
        await self._end()

    def _exchanged(self, exchange: asyncio.Task[tuple[Answer, int]]) -> None:
        self._exchanges.discard(exchange)
        if not exchange.cancelled():
            exchange.exception()  # its reader may be gone

    async def _exchange(self, request: Request, generation: int | None) -> tuple[Answer, int]:
        async with self._lock:
            if generation is not None and (generation != self.generation or self._process is None):
                raise ReplayLost
            process = self._process or await self._start()
            dropped, self._dropped = self._dropped, []

            try:
                async with asyncio.timeout(ANSWER_S):
                    return await _answer_of(process, packed(Frame(dropped, request))), self.generation
            except TimeoutError:
                log.error("a replay for a reader takes too long", limit_s=ANSWER_S)
                await self._end()
                raise ReplayLost from None
            except (OSError, EOFError, msgspec.MsgspecError):
                await self._end()
                raise ReplayLost from None
            except asyncio.CancelledError:  # half an answer may be in the pipe
                await self._end()
                raise
            finally:
                self._restart_idle()

    async def _start(self) -> asyncio.subprocess.Process:
        try:
            self._process = await asyncio.create_subprocess_exec(
                *COMMAND,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,  # a Ctrl-C at the terminal is for the service, which ends this process
            )
        except OSError as error:
            text = f"the process that replays runs cannot be started: {error.strerror}"
            raise Unavailable("REPLAY_FAILED", text) from None
        self.generation += 1
        self._dropped = []
        return self._process

    async def _end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        status = await process.wait()
        log.debug("the process that replays runs has ended", status=status)

    def _restart_idle(self) -> None:
        if self._idle is not None:
            self._idle.cancel()
        self._idle = asyncio.get_running_loop().call_later(IDLE_S, self._end_idle)

    def _end_idle(self) -> None:
        if not self._lock.locked():
            self._closing = asyncio.create_task(self._end(), name="end of replays")


async def _answer_of(process: asyncio.subprocess.Process, frame: tuple[bytes, bytes]) -> Answer:
    """Raises: OSError, EOFError, MsgspecError."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.writelines(frame)
    await process.stdin.drain()
    (length,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
    if length > FRAME_BYTES_LIMIT:
        raise EOFError
    return decode_answer(await process.stdout.readexactly(length))


def _error_of(refused: RequestFailed) -> Exception:
    """Return the error that the process met."""
    error_type = getattr(errors, refused.error, None) if refused.error else None
    if isinstance(error_type, type) and issubclass(error_type, StepflowError):
        return error_type(refused.reason, refused.message, **refused.details)
    return RuntimeError(f"a replay failed by a defect: {refused.reason} at {refused.message}")


__all__ = ["ReplayLost", "ReplayProcess"]
