"""Removal of old shared blobs. User code and clients put shared blobs, which belong to no run.

- Each put of a blob restarts its age.
- A blob stays while referenced: by the request of a kept run (inputs, variables, overrides), by the journal, inbox or
  blobs of a run in progress, by a stored flow, or by another referenced blob. Segments list what their runs request.
- Any 64 hexadecimal digits count as a reference: text that only looks like an id keeps a blob, and never loses a blob.
- References are searched only if there is an old blob.

A run never needs the shared blobs of its submission: admission copied the contents.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING

from control_plane.views import TERMINAL
from stepflow.errors import NotFound
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Txn, keys, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from collections.abc import Set as AbstractSet

    from stepflow.store import Compare, Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

REMOVED_MAX = 10_000
"""Blobs removed by one sweep; the next one removes more."""

FENCE_CHECK_BLOBS = 100
"""Blobs removed between two checks of leadership: no transaction guards a blob."""

INLINE_SCAN_BYTES_MAX = 64 * 1024
"""Larger contents are searched in a thread."""

_IDS = re.compile(rb"(?<![0-9a-fA-F])[0-9a-fA-F]{64}(?![0-9a-fA-F])")


def blob_ids(content: bytes) -> set[bytes]:
    """Return what may be ids of blobs in a content: 32 bytes each."""
    return {bytes.fromhex(text.decode()) for text in _IDS.findall(content)}


async def sweep_shared_blobs(
    store: Store,
    blobs: BlobStore,
    before_s: float,
    fence: Compare,
    packed: Callable[[], Awaitable[AbstractSet[bytes] | None]] | None = None,
) -> list[str]:
    """Remove unreferenced shared blobs last put before `before_s`; return the removed ids.

    `before_s`: Unix time. `fence`: this replica leads. `packed`: returns the ids that packed runs may name; None for
    any. Raises: StepflowError.
    """
    # 1. List the old blobs.
    dates = await blobs.dates()
    old = sorted((put_at_s, identity) for identity, put_at_s in dates.items() if put_at_s < before_s)
    if not old:
        return []

    # 2. Find the referenced ones.
    named = await packed() if packed is not None else set()
    if named is None:
        return []
    kept = await _referenced(store, blobs, set(dates), named)

    # 3. Remove the others; a put since step 1 keeps its blob.
    removed: list[str] = []
    for _, identity in old:
        if identity in kept or len(removed) == REMOVED_MAX:
            continue
        if not len(removed) % FENCE_CHECK_BLOBS and not (await store.txn(Txn((fence,), ()))).succeeded:
            break  # another control plane leads now
        if await blobs.delete_shared(identity, before_s):
            removed.append(identity)

    if removed:
        log.info("shared blobs removed", count=len(removed))
    return removed


async def _referenced(store: Store, blobs: BlobStore, shared: set[str], named: AbstractSet[bytes]) -> set[str]:
    """Return the ids of the shared blobs with a reference, direct or through other blobs.

    `named`: ids that packed runs name.
    """
    referenced: set[str] = set()
    pending: list[str] = []

    def note(found: AbstractSet[bytes]) -> None:
        for identity in map(bytes.hex, found):
            if identity in shared and identity not in referenced:
                referenced.add(identity)
                pending.append(identity)

    async def scan(content: bytes) -> None:
        if len(content) > INLINE_SCAN_BYTES_MAX:
            note(await asyncio.to_thread(blob_ids, content))
        else:
            note(blob_ids(content))

    note(named)
    async for content in _contents_of_runs(store, blobs):
        await scan(content)
    async for item in range_all(store, keys.FLOWS):
        await scan(item.value)

    while pending:
        try:
            await scan((await blobs.get(pending.pop()))[0])
        except NotFound:
            continue
    return referenced


async def _contents_of_runs(store: Store, blobs: BlobStore) -> AsyncIterator[bytes]:
    """Yield all contents that may refer to a shared blob on behalf of a run."""
    ended: dict[str, bool] = {}
    async for item in range_all(store, keys.STATUS):
        run_id = keys.parse_status(item.key)[0]
        terminal = state_pb2.PartitionStatus.FromString(item.value).status in TERMINAL
        ended[run_id] = ended.get(run_id, True) and terminal

    async for item in range_all(store, keys.RUNS):
        yield item.value

        # Of an ended run only the request counts; of a live one, each of its blobs, its journal and its inbox.
        run_id = keys.tail(keys.RUNS, item.key)
        live = not ended.get(run_id, False)
        for blob in await blobs.dates(run_id) if live else _inputs(state_pb2.RunRecord.FromString(item.value)):
            try:
                yield (await blobs.get(blob, scope=run_id))[0]
            except NotFound:  # the run is being removed
                continue

        if live:
            for prefix in (keys.journal_of_run(run_id), keys.inbox_of_run(run_id)):
                async for written in range_all(store, prefix):
                    yield written.value


def _inputs(record: state_pb2.RunRecord) -> list[str]:
    """Return the ids of the blobs that hold a run's inputs."""
    return [*record.partition_inputs, *(payload.blob for payload in record.inputs if payload.blob)]


__all__ = ["blob_ids", "sweep_shared_blobs"]
