"""The time in which no process drives a local run is counted, and no other time."""

from __future__ import annotations

import asyncio
import os
import time
from typing import TYPE_CHECKING

from support import wait_until_async

from control_plane.views import run_view
from stepflow.cli.display.texts import run_took
from stepflow.embedded import pauses
from stepflow.embedded.pauses import count_pause, last_alive_ms, signs_of_life
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Put, Txn, keys
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    import pytest

RUN_ID = "018f0000-0000-7000-8000-000000000001"
HOUR_MS = 3_600_000
SLACK_MS = 60_000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def in_store(work: Coroutine[object, object, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


async def submit(store: SqliteStore, created_at_ms: int) -> None:
    record = state_pb2.RunRecord(created_at_ms=created_at_ms, items_per_partition=64, items_total=1)
    await store.txn(Txn((), (Put(keys.run(RUN_ID), record.SerializeToString()),)))


def is_about(found_ms: int, expected_ms: int) -> bool:
    return expected_ms <= found_ms < expected_ms + SLACK_MS


def test_pauses_of_a_run_add_up() -> None:
    async def scene() -> None:
        store = await SqliteStore.open(":memory:")
        try:
            assert await count_pause(store, RUN_ID, 0) == 0, "it begins"
            await submit(store, now_ms() - 9 * HOUR_MS)
            assert is_about(await count_pause(store, RUN_ID, now_ms() - HOUR_MS), HOUR_MS)
            assert is_about(await count_pause(store, RUN_ID, now_ms() - 2 * HOUR_MS), 3 * HOUR_MS)
            again = await count_pause(store, RUN_ID, now_ms() + HOUR_MS)
            assert is_about(again, 3 * HOUR_MS), "the clock was set back"
        finally:
            await store.close()

    in_store(scene())


def test_a_pause_does_not_begin_before_the_run() -> None:
    async def scene() -> None:
        store = await SqliteStore.open(":memory:")
        try:
            await count_pause(store, RUN_ID, 0)
            assert await count_pause(store, RUN_ID, now_ms() - HOUR_MS) == 0, "nothing was submitted"
            await submit(store, now_ms())
            assert await count_pause(store, RUN_ID, now_ms() - HOUR_MS) < SLACK_MS
        finally:
            await store.close()

    in_store(scene())


def test_a_run_of_a_version_without_signs_of_life_has_no_pause() -> None:
    """Its file was last touched when its process began: the work since then is no pause."""

    async def scene() -> None:
        store = await SqliteStore.open(":memory:")
        try:
            await submit(store, now_ms() - 2 * HOUR_MS)
            assert await count_pause(store, RUN_ID, now_ms() - HOUR_MS) == 0
            assert is_about(await count_pause(store, RUN_ID, now_ms() - HOUR_MS), HOUR_MS), "it leaves signs"
        finally:
            await store.close()

    in_store(scene())


def test_an_owner_leaves_signs_of_life_until_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pauses, "BEAT_S", 0.001)
    database = tmp_path / "r.db"
    assert last_alive_ms(database) == 0

    def age() -> None:
        os.utime(f"{database}.lock", (1, 1))
        assert last_alive_ms(database) == 1_000

    async def scene() -> None:
        store = await SqliteStore.open(database)
        async with signs_of_life(database):
            for _ in range(2):
                age()
                await wait_until_async(lambda: last_alive_ms(database) > 1_000, "a sign of life")
            monkeypatch.setattr(pauses, "BEAT_S", 3600)
        await store.close()

    in_store(scene())
    age()


def test_an_orderly_end_is_a_sign_of_life(tmp_path: Path) -> None:
    database = tmp_path / "r.db"

    async def scene() -> None:
        store = await SqliteStore.open(database)
        async with signs_of_life(database):
            os.utime(f"{database}.lock", (1, 1))
        assert last_alive_ms(database) > 1_000
        await store.close()

    in_store(scene())


def test_a_run_took_its_time_without_the_pauses() -> None:
    """The partition that ends last has been through all of them."""
    record = state_pb2.RunRecord(created_at_ms=1_000, items_per_partition=1, items_total=2)
    partitions = [
        state_pb2.PartitionStatus(status=pb.RUN_STATUS_COMPLETED, completed_at_ms=at_ms, paused_ms=paused_ms)
        for at_ms, paused_ms in ((6_000, 0), (HOUR_MS + 8_000, HOUR_MS))
    ]
    ended = run_view(RUN_ID, record, partitions)
    assert (ended.paused_ms, run_took(ended)) == (HOUR_MS, "7.0 s")
    assert run_view(RUN_ID, record, partitions[:1]).paused_ms == 0, "not ended"
