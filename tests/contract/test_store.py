"""The contract of stores. The source of each rule is etcd's behaviour (v3.5: KV, Lease and Watch of `rpc.proto`)."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from stepflow.errors import Invalid, NotFound
from stepflow.store import (
    PAGE_BYTES_MAX,
    PAGE_KEYS_MAX,
    TXN_BYTES_MAX,
    TXN_OPS_MAX,
    Compare,
    Delete,
    DeletePrefix,
    Get,
    KeyValue,
    Op,
    Page,
    Put,
    Range,
    Store,
    StoreCompacted,
    StoreEvent,
    StoreUnavailable,
    StoreWatch,
    Txn,
    TxnResult,
    WatchBatch,
    absent,
    created_at,
    delete,
    modified_at,
    prefix_end,
    present,
    put,
    range_all,
    value_is,
    version_is,
)

if TYPE_CHECKING:
    from conftest import WithStore


async def do(store: Store, *ops: Op) -> TxnResult:
    return await store.txn(Txn((), ops))


async def holds(store: Store, *compares: Compare) -> bool:
    return (await store.txn(Txn(compares, ()))).succeeded


async def following(watch: StoreWatch, count: int) -> list[WatchBatch]:
    return [await anext(aiter(watch)) for _ in range(count)]


# -- revisions and versions ---------------------------------------------------------------------------------------


def test_an_empty_store_is_at_revision_one(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        assert await store.revision() == 1
        assert await store.get("a") is None
        assert await store.range("") == Page([], False, 1)

    with_store(scenario)


def test_a_transaction_that_writes_makes_one_revision_for_all_its_keys(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        result = await do(store, Put("a", b"1"), Put("b", b"2"))
        assert result == TxnResult(True, 2, (None, None))
        assert await store.get("a") == KeyValue("a", b"1", 2, 2, 1, 0)
        assert await store.get("b") == KeyValue("b", b"2", 2, 2, 1, 0)

    with_store(scenario)


def test_a_transaction_that_changes_nothing_makes_no_revision(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        assert (await do(store, Delete("a"), DeletePrefix("b"), Get("a"))).revision == 1
        assert (await store.txn(Txn((present("a"),), (Put("a", b""),)))).revision == 1
        assert await store.revision() == 1

    with_store(scenario)


def test_a_put_counts_the_version_and_keeps_the_create_revision(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for value in (b"1", b"2", b"2"):
            await put(store, "a", value)
        assert await store.get("a") == KeyValue("a", b"2", 2, 4, 3, 0)

    with_store(scenario)


def test_a_deleted_key_starts_anew(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        await put(store, "a", b"1")
        await put(store, "a", b"2")
        assert await delete(store, "a")
        assert not await delete(store, "a")
        assert await store.get("a") is None
        assert await put(store, "a", b"3") == 5
        assert await store.get("a") == KeyValue("a", b"3", 5, 5, 1, 0)

    with_store(scenario)


def test_values_are_kept_byte_for_byte(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for value in (b"", bytes(range(256)), b"\x00", "ä".encode("latin-1")):
            await put(store, "a", value)
            found = await store.get("a")
            assert found is not None
            assert found.value == value

    with_store(scenario)


# -- compares -----------------------------------------------------------------------------------------------------


def test_compares_of_an_existing_key(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        await put(store, "other", b"")
        await put(store, "a", b"1")  # revision 3
        await put(store, "a", b"2")  # revision 4
        assert await holds(store, present("a"), created_at("a", 3), modified_at("a", 4), version_is("a", 2))
        assert await holds(store, value_is("a", b"2"))
        for wrong in (
            absent("a"),
            created_at("a", 4),
            created_at("a", 2),
            modified_at("a", 3),
            version_is("a", 1),
            version_is("a", 3),
            value_is("a", b"1"),
            value_is("a", b""),
        ):
            assert not await holds(store, wrong), wrong
            assert not await holds(store, present("other"), wrong), wrong

    with_store(scenario)


def test_a_missing_key_compares_as_zero_and_has_no_value(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        assert await holds(store, absent("a"), created_at("a", 0), modified_at("a", 0), version_is("a", 0))
        for wrong in (present("a"), created_at("a", 1), version_is("a", 1), value_is("a", b"")):
            assert not await holds(store, wrong), wrong

    with_store(scenario)


def test_failed_compares_run_the_other_branch_only(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        await put(store, "a", b"1")
        result = await store.txn(Txn((absent("a"),), (Put("b", b""),), (Get("a"), Put("c", b""))))
        assert result == TxnResult(False, 3, (KeyValue("a", b"1", 2, 2, 1), None))
        assert [kv.key for kv in (await store.range("")).items] == ["a", "c"]

    with_store(scenario)


def test_compares_see_the_state_before_the_transaction(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        result = await store.txn(Txn((absent("a"),), (Put("a", b"1"),), ()))
        assert result.succeeded

    with_store(scenario)


def test_of_two_transactions_that_exclude_each_other_one_wins(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        claims = [store.txn(Txn((absent("leader"),), (Put("leader", str(i).encode()),))) for i in range(20)]
        assert sorted(result.succeeded for result in await asyncio.gather(*claims)) == [False] * 19 + [True]
        assert await store.revision() == 2

    with_store(scenario)


# -- operations ---------------------------------------------------------------------------------------------------


def test_reads_in_a_transaction_see_the_operations_before_them(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        await put(store, "k1", b"old")
        await put(store, "k2", b"old")
        result = await do(
            store, Get("k1"), Range("k"), Put("k1", b"new"), Get("k1"), Delete("k2"), Get("k2"), Range("k")
        )
        old1, old2 = KeyValue("k1", b"old", 2, 2, 1), KeyValue("k2", b"old", 3, 3, 1)
        new1 = KeyValue("k1", b"new", 2, 4, 2)
        assert result.responses == (
            old1,
            Page([old1, old2], False, 3),
            None,
            new1,
            1,
            None,
            Page([new1], False, 4),
        )
        assert result.revision == 4

    with_store(scenario)


def test_a_prefix_is_deleted_with_its_count(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for key in ("a/1", "a/2", "a0", "b/1"):
            await put(store, key, b"")
        assert (await do(store, DeletePrefix("a/"), Delete("b/1"), Delete("no"))).responses == (2, 1, 0)
        assert [kv.key for kv in (await store.range("")).items] == ["a0"]

    with_store(scenario)


@pytest.mark.parametrize(
    "ops",
    [
        (Put("a", b"1"), Put("a", b"2")),
        (Put("a", b"1"), Delete("a")),
        (Delete("a"), Put("a", b"1")),
        (Put("ab", b"1"), DeletePrefix("a")),
    ],
    ids=["put-put", "put-delete", "delete-put", "put-prefix"],
)
def test_a_key_is_changed_once_in_a_branch(with_store: WithStore, ops: tuple[Op, ...]) -> None:
    async def scenario(store: Store) -> None:
        for txn in (Txn((), ops), Txn((), (), ops), Txn((absent("a"),), (Put("x", b""),), ops)):
            with pytest.raises(Invalid) as caught:
                await store.txn(txn)
            assert caught.value.reason == "DUPLICATE_KEY"
        assert await store.revision() == 1

    with_store(scenario)


def test_the_branches_may_change_the_same_key_and_deletions_may_meet(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        assert (await store.txn(Txn((absent("a"),), (Put("a", b"1"),), (Put("a", b"2"),)))).revision == 2
        assert (await do(store, Delete("a"), Delete("a"), DeletePrefix("a"))).responses == (1, 0, 0)

    with_store(scenario)


@pytest.mark.parametrize(
    ("txn", "reason"),
    [
        (Txn((), (Put("", b""),)), "EMPTY_KEY"),
        (Txn((), (Get(""),)), "EMPTY_KEY"),
        (Txn((), (), (Delete(""),)), "EMPTY_KEY"),
        (Txn((), (DeletePrefix(""),)), "EMPTY_KEY"),
        (Txn((absent(""),), ()), "EMPTY_KEY"),
        (Txn((), (Put("\ud800", b""),)), "KEY_INVALID"),
        (Txn((), (Range("a", 0),)), "LIMIT_INVALID"),
        (Txn((), (Put("a", b"", 1, True),)), "LEASE_PROVIDED"),
        (Txn((), (Put("a", b"", 0, True),)), "KEY_NOT_FOUND"),
        (Txn((), (Put("a", b"x" * TXN_BYTES_MAX),)), "VALUE_TOO_LARGE"),
        (Txn((), (Put("a", b"x" * (TXN_BYTES_MAX // 2)), Put("b", b"x" * (TXN_BYTES_MAX // 2)))), "TXN_TOO_LARGE"),
        (Txn((value_is("a", b"x" * TXN_BYTES_MAX),), ()), "TXN_TOO_LARGE"),
        (Txn((), tuple(Put(f"k{i}", b"") for i in range(TXN_OPS_MAX + 1))), "TXN_TOO_MANY_OPS"),
        (Txn((), (), tuple(Get(f"k{i}") for i in range(TXN_OPS_MAX + 1))), "TXN_TOO_MANY_OPS"),
        (Txn(tuple(absent(f"k{i}") for i in range(TXN_OPS_MAX + 1)), ()), "TXN_TOO_MANY_OPS"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_transaction_is_refused_whole(with_store: WithStore, txn: Txn, reason: str) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(Invalid) as caught:
            await store.txn(txn)
        assert caught.value.reason == reason
        assert await store.revision() == 1
        assert await store.get("a") is None

    with_store(scenario)


def test_a_refused_put_leaves_the_puts_beside_it_undone(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(Invalid):
            await do(store, Put("a", b"1"), Put("b", b"", ignore_lease=True))
        with pytest.raises(NotFound) as caught:
            await do(store, Put("a", b"1"), Put("b", b"", lease=987_654_321))
        assert caught.value.reason == "LEASE_GONE"
        assert await store.range("") == Page([], False, 1)

    with_store(scenario)


def test_the_largest_transaction_is_taken(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        ops = tuple(Put(f"k{i:03}", b"x" * 11_000) for i in range(TXN_OPS_MAX))
        result = await store.txn(Txn(tuple(absent(op.key) for op in ops), ops))
        assert result.succeeded
        assert len((await store.range("k")).items) == TXN_OPS_MAX

    with_store(scenario)


# -- ranges -------------------------------------------------------------------------------------------------------


def test_a_range_is_sorted_and_holds_its_prefix_only(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for key in ("b", "a/2", "a/10", "a/1", "a0", "a", "A", "ä", "a/\U0001f600", "a/\uffff", "a/\U0010ffff"):
            await put(store, key, b"")
        under = [kv.key for kv in (await store.range("a/")).items]
        assert under == ["a/1", "a/10", "a/2", "a/\uffff", "a/\U0001f600", "a/\U0010ffff"]
        everything = [kv.key for kv in (await store.range("")).items]
        assert everything == sorted(everything)
        assert len(everything) == 11
        assert [kv.key for kv in (await store.range("a/\U0010ffff")).items] == ["a/\U0010ffff"]

    with_store(scenario)


def test_a_range_goes_on_behind_a_key_whether_it_exists_or_not(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for key in ("a", "p/1", "p/3", "p/5", "q"):
            await put(store, key, b"")
        assert [kv.key for kv in (await store.range("p/", after="p/1")).items] == ["p/3", "p/5"]
        assert [kv.key for kv in (await store.range("p/", after="p/2")).items] == ["p/3", "p/5"]
        assert [kv.key for kv in (await store.range("p/", after="a")).items] == ["p/1", "p/3", "p/5"]
        assert (await store.range("p/", after="p/5")).items == []
        assert (await store.range("p/", after="q")).items == []

    with_store(scenario)


def test_pages_are_cut_by_number_of_keys(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for start in range(0, PAGE_KEYS_MAX + 100, 100):
            await do(store, *(Put(f"k{i:05}", b"") for i in range(start, start + 100)))
        page = await store.range("k", limit=10 * PAGE_KEYS_MAX)
        assert (len(page.items), page.more) == (PAGE_KEYS_MAX, True)
        rest = await store.range("k", after=page.items[-1].key)
        assert (len(rest.items), rest.more) == (100, False)
        assert (await store.range("k", limit=1)).more
        assert not (await store.range("k", after="k01098", limit=1)).more
        assert len([kv async for kv in range_all(store, "k")]) == PAGE_KEYS_MAX + 100

    with_store(scenario)


def test_pages_are_cut_by_bytes(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        size = 1024 * 1024
        for i in range(6):
            await put(store, f"k{i}", b"x" * size)
        page = await store.range("k")
        assert page.more
        assert sum(len(kv.value) for kv in page.items) <= PAGE_BYTES_MAX + size
        assert [kv.key async for kv in range_all(store, "k")] == [f"k{i}" for i in range(6)]

    with_store(scenario)


def test_a_range_reads_an_earlier_revision(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        lease = await store.lease_grant(60)
        await do(store, Put("a", b"1"), Put("b", b"1", lease))  # 2
        await do(store, Put("a", b"2"), Delete("b"), Put("c", b"2"))  # 3
        await put(store, "a", b"3")  # 4
        second = [KeyValue("a", b"1", 2, 2, 1), KeyValue("b", b"1", 2, 2, 1, lease)]
        assert await store.range("", revision=2) == Page(second, False, 2)
        third = [KeyValue("a", b"2", 2, 3, 2), KeyValue("c", b"2", 3, 3, 1)]
        assert await store.range("", revision=3) == Page(third, False, 3)
        assert await store.range("b", revision=3) == Page([], False, 3)
        assert (await store.range("", revision=2, limit=1)).more
        assert (await store.range("", revision=2, after="a")).items == second[1:]
        assert (await store.range("", revision=4)).revision == 4

    with_store(scenario)


def test_paging_shows_one_revision_although_keys_change_meanwhile(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for start in range(0, PAGE_KEYS_MAX + 100, 100):
            await do(store, *(Put(f"k{i:05}", b"old") for i in range(start, start + 100)))
        seen: list[KeyValue] = []
        async for kv in range_all(store, "k"):
            if not seen:
                await do(store, Put("k00000x", b"new"), Put("k01050", b"new"), Delete("k01051"), Put("k99999", b"new"))
            seen.append(kv)
        assert [kv.key for kv in seen] == [f"k{i:05}" for i in range(PAGE_KEYS_MAX + 100)]
        assert {kv.value for kv in seen} == {b"old"}

    with_store(scenario)


def test_a_revision_in_the_future_cannot_be_read(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(Invalid) as caught:
            await store.range("", revision=2)
        assert caught.value.reason == "REVISION_IN_FUTURE"

    with_store(scenario)


# -- leases -------------------------------------------------------------------------------------------------------


def test_an_expired_lease_deletes_its_keys_in_one_revision(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        lease = await store.lease_grant(with_store.ttl_s)
        watch = store.watch("")
        await do(store, Put("s/2", b"", lease), Put("s/1", b"", lease), Put("free", b""))
        first, gone = await following(watch, 2)
        assert [event.kv.lease for event in first.events] == [lease, lease, 0]
        assert gone.revision == first.revision + 1
        assert sorted((event.kind, event.kv.key) for event in gone.events) == [("delete", "s/1"), ("delete", "s/2")]
        assert [kv.key for kv in (await store.range("")).items] == ["free"]
        with pytest.raises(NotFound) as caught:
            await store.lease_keep_alive(lease)
        assert caught.value.reason == "LEASE_GONE"
        watch.close()

    with_store(scenario)


def test_a_lease_lives_while_it_is_kept_alive(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        kept, left = await store.lease_grant(with_store.ttl_s), await store.lease_grant(with_store.ttl_s)
        await do(store, Put("kept", b"", kept))
        # Two more leases that end one after the other outlast the first by far.
        for _ in range(2):
            other = await store.lease_grant(with_store.ttl_s)
            await do(store, Put("other", b"", other))
            while await store.get("other") is not None:
                assert await store.lease_keep_alive(kept) == pytest.approx(with_store.ttl_s, abs=1)
                await asyncio.sleep(with_store.ttl_s / 20)
        assert await store.get("kept") is not None
        with pytest.raises(NotFound):
            await store.lease_keep_alive(left)

    with_store(scenario)


def test_a_revoked_lease_takes_its_keys_along(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        lease = await store.lease_grant(60)
        await do(store, Put("a", b"", lease), Put("b", b"", lease))
        await store.lease_revoke(lease)
        assert await store.range("") == Page([], False, 3)
        for again in (store.lease_revoke(lease), store.lease_keep_alive(lease)):
            with pytest.raises(NotFound):
                await again
        with pytest.raises(NotFound):
            await put(store, "c", b"", lease=lease)

    with_store(scenario)


def test_a_put_moves_its_key_to_another_lease_or_off_it(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        one, two = await store.lease_grant(60), await store.lease_grant(60)
        assert one != two
        await do(store, *(Put(key, b"", one) for key in ("stays", "moves", "leaves", "deleted")))
        await do(store, Put("moves", b"", two), Put("leaves", b""), Put("stays", b"x", ignore_lease=True))
        await do(store, Delete("deleted"))
        await put(store, "deleted", b"again")
        await store.lease_revoke(one)
        assert [(kv.key, kv.lease) for kv in (await store.range("")).items] == [
            ("deleted", 0),
            ("leaves", 0),
            ("moves", two),
        ]
        await put(store, "deleted", b"", lease=0)
        assert (await do(store, Put("leaves", b"y", ignore_lease=True), Get("leaves"))).responses[1] == KeyValue(
            "leaves", b"y", 2, 8, 3, 0
        )

    with_store(scenario)


@pytest.mark.parametrize("ttl_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_lease_needs_a_time_to_live(with_store: WithStore, ttl_s: float) -> None:
    async def scenario(store: Store) -> None:
        with pytest.raises(Invalid) as caught:
            await store.lease_grant(ttl_s)
        assert caught.value.reason == "LEASE_TTL_INVALID"

    with_store(scenario)


# -- watches ------------------------------------------------------------------------------------------------------


def test_a_watch_yields_whole_revisions_of_its_prefix_in_order(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        await put(store, "w/before", b"")
        watch = store.watch("w/")
        await do(store, Put("w/2", b"2"), Put("x", b""), Put("w/1", b"1"))
        await put(store, "x", b"")
        await do(store, Delete("w/2"), Delete("w/none"))
        first, second = await following(watch, 2)
        assert first == WatchBatch(
            3,
            (StoreEvent("put", KeyValue("w/2", b"2", 3, 3, 1)), StoreEvent("put", KeyValue("w/1", b"1", 3, 3, 1))),
        )
        assert second == WatchBatch(5, (StoreEvent("delete", KeyValue("w/2", b"", 0, 5, 0)),))
        watch.close()

    with_store(scenario)


def test_a_watch_sees_whatever_is_written_after_it_was_made(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        write = asyncio.ensure_future(put(store, "w", b"1"))
        await asyncio.sleep(0)
        watch = store.watch("w")
        await asyncio.gather(write, put(store, "w", b"2"))
        values = [event.kv.value for batch in await following(watch, 1) for event in batch.events]
        assert values in ([b"1"], [b"2"])  # the first write raced with the watch; the second did not
        watch.close()

    with_store(scenario)


def test_a_watch_from_a_revision_repeats_the_past_and_goes_on(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for i in range(5):
            await put(store, f"w{i % 2}", str(i).encode())  # revisions 2-6
        watch = store.watch("w1", from_revision=4)
        live = store.watch("w", from_revision=7)
        await put(store, "w1", b"5")  # 7
        assert [(b.revision, b.events[0].kv.value) for b in await following(watch, 2)] == [(5, b"3"), (7, b"5")]
        assert [b.revision for b in await following(live, 1)] == [7]
        watch.close()
        live.close()

    with_store(scenario)


def test_a_watch_from_a_future_revision_waits_for_it(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        watch = store.watch("w", from_revision=4)
        for _ in range(4):
            await put(store, "w", b"")
        assert [b.revision for b in await following(watch, 2)] == [4, 5]
        watch.close()

    with_store(scenario)


def test_watches_lose_and_repeat_nothing_among_concurrent_writers(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        early = store.watch("w")

        async def write(name: int) -> None:
            for i in range(20):
                await put(store, f"w{name}", str(i).encode())

        writers = asyncio.gather(*(write(name) for name in range(10)))
        middle: list[StoreWatch] = []
        for revision in range(2, 12):
            await store.get("x")
            middle.append(store.watch("w", from_revision=revision))
        await writers
        expected = list(range(2, 202))
        assert [b.revision for b in await following(early, 200)] == expected
        for start, watch in enumerate(middle):
            assert [b.revision for b in await following(watch, 200 - start)] == expected[start:]
        for watch in (early, *middle):
            watch.close()

    with_store(scenario)


def test_a_closed_watch_ends_also_for_one_who_waits(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        watch = store.watch("w")

        async def drain() -> list[WatchBatch]:
            return [batch async for batch in watch]

        waiting = asyncio.ensure_future(drain())
        await put(store, "x", b"")
        watch.close()
        watch.close()
        assert await waiting == []
        await put(store, "w", b"")
        assert [batch async for batch in watch] == []

    with_store(scenario)


# -- compaction ---------------------------------------------------------------------------------------------------


def test_a_compaction_ends_reads_of_earlier_revisions_and_keeps_what_is_present(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for i in range(5):
            await put(store, f"k{i % 2}", str(i).encode())  # revisions 2-6
        await delete(store, "k1")  # 7
        await store.compact(6)
        with pytest.raises(StoreCompacted):
            await store.range("k", revision=5)
        assert [kv.key for kv in (await store.range("k", revision=6)).items] == ["k0", "k1"]
        assert [kv.value for kv in (await store.range("k")).items] == [b"4"]
        assert await store.get("k0") == KeyValue("k0", b"4", 2, 6, 3, 0)
        assert await put(store, "k0", b"5") == 8

    with_store(scenario)


def test_watches_go_on_behind_a_compaction_and_end_if_they_start_before_it(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        early = store.watch("w")
        for i in range(5):
            await put(store, "w", str(i).encode())  # revisions 2-6
        assert [b.revision for b in await following(early, 5)] == [2, 3, 4, 5, 6]
        await store.compact(4)
        with pytest.raises(StoreCompacted):
            await anext(aiter(store.watch("w", from_revision=3)))
        late = store.watch("w", from_revision=5)
        assert [b.revision for b in await following(late, 2)] == [5, 6]

        await store.compact(6)
        await delete(store, "w")  # 7
        for watch in (early, late):
            assert [b.revision for b in await following(watch, 1)] == [7]
            watch.close()

    with_store(scenario)


def test_a_compaction_is_idempotent_and_never_goes_back(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for _ in range(5):
            await put(store, "k", b"")  # revisions 2-6
        await store.compact(5)
        await store.compact(5)
        await store.compact(3)
        with pytest.raises(StoreCompacted):
            await store.range("k", revision=4)
        assert (await store.range("k", revision=5)).items[0].version == 4

    with_store(scenario)


def test_a_compaction_into_the_future_is_refused(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        revision = await put(store, "k", b"")
        with pytest.raises(Invalid) as caught:
            await store.compact(revision + 1)
        assert caught.value.reason == "REVISION_IN_FUTURE"
        assert (await store.range("k", revision=revision)).revision == revision

    with_store(scenario)


def test_a_slow_reader_of_all_keys_goes_on_behind_a_compaction(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        count = PAGE_KEYS_MAX + 10
        for start in range(0, count, 100):
            names = [f"k/{i:05}" for i in range(start, min(count, start + 100))]
            await do(store, *(Put(name, b"old") for name in names))
        reader = range_all(store, "k/")
        seen = [await anext(reader)]
        await do(store, Put("k/00000", b"new"), Put(f"k/{count - 1:05}", b"new"), Put(f"k/{count:05}", b"new"))
        await put(store, "other", b"")
        await store.compact(await store.revision())
        seen += [kv async for kv in reader]
        assert [kv.key for kv in seen] == [f"k/{i:05}" for i in range(count + 1)]
        assert [seen[0].value, seen[-2].value] == [b"old", b"new"]

    with_store(scenario)


# -- the end ------------------------------------------------------------------------------------------------------


def test_a_closed_store_is_unavailable(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        watch = store.watch("w")
        waiting = asyncio.ensure_future(anext(aiter(watch)))
        await store.get("a")
        await store.close()
        await store.close()
        with pytest.raises(StoreUnavailable):
            await waiting
        with pytest.raises(StoreUnavailable):
            await store.get("a")
        with pytest.raises(StoreUnavailable):
            await put(store, "a", b"")
        with pytest.raises(StoreUnavailable):
            await anext(aiter(store.watch("w")))

    with_store(scenario)


def test_what_was_asked_before_closing_is_still_done(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        writes = [asyncio.ensure_future(put(store, f"k{i}", b"")) for i in range(20)]
        await asyncio.sleep(0)
        await store.close()
        assert sorted(await asyncio.gather(*writes)) == list(range(2, 22))

    with_store(scenario)


def test_a_cancelled_caller_disturbs_nobody(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        calls = [asyncio.ensure_future(put(store, f"k{i}", b"")) for i in range(10)]
        await asyncio.sleep(0)
        for call in calls[::2]:
            call.cancel()
        results = await asyncio.gather(*calls, return_exceptions=True)
        assert [isinstance(result, int) for result in results] == [False, True] * 5
        assert await put(store, "last", b"") <= 12

    with_store(scenario)


@pytest.mark.parametrize(
    ("prefix", "end"),
    [("a/", "a0"), ("a\U0010ffff", "b"), ("\U0010ffff", None), ("", None), ("\ud7ff", "\ue000")],
)
def test_the_end_of_a_prefix_is_the_next_text_above_it(prefix: str, end: str | None) -> None:
    assert prefix_end(prefix) == end


def test_a_range_in_a_transaction_is_bounded_on_both_sides(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for name in ("j", "k1", "k2", "k3", "k4", "l"):
            await put(store, name, b"")
        ranges = (
            Range("k", after="k1", before="k4"),
            Range("k", before="k3"),
            Range("k", 1, before="k3"),
            Range("", after="j", before="k2"),
            Range("k", before="z"),
            Range("k", after="k3", before="k2"),
            Range("k", before="a"),
        )
        result = await store.txn(Txn((), (*ranges, Put("k25", b""), Range("k", after="k2", before="k3"))))
        pages = [part for part in result.responses if isinstance(part, Page)]
        assert [[item.key for item in page.items] for page in pages] == [
            ["k2", "k3"],
            ["k1", "k2"],
            ["k1"],
            ["k1"],
            ["k1", "k2", "k3", "k4"],
            [],
            [],
            ["k25"],
        ]
        assert [page.more for page in pages] == [False, False, True, False, False, False, False, False]

    with_store(scenario)
