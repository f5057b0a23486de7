"""Packed runs at the moments between: while they are packed, rewritten and deleted, and with damaged segments."""

from __future__ import annotations

import asyncio
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import wait_until_async
from support.packing import (
    CREATED_AT_MS,
    answers,
    keys_of_run,
    listings,
    manifest_of,
    pack,
    publish,
    run_world,
    store_run,
    write_segment,
)
from support.parts import World, echo, gated

from control_plane.archive import reader
from control_plane.archive.reader import Archive
from control_plane.archive.run_store import RunStore
from control_plane.control_plane import ControlPlane
from control_plane.events import Events
from control_plane.history import RunDone
from control_plane.run_list import RunFilter
from stepflow.errors import AlreadyExists, DataLoss, NotFound, Unavailable
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Delete, Get, Range, Txn, delete, keys, put, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.etcd import EtcdServer

    from stepflow.store import Store

ALL = RunFilter()
CHAIN = {
    "steps": [
        {"id": "a", "component": "/c/add", "input": {"a": {"$input": "n"}, "b": 1}},
        {"id": "b", "component": "/c/big", "input": {"$step": "a"}},
    ],
    "output": {"$step": "b", "path": "n"},
}


class Runs:
    """A store with ended runs, and a control plane."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.blobs = BlobStore.open("memory://")
        self.control = ControlPlane(store, self.blobs)
        self.count = 0

    async def add(self, count: int) -> list[str]:
        """Put ended runs into the store; return their ids, the oldest first."""
        ids = []
        for _ in range(count):
            self.count += 1
            world = run_world(self.count, CHAIN, inputs=[{"n": self.count}])
            world.run()
            ids.append(await store_run(self.store, self.blobs, world, [1, 1, 1], CREATED_AT_MS + self.count))
        return ids

    async def listed(self, control: ControlPlane | None = None) -> list[str]:
        views, token = await (control or self.control).run_list.page(ALL, 1000, "")
        assert not token
        return [view.run_id for view in views]


@asynccontextmanager
async def opened(etcd: EtcdServer | None) -> AsyncIterator[Runs]:
    store: Any
    if etcd is None:
        store = await SqliteStore.open(":memory:")
    else:
        store = await EtcdStore.open(EtcdConfig.parse(etcd.endpoint, prefix=f"{uuid4().hex[:16]}/"))
    runs = Runs(store)
    try:
        await runs.control.start(lead=False)
        yield runs
    finally:
        await runs.control.close()
        await store.close()


@pytest.fixture(params=["sqlite", "etcd"])
def runs(request: pytest.FixtureRequest) -> Callable[[Callable[[Runs], Awaitable[None]]], None]:
    """Give a function that runs a scenario over an empty store."""
    etcd = request.getfixturevalue("etcd") if request.param == "etcd" else None

    def go(scenario: Callable[[Runs], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(60), opened(etcd) as world:
                await scenario(world)

        asyncio.run(main())

    return go


async def everything(control: ControlPlane, blobs: BlobStore, ids: list[str]) -> tuple[Any, ...]:
    return [await answers(control, blobs, run_id) for run_id in ids], await listings(control)


def test_no_moment_of_packing_or_rewriting_is_without_a_run(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(6)
        expected = {run_id: await answers(world.control, world.blobs, run_id) for run_id in ids}
        lists = await listings(world.control)
        reads = 0
        ended = False

        async def read(control: ControlPlane, run_id: str) -> None:
            nonlocal reads
            while not ended:
                assert await control.get_run(run_id) == expected[run_id]["get"]
                assert [await control.listing.items(run_id, 1000, "")] == expected[run_id]["items by 1000"]
                steps = await control.listing.steps(run_id, 1000, "", with_results=True)
                assert [steps] == expected[run_id]["steps by 1000, True"]
                assert await listings(control) == lists
                reads += 1

        # 1. Readers of two control planes: one follows the segments, one finds out by its reads.
        late = ControlPlane(world.store, world.blobs)
        readers = [
            asyncio.create_task(read(control, run_id)) for control in (world.control, late) for run_id in ids[:3]
        ]

        # 2. Each run is packed alone; then the segments are merged, two at a time.
        packed: dict[str, Any] = {}
        for number, run_id in enumerate(ids):
            packed |= {f"{number}-a": await pack(world.store, world.blobs, f"{number}-a", [run_id])}
        while len(packed) > 1:
            (first, some), (second, more) = list(packed.items())[:2]
            del packed[first], packed[second]
            merged = f"{second}-m"
            packed[merged] = some | more
            await write_segment(world.store, world.blobs, merged, packed[merged])
            await publish(world.store, {first: None, second: None})
            for name in (first, second):
                await world.blobs.objects.delete(f"segments/{name}")

        # 3. No reader has seen anything else.
        before = reads
        await wait_until_async(lambda: reads > before + 6 or any(task.done() for task in readers), "reads", 30)
        ended = True
        await asyncio.gather(*readers)

    runs(scenario)


def test_waiters_and_followers_go_on_while_their_run_is_packed() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), World.open() as world:
            # 1. A batch of three partitions, followed and waited for.
            run_id = await world.submit(
                echo("a", {"$input": "$"}), gated("b", {"$step": "a"}), inputs=list(range(130)), concurrency_max=130
            )
            events = Events(world.control, world.control.run_store, world.blobs)
            waiting = asyncio.create_task(world.control.wait(run_id, timeout_s=30))

            async def follow() -> list[Any]:
                async with aclosing(events.follow(run_id, {}, with_results=True)) as batches:
                    return [batch async for batch in batches if batch.position is not None]

            following = asyncio.create_task(follow())
            await wait_until_async(lambda: world.work.in_flight_max >= 1, "calls are in flight")

            # 2. It ends, and is packed at once.
            world.work.release_all()
            view = await world.ended(run_id)
            expected = await answers(world.control, world.blobs, run_id)
            await pack(world.store, world.blobs, "1-a", [run_id])
            events._feeds[run_id].mark_doubtful({0, 1, 2}) if run_id in events._feeds else None

            # 3. The follower and the waiter see the same as without packing.
            assert await waiting == view
            assert sorted(await following, key=lambda batch: batch.position) == expected["events"]["all, True"][:-1]
            assert await answers(world.control, world.blobs, run_id) == expected
            assert await world.keys(keys.STATUS) == []
            await events.close()

    asyncio.run(main())


def test_a_follower_that_fell_behind_finds_the_rest_in_the_segment() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), World.open() as world:
            run_id = await world.submit(echo("a", {"$input": "$"}), inputs=list(range(130)))
            await world.ended(run_id)
            events = Events(world.control, world.control.run_store, world.blobs)
            expected = (await answers(world.control, world.blobs, run_id))["events"]["all, True"]
            found = []
            async with aclosing(events.follow(run_id, {}, with_results=True)) as batches:
                async for batch in batches:
                    if not found:
                        await pack(world.store, world.blobs, "1-a", [run_id])
                        events._feeds[run_id].mark_doubtful({0, 1, 2})
                    found.append(batch)
            assert isinstance(found[-1].events[-1], RunDone)
            assert sorted(found[:-1], key=lambda batch: batch.position) == expected[:-1]
            await events.close()

    asyncio.run(main())


def test_runs_of_every_end_answer_alike(runs: Any) -> None:
    """Of real executors: failed, cancelled while running, cancelled before it was placed, and never read."""

    async def scenario(world: Runs) -> None:
        async with World.open(store=world.store) as live:
            world.blobs = live.blobs
            ids = [await live.submit(echo("a", n)) for n in range(3)]
            ids.append(await live.submit({"id": "f", "component": "/kit/fail"}))
            ids.append(await live.submit(gated("g"), inputs=[1, 2, 3]))
            await wait_until_async(lambda: live.work.in_flight_max >= 1, "a call is in flight")
            await live.control.cancel(ids[-1])
            ids.append(await live.submit(echo("w", 1), run_id=str(uuid4())))
            for run_id in ids:
                await live.ended(run_id)
            for executor in list(live.executors):
                live.executors.remove(executor)
                await executor.close()
            ids.append(await live.submit(echo("n"), inputs=list(range(100))))
            await live.control.cancel(ids[-1])

            # A partition that was ended unread.
            ids.append(await live.submit(echo("u")))
            await live.control.cancel(ids[-1])
            status = await world.store.get(keys.status(ids[-1], 0))
            assert status is not None
            unread = state_pb2.PartitionStatus.FromString(status.value)
            unread.journal_unread = True
            await put(world.store, status.key, unread.SerializeToString())
            await put(world.store, keys.BY_AGE_COMPLETE, b"")

            for run_id in ids:
                view = await live.control.get_run(run_id)
                assert view.terminal, view
            expected = await everything(live.control, world.blobs, ids)
            await pack(world.store, world.blobs, "1-a", ids)
            assert await everything(live.control, world.blobs, ids) == expected

    runs(scenario)


def test_a_deleted_run_is_gone_for_all_readers_and_its_id_is_free(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(5)
        gone, kept = ids[2], [*ids[:2], *ids[3:]]
        await pack(world.store, world.blobs, "1-a", ids)

        async def check() -> None:
            late = ControlPlane(world.store, world.blobs)
            for control in (world.control, late):
                assert await world.listed(control) == kept[::-1]
                views, token = await control.run_list.page(ALL, 2, "")
                assert ([view.run_id for view in views], bool(token)) == (kept[:1:-1], True)
                views, token = await control.run_list.page(ALL, 2, token)
                assert ([view.run_id for view in views], bool(token)) == (kept[1::-1], False)
                with pytest.raises(NotFound):
                    await control.get_run(gone)
                with pytest.raises(NotFound):
                    await control.items(gone)

        # 1. Its tombstone hides it.
        assert await world.control.run_store.is_packed(gone)
        await put(world.store, keys.deleted(gone), b"")
        await check()
        assert not await world.control.run_store.is_packed(gone)

        # 2. The manifest hides it.
        manifest = await manifest_of(world.store, "1-a")
        manifest.removed.append(sorted(ids).index(gone))
        await publish(world.store, {"1-a": manifest})
        await check()
        await delete(world.store, keys.deleted(gone))
        await check()

        # 3. A run of the same id is another run.
        request = run_world(3, CHAIN, inputs=[{"n": 1000}])
        request.run()
        assert await store_run(world.store, world.blobs, request, (), CREATED_AT_MS + 900) == gone
        assert await world.listed() == [gone, *kept[::-1]]
        assert (await world.control.get_run(gone)).created_at_ms == CREATED_AT_MS + 900

    runs(scenario)


def test_an_expiring_segment_has_no_runs(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(4)
        await pack(world.store, world.blobs, "1-a", ids[:2])
        await pack(world.store, world.blobs, "2-a", ids[2:])
        manifest = await manifest_of(world.store, "1-a")
        manifest.expiring = True
        await publish(world.store, {"1-a": manifest})
        assert await world.listed() == ids[:1:-1]
        with pytest.raises(NotFound):
            await world.control.get_run(ids[0])
        assert (await world.control.get_run(ids[2])).terminal

    runs(scenario)


def test_an_id_in_a_segment_is_taken(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        # The second control plane has searched an older set of segments.
        async with World.open(store=world.store) as live:
            world.blobs = live.blobs
            late = ControlPlane(world.store, live.blobs)
            request = live.request(echo("a", 1), run_id=str(uuid4()))
            assert await live.control.submit(request) == request.run_id
            await live.ended(str(request.run_id))
            other = live.request(echo("a", 2), run_id=request.run_id)
            assert await late.submit(request) == request.run_id
            await pack(world.store, live.blobs, "1-a", [str(request.run_id)])
            for control in (late, live.control):
                assert await control.submit(request) == request.run_id
                with pytest.raises(AlreadyExists) as taken:
                    await control.submit(other)
                assert taken.value.reason == "RUN_EXISTS"
            assert await world.store.get(keys.run(str(request.run_id))) is None

            # Deleted, the id is free, before and after the manifest knows.
            await put(world.store, keys.deleted(str(request.run_id)), b"")
            assert await late.submit(other) == request.run_id
            await live.ended(str(request.run_id))
            assert await live.results(str(request.run_id)) == [{"outcome": "success", "result": 2}]
            await late.close()

    runs(scenario)


def test_reads_of_a_packed_run_are_those_of_the_store(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(3)
        run_id = ids[1]
        every = [item.key for item in await keys_of_run(world.store, run_id)]
        prefixes = [keys.journal_of_run(run_id), keys.journal_of_partition(run_id, 0), keys.status_of_run(run_id)]
        prefixes += [keys.inbox_of_run(run_id), keys.results_of_run(run_id), keys.run(run_id)]

        async def read() -> list[Any]:
            found: list[Any] = [await store.get(key) for key in [*every, keys.status(run_id, 1)]]
            for prefix in prefixes:
                found.append([item async for item in range_all(store, prefix)])
                for after in ["", *every]:
                    for limit in (1, 2, 1000):
                        page = await store.range(prefix, after=after, limit=limit)
                        found.append((page.items, page.more))
                        (page,) = (await store.txn(Txn((), (Range(prefix, limit, after, every[-1]),)))).responses
                        found.append((page.items, page.more))
            both = Txn((), (Get(every[0]), Range(prefixes[0], 2), Get(keys.status(run_id, 9))))
            one, page, none = (await store.txn(both)).responses
            assert none is None
            return [*found, one, page.items, page.more]

        store: Any = RunStore(world.store, Archive(world.store, world.blobs))
        expected = await read()
        assert expected[: len(every)] == [await world.store.get(key) for key in every]
        await pack(world.store, world.blobs, "1-a", ids)
        assert await read() == expected

        # Of a large body too, whose values are read one by one.
        monkeypatch.setattr(reader, "SMALL_BODY_BYTES", 0)
        store = RunStore(world.store, Archive(world.store, world.blobs))
        assert await read() == expected

    runs(scenario)


def test_pages_of_a_large_packed_run_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "PAGE_BYTES_MAX", 100)

    async def main() -> None:
        async with asyncio.timeout(60), opened(None) as world:
            (run_id,) = await world.add(1)
            prefix = keys.journal_of_run(run_id)
            expected = [item async for item in range_all(world.store, prefix)]
            await pack(world.store, world.blobs, "1-a", [run_id])
            page = await world.control.run_store.range(prefix)
            assert len(page.items) < len(expected)
            assert page.more
            assert [item async for item in range_all(world.control.run_store, prefix)] == expected

    asyncio.run(main())


# --- bounds -------------------------------------------------------------------------------------------------------


class CountedReads:
    """Counts the reads of a blob store's objects."""

    def __init__(self, blobs: BlobStore) -> None:
        self.blobs = blobs
        self.names: list[str] = []
        self._read = blobs.objects.read
        blobs.objects.read = self.read  # type: ignore[method-assign]  # the point of this class

    async def read(self, name: str, offset: int, length: int) -> bytes:
        self.names.append(name)
        return await self._read(name, offset, length)


