"""Runs whose plugin no host runs: their statuses say so, and are told as queued by the owner of the run alone."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from support import wait_until_async
from support.parts import World, echo, gated, of

from control_plane.cluster import owner_epoch
from control_plane.obstacles import host_wait_reason
from executor.host_waits import HostWaits
from stepflow.mesh.v1 import state_pb2
from stepflow.retry import Backoff
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from executor.executor import Executor


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


async def reason(world: World, run_id: str) -> str:
    return host_wait_reason(world.control.cluster, await world.control.get_run(run_id))


async def look(executor: Executor) -> None:
    """Do the look of the next second now."""
    waits = executor._host_waits
    assert isinstance(waits, HostWaits)
    await waits.look()
    session = executor._session
    assert session is not None
    await session.writer.drain()


async def waiting(executor: Executor) -> None:
    """Return once a step of a run waits for a plugin."""

    def blocked() -> bool:
        return any(driver.state.blocked_steps for driver in executor.ownership.drivers.values())

    await wait_until_async(lambda: blocked() or executor.hosts.queue.waiting, "a step waits for its plugin")


def test_a_run_without_a_host_for_its_plugin_is_queued_until_one_comes() -> None:
    async def main() -> None:
        async with World.open(hosts=0, queue_timeout_s=30.0) as world:
            (executor,) = world.executors
            run_id = await world.submit(echo("a", 7))
            other = await world.submit(echo("a", {"$variable": "absent"}))
            assert (await world.ended(other)).status == "failed"
            await waiting(executor)
            await look(executor)
            await wait_until_async(lambda: owner_epoch(world.control.cluster, run_id, 0), "its owner is known")
            assert await reason(world, run_id) == "no host for plugin work"

            await world.add_host()
            assert (await world.ended(run_id)).status == "completed"
            await look(executor)
            assert await reason(world, run_id) == ""
            assert (await world.control.get_run(run_id)).status == "completed"

    run(main())


def test_a_run_with_a_call_at_a_host_is_not_queued() -> None:
    async def main() -> None:
        async with World.open(hosts=1, queue_timeout_s=30.0) as world:
            (executor,) = world.executors
            run_id = await world.submit(gated("a"), echo("b", of("a")))
            await wait_until_async(lambda: world.work.in_flight, "it is called")
            before = await world.store.get(keys.status(run_id, 0))
            await look(executor)
            assert await world.store.get(keys.status(run_id, 0)) == before
            world.work.release_all()
            assert (await world.ended(run_id)).status == "completed"

    run(main())


def test_the_reason_of_a_former_owner_is_not_shown() -> None:
    async def main() -> None:
        async with World.open(hosts=0, queue_timeout_s=30.0) as world:
            (executor,) = world.executors
            run_id = await world.submit(echo("a", 7))
            await waiting(executor)
            await wait_until_async(lambda: owner_epoch(world.control.cluster, run_id, 0), "its owner is known")
            await look(executor)
            found = await world.store.get(keys.status(run_id, 0))
            assert found is not None
            status = state_pb2.PartitionStatus.FromString(found.value)
            assert status.queued_epoch == owner_epoch(world.control.cluster, run_id, 0)

            view = await world.control.get_run(run_id)
            world.control.cluster.assignments[executor.id][run_id, 0] += 1
            assert host_wait_reason(world.control.cluster, view) == ""
            await world.control.cancel(run_id)
            assert (await world.ended(run_id)).status == "cancelled"

    run(main())


def test_a_queued_run_stays_queued_in_the_pause_before_its_next_attempt() -> None:
    async def main() -> None:
        async with World.open(hosts=0, queue_timeout_s=0.2) as world:
            (executor,) = world.executors
            slow = Backoff(kind="constant", min_delay_ms=60_000)
            run_id = await world.control.submit(replace(world.request(echo("a", 7)), backoff=slow))
            await waiting(executor)
            await look(executor)
            await wait_until_async(lambda: owner_epoch(world.control.cluster, run_id, 0), "its owner is known")
            ((driver,),) = [list(executor.ownership.drivers.values())]
            await wait_until_async(driver.state.next_wake_ms, "the first attempt is given up")
            assert not executor.hosts.queue.waiting
            await look(executor)
            assert await reason(world, run_id) == "no host for plugin work"

            await world.add_host()
            await look(executor)
            assert await reason(world, run_id) == ""
            await world.control.cancel(run_id)
            assert (await world.ended(run_id)).status == "cancelled"

    run(main())
