"""The room of a real etcd: the leader's key, the bound of inline values, what `cluster status` shows."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async
from support.etcd import FAST, EtcdServer, running_etcd

from control_plane import room as room_module
from control_plane.activity import Activity, RateCounter
from control_plane.archive.counters import ArchiveCounters
from control_plane.room import SHORT_INLINE_BYTES, Room
from control_plane.store_meter import StoreMeter, StoreSize
from stepflow.codec import INLINE_BYTES_MAX
from stepflow.mesh.v1 import pressure_pb2
from stepflow.store import Compare, Delete, StoreCompacted, Txn, created_at, delete, keys, put
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.follow import follow
from stepflow.store.inline_bound import INLINE_BYTES_MIN, InlineBound

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

QUOTA = 1_000_000


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), *FAST, "--unsafe-no-fsync") as server:
        yield server


class LatePacking(ArchiveCounters):
    """Counters of a packer that is late."""

    def lag_s(self) -> float:
        return 1.5


class World:
    """A room over a real etcd whose fill the test sets."""

    def __init__(self, store: EtcdStore, fence: Compare) -> None:
        self.fence: Compare | None = fence
        self.packing = LatePacking(segments=2, segment_runs=7, segment_bytes=70_000)
        self.now_s = 1_000.0
        self.activity = Activity(lambda: self.now_s)
        self.room = Room(store, StoreMeter(store), self.activity, lambda: self.fence, QUOTA, lambda: self.packing)
        self.share = 0.0
        self.room.meter.read = self.read  # type: ignore[method-assign]  # the size of etcd is not the test's to choose

    async def read(self) -> StoreSize:
        return StoreSize(int(self.share * QUOTA), int(self.share * QUOTA))

    async def tick(self, share: float, seconds: float = 1.0) -> None:
        self.share = share
        self.now_s += seconds
        await self.room.tick(self.now_s)


@asynccontextmanager
async def world(server: EtcdServer, prefix: str) -> AsyncIterator[tuple[World, EtcdStore]]:
    store = await EtcdStore.open(EtcdConfig.parse(server.endpoint, prefix=prefix))
    try:
        yield World(store, created_at(keys.leader(), await put(store, keys.leader(), b"me"))), store
    finally:
        await store.close()


async def told(store: EtcdStore) -> pressure_pb2.Pressure:
    found = await store.get(keys.pressure())
    return pressure_pb2.Pressure() if found is None else pressure_pb2.Pressure.FromString(found.value)


def test_values_go_to_the_blob_store_earlier_while_room_is_short_with_a_hysteresis(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with world(server, "bound/") as (made, store):
            bounds = []
            for share in (0.1, 0.22, 0.26, 0.24, 0.21, 0.19, 0.22, 0.3):
                await made.tick(share)
                bounds.append((await told(store)).inline_bytes_max or INLINE_BYTES_MAX)
            large, small = INLINE_BYTES_MAX, SHORT_INLINE_BYTES
            assert bounds == [large, large, small, small, small, large, large, small]

            # A new leader begins with what the key says.
            other = World(store, made.fence or created_at("", 0))
            await other.tick(0.22)
            assert (await told(store)).inline_bytes_max == small

    asyncio.run(scenario())


def test_a_former_leader_and_a_follower_tell_nothing(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with world(server, "former/") as (made, store):
            await delete(store, keys.leader())
            await made.tick(0.5)
            made.fence = None
            await made.tick(0.5)
            assert await store.get(keys.pressure()) is None

    asyncio.run(scenario())


def test_an_idle_mesh_writes_nothing_and_a_busy_one_every_ten_seconds(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with world(server, "idle/") as (made, store):
            await made.tick(0.1, 60)
            revision = await store.revision()
            for _ in range(30):
                await made.tick(0.1)
            assert await store.revision() == revision

            writes = 0
            for _ in range(30):
                made.packing.segment_runs += 10
                made.packing.packed_bytes += 1_000
                await made.tick(0.1)
                writes += await store.revision() > revision
                revision = await store.revision()
            assert writes == 30 / room_module.TOLD_S

    asyncio.run(scenario())


def test_the_leader_compacts(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with world(server, "compacts/") as (made, store):
            first = await put(store, "k", b"1")
            for _ in range(20):
                await made.tick(0.1)
                await put(store, "k", b"2")
            with pytest.raises(StoreCompacted):
                await store.range("k", revision=first)

    asyncio.run(scenario())


def test_services_follow_the_bound_within_its_limits_and_without_the_key_nothing_changes(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with world(server, "follows/") as (_, store):
            bound = InlineBound()
            following = asyncio.create_task(bound.follow(store))
            assert bound.bytes_max == INLINE_BYTES_MAX
            for value, expected in (
                (pressure_pb2.Pressure(inline_bytes_max=4_096).SerializeToString(), 4_096),
                (pressure_pb2.Pressure(inline_bytes_max=1).SerializeToString(), INLINE_BYTES_MIN),
                (b"\xff\xff", INLINE_BYTES_MAX),
                (pressure_pb2.Pressure(inline_bytes_max=5_000).SerializeToString(), 5_000),
                (pressure_pb2.Pressure(inline_bytes_max=10**9).SerializeToString(), INLINE_BYTES_MAX),
                (pressure_pb2.Pressure(inline_bytes_max=6_000).SerializeToString(), 6_000),
            ):
                await put(store, keys.pressure(), value)
                await wait_until_async(lambda wanted=expected: bound.bytes_max == wanted, "the bound is followed", 10)  # type: ignore[misc]  # a default
            await delete(store, keys.pressure())
            await wait_until_async(lambda: bound.bytes_max == INLINE_BYTES_MAX, "the bound is the largest again", 10)
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(scenario())


def test_runs_that_come_and_leave_are_counted_once_each(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with world(server, "counts/") as (made, store):
            activity = made.activity
            ready = asyncio.Event()
            following = asyncio.create_task(
                follow(store, keys.STATUS, listed=lambda _: ready.set(), changed=activity.note_statuses)
            )
            await ready.wait()
            for number in range(12):
                await put(store, keys.status(f"run{number}", 0), b"placed")
                await put(store, keys.status(f"run{number}", 0), b"ended")
                await put(store, keys.status(f"run{number}", 1), b"another partition")
            deletes = [Delete(keys.status(f"run{number}", p)) for number in range(6) for p in range(2)]
            await store.txn(Txn((), tuple(deletes)))
            await put(store, keys.status("last", 0), b"")
            await wait_until_async(lambda: activity.runs_in.total == 13, "all is counted", 10)
            assert activity.runs_out.total == 6

            made.packing.packed_bytes, made.packing.trouble = 60_000, "no space left"
            await made.tick(0.3, 30)
            await made.tick(0.5, 30)
            info: Any = await made.room.report()
            assert info.runs_in_per_s == pytest.approx(13 / 60, rel=0.1)
            assert info.runs_out_per_s == pytest.approx(6 / 60, rel=0.1)
            assert info.bytes_out_per_s == pytest.approx(1_000, rel=0.1)
            assert info.bytes_in_per_s == pytest.approx(0.2 * QUOTA / 30 + 1_000, rel=0.1)
            assert (info.packing_lag_ms, info.segments, info.packed_runs, info.packed_bytes) == (1_500, 2, 7, 70_000)
            assert info.runs_per_s_max > 0
            assert [text.partition(":")[0] for text in info.slowed] == [
                "values above 4,096 bytes go to the blob store, to save room",
                "ended runs stay in the store for now",
                f"new runs are admitted at {info.runs_per_s_max:,.3g} a second",
            ]
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    asyncio.run(scenario())


def test_a_rate_is_a_mean_over_at_most_a_minute() -> None:
    now_s = [100.0]
    counter = RateCounter(lambda: now_s[0])
    counter.add(5)
    assert counter.per_s() == 5
    for _ in range(120):
        now_s[0] += 1
        counter.add(10)
    assert counter.per_s() == pytest.approx(10, rel=0.05)
    now_s[0] += 61
    assert counter.per_s() == 0
    counter.set_total(2_000)
    counter.set_total(3)  # the other counter began again
    assert counter.total == 3
    assert counter.per_s() == pytest.approx((2_000 - 1_205) / 60)
