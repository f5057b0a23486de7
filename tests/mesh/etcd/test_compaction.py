"""The leader's compactions of a real etcd: watches at a high rate, lists, a former leader."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
from support import wait_until_async
from support.etcd import FAST, EtcdServer, running_etcd

from control_plane.compaction import Compaction
from stepflow.store import Put, StoreCompacted, Txn, created_at, delete, keys, put
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from stepflow.store import Store, StoreWatch

SCENARIO_TIMEOUT_S = 60.0

PUTS_MIN = 20_000
COMPACTIONS_MIN = 4
"""The load ends when both are reached."""

WRITERS = 24
PUTS_PER_TXN = 40


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd", *FAST, "--unsafe-no-fsync") as server:
        yield server


async def collect(watch: StoreWatch, into: list[tuple[str, bytes]]) -> None:
    async for batch in watch:
        into.extend((event.kv.key, event.kv.value) for event in batch.events)


def test_watches_at_a_high_rate_lose_and_repeat_nothing_while_the_store_is_compacted(server: EtcdServer) -> None:
    async def scenario() -> None:
        config = EtcdConfig.parse(server.endpoint)
        store = await EtcdStore.open(config)
        watchers = [await EtcdStore.open(config) for _ in range(3)]
        fence = created_at(keys.leader(), await put(store, keys.leader(), b"me"))
        seen: list[list[tuple[str, bytes]]] = [[] for _ in watchers]
        watches = [watcher.watch(keys.STATUS) for watcher in watchers]
        tasks = [asyncio.create_task(collect(w, into)) for w, into in zip(watches, seen, strict=True)]
        written: list[tuple[str, bytes]] = []
        compacted: list[int] = []

        def enough() -> bool:
            return len(written) >= PUTS_MIN and len(compacted) >= COMPACTIONS_MIN

        async def write(number: int) -> None:
            count = 0
            while not enough():
                puts = [Put(keys.status(f"run-{number}-{n}", 0), b"%d" % count) for n in range(PUTS_PER_TXN)]
                await store.txn(Txn((), tuple(puts)))
                written.extend((op.key, op.value) for op in puts)
                count += 1

        compaction = Compaction(store, interval_s=1.0, kept_s=1.0)

        async def compact() -> None:
            while not enough():
                revision = await compaction.tick(fence, time.monotonic())
                compacted.extend([revision] if revision else [])
                await asyncio.sleep(0.25)  # the leader's own pace, faster

        await asyncio.gather(compact(), *(write(number) for number in range(WRITERS)))
        await wait_until_async(lambda: all(len(each) >= len(written) for each in seen), "all is seen", 30)

        with pytest.raises(StoreCompacted):
            await store.range("", revision=compacted[-1] - 1)
        for each in seen:
            assert sorted(each) == sorted(written)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for opened in (store, *watchers):
            await opened.close()

    asyncio.run(asyncio.wait_for(scenario(), SCENARIO_TIMEOUT_S))


def test_a_compaction_keeps_the_history_of_the_last_seconds_and_comes_sooner_when_the_store_grows(
    server: EtcdServer,
) -> None:
    async def scenario() -> None:
        store = await EtcdStore.open(EtcdConfig.parse(server.endpoint))
        fence = created_at(keys.leader(), await put(store, keys.leader(), b"me"))
        compaction = Compaction(store, interval_s=5, kept_s=10, growth_bytes=1_000)

        revisions = {}
        for second in range(100, 111):
            revisions[second] = await put(store, "k", b"%d" % second)
            assert await compaction.tick(fence, second, 10_000) == (revisions[100] if second == 110 else 0)
        for second in (111, 112):
            revisions[second] = await put(store, "k", b"")
            assert await compaction.tick(fence, second, 10_500) == 0
        assert await compaction.tick(fence, 113, 11_000) == revisions[103]  # it has grown
        assert await compaction.tick(fence, 114, 11_000) == 0
        assert await compaction.tick(fence, 118, 11_000) == revisions[108]  # its time has come
        assert await compaction.tick(fence, 130, 9_000) == revisions[112] + 0
        assert await compaction.tick(fence, 150, 9_000) == 0  # nothing was written since
        await store.close()

    asyncio.run(asyncio.wait_for(scenario(), SCENARIO_TIMEOUT_S))


def test_a_former_leader_compacts_nothing(server: EtcdServer) -> None:
    async def scenario() -> None:
        store = await EtcdStore.open(EtcdConfig.parse(server.endpoint))
        fence = created_at(keys.leader(), await put(store, keys.leader(), b"me"))
        compaction = Compaction(store, interval_s=0, kept_s=1)
        await put(store, "k", b"1")
        assert await compaction.tick(fence, 1) == 0
        await delete(store, keys.leader())
        revision = await put(store, keys.leader(), b"other")
        assert await compaction.tick(fence, 10) == 0
        await compaction.tick(created_at(keys.leader(), revision), 11)
        first: Store = store
        assert [kv.value for kv in (await first.range("k", revision=3)).items] == [b"1"]
        await store.close()

    asyncio.run(asyncio.wait_for(scenario(), SCENARIO_TIMEOUT_S))
