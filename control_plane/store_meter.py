"""The size of the store, measured when asked for, at most once per `MEASURE_INTERVAL_S`.

A store without a size (SQLite), or one that does not tell it, has none: callers then work without.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from stepflow.errors import Forbidden, StepflowError
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store import Store

log = get_logger(__name__)

MEASURE_INTERVAL_S = 1.0


class StoreSize(NamedTuple):
    """Bytes of etcd's database, at the member that was asked."""

    in_use: int
    allocated: int
    """Size of the file, which etcd compares with its quota. Pages that are free again are part of it, and reused."""


class StoreMeter:
    """Measures one store for all who ask."""

    def __init__(self, store: Store) -> None:
        self._status: Callable[[], Any] | None = getattr(store, "status", None)
        self._size: StoreSize | None = None
        self._measured_at_s = -MEASURE_INTERVAL_S
        self._measuring = asyncio.Lock()
        self._warned = False

    async def read(self) -> StoreSize | None:
        """Return the size; None if it is not known. After a failed measurement the last size counts."""
        if self._status is None:
            return None
        async with self._measuring:  # one measurement for concurrent callers
            if time.monotonic() - self._measured_at_s >= MEASURE_INTERVAL_S:
                await self._measure(self._status)
                self._measured_at_s = time.monotonic()
        return self._size

    async def _measure(self, status: Callable[[], Any]) -> None:
        try:
            answer = await status()
            self._size = StoreSize(answer.size_in_use_bytes, answer.size_bytes)
        except Forbidden:
            if not self._warned:
                log.warning(
                    "etcd tells its size to root alone and serves no metrics: while it fills, admissions do not slow "
                    "down, and ended runs stay in it for the whole --linger"
                )
            self._warned = True
        except StepflowError as error:  # not raised: if the store fails, the write of the run reports it
            log.info("size of the store not known", reason=error.reason)


__all__ = ["StoreMeter", "StoreSize"]
