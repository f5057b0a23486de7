"""Results that wait until their executor says that it needs them no more.

Bounds: bytes and age. Beyond them the oldest results are given up: whoever comes for one later has the component
executed once more, which its idempotency key tells it. The size of a hold is what the process keeps for it: result,
input (both live in the request's frame) and the objects around them, so that results in the blob store count too.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from component_host.call import Call

log = get_logger(__name__)

HELD_BYTES_MAX = 256 * 1024 * 1024
HELD_S_MAX = 900.0
"""Longer than any take-over."""

HOLD_BYTES = 2048
"""What a hold costs beside its texts (messages, strings, table entries), measured roughly."""

SWEEPS_PER_AGE = 30
"""How often the age is looked at: a hold may stay a thirtieth longer than its time."""

assert HOLD_BYTES * 1000 < HELD_BYTES_MAX


class Holds:
    """All results that are held. `drop` is given each one that must go; it ends up in `remove`."""

    def __init__(self, drop: Callable[[Call], None], *, bytes_max: int, age_s_max: float) -> None:
        self.bytes = 0
        self._drop = drop
        self._bytes_max = bytes_max
        self._age_s_max = age_s_max
        self._calls: OrderedDict[Call, tuple[int, float]] = OrderedDict()
        """Size and beginning of each hold, the oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._calls)

    @property
    def youngest_s(self) -> float:
        """The age of the youngest hold; without end when there is none."""
        if not self._calls:
            return math.inf
        return time.monotonic() - next(reversed(self._calls.values()))[1]

    def add(self, call: Call, texts_bytes: int) -> None:
        """Hold a call whose result and input have this size."""
        size = HOLD_BYTES + texts_bytes
        self._calls[call] = (size, time.monotonic())
        self.bytes += size
        if self.bytes > self._bytes_max:
            self._trim()
        if self._timer is None:
            self._arm()

    def remove(self, call: Call) -> None:
        """The call is held no longer. It must be held."""
        self.bytes -= self._calls.pop(call)[0]

    def close(self) -> None:
        """Stop looking at the age."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _trim(self) -> None:
        count = len(self._calls)
        while self.bytes > self._bytes_max - self._bytes_max // 8:  # some more, so that not every result comes here
            self._drop(next(iter(self._calls)))
        log.warning("results were given up before anybody acknowledged them", results=count - len(self._calls))

    def _arm(self) -> None:
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._age_s_max / SWEEPS_PER_AGE, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        horizon = time.monotonic() - self._age_s_max
        count = len(self._calls)
        while self._calls:
            call, (_, since) = next(iter(self._calls.items()))
            if since > horizon:
                self._arm()
                break
            self._drop(call)
        if len(self._calls) < count:
            log.warning("results were given up: nobody asked for them", results=count - len(self._calls))


__all__ = ["HELD_BYTES_MAX", "HELD_S_MAX", "Holds"]
