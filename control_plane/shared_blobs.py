"""Removing shared blobs whose time is over: what user code and clients have put, which belongs to no run.

- A blob's time begins anew with every put of it.
- None goes whose id stands in what was asked of a run that is kept (inputs, variables, overrides), in the journal, the
  inbox or the blobs of one that has not ended, or in a stored flow; nor what such a blob names in its turn.
- An id is 64 hexadecimal digits wherever they stand: one that only looks like an id keeps a blob, never loses one.

A run does not need the blobs that it was submitted with: their contents were copied when it was admitted. What is read
here is read only when there is something to remove.
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
    from collections.abc import AsyncIterator

    from stepflow.store import Compare, Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

REMOVED_MAX = 10_000
"""Of one sweep; the next one goes on."""

_IDS = re.compile(rb"(?<![0-9a-fA-F])[0-9a-fA-F]{64}(?![0-9a-fA-F])")


async def sweep_shared_blobs(store: Store, blobs: BlobStore, before_s: float, fence: Compare) -> list[str]:
    """Remove the shared blobs that were last put before this instant and that nothing refers to; return their ids.

    `fence`: that we lead. Raises: StepflowError.
    """
    dates = await blobs.dates()
    old = sorted((put_at_s, identity) for identity, put_at_s in dates.items() if put_at_s < before_s)
    if not old:
        return []
    kept = await _named(store, blobs, set(dates))
    removed: list[str] = []
    for _, identity in old:
        if identity in kept or len(removed) == REMOVED_MAX:
            continue
        if not len(removed) % 100 and not (await store.txn(Txn((fence,), ()))).succeeded:
            break  # another control plane leads by now
        if await blobs.delete_shared(identity, before_s):
            removed.append(identity)
    if removed:
        log.info("shared blobs removed", count=len(removed))
    return removed


async def _named(store: Store, blobs: BlobStore, shared: set[str]) -> set[str]:
    """Return which of the shared blobs something refers to, by way of each other too."""
    named: set[str] = set()
    pending: list[str] = []

    async def look(content: bytes) -> None:
        found = await asyncio.to_thread(_IDS.findall, content) if len(content) > 64 * 1024 else _IDS.findall(content)
        for text in found:
            identity = text.decode().lower()
            if identity in shared and identity not in named:
                named.add(identity)
                pending.append(identity)

    async for content in _what_runs_hold(store, blobs):
        await look(content)
    async for item in range_all(store, keys.FLOWS):
        await look(item.value)
    while pending:
        try:
            await look((await blobs.get(pending.pop()))[0])
        except NotFound:
            continue
    return named


async def _what_runs_hold(store: Store, blobs: BlobStore) -> AsyncIterator[bytes]:
    ended: dict[str, bool] = {}
    async for item in range_all(store, keys.STATUS):
        run_id = keys.parse_status(item.key)[0]
        terminal = state_pb2.PartitionStatus.FromString(item.value).status in TERMINAL
        ended[run_id] = ended.get(run_id, True) and terminal
    async for item in range_all(store, keys.RUNS):
        yield item.value
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
    """Return the blobs that hold what a run was asked to work on."""
    return [*record.partition_inputs, *(payload.blob for payload in record.inputs if payload.blob)]
