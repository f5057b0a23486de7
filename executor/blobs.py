"""The blobs of runs, read and written for as long as the blob store is away: the step waits, other runs go on."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, TypeVar

from stepflow.errors import Unavailable
from stepflow.journal import blob_reader
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

_T = TypeVar("_T")

BLOB_RETRY_S = (0.1, 0.3, 1.0, 3.0)
"""Pauses between tries to reach the blob store; the last one repeats."""


class RunBlobs:
    """Blobs by run. Every method retries while the store is unavailable, and raises other StepflowErrors."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._blobs = blobs
        self._read = blob_reader(store, blobs)

    async def put_blob(self, run_id: str, content: bytes) -> str:
        """Store a blob of a run and return its id."""
        return await _retry_unavailable(lambda: self._blobs.put(content, scope=run_id))

    async def get_blob(self, run_id: str, blob: str, *, shared: bool) -> bytes | None:
        """Read a blob of the run, a shared blob or a stored flow; None if the blob does not exist.

        `shared`: the id comes from a user, so the run's own blobs are not searched.
        """
        return await _retry_unavailable(lambda: self._read(run_id, blob, shared=shared))


async def _retry_unavailable(work: Callable[[], Awaitable[_T]]) -> _T:
    tries = 0
    while True:
        try:
            return await work()
        except Unavailable as error:
            pause_s = BLOB_RETRY_S[min(tries, len(BLOB_RETRY_S) - 1)]
            tries += 1
            log.warning("blob store unavailable", reason=error.reason, tries=tries)
            await asyncio.sleep(pause_s)


__all__ = ["RunBlobs"]
