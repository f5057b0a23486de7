"""Progress reports of one server, thinned before they are decoded.

Most servers report a few times a second. One that reports 100,000 times would cost its host as much as 100,000 calls.
Beyond `REPORTS_MAX` in a period, only the latest report of each call passes, when the next period begins.

The gate gets the time as an argument. `paced` applies a gate to a stream.
"""

from __future__ import annotations

import asyncio
import contextlib
from itertools import islice
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Hashable

PERIOD_S = 0.1

REPORTS_MAX = 100
"""Reports of one server that pass in a period; of the others, the latest of each call waits for the next one."""

WAITING_MAX = 1_000
"""Calls with a waiting report; reports of further ones are dropped."""

R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)


class ProgressGate(Generic[R]):
    """Passes reports, or keeps the latest of each call until `take_due` or `take` asks for it."""

    def __init__(self, reports_max: int = REPORTS_MAX) -> None:
        self._reports_max = reports_max
        self._waiting: dict[Hashable, R] = {}
        self._passed = 0
        self._period_ends_at = 0.0

    def offer(self, call: Hashable, report: R, now: float) -> bool:
        """Return True if the report passes; otherwise it is kept in place of an earlier one of the call."""
        if call not in self._waiting:
            self._begin_period(now)
            if self._passed < self._reports_max:
                self._passed += 1
                return True
            if len(self._waiting) >= WAITING_MAX:
                return False
        self._waiting[call] = report
        return False

    def take(self, call: Hashable) -> R | None:
        """Return the waiting report of a call: its answer comes next."""
        return self._waiting.pop(call, None)

    def take_all(self) -> list[R]:
        """Return all waiting reports: something else comes next, or the end."""
        waiting, self._waiting = self._waiting, {}
        return list(waiting.values())

    def wait_s(self, now: float) -> float | None:
        """Return the time until reports are due; None if none waits."""
        return max(0.0, self._period_ends_at - now) if self._waiting else None

    def take_due(self, now: float) -> list[R]:
        """Return the waiting reports that pass now, FIFO."""
        self._begin_period(now)
        calls = list(islice(self._waiting, self._reports_max - self._passed))
        self._passed += len(calls)
        return [self._waiting.pop(call) for call in calls]

    def _begin_period(self, now: float) -> None:
        if now >= self._period_ends_at:
            self._passed, self._period_ends_at = 0, now + PERIOD_S


class Thinning(Protocol[R_co]):
    """Thins one stream of chunks. An empty result of a method is not passed on."""

    def feed(self, chunk: bytes, now: float) -> R_co:
        """Return what passes of a chunk."""
        ...

    def wait_s(self, now: float) -> float | None:
        """Return the time until something is due; None if nothing waits."""
        ...

    def take_due(self, now: float) -> R_co: ...

    def finish(self) -> R_co:
        """Return the rest at the end of the stream."""
        ...


async def paced(chunks: AsyncIterator[bytes], thinning: Thinning[R]) -> AsyncGenerator[R, None]:
    """Yield what passes of the chunks of a stream; what waits is yielded when it is due, also without a chunk."""
    loop = asyncio.get_running_loop()
    next_chunk: asyncio.Task[bytes] | None = None
    try:
        while True:
            # 1. Wait for the next chunk, or until something is due.
            wait_s = thinning.wait_s(loop.time())
            if wait_s is None and next_chunk is None:
                chunk = await anext(chunks)  # the usual case costs no task
            else:
                next_chunk = next_chunk or asyncio.ensure_future(_next(chunks))
                done, _ = await asyncio.wait([next_chunk], timeout=wait_s)
                if not done:
                    if due := thinning.take_due(loop.time()):
                        yield due
                    continue
                ended, next_chunk = next_chunk, None
                chunk = ended.result()

            # 2. Pass on what passes.
            if passed := thinning.feed(chunk, loop.time()):
                yield passed
    except (StopAsyncIteration, _Ended):
        if rest := thinning.finish():
            yield rest
    finally:
        if next_chunk is not None:
            next_chunk.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await next_chunk


class _Ended(Exception):
    """The stream has ended; a task cannot raise StopAsyncIteration."""


async def _next(chunks: AsyncIterator[bytes]) -> bytes:
    try:
        return await anext(chunks)
    except StopAsyncIteration:
        raise _Ended from None


__all__ = ["ProgressGate", "paced"]
