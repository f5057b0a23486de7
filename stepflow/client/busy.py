"""Patience with a mesh that is busy: a refused submission is tried again when the mesh asks for it.

- Only refusals that end by themselves (`BUSY_REASONS`, or any that names a pause): the store is filling, or runs wait
  for executors. A submission has a run id, so a repetition makes no second run.
- The pause is the one that the server names, and a little more at random, so that clients do not come back together.
"""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING

from stepflow.errors import Overloaded
from stepflow.retry import doubling
from stepflow.rpc.errors import retry_after_ms

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY_REASONS = frozenset(("STORE_FULL", "TOO_MANY_PENDING", "PLACEMENT_UNSTABLE"))

PAUSE_S_MIN = 1.0
PAUSE_S_MAX = 10.0
"""Pauses after refusals that name none, doubling."""

JITTER = 0.2


def is_busy(error: Exception) -> bool:
    """Return True if a submission that was refused with this error may succeed later, unchanged."""
    return isinstance(error, Overloaded) and (error.reason in BUSY_REASONS or retry_after_ms(error) > 0)


class BusyPatience:
    """Waits between the tries of one submission, `patience_s` in all. `on_busy` is called before the first wait."""

    def __init__(self, patience_s: float, on_busy: Callable[[Overloaded, float], None] | None = None) -> None:
        self._patience_s = patience_s
        self._on_busy = on_busy
        self._ends_at_s = time.monotonic() + patience_s
        self._pauses_s = doubling(PAUSE_S_MIN, PAUSE_S_MAX)

    async def wait(self, error: Overloaded) -> None:
        """Return when it is time to try again. Raises: `error`, if that is no use or the patience has ended."""
        left_s = self._ends_at_s - time.monotonic()
        if not is_busy(error) or left_s <= 0:
            raise error
        if self._on_busy is not None:
            self._on_busy(error, self._patience_s)
            self._on_busy = None
        pause_s = retry_after_ms(error) / 1000 or next(self._pauses_s)
        pause_s *= random.uniform(1, 1 + JITTER)  # noqa: S311  # spreads clients, hides nothing
        await asyncio.sleep(min(pause_s, left_s))


__all__ = ["BUSY_REASONS", "BusyPatience", "is_busy"]
