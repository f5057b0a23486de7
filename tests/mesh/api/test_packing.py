"""Packing by a leader: nothing is lost, repeated or unreadable, whatever ends or is deleted at any step of it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support.archive import FAR_MS, ArchiveLeaders, AtStep, Crash
from support.corpus import CORPUS
from support.packing import answers, listings, run_world, store_run

from control_plane.archive import run_keys
from control_plane.control_plane import ControlPlane
from control_plane.deletion import delete_run
from stepflow.errors import NotFound
from stepflow.store import keys, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.blobs.memory import MemoryBackend
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from support.etcd import EtcdServer

    from control_plane.archive.policy import RetentionPolicy
    from stepflow.store import Store

FLOWS = ("chain", "map", "large values")
"""Flows of the corpus that the runs have: small, with sub-runs, with blobs."""

LIMIT_S = 300


class PackingWorld:
    """A store with a few ended runs, and the leaders and readers over it."""

    def __init__(self, store: Store, policy: RetentionPolicy | None = None) -> None:
        self.store = store
        self.backend = MemoryBackend()
        self.blobs = BlobStore(self.backend)
        self.leaders = ArchiveLeaders(store, self.backend, policy)
        self.control = ControlPlane(store, self.blobs)
        self.run_ids: list[str] = []

    async def fill(self, *names: str) -> None:
        """Put a run into the store for each of the flows, and further ones of the first."""
        for number, name in enumerate(names or FLOWS, 1):
            world = run_world(number, CORPUS[name], inputs=[{"n": 1}])
            world.run()
            self.run_ids.append(await store_run(self.store, self.blobs, world, [1, 2], created_at_ms=900_000 + number))

    async def answers(self, run_ids: list[str] | None = None) -> dict[str, Any]:
        found: dict[str, Any] = {
            run_id: await answers(self.control, self.blobs, run_id) for run_id in run_ids or self.run_ids
        }
        return found | await listings(self.control)

    async def glance(self) -> None:
        """Check that each run is there, once, with its items."""
        for run_id in self.run_ids:
            assert (await self.control.get_run(run_id)).terminal
            assert await self.control.items(run_id)
        page, token = await self.control.run_list.page(_anything(), 1000, "")
        assert sorted(view.run_id for view in page) == sorted(self.run_ids)
        assert not token

    async def kept(self) -> set[str]:
        """Return the kinds of keys of runs that the store has."""
        kinds = (keys.RUNS, keys.STATUS, keys.RESULTS, keys.JOURNAL, keys.INBOX, keys.BY_AGE, keys.DELETED)
        return {kind for kind in kinds if (await self.store.range(kind, limit=1)).items}

    async def manifests(self) -> set[str]:
        return {keys.parse_segment(item.key) async for item in range_all(self.store, keys.SEGMENTS)}


def _anything() -> Any:
    from control_plane.run_list import RunFilter

    return RunFilter()


@asynccontextmanager
async def opened(etcd: EtcdServer | None, policy: RetentionPolicy | None = None) -> AsyncIterator[PackingWorld]:
    store: Any
    if etcd is None:
        store = await SqliteStore.open(":memory:")
    else:
        store = await EtcdStore.open(EtcdConfig.parse(etcd.endpoint, prefix=f"{uuid4().hex[:16]}/"))
    world = PackingWorld(store, policy)
    try:
        await world.control.start(lead=False)
        yield world
    finally:
        await world.control.close()
        await store.close()


@pytest.fixture(params=["sqlite", "etcd"])
def world_of(request: pytest.FixtureRequest) -> Callable[..., Any]:
    """Give a function that opens a world over an empty store."""
    etcd = request.getfixturevalue("etcd") if request.param == "etcd" else None

    def open_one(policy: RetentionPolicy | None = None) -> Any:
        return opened(etcd, policy)

    return open_one


def within(work: Any) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(LIMIT_S):
            await work

    asyncio.run(bounded())


async def check_left(world: PackingWorld) -> None:
    """Check that nothing is left in the store, and no object that no manifest names, after a day."""
    assert await world.kept() == set()
    last = await world.leaders.term()
    await last.begin()
    await last.upkeep.delete_orphans(now_s=FAR_MS / 1000)
    assert world.leaders.objects() == await world.manifests()


def test_a_leader_that_dies_at_any_step_of_packing_loses_nothing_and_leaves_nothing(world_of: Any) -> None:
    async def crash() -> None:
        raise Crash

    async def died_at(step: int) -> bool:
        async with world_of() as world:
            await world.fill()
            expected = await world.answers()
            hook = AtStep(step, crash)
            term = await world.leaders.term(hook)
            try:
                await term.all()
            except Crash:
                await world.glance()
                assert await world.answers() == expected
            await world.leaders.undisturbed()
            assert await world.answers() == expected
            await check_left(world)
            assert await world.answers() == expected
            return hook.reached

    async def work() -> None:
        step = 0
        while await died_at(step):
            step += 1
        assert step > 12

    within(work())


def test_each_run_is_readable_once_at_each_step_of_packing(world_of: Any) -> None:
    async def work() -> None:
        async with world_of() as world:
            await world.fill()
            steps = 0

            async def look(_: str) -> None:
                nonlocal steps
                steps += 1
                await world.glance()

            await (await world.leaders.term(look)).all()
            assert steps > 12
            assert await world.kept() == set()

    within(work())


def test_a_run_that_is_too_large_for_memory_is_packed_page_by_page(
    world_of: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_keys, "WHOLE_RUN_BYTES_MAX", 10)
    test_each_run_is_readable_once_at_each_step_of_packing(world_of)


def test_a_run_deleted_at_any_step_of_packing_is_gone_at_once_and_stays_gone(world_of: Any) -> None:
    async def deleted_at(step: int) -> bool:
        async with world_of() as world:
            await world.fill()
            gone = world.run_ids[1]

            async def delete() -> None:
                await delete_run(world.control.run_store, world.blobs, gone, world.control.run_store.is_packed)
                world.run_ids.remove(gone)

            hook = AtStep(step, delete)

            async def look(name: str) -> None:
                await hook(name)
                if hook.reached:
                    await world.glance()
                    with pytest.raises(NotFound):
                        await world.control.get_run(gone)

            await (await world.leaders.term(look)).all()
            await world.leaders.undisturbed()
            await world.glance()
            if hook.reached:
                with pytest.raises(NotFound):
                    await world.control.get_run(gone)
                with pytest.raises(NotFound):
                    await world.control.items(gone)
            await check_left(world)
            return hook.reached

    async def work() -> None:
        step = 0
        while await deleted_at(step):
            step += 1
        assert step > 12

    within(work())


def test_a_new_run_with_the_id_of_one_deleted_while_it_was_packed_is_untouched(world_of: Any) -> None:
    async def replaced_at(step: int) -> bool:
        async with world_of() as world:
            await world.fill()
            again = run_world(2, CORPUS["diamond"], inputs=[{"n": 1}])
            assert again.run_id == world.run_ids[1]
            expected: dict[str, Any] = {}

            async def replace() -> None:
                await delete_run(world.control.run_store, world.blobs, again.run_id, world.control.run_store.is_packed)
                again.run()
                await store_run(world.store, world.blobs, again, [1])
                expected.update(await world.answers())

            hook = AtStep(step, replace)
            await (await world.leaders.term(hook)).all()
            if hook.reached:
                assert await world.answers() == expected
            await world.leaders.undisturbed()
            if hook.reached:
                assert await world.answers() == expected
            await check_left(world)
            return hook.reached

    async def work() -> None:
        step = 0
        while await replaced_at(step):
            step += 1
        assert step > 12

    within(work())
