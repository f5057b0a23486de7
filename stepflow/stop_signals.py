"""Signals that ask a process to stop: SIGINT, SIGTERM and SIGHUP.

- Requests are numbered from 1. The owner stops in order at the first, and decides what later ones mean.
- Signals within `REPEAT_S` of a request are the same request: `timeout(1)` signals the process and then its group, and
  a closing terminal signals both the shell and its jobs.
- After a request the handlers stay until the process has ended: a repeated signal must not kill it just before its end.
  There, the interpreter removes handlers, but leaves ignored signals ignored.
- An ignored SIGHUP stays ignored (`nohup`).

No event loop is imported. Not here: what stopping means.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import time
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable
    from types import FrameType, TracebackType

REPEAT_S = 0.5
"""Signals so close to a request are its repetitions."""

StopRequested: TypeAlias = "Callable[[int, int], None]"
"""Called on the event loop with the number of the signal and the number of the request, from 1."""


_requested: set[int] = set()
"""Signals with a handler that a request has made permanent."""


@atexit.register  # at the import, so that it runs after most others: what they do may still hang
def _ignore_at_the_end() -> None:
    for number in _requested:
        signal.signal(number, signal.SIG_IGN)


class StopSignals:
    """The handlers, while the block runs. Main thread only."""

    def __init__(self, loop: AbstractEventLoop, requested: StopRequested) -> None:
        self._loop = loop
        self._requested = requested
        self._requests = 0
        self._last_s = 0.0
        self._former: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            former = signal.getsignal(number)
            if number != signal.SIGHUP or former != signal.SIG_IGN:
                self._former[number] = former
                # Not `loop.add_signal_handler`, which ends with the loop.
                signal.signal(number, self._received)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._requests:
            for number, former in self._former.items():
                signal.signal(number, former)

    def _received(self, number: int, _frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._requests and now_s - self._last_s < REPEAT_S:
            return
        _requested.update(self._former)
        self._requests += 1
        self._last_s = now_s

        if not self._loop.is_closed():
            with contextlib.suppress(RuntimeError):  # the loop is being closed
                self._loop.call_soon_threadsafe(self._requested, number, self._requests)
                return
        os._exit(128 + number)  # the process hangs at its end


__all__ = ["REPEAT_S", "StopRequested", "StopSignals"]
