"""The formats gate: at once in a fresh mesh, after a grace in one with runs from before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support import wait_until_async

from control_plane.formats import FORMATS_LEVEL, Formats
from stepflow.errors import FailedPrecondition
from stepflow.mesh.v1 import formats_pb2
from stepflow.store import Delete, Txn, created_at, keys, put
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from stepflow.store import Compare, Store


class Clock:
    now_ms = 1_000_000

    def __call__(self) -> int:
        return self.now_ms


async def leading(store: Store) -> Compare:
    return created_at(keys.leader(), await put(store, keys.leader(), b""))


def test_a_fresh_mesh_writes_the_new_formats_at_once() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        formats = Formats(store, Clock())
        assert not formats.active
        await formats.announce(await leading(store), 600)
        assert formats.active
        await store.close()

    asyncio.run(work())


def test_a_clock_that_is_set_back_or_behind_does_not_end_the_formats() -> None:
    async def work() -> None:
        store, clock, behind = await SqliteStore.open(":memory:"), Clock(), Clock()
        formats, other = Formats(store, clock), Formats(store, behind)
        fence = await leading(store)
        behind.now_ms -= 900_000
        await formats.announce(fence, 600)
        await other.announce(fence, 600)
        assert other.active, "a fresh mesh does not wait for a clock that is behind"

        await store.txn(Txn((), (Delete(keys.formats()),)))
        await put(store, keys.run("r"), b"")
        await formats.announce(fence, 600)
        clock.now_ms += 600_000
        assert formats.active
        clock.now_ms -= 3_600_000
        assert formats.active
        await store.close()

    asyncio.run(work())


def test_a_mesh_with_runs_from_before_waits_for_the_grace_and_a_restart_does_not_prolong_it() -> None:
    async def work() -> None:
        store, clock = await SqliteStore.open(":memory:"), Clock()
        await put(store, keys.run("r"), b"")
        fence = await leading(store)
        formats, other = Formats(store, clock), Formats(store, clock)
        following = asyncio.create_task(other.follow())
        await formats.announce(fence, 600)
        clock.now_ms += 599_000
        assert not formats.active
        later = Formats(store, clock)
        await later.announce(fence, 600)
        clock.now_ms += 1_000
        assert formats.active
        assert later.active
        await wait_until_async(lambda: other.active, "the other replica has read the key")
        following.cancel()
        await store.close()

    asyncio.run(work())


def test_an_empty_store_that_an_earlier_version_has_led_waits_for_the_grace_too() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        await put(store, keys.BY_AGE_COMPLETE, b"")
        formats = Formats(store, Clock())
        await formats.announce(await leading(store), 600)
        assert not formats.active, "its replicas may still be there, and could not read a packed run"
        await store.close()

    asyncio.run(work())


def test_only_a_leader_announces_and_an_unknown_level_changes_nothing() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        formats = Formats(store, Clock())
        with pytest.raises(FailedPrecondition) as refused:
            await formats.announce(created_at(keys.leader(), 7), 600)
        assert refused.value.reason == "NOT_LEADING"
        fence = await leading(store)
        for value in (b"\xff", formats_pb2.Formats(level=FORMATS_LEVEL - 1).SerializeToString()):
            await put(store, keys.formats(), value)
            await formats.announce(fence, 600)
            assert not formats.active
        await put(store, keys.formats(), formats_pb2.Formats(level=FORMATS_LEVEL + 1).SerializeToString())
        await formats.announce(fence, 600)
        assert formats.active, "a later level contains this one"
        await store.close()

    asyncio.run(work())
