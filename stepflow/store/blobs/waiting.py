"""Blobs for work that must not fail because the blob store is full or down: the caller waits until it is back.

- Waits while the store is unavailable, full or refuses (`WAITED_FOR`); every other error is raised.
- Of the calls that wait, one at a time tries again: a store that comes back is not flooded, and a full disk not filled.
- Why the store refuses is `BlobStore.trouble`, and is logged there, once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from stepflow.errors import StepflowError, Unavailable
from stepflow.retry import doubling
from stepflow.store.blobs.backend import DATA, SHARED

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stepflow.store.blobs.store import BlobStore

_T = TypeVar("_T")

RETRY_S_MIN = 0.1
RETRY_S_MAX = 5.0
"""Pauses between tries to reach the blob store, doubling."""

WAITED_FOR = frozenset(("BLOB_STORE_UNAVAILABLE", "BLOB_STORE_FULL", "BLOB_STORE_REFUSED"))
"""Reasons that an operator must resolve; the caller cannot."""


class WaitingBlobs:
    """A blob store whose calls wait for it. A caller with a deadline cancels the call."""

    def __init__(self, blobs: BlobStore) -> None:
        self.store = blobs
        self._turn = asyncio.Lock()

    async def put(
        self,
        content: bytes,
        *,
        scope: str = SHARED,
        blob_type: str = DATA,
        on_wait: Callable[[], None] = lambda: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> str:
        """As `BlobStore.put`. `on_wait` is called if the first try fails; the error is raised once not `wanted`."""
        return await self.wait_for(
            lambda: self.store.put(content, scope=scope, blob_type=blob_type), on_wait=on_wait, wanted=wanted
        )

    async def get(self, identity: str, *, scope: str = SHARED) -> tuple[bytes, str]:
        """As `BlobStore.get`."""
        return await self.wait_for(lambda: self.store.get(identity, scope=scope))

    async def wait_for(
        self,
        work: Callable[[], Awaitable[_T]],
        *,
        on_wait: Callable[[], None] = lambda: None,
        wanted: Callable[[], bool] = lambda: True,
    ) -> _T:
        """Do work with the blob store, again and again until the store answers. See `put`."""
        try:
            return await work()
        except StepflowError as error:
            _raise_final(error)

        on_wait()
        for pause_s in doubling(RETRY_S_MIN, RETRY_S_MAX):
            await asyncio.sleep(pause_s)
            async with self._turn:
                try:
                    return await work()
                except StepflowError as error:
                    _raise_final(error)
                    if not wanted():
                        raise
        raise AssertionError("pauses do not end")


def _raise_final(error: StepflowError) -> None:
    """Raise an error that waiting cannot end."""
    if not isinstance(error, Unavailable) and error.reason not in WAITED_FOR:
        raise error


__all__ = ["WAITED_FOR", "WaitingBlobs"]