def test_a_run_and_a_page_take_a_bounded_number_of_reads() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), opened(None) as world:
            ids = await world.add(60)
            for start in range(0, 60, 5):
                await pack(world.store, world.blobs, f"{start:02}-a", ids[start : start + 5])
            reads = CountedReads(world.blobs)

            # 1. A run: the tail of its segment, and its body.
            cold = ControlPlane(world.store, world.blobs)
            assert (await cold.get_run(ids[30])).terminal
            assert reads.names == ["segments/30-a"] * 2
            await answers(cold, world.blobs, ids[30])
            assert len(reads.names) == 2

            # 2. A page: tails and list blocks of the segments of that time, one further run included.
            reads.names.clear()
            cold = ControlPlane(world.store, world.blobs)
            views, token = await cold.run_list.page(ALL, 9, "")
            assert [view.run_id for view in views] == ids[:-10:-1]
            assert sorted(set(reads.names)) == ["segments/50-a", "segments/55-a"]
            assert len(reads.names) == 4
            await cold.run_list.page(ALL, 9, token)
            assert len(reads.names) <= 8

            # 3. An unknown run: none, whether its id is new or lies between the others.
            reads.names.clear()
            for unknown in (
                str(uuid4()),
                run_world(61, CHAIN).run_id,
                run_world(3, CHAIN).run_id.replace("018f", "018e"),
            ):
                with pytest.raises(NotFound):
                    await cold.get_run(unknown)
            assert reads.names == []

    asyncio.run(main())


