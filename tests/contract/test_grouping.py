"""Grouped transactions: each caller gets the same result as without grouping."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from stepflow.errors import Invalid
from stepflow.store import (
    Delete,
    DeletePrefix,
    Get,
    KeyValue,
    Page,
    Put,
    Range,
    Store,
    StoreUnavailable,
    Txn,
    TxnResult,
    absent,
    present,
    put,
)
from stepflow.store.grouping import GROUP_KEYS_READ_MAX, GROUP_OPS_MAX, Grouping

if TYPE_CHECKING:
    from conftest import WithStore


class Counting:
    """A store that counts what is sent to it, and can refuse to answer."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.sent: list[Txn] = []
        self.away = False

    async def txn(self, txn: Txn) -> TxnResult:
        self.sent.append(txn)
        if self.away:
            await asyncio.sleep(0)
            raise StoreUnavailable("STORE_UNAVAILABLE", "away")
        return await self._store.txn(txn)


def counting(store: Store) -> tuple[Counting, Grouping]:
    counted = Counting(store)
    return counted, Grouping(counted)  # type: ignore[arg-type]  # the one method that it calls


async def together(grouping: Grouping, *txns: Txn) -> list[Any]:
    """Ask for all at once; the first leaves alone, the others behind it."""
    return await asyncio.gather(*map(grouping.txn, txns), return_exceptions=True)


def create(key: str) -> Txn:
    return Txn((absent(key),), (Put(key, key.encode()),), (Get(key),))


def test_what_is_asked_for_meanwhile_goes_in_one_transaction_with_one_revision(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        counted, grouping = counting(store)
        results = await together(grouping, *(create(f"k{n}") for n in range(20)))
        assert all(result.succeeded and result.responses == (None,) for result in results)
        assert len(counted.sent) <= 2
        assert [item.key for item in (await store.range("k")).items] == sorted(f"k{n}" for n in range(20))

    with_store(scenario)


def test_each_gets_the_responses_to_its_own_reads(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        for key in ("a/1", "a/2", "b"):
            await put(store, key, key.encode())
        _, grouping = counting(store)
        first, second, third = await together(
            grouping,
            Txn((), (Get("b"),)),
            Txn((), (Range("a/"), Get("none"))),
            Txn((present("b"),), (Get("a/1"), Put("c", b"c"), Get("c"))),
        )
        assert first.responses[0].value == b"b"
        page, none = second.responses
        assert isinstance(page, Page)
        assert [item.key for item in page.items] == ["a/1", "a/2"]
        assert none is None
        assert [response and response.value for response in third.responses] == [b"a/1", None, b"c"]

    with_store(scenario)


def test_one_whose_compare_does_not_hold_gets_its_other_branch_and_harms_nobody(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        await put(store, "taken", b"before")
        _, grouping = counting(store)
        first, taken, last = await together(grouping, create("first"), create("taken"), create("last"))
        assert first.succeeded
        assert last.succeeded
        assert not taken.succeeded
        assert isinstance(taken.responses[0], KeyValue)
        assert taken.responses[0].value == b"before"

    with_store(scenario)


def test_of_many_who_create_the_same_key_at_once_one_succeeds(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        _, grouping = counting(store)
        results = await together(grouping, *(create("same") for _ in range(50)))
        assert [result.succeeded for result in results].count(True) == 1
        standing = await store.get("same")
        assert standing is not None
        assert standing.version == 1

    with_store(scenario)


def test_a_transaction_is_never_sent_with_one_before_it_that_changes_what_it_compares(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        await put(store, "gate", b"")
        _, grouping = counting(store)
        _, closed, through = await together(
            grouping,
            Txn((), (Get("gate"),)),
            Txn((present("gate"),), (Delete("gate"), Put("closed", b""))),
            Txn((present("gate"),), (Put("through", b""),)),
        )
        assert closed.succeeded
        assert not through.succeeded
        assert await store.get("through") is None

    with_store(scenario)


def test_one_that_no_store_takes_fails_alone(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        _, grouping = counting(store)
        results = await together(
            grouping, create("a"), create("b"), Txn((), (Put("missing", b"", ignore_lease=True),)), create("c")
        )
        assert isinstance(results[2], Invalid)
        assert all(results[n].succeeded for n in (0, 1, 3))

    with_store(scenario)


def test_a_deleted_prefix_goes_alone(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        counted, grouping = counting(store)
        await together(grouping, create("x"), create("p/1"), Txn((), (DeletePrefix("p/"),)), create("p/2"))
        assert all(len(txn.then) == 1 for txn in counted.sent if any(isinstance(op, DeletePrefix) for op in txn.then))
        assert await store.get("p/1") is None
        assert await store.get("p/2") is not None

    with_store(scenario)


def test_a_group_is_bounded_in_operations_and_in_keys_read(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        counted, grouping = counting(store)
        await together(grouping, *(create(f"k{n}") for n in range(3 * GROUP_OPS_MAX)))
        assert max(len(txn.then) for txn in counted.sent) <= GROUP_OPS_MAX
        counted.sent.clear()
        await together(grouping, *(Txn((), (Range("k", limit=100),)) for _ in range(20)))
        assert max(len(txn.then) for txn in counted.sent) == GROUP_KEYS_READ_MAX // 100
        assert (await grouping.txn(Txn((), (Range("k", limit=500),)))).responses, "a larger one goes alone"

    with_store(scenario)


def test_while_the_store_is_away_every_asker_learns_that_its_own_is_undecided(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        counted, grouping = counting(store)
        counted.away = True
        results = await together(grouping, create("a"), create("b"), create("c"))
        assert all(isinstance(result, StoreUnavailable) for result in results)
        counted.away = False
        assert (await grouping.txn(create("a"))).succeeded

    with_store(scenario)


def test_who_waits_when_it_ends_is_cancelled_and_one_who_leaves_keeps_nobody_waiting(with_store: WithStore) -> None:
    async def scenario(store: Store) -> None:
        _, grouping = counting(store)
        tasks = [asyncio.create_task(grouping.txn(create(f"k{n}"))) for n in range(4)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        assert (await tasks[3]).succeeded
        waiting = [asyncio.create_task(grouping.txn(create(f"late{n}"))) for n in range(4)]
        await asyncio.sleep(0)
        await grouping.close()
        for task in waiting:
            with pytest.raises(asyncio.CancelledError):
                await task

    with_store(scenario)
