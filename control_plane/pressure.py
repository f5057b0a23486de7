"""Pressure: admissions slow down while the store fills, so that admitted runs have room to end.

- Below `FREE_SHARE` of the quota admissions are free. Above, they go at the rate at which runs leave the store, and as
  much faster as fills what is left in `SPAN_S`; times a factor that falls steadily: without bound at `FREE_SHARE`, 1
  half-way, 0 at `FULL_SHARE`.
  So the mesh works at the rate that it can sustain, and several replicas need not know of each other: if they admit
  more together, the store fills a little further.
- A submission waits here for its turn up to `TURN_S_MAX`. A later turn is refused as `STORE_FULL` with the time after
  which to try again: one place in the line of those who were refused, with a spread.
- The bytes in use count, not the file: etcd reuses the free pages of its file before the file grows, and refuses writes
  (NOSPACE) by the size of the file. So the file never comes near the quota while the bytes in use do not.

A store without a size (SQLite) never slows down. Runs that were admitted are never slowed down.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from stepflow.errors import Overloaded

if TYPE_CHECKING:
    from collections.abc import Callable

    from control_plane.store_meter import StoreMeter, StoreSize

QUOTA_BYTES_DEFAULT = 4 * 1024**3
"""The recommended `--quota-backend-bytes` of etcd."""

FREE_SHARE = 0.4
FULL_SHARE = 0.7

SPAN_S = 60.0
"""Half-way, admissions fill what is left up to `FULL_SHARE` in this time if nothing leaves."""

RUN_BYTES_MIN = 16 * 1024
"""Least room that an admission is expected to take, history included."""

TURN_S_MAX = 0.5

RETRY_S_MIN = 0.5
RETRY_S_MAX = 15.0

SPREAD = 0.25
"""Share by which a time to try again differs, so that those who wait do not come back together."""


def retry_after_ms(pause_s: float) -> int:
    """Return the time after which a refused client should try again, spread around `pause_s`."""
    pause_s = min(max(pause_s, RETRY_S_MIN), RETRY_S_MAX)
    return int(1000 * pause_s * random.uniform(1 - SPREAD, 1 + SPREAD))  # noqa: S311  # spreads clients, hides nothing


class AdmissionPressure:
    """Admits the submissions of one replica."""

    def __init__(
        self,
        meter: StoreMeter,
        quota_bytes: int = QUOTA_BYTES_DEFAULT,
        runs_out_per_s: Callable[[], float] = lambda: 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`runs_out_per_s`: rate at which runs leave the store."""
        self.quota_bytes = quota_bytes
        self._meter = meter
        self._runs_out_per_s = runs_out_per_s
        self._clock = clock
        self._next_s = 0.0
        """Instant of the next free turn."""
        self._line_s = 0.0
        """Instant of the turn after those of all who were refused."""
        self._run_bytes = float(RUN_BYTES_MIN)
        """Growth of the store per admission, smoothed."""
        self._admitted = 0
        self._measured = (0, 0)
        """Bytes in use and admissions at the last measurement."""

    async def admit(self) -> None:
        """Return when a run may be admitted. Raises: Overloaded `STORE_FULL`."""
        size = await self._meter.read()
        if size is None:
            return
        self._learn(size)
        rate = self.rate(size)
        if rate is None:
            self._line_s = 0.0
        else:
            await self._take_turn(size, rate)
        self._admitted += 1

    def rate(self, size: StoreSize) -> float | None:
        """Return the admissions per second that the store has room for; None if they are free."""
        fill = size.in_use / self.quota_bytes
        if fill <= FREE_SHARE:
            return None
        if fill >= FULL_SHARE:
            return 0.0
        filling = (FULL_SHARE - fill) * self.quota_bytes / SPAN_S / self._run_bytes
        return (self._runs_out_per_s() + filling) * (FULL_SHARE - fill) / (fill - FREE_SHARE)

    def slowed(self, size: StoreSize) -> str:
        """Return what is slowed down, and why; empty if nothing is."""
        rate = self.rate(size)
        if rate is None:
            return ""
        what = f"new runs are admitted at {rate:,.3g} a second" if rate else "new runs are refused"
        full = int(FULL_SHARE * self.quota_bytes)
        return f"{what}: the store holds {size.in_use:,} bytes; {full:,} is the most at which runs are admitted"

    async def _take_turn(self, size: StoreSize, rate: float) -> None:
        now_s = self._clock()
        self._next_s = max(self._next_s, now_s)
        turn_s = self._next_s - now_s
        if not rate or turn_s > TURN_S_MAX:
            raise self._refusal(size, rate, now_s)
        self._next_s += 1 / rate
        if turn_s:
            await asyncio.sleep(turn_s)

    def _refusal(self, size: StoreSize, rate: float, now_s: float) -> Overloaded:
        pause_s = RETRY_S_MAX
        if rate:
            self._line_s = min(max(self._line_s, self._next_s) + 1 / rate, now_s + RETRY_S_MAX)
            pause_s = self._line_s - now_s
        return Overloaded(
            "STORE_FULL",
            f"{self.slowed(size)}; try again later, delete runs, or wait until ended runs are packed or removed",
            bytes_max=int(FULL_SHARE * self.quota_bytes),
            retry_after_ms=retry_after_ms(pause_s),
        )

    def _learn(self, size: StoreSize) -> None:
        """Learn the growth per admission from one measurement to the next."""
        in_use, admitted = self._measured
        if size.in_use == in_use:
            return
        if admitted < self._admitted and in_use:
            run_bytes = (size.in_use - in_use) / (self._admitted - admitted)
            self._run_bytes = max(float(RUN_BYTES_MIN), 0.8 * self._run_bytes + 0.2 * run_bytes)
        self._measured = (size.in_use, self._admitted)


__all__ = ["QUOTA_BYTES_DEFAULT", "AdmissionPressure", "retry_after_ms"]
