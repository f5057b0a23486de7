"""The blobs of runs, read and written for as long as the blob store is away: the step waits, other runs go on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.journal import blob_reader
from stepflow.store.blobs import WaitingBlobs
from stepflow.store.inline_bound import InlineBound

if TYPE_CHECKING:
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore


class RunBlobs:
    """Blobs by run. Every method waits while the store is full or down, and raises other StepflowErrors."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self._blobs = WaitingBlobs(blobs)
        self._read = blob_reader(store, blobs)
        self.inline_bound = InlineBound()
        """Larger values of a run become blobs."""

    async def put_blob(self, run_id: str, content: bytes) -> str:
        """Store a blob of a run and return its id."""
        return await self._blobs.put(content, scope=run_id)

    async def get_blob(self, run_id: str, blob: str, *, shared: bool) -> bytes | None:
        """Read a blob of the run, a shared blob or a stored flow; None if the blob does not exist.

        `shared`: the id comes from a user, so the run's own blobs are not searched.
        """
        return await self._blobs.wait_for(lambda: self._read(run_id, blob, shared=shared))


__all__ = ["RunBlobs"]
