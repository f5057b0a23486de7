"""The etcd store when members are killed, paused and restarted, and when the network fails.

Real servers, a real cluster, a real TCP proxy. Invariants: every call ends within a bound; a watch delivers every
revision once and in order, or reports a gap; every write is applied at most once, and the writer learns its outcome.
"""

from __future__ import annotations

import asyncio
import io
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_for_value, wait_until_async
from support.etcd import FAST, EtcdServer, leader_of, running_cluster, running_etcd
from support.proxy import TcpProxy

from stepflow import telemetry
from stepflow.errors import FailedPrecondition, Invalid, NotFound, StepflowError
from stepflow.store import (
    KeyValue,
    Put,
    Store,
    StoreCompacted,
    StoreEvent,
    StoreUnavailable,
    StoreWatch,
    Txn,
    WatchBatch,
    absent,
    delete,
    keys,
    put,
    range_all,
    watch_queue,
)
from stepflow.store.etcd import watch as etcd_watch
from stepflow.store.etcd.client import check_version
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.follow import follow
from stepflow.store.writer import FencedWriter

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
    from pathlib import Path

SCENARIO_TIMEOUT_S = 60.0

CALL_BOUND_S = 8.0
"""Far more than any call may take: two tries of 1 s for each of three members, on a busy machine."""

LEASE_TTL_S = 2.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd", *FAST) as server:
        yield server


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[list[EtcdServer]]:
    with running_cluster(tmp_path / "cluster", "--heartbeat-interval=50", "--election-timeout=500") as servers:
        yield servers


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, SCENARIO_TIMEOUT_S))


@asynccontextmanager
async def opened(*endpoints: str, **options: Any) -> AsyncIterator[EtcdStore]:
    store = await EtcdStore.open(EtcdConfig.parse(",".join(endpoints), **options))
    try:
        yield store
    finally:
        async with asyncio.timeout(CALL_BOUND_S):
            await store.close()


@asynccontextmanager
async def proxied(server: EtcdServer) -> AsyncIterator[tuple[TcpProxy, EtcdStore, EtcdStore]]:
    """Give a proxy, a store that goes around it, and one that goes through it."""
    async with (
        TcpProxy(server.client_port) as proxy,
        opened(server.endpoint) as direct,
        opened(proxy.endpoint) as through,
    ):
        yield proxy, direct, through


