"""The life of the archive's work in a replica."""

from __future__ import annotations

import asyncio

from control_plane.archive.due_runs import DueRuns
from control_plane.archive.keeper import ArchiveKeeper
from control_plane.archive.policy import RetentionPolicy
from control_plane.formats import Formats
from control_plane.store_meter import StoreMeter
from stepflow.store.blobs import BlobStore
from stepflow.store.sqlite.store import SqliteStore


def test_work_that_was_closed_is_not_told_as_a_task_that_ended() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        blobs, meter = BlobStore.open("memory://"), StoreMeter(store)
        keeper = ArchiveKeeper(store, blobs, Formats(store), DueRuns(), RetentionPolicy(), lambda: None, meter)
        keeper.start()
        assert keeper.ended() == []
        await keeper.close()
        assert keeper.ended() == [], "a check of liveness during an orderly stop would fail"
        await keeper.close()
        await store.close()

    asyncio.run(work())
