"""Completed results, held until the executor acknowledges them.

- Results that wait for the blob store count as well, without a limit of age. Beyond the bound of bytes they go first.
- Bounded by bytes and by age. Beyond the bounds the oldest results are dropped; a request for a dropped
  result executes the component again, with the same idempotency key.
- The size of an item covers result, input (part of the request's message) and overhead. Results in the blob store
  therefore count too.

Generic over the item: the module knows no calls. `drop` belongs to the owner.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Generic, TypeVar

from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

log = get_logger(__name__)

HELD_BYTES_MAX = 256 * 1024 * 1024
HELD_S_MAX = 900.0
"""Longer than any take-over."""

HOLD_BYTES = 2048
"""Overhead of a held result besides its texts (messages, strings, table entries), roughly measured."""

SWEEPS_PER_AGE = 30
"""Sweeps within the age limit: a result stays at most a thirtieth longer."""

assert HOLD_BYTES * 1000 < HELD_BYTES_MAX


class HeldResults(Generic[T]):
    """Items with a held result.

    `drop` receives each item beyond the bounds. It must call `release`; or `hold` with a small result, if the item's
    result waits for the blob store.
    """

    def __init__(self, drop: Callable[[T], None], *, bytes_max: int, age_s_max: float) -> None:
        self.bytes = 0
        self._drop = drop
        self._bytes_max = bytes_max
        self._age_s_max = age_s_max
        self._items: OrderedDict[T, tuple[int, float]] = OrderedDict()
        """Item → size in bytes and start on the monotonic clock; oldest first."""
        self._unstored: OrderedDict[T, int] = OrderedDict()
        """Items whose result waits for the blob store → size in bytes; oldest first."""
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __len__(self) -> int:
        return len(self._items)

    @property
    def newest_age_s(self) -> float:
        """Age of the newest held result; infinite if none is held."""
        if not self._items:
            return math.inf
        return time.monotonic() - next(reversed(self._items.values()))[1]

    def hold(self, item: T, texts_bytes: int) -> None:
        """Hold an item. `texts_bytes` is the size of result and input."""
        size = HOLD_BYTES + texts_bytes
        if self._unstored:
            self.bytes -= self._unstored.pop(item, 0)
        self._items[item] = (size, time.monotonic())

        self.bytes += size
        if self.bytes > self._bytes_max:
            self._trim()

        if self._timer is None:
            self._arm()

    def hold_unstored(self, item: T, texts_bytes: int) -> None:
        """Count an item whose result waits for the blob store, until `hold` or `release`."""
        self._unstored[item] = HOLD_BYTES + texts_bytes
        self.bytes += self._unstored[item]
        if self.bytes > self._bytes_max:
            self._trim()

    def release(self, item: T) -> None:
        """Remove an item. Idempotent."""
        held = self._items.pop(item, None)
        self.bytes -= held[0] if held is not None else self._unstored.pop(item, 0)

    def close(self) -> None:
        """Stop the sweeps."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()

    def _trim(self) -> None:
        # An eighth below the bound, so that the next results do not trim again.
        count = 0
        while self.bytes > self._bytes_max - self._bytes_max // 8:
            self._drop(next(iter(self._unstored or self._items)))
            count += 1

        log.warning("results dropped: too many bytes held", results=count)

    def _arm(self) -> None:
        if not self._closed:
            self._timer = asyncio.get_running_loop().call_later(self._age_s_max / SWEEPS_PER_AGE, self._sweep)

    def _sweep(self) -> None:
        self._timer = None
        horizon = time.monotonic() - self._age_s_max
        count = len(self._items)

        while self._items:
            item, (_, since) = next(iter(self._items.items()))
            if since > horizon:
                self._arm()
                break
            self._drop(item)

        if len(self._items) < count:
            log.warning("unacknowledged results dropped: held too long", results=count - len(self._items))


__all__ = ["HELD_BYTES_MAX", "HELD_S_MAX", "HOLD_BYTES", "HeldResults"]