async def until_it_works(call: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Repeat a call that the store says may be repeated; each single one must end in time."""
    while True:
        try:
            async with asyncio.timeout(CALL_BOUND_S):
                return await call()
        except StoreUnavailable:
            await asyncio.sleep(0.02)


class Seen:
    """Everything a watch tells, from the moment it is made."""

    def __init__(self, watch: StoreWatch) -> None:
        self.watch = watch
        self.batches: list[WatchBatch] = []
        self.error: Exception | None = None
        self.task = asyncio.ensure_future(self._read())

    @property
    def revisions(self) -> list[int]:
        return [batch.revision for batch in self.batches]

    @property
    def keys(self) -> list[str]:
        return [event.kv.key for batch in self.batches for event in batch.events]

    async def _read(self) -> None:
        try:
            async for batch in self.watch:
                self.batches.append(batch)
        except StepflowError as error:
            self.error = error

    async def until(self, count: int) -> None:
        await wait_until_async(lambda: len(self.batches) >= count, f"{count} revisions, {len(self.batches)} came", 30)
        assert self.error is None

    async def close(self) -> None:
        self.watch.close()
        await self.task


class Load:
    """A fenced writer under steady load; `told` is what it said was committed, in order."""

    def __init__(self, writer: FencedWriter) -> None:
        self.writer = writer
        self.told: list[int] = []
        self.rejected: list[str] = []
        self.sent = 0

    def send(self, count: int) -> None:
        for _ in range(count):
            number = self.sent
            self.sent += 1
            self.writer.submit(
                [Put(f"load/{number:05}", str(number).encode())],
                on_commit=lambda number=number: self.told.append(number),  # type: ignore[misc]  # bound at once
                on_reject=lambda error: self.rejected.append(error.reason),
            )

    async def until(self, count: int) -> None:
        await wait_until_async(lambda: len(self.told) >= count, f"{count} of {self.sent} committed", 30)

    async def check(self, store: Store) -> None:
        """Assert that everything was written, once and in order."""
        await self.writer.drain()
        assert self.told == list(range(self.sent))
        assert self.rejected == []
        found = [kv async for kv in range_all(store, "load/")]
        assert [(kv.key, kv.version) for kv in found] == [(f"load/{i:05}", 1) for i in range(self.sent)]
        revisions = [kv.mod_revision for kv in found]
        assert revisions == sorted(revisions)
        cursor = await store.get(keys.cursor(self.writer.executor_id))
        assert cursor is not None
        assert cursor.version == 1 + len(set(revisions))


@asynccontextmanager
async def under_load(store: Store, lease_ttl_s: float = 60) -> AsyncIterator[Load]:
    writer = await FencedWriter.register(store, "e1", b"session", await store.lease_grant(lease_ttl_s))
    try:
        yield Load(writer)
    finally:
        await writer.close()


# -- members die and come back ------------------------------------------------------------------------------------


def test_a_killed_etcd_that_returns_has_lost_and_repeated_nothing(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with opened(server.endpoint) as store, under_load(store) as load:
            seen = Seen(store.watch("load/"))
            for _ in range(3):
                load.send(40)
                await load.until(load.sent - 20)
                server.kill()
                load.send(40)
                with pytest.raises(StoreUnavailable):
                    async with asyncio.timeout(CALL_BOUND_S):
                        await store.get("x")
                await asyncio.to_thread(server.start)
            await load.until(load.sent)
            await load.check(store)
            written = [kv async for kv in range_all(store, "load/")]
            await seen.until(len({kv.mod_revision for kv in written}))
            assert seen.keys == [kv.key for kv in written]
            assert seen.revisions == sorted({kv.mod_revision for kv in written})
            await seen.close()

    run(scenario())


def test_an_etcd_stopped_for_longer_than_a_lease_bounds_every_call_and_ends_the_writer(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with opened(server.endpoint) as store, under_load(store, LEASE_TTL_S) as load:
            seen = Seen(store.watch("sessions/"))
            lease = await store.lease_grant(60)
            load.send(10)
            await load.until(10)
            server.stop()
            load.send(10)
            calls: list[Coroutine[Any, Any, Any]]
            calls = [store.get("a"), store.range(""), store.revision(), put(store, "a", b""), store.lease_grant(5)]
            calls += [store.lease_keep_alive(lease), store.lease_revoke(lease), store.status()]
            async with asyncio.timeout(CALL_BOUND_S):
                results = await asyncio.gather(*calls, return_exceptions=True)
            assert [type(result) for result in results] == [StoreUnavailable] * len(calls)
            await asyncio.sleep(LEASE_TTL_S)
            server.go_on()
            await seen.until(1)  # the lease ran out
            load.send(1)
            async with asyncio.timeout(30):
                await load.writer.lost.wait()
            kept = {kv.key async for kv in range_all(store, "load/")}
            assert kept >= {f"load/{number:05}" for number in load.told}
            assert set(load.rejected) <= {"LEASE_LOST"}
            assert len(load.told) + len(load.rejected) == load.sent
            assert [(event.kind, event.kv.key) for batch in seen.batches for event in batch.events] == [
                ("delete", "sessions/executors/e1")
            ]
            await seen.close()

    run(scenario())


def test_a_leader_killed_under_load_costs_nothing_but_time(cluster: list[EtcdServer]) -> None:
    async def scenario() -> None:
        leader = await asyncio.to_thread(leader_of, cluster)
        # Connected to the leader first.
        endpoints = [leader.endpoint] + [server.endpoint for server in cluster if server is not leader]
        async with opened(*endpoints) as store, under_load(store) as load:
            seen = Seen(store.watch("load/"))
            load.send(100)
            await load.until(30)
            leader.kill()
            load.send(100)
            assert await until_it_works(lambda: store.get("nothing")) is None
            await load.until(load.sent)
            leader.launch()
            load.send(50)
            await load.until(load.sent)
            await load.check(store)
            await wait_until_async(lambda: len(seen.keys) >= load.sent, "the watch has told all", 30)
            assert seen.keys == [f"load/{number:05}" for number in range(load.sent)]
            assert seen.revisions == sorted(set(seen.revisions))
            await seen.close()

    run(scenario())


def test_a_write_that_lay_behind_a_stopped_member_does_not_land_late(cluster: list[EtcdServer]) -> None:
    async def scenario() -> None:
        leader = await asyncio.to_thread(leader_of, cluster)
        first, other = [server for server in cluster if server is not leader]
        async with (
            opened(other.endpoint) as observer,
            opened(first.endpoint, other.endpoint) as store,
            under_load(store) as load,
        ):
            load.send(5)
            await load.until(5)
            first.stop()
            committed = asyncio.Event()
            load.writer.submit([Put("k", b"old")], on_commit=lambda: None)
            load.writer.submit([Put("k", b"new")], on_commit=committed.set)
            async with asyncio.timeout(30):
                await committed.wait()
            before = await observer.get("k")
            first.go_on()
            await asyncio.to_thread(first.wait)
            # `first` has worked off what lay before it when it has told a later write.
            async with opened(first.endpoint) as late:
                seen = Seen(late.watch("k"))
                await put(late, "kz", b"")
                await seen.until(1)
                assert seen.keys == ["kz"]
                await seen.close()
            assert await observer.get("k") == before
            assert before is not None
            assert (before.value, before.version) == (b"new", 2)
            assert not load.writer.lost.is_set()

    run(scenario())


def test_without_a_majority_calls_end_and_with_it_they_work_again(cluster: list[EtcdServer]) -> None:
    async def scenario() -> None:
        async with opened(*(server.endpoint for server in cluster)) as store:
            await put(store, "a", b"1")
            seen = Seen(store.watch("a"))
            for server in cluster[1:]:
                server.kill()
            for call in (lambda: store.get("a"), lambda: put(store, "a", b"2"), lambda: store.lease_grant(5)):
                with pytest.raises(StoreUnavailable):
                    async with asyncio.timeout(CALL_BOUND_S):
                        await call()
            for server in cluster[1:]:
                server.launch()
            found = await until_it_works(lambda: store.get("a"))
            assert found.value in (b"1", b"2")  # undecided means just that
            await until_it_works(lambda: put(store, "a", b"3"))
            await wait_until_async(
                lambda: seen.batches and seen.batches[-1].events[0].kv.value == b"3", "the last write is told", 30
            )
            assert seen.revisions == sorted(set(seen.revisions))
            await seen.close()

    run(scenario())


# -- the network --------------------------------------------------------------------------------------------------


def test_a_writer_whose_reply_was_lost_finds_out_that_it_had_committed(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with proxied(server) as (proxy, observer, store), under_load(store) as load:
            load.send(1)
            await load.until(1)
            for _ in range(3):
                count = load.sent
                proxy.freeze_replies()
                load.send(1)
                await wait_for_value(partial(observer.get, f"load/{count:05}"), "it is committed")
                assert len(load.told) == count  # committed, but the reply is held back
                await load.until(count + 1)
            assert load.writer.stats.resends >= 3
            await load.check(observer)

    run(scenario())


def test_a_transaction_without_the_fence_is_undecided_when_its_reply_is_lost(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with TcpProxy(server.client_port) as proxy, opened(proxy.endpoint) as store:
            await put(store, "a", b"1")
            proxy.freeze_replies()
            txn = Txn((absent("b"),), (Put("b", b""),))
            with pytest.raises(StoreUnavailable):
                await store.txn(txn)
            assert not (await store.txn(txn)).succeeded  # it had happened, and was not sent twice behind our back
            found = await store.get("b")
            assert found is not None
            assert found.version == 1

    run(scenario())


def test_a_watch_whose_connection_is_only_half_there_goes_on_over_another(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with proxied(server) as (proxy, writer, store):
            seen = Seen(store.watch("w"))
            await put(writer, "w", b"1")
            await seen.until(1)
            proxy.freeze()
            expected = [seen.revisions[0], *[await put(writer, "w", b"2") for _ in range(20)]]
            await seen.until(21)
            assert seen.revisions == expected
            assert (await store.get("w")) is not None
            await seen.close()

    run(scenario())


def test_watches_of_an_idle_store_keep_their_connection_and_are_still_found_when_they_fall_silent(
    server: EtcdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(etcd_watch, "PROGRESS_S", 0.5)  # as in production, about four times as fast
    monkeypatch.setattr(etcd_watch, "SILENCE_S", 1.5)  # above the pauses of a busy machine
    monkeypatch.setattr(etcd_watch, "TICK_S", 0.1)
    log = io.StringIO()
    telemetry.configure("warning", log)

    async def scenario() -> None:
        async with proxied(server) as (proxy, writer, store):
            await put(writer, "w/before", b"")
            await store.get("w/before")  # from here on, watches start in the future
            seen = [Seen(store.watch("w/")) for _ in range(3)]

            async def is_idle() -> None:
                accepted, until_s = proxy.accepted, asyncio.get_running_loop().time() + 4
                await wait_until_async(
                    lambda: proxy.accepted > accepted or asyncio.get_running_loop().time() > until_s, "time passes"
                )
                assert (proxy.accepted, log.getvalue()) == (accepted, "")

            # 1. Idle, at first and after a cut: one connection stays, and there is nothing to warn of.
            accepted = proxy.accepted
            await wait_until_async(lambda: proxy.accepted > accepted, "the watches are connected")
            await is_idle()
            accepted = proxy.accepted
            proxy.cut()
            await wait_until_async(lambda: proxy.accepted > accepted, "the watches are connected again")
            await is_idle()

            # 2. Silent: found.
            proxy.freeze()
            await wait_until_async(lambda: "silent watch given up" in log.getvalue(), "the silence is noticed")
            await put(writer, "w/after", b"")
            for each in seen:
                await each.until(1)
                await each.close()

    try:
        run(scenario())
    finally:
        telemetry.configure()


def test_a_watch_cut_in_the_middle_of_messages_tells_every_revision_once(server: EtcdServer) -> None:
    async def scenario() -> None:
        chance = random.Random(7)
        async with proxied(server) as (proxy, writer, store):
            start = await store.revision() + 1
            # 40 revisions of 5 x 30 KB: more than one message of etcd holds, so that fragments are cut, too.
            for i in range(40):
                await writer.txn(Txn((), tuple(Put(f"w/{i:02}/{j}", b"x" * 30_000) for j in range(5))))
            proxy.cut_replies_after(chance.randrange(1, 50_000))
            seen = Seen(store.watch("w/", from_revision=start))
            for _ in range(12):
                accepted = proxy.accepted
                await wait_until_async(
                    lambda n=accepted: proxy.accepted > n or len(seen.batches) == 40,  # type: ignore[misc]  # bound
                    "another connection",
                )
                proxy.cut_replies_after(chance.randrange(1, 3_000_000))
                if len(seen.batches) == 40:
                    break
            proxy.cut_no_more()
            await seen.until(40)
            assert seen.revisions == list(range(start, start + 40))
            assert seen.keys == [f"w/{i:02}/{j}" for i in range(40) for j in range(5)]
            await seen.close()

    run(scenario())


def test_a_watch_that_is_cut_again_and_again_under_load_loses_nothing(server: EtcdServer) -> None:
    async def scenario() -> None:
        chance = random.Random(3)
        async with proxied(server) as (proxy, writer, store):
            watches = [Seen(store.watch("w")) for _ in range(5)]
            expected = []
            for i in range(300):
                expected.append(await put(writer, "w", str(i).encode()))
                if chance.random() < 0.1:
                    proxy.cut()
            for seen in watches:
                await seen.until(300)
                assert seen.revisions == expected
                await seen.close()

    run(scenario())


def test_a_slow_network_delays_and_nothing_else(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with TcpProxy(server.client_port) as proxy, opened(proxy.endpoint) as store:
            proxy.delay(0.1)
            seen = Seen(store.watch("k"))
            lease = await store.lease_grant(60)
            revisions = await asyncio.gather(*(put(store, f"k{i}", b"", lease=lease) for i in range(20)))
            assert await store.lease_keep_alive(lease) == 60
            await seen.until(20)
            assert seen.revisions == sorted(revisions)
            await seen.close()

    run(scenario())


# -- compaction ---------------------------------------------------------------------------------------------------


def test_a_watch_that_missed_what_was_compacted_says_so_and_a_list_makes_up_for_it(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with proxied(server) as (proxy, writer, store):
            seen = Seen(store.watch("w/"))
            await put(writer, "w/1", b"")
            await seen.until(1)
            proxy.refuse()
            for i in range(2, 10):
                await put(writer, f"w/{i}", b"")
            compacted = await writer.revision()
            await asyncio.to_thread(server.compact, compacted)
            proxy.refuse(refusing=False)
            await wait_until_async(lambda: seen.error is not None, "the watch says that it missed something", 20)
            assert isinstance(seen.error, StoreCompacted)
            assert seen.error.details["compacted"] == compacted
            assert seen.keys == ["w/1"]
            page = await until_it_works(lambda: store.range("w/"))
            assert len(page.items) == 9
            again = Seen(store.watch("w/", from_revision=page.revision + 1))
            await put(writer, "w/10", b"")
            await again.until(1)
            assert again.keys == ["w/10"]
            await again.close()
            with pytest.raises(StoreCompacted):
                await store.range("w/", revision=compacted - 1)

    run(scenario())


def test_a_follower_learns_of_deletions_that_were_compacted_behind_its_watch(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with proxied(server) as (proxy, writer, store):
            known: dict[str, bytes] = {}

            def listed(items: list[KeyValue]) -> None:
                known.clear()
                known.update((item.key, item.value) for item in items)

            def changed(events: Sequence[StoreEvent]) -> None:
                for event in events:
                    if event.kind == "put":
                        known[event.kv.key] = event.kv.value
                    else:
                        del known[event.kv.key]

            for name in ("kept", "deleted", "deleted and made again"):
                await put(writer, f"f/{name}", b"before")
            following = asyncio.create_task(follow(store, "f/", listed=listed, changed=changed, relist_interval_s=600))
            await wait_until_async(lambda: len(known) == 3, "the follower knows all keys")
            proxy.refuse()
            await delete(writer, "f/deleted")
            await delete(writer, "f/deleted and made again")
            await put(writer, "f/deleted and made again", b"after")
            await put(writer, "f/new", b"after")
            await asyncio.to_thread(server.compact, await writer.revision())
            proxy.refuse(refusing=False)
            await wait_until_async(
                lambda: known == {"f/kept": b"before", "f/deleted and made again": b"after", "f/new": b"after"},
                "the follower knows what is there, and nothing else",
                20,
            )
            await put(writer, "f/later", b"")
            await wait_until_async(lambda: "f/later" in known, "the watch goes on")
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    run(scenario())


def test_a_quiet_watch_is_not_caught_by_a_compaction(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with proxied(server) as (proxy, writer, store):
            watch = store.watch("quiet/")
            seen = Seen(watch)
            for i in range(20):
                revision = await put(writer, f"busy/{i}", b"")
            await wait_until_async(lambda: watch.resumes_at > revision, "the watch knows that it missed nothing")
            await asyncio.to_thread(server.compact, revision)
            proxy.refuse()
            await put(writer, "quiet/1", b"")
            proxy.refuse(refusing=False)
            await seen.until(1)
            assert seen.keys == ["quiet/1"]
            await seen.close()

    run(scenario())


def test_a_watch_whose_owner_does_not_keep_up_is_cut_off(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_queue, "WATCH_BACKLOG_MAX", 50)  # the real one would take 10,000 writes

    async def scenario() -> None:
        async with opened(server.endpoint) as store:
            watch = store.watch("w")
            for _ in range(60):
                await put(store, "w", b"")
            other = Seen(store.watch("x"))
            await put(store, "x", b"")
            await other.until(1)
            await wait_until_async(lambda: watch.ended_early, "the watch is cut off")
            with pytest.raises(StoreCompacted):
                async for _ in watch:
                    pass
            await other.close()

    run(scenario())


# -- opening ------------------------------------------------------------------------------------------------------


def test_opening_works_with_the_members_that_answer(cluster: list[EtcdServer]) -> None:
    async def scenario() -> None:
        cluster[0].kill()
        async with opened(*(server.endpoint for server in cluster)) as store:
            assert await until_it_works(lambda: put(store, "a", b"")) >= 2
            assert (await store.status()).endpoint in [server.endpoint for server in cluster[1:]]

    run(scenario())


def test_opening_where_nothing_listens_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        server = EtcdServer(tmp_path)
        with pytest.raises(StoreUnavailable, match=server.endpoint) as caught:
            async with asyncio.timeout(CALL_BOUND_S):
                await EtcdStore.open(EtcdConfig.parse(server.endpoint))
        assert caught.value.reason == "STORE_UNREACHABLE"

    run(scenario())


def test_a_lease_that_ran_out_while_etcd_was_down_is_gone(server: EtcdServer) -> None:
    async def scenario() -> None:
        async with opened(server.endpoint) as store:
            lease = await store.lease_grant(1)
            await put(store, "a", b"", lease=lease)
            server.kill()
            await asyncio.to_thread(server.start)

            async def is_gone() -> bool:
                try:
                    return await until_it_works(lambda: store.get("a")) is None
                except NotFound:
                    return True

            await wait_for_value(is_gone, "the lease is gone", timeout_s=60)
            with pytest.raises(NotFound):
                await store.lease_keep_alive(lease)

    run(scenario())


# -- limits of the server -----------------------------------------------------------------------------------------


def test_a_full_etcd_says_so_and_takes_writes_again_when_there_is_room(tmp_path: Path) -> None:
    async def scenario(server: EtcdServer) -> None:
        async with opened(server.endpoint) as store:

            async def fill() -> None:
                for i in range(200):
                    await put(store, "big", str(i).encode() * 50_000)

            with pytest.raises(StoreUnavailable) as caught:
                await fill()
            assert caught.value.reason == "STORE_FULL"
            assert await store.get("big") is not None
            await asyncio.to_thread(server.compact, await store.revision())
            await asyncio.to_thread(server.make_room)
            await until_it_works(lambda: put(store, "small", b""))

    with running_etcd(tmp_path, *FAST, "--quota-backend-bytes=2000000") as server:
        run(scenario(server))


@pytest.mark.parametrize("size", [20_000, 1_000_000])
def test_a_server_with_smaller_limits_refuses_for_good(tmp_path: Path, size: int) -> None:
    async def scenario(server: EtcdServer) -> None:
        async with opened(server.endpoint) as store:
            with pytest.raises(Invalid) as caught:
                await put(store, "big", b"x" * size)
            assert caught.value.reason == "TXN_TOO_LARGE"
            assert await store.get("big") is None
            with pytest.raises(Invalid) as caught:
                await store.txn(Txn((), tuple(Put(f"k{i}", b"") for i in range(20))))
            assert caught.value.reason == "TXN_TOO_MANY_OPS"

    with running_etcd(tmp_path, *FAST, "--max-request-bytes=10000", "--max-txn-ops=10") as server:
        run(scenario(server))


# -- versions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["3.5.0", "3.5.1", "3.5.2", "3.5.2-rc.1"])
def test_a_version_that_can_lose_data_is_refused(version: str) -> None:
    with pytest.raises(FailedPrecondition, match=r"3\.5\.17") as caught:
        check_version(version, "here:1")
    assert caught.value.reason == "ETCD_VERSION_REFUSED"


@pytest.mark.parametrize(
    ("version", "warned"), [("3.4.40", True), ("3.5.16", True), ("3.5.17", False), ("3.6.0", False)]
)
def test_an_old_version_is_warned_about(version: str, warned: bool) -> None:
    log = io.StringIO()
    telemetry.configure(destination=log)
    try:
        check_version(version, "here:1")
    finally:
        telemetry.configure()
    assert ("old etcd" in log.getvalue()) == warned
