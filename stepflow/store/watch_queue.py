"""The owner's half of a watch, the same for all stores: a bounded queue of batches, then an error or the end."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from stepflow.store.protocol import StoreCompacted

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stepflow.store.protocol import WatchBatch

WATCH_BACKLOG_MAX = 10_000
"""Unread revisions of a watch; with more, it ends with StoreCompacted."""


class WatchQueue:
    """Base of the stores' watches, see `stepflow.store.protocol.StoreWatch`. Belongs to one event loop."""

    def __init__(self) -> None:
        self._batches: deque[WatchBatch] = deque()
        self._waiter: asyncio.Future[None] | None = None
        self._error: Exception | None = None
        self._closed = False

    def __aiter__(self) -> AsyncIterator[WatchBatch]:
        return self

    async def __anext__(self) -> WatchBatch:
        while not self._batches:
            if self._closed:
                raise StopAsyncIteration
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        return self._batches.popleft()

    def close_queue(self) -> None:
        self._closed = True
        self._batches.clear()
        self.wake_owner()

    def check_backlog(self, prefix: str, last_revision: int) -> None:
        """Drop the backlog if it is too long. Raises: StoreCompacted."""
        if len(self._batches) > WATCH_BACKLOG_MAX:
            self._batches.clear()
            raise StoreCompacted(
                "STORE_COMPACTED",
                f"the watch of {prefix!r} fell {WATCH_BACKLOG_MAX:,} revisions behind",
                compacted=last_revision,
            )

    def wake_owner(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
