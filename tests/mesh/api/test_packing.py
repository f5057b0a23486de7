"""Packing by a leader: nothing is lost, repeated or unreadable, whatever ends or is deleted at any step of it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support.archive import AtStep, Crash, check_left, opened
from support.corpus import CORPUS
from support.packing import run_world, store_run

from control_plane.archive import run_reader
from control_plane.deletion import delete_run
from stepflow.errors import NotFound

if TYPE_CHECKING:
    from collections.abc import Callable

    from control_plane.archive.policy import RetentionPolicy

LIMIT_S = 300


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
    monkeypatch.setattr(run_reader, "WHOLE_RUN_BYTES_MAX", 10)
    monkeypatch.setattr(run_reader, "KEYS_PER_RUN", 1)
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
