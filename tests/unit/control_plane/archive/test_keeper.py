"""The leader's archive does each kind of work in turn, whatever the others do."""

from __future__ import annotations

import asyncio
from typing import Any

from control_plane.archive import keeper as module
from control_plane.archive.due_runs import DueRun, DueRuns
from control_plane.archive.keeper import ArchiveKeeper
from control_plane.archive.led_segments import LedSegments
from control_plane.archive.policy import RetentionPolicy
from control_plane.formats import Formats
from control_plane.store_meter import StoreMeter
from stepflow.errors import FailedPrecondition
from stepflow.store import created_at, keys, put
from stepflow.store.blobs import BlobStore
from stepflow.store.sqlite.store import SqliteStore


class EndlessPacker:
    """Finds more to pack each time."""

    def __init__(self) -> None:
        self.count = 0

    async def pack(self, *_: Any) -> float:
        self.count += 1
        await asyncio.sleep(0)
        return 1.0


def test_neither_endless_packing_nor_a_failing_upkeep_keeps_the_other_work_waiting() -> None:
    async def work() -> None:
        store, blobs = await SqliteStore.open(":memory:"), BlobStore.open("memory://")
        fence = created_at(keys.leader(), await put(store, keys.leader(), b""))
        due_runs, formats = DueRuns(), Formats(store)
        policy = RetentionPolicy(linger_s=0.0)
        keeper = ArchiveKeeper(store, blobs, formats, due_runs, policy, lambda: fence, StoreMeter(store))
        await formats.announce(fence, 0)
        segments = LedSegments(store, blobs, fence)
        await segments.load()
        term: Any = module._Term(keeper, fence, segments)
        due_runs.begin()
        await term.list_runs()
        due_runs.put_back([DueRun("r", 1, 10, listed=False)])
        term._packer = packer = EndlessPacker()

        done: list[str] = []

        async def full(_: int) -> bool:
            done.append("upkeep")
            raise FailedPrecondition("BLOB_STORE_FULL", "no space is left")

        async def orphans() -> list[str]:
            done.append("orphans")
            return []

        term._upkeep.step, term._upkeep.delete_orphans = full, orphans
        async with asyncio.timeout(20):
            await term.tick()
        assert done == ["upkeep", "orphans"]
        assert packer.count == module.PACKS_PER_TICK
        await store.close()

    asyncio.run(work())


def test_work_that_was_closed_is_not_told_as_a_task_that_ended() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        blobs = BlobStore.open("memory://")
        keeper = ArchiveKeeper(
            store, blobs, Formats(store), DueRuns(), RetentionPolicy(), lambda: None, StoreMeter(store)
        )
        keeper.start()
        assert keeper.ended() == []
        await keeper.close()
        assert keeper.ended() == [], "a check of liveness during an orderly stop would fail"
        await keeper.close()
        await store.close()

    asyncio.run(work())