def test_what_is_kept_of_segments_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reader, "CACHE_BYTES_MAX", 20_000)

    async def main() -> None:
        async with asyncio.timeout(60), opened(None) as world:
            ids = await world.add(20)
            await pack(world.store, world.blobs, "1-a", ids)
            expected = await listings(world.control)
            for run_id in ids:
                await world.control.items(run_id)
            cache = world.control.run_store.archive._cache
            assert 0 < cache._bytes == sum(size for _, size in cache._kept.values()) <= 20_000
            assert await listings(world.control) == expected

    asyncio.run(main())


# --- faults -------------------------------------------------------------------------------------------------------


def test_a_damaged_segment_hides_only_its_own_runs(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(6)
        for number in range(3):
            await pack(world.store, world.blobs, f"{number}-a", ids[2 * number : 2 * number + 2])
        contents: dict[str, tuple[bytes, str]] = world.blobs._backend._blobs  # type: ignore[attr-defined]  # back door

        # 1. Damaged.
        whole, kind = contents["segments/1-a"]
        contents["segments/1-a"] = (whole[:-30] + b"?" + whole[-29:], kind)
        with pytest.raises(DataLoss) as lost:
            await world.control.get_run(ids[2])
        assert lost.value.reason == "SEGMENT_CORRUPT"
        assert await world.listed() == [ids[5], ids[4], ids[1], ids[0]]
        assert (await world.control.get_run(ids[0])).terminal

        # 2. Missing.
        del contents["segments/1-a"]
        with pytest.raises(DataLoss) as lost:
            await world.control.get_run(ids[2])
        assert lost.value.reason == "SEGMENT_MISSING"
        assert "segments/1-a" in lost.value.message
        assert await world.listed() == [ids[5], ids[4], ids[1], ids[0]]

        # 3. Restored.
        contents["segments/1-a"] = (whole, kind)
        assert await world.listed() == ids[::-1]

    runs(scenario)


def test_an_unavailable_blob_store_is_told_as_such(runs: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(2)
        await pack(world.store, world.blobs, "1-a", ids[:1])

        async def down(*_: Any) -> bytes:
            raise Unavailable("BLOB_STORE_UNAVAILABLE", "down")

        with monkeypatch.context() as patch:
            patch.setattr(world.blobs.objects, "read", down)
            for work in (world.control.get_run(ids[0]), world.listed()):
                with pytest.raises(Unavailable):
                    await work
            assert (await world.control.get_run(ids[1])).terminal
        assert await world.listed() == ids[::-1]

    runs(scenario)


def test_a_packing_that_broke_off_leaves_no_run_twice_and_none_half(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(3)
        expected = await everything(world.control, world.blobs, ids)
        items = {run_id: await keys_of_run(world.store, run_id) for run_id in ids}
        await write_segment(world.store, world.blobs, "1-a", items)

        # In the store and in the segment; then without the record; then with the status alone.
        record = state_pb2.RunRecord.FromString((await world.store.get(keys.run(ids[1]))).value)  # type: ignore[union-attr]  # present
        steps: list[tuple[Any, ...]] = [
            (),
            (Delete(keys.run(ids[1])), Delete(keys.by_age(ids[1], record.created_at_ms))),
            (Delete(keys.journal(ids[1], 0, 0)), Delete(keys.results(ids[1], 0))),
        ]
        for deletes in steps:
            await world.store.txn(Txn((), deletes))
            assert await everything(world.control, world.blobs, ids) == expected

    runs(scenario)


def test_another_store_in_the_place_of_the_first_is_noticed() -> None:
    async def main() -> None:
        async with asyncio.timeout(60), opened(None) as world:
            ids = await world.add(2)
            await pack(world.store, world.blobs, "1-a", ids)
            assert await world.listed() == ids[::-1]
            manifests = world.control.run_store.archive.manifests
            for item in [item async for item in range_all(world.store, keys.SEGMENTS)]:
                await world.store.txn(Txn((), (Delete(item.key), Delete(keys.segments_head()))))
            manifests.discard()  # as the end of a watch does
            assert await world.listed() == []
            with pytest.raises(NotFound):
                await world.control.get_run(ids[0])

    asyncio.run(main())


def test_a_late_watch_of_segments_delays_and_hides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from control_plane.archive import manifests

    monkeypatch.setattr(manifests, "WATCH_PATIENCE_S", 0.05)

    async def main() -> None:
        async with asyncio.timeout(60), opened(None) as world:
            ids = await world.add(3)
            await pack(world.store, world.blobs, "1-a", ids[:1])
            assert await world.listed() == ids[::-1]
            known = world.control.run_store.archive.manifests
            assert known._watched
            known._on_changed = lambda _: None  # type: ignore[method-assign]  # the watch has stalled
            await pack(world.store, world.blobs, "2-a", ids[1:])
            assert (await world.control.get_run(ids[1])).terminal
            assert await world.listed() == ids[::-1]

    asyncio.run(main())
