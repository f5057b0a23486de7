"""New runs get the engine version that all executors have, and go to executors that have it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from support import wait_until_async
from support.parts import World, echo, gated

from stepflow.journal import read_record
from stepflow.mesh.v1 import state_pb2
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import delete, keys, put

if TYPE_CHECKING:
    from collections.abc import Coroutine

OLD = "an-old-executor"


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


async def version_of(world: World, run_id: str) -> int:
    return (await read_record(world.store, run_id)).policy.engine_version


async def add_old_executor(world: World) -> None:
    """Register an executor of the former version, which does nothing."""
    session = state_pb2.ExecutorSession(runs_max=100, engine_version=ENGINE_VERSION - 1)
    await put(world.store, keys.session_executor(OLD), session.SerializeToString())
    await wait_until_async(lambda: OLD in world.control.cluster.sessions, "the old executor is seen")


def orphan_key(world: World, run_id: str) -> str:
    return keys.assigned(keys.handed_over_by(world.executors[0].id), run_id, 0)


def test_a_run_gets_the_version_that_every_live_executor_has() -> None:
    async def main() -> None:
        async with World.open() as world:
            assert await version_of(world, await world.submit(echo("a"))) == ENGINE_VERSION
            await add_old_executor(world)
            assert await version_of(world, await world.submit(echo("a"))) == ENGINE_VERSION - 1
            await delete(world.store, keys.session_executor(OLD))
            await wait_until_async(lambda: OLD not in world.control.cluster.sessions, "its session is gone")
            assert await version_of(world, await world.submit(echo("a"))) == ENGINE_VERSION

    run(main())


def test_a_run_of_a_mesh_without_the_newest_formats_gets_the_former_version() -> None:
    async def main() -> None:
        async with World.open() as world:
            world.newest_formats = False
            assert await version_of(world, await world.submit(echo("a"))) == ENGINE_VERSION - 1

    run(main())


def test_while_no_executor_lives_the_version_of_the_last_ones_counts() -> None:
    async def main() -> None:
        async with World.open(executors=0) as world:
            await add_old_executor(world)
            await delete(world.store, keys.session_executor(OLD))
            await wait_until_async(lambda: not world.control.cluster.sessions, "its session is gone")
            assert await version_of(world, await world.submit(echo("a"))) == ENGINE_VERSION - 1

    run(main())


def test_a_run_is_handed_over_only_to_an_executor_that_has_its_version() -> None:
    async def main() -> None:
        async with World.open() as world:
            new_run = await world.submit(gated("a"))
            world.newest_formats = False
            former_run = await world.submit(gated("a"))
            await wait_until_async(lambda: len(world.work.in_flight) == 2, "both wait")
            await add_old_executor(world)
            for plane in world.planes:  # else the leader would assign the orphan at once
                await plane.close()

            assert await world.executors[0].hand_over() == 2
            assigned = [keys.parse_assigned(key)[:2] for key in await world.keys(keys.ASSIGNED)]
            owners = {run_id: executor for executor, run_id in assigned}
            assert owners == {former_run: OLD, new_run: keys.parse_assigned(orphan_key(world, new_run))[0]}

    run(main())
