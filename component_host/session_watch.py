"""Watches the host's session in the store: an operator, or an older copy of the store, may change or delete it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.store.follow import follow

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.store import KeyValue, Store, StoreEvent


class SessionWatch:
    """Sets `doubtful` and calls `on_doubt` when the session may differ from the one written.

    It may after a change, after a gap in the watch, and whenever the watch is renewed.
    """

    def __init__(self, store: Store, key: str, written: Callable[[], bytes], on_doubt: Callable[[], None]) -> None:
        """`written` returns the session as last written."""
        self.doubtful = False
        self._store = store
        self._key = key
        self._written = written
        self._on_doubt = on_doubt
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        following = follow(self._store, self._key, listed=self._listed, changed=self._changed)
        self._task = asyncio.create_task(following, name=f"watch {self._key}")

    async def close(self) -> None:
        """Stop watching. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _listed(self, _: list[KeyValue]) -> None:
        self.doubtful = True
        self._on_doubt()

    def _changed(self, events: Sequence[StoreEvent]) -> None:
        # The prefix of this key covers hosts with longer ids, too.
        if any(event.kv.key == self._key and event.kv.value != self._written() for event in events):
            self._listed([])


__all__ = ["SessionWatch"]
