"""Many waiting runs: on calls, with and without limits, and on timers. None of them costs a task, a timer or a watch.

`benchmarks/live_runs.py` measures ten thousand of them in a mesh of processes.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from support import wait_until_async
from support.parts import World, gated, step

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

FEW, MANY = 60, 480
"""Divisible by the kinds of runs."""


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 120))


async def live_runs(world: World, count: int) -> list[str]:
    """Begin runs, a third of each kind, and return once all of them wait."""
    before = len(world.work.in_flight), len(world.executors[0].ownership.timers)
    flows: list[list[dict[str, Any]]] = [
        [gated("a")],
        [gated("a", timeout="1h", idleTimeout="1h")],
        [step("a", "/builtin/sleep", {"duration_ms": 3_600_000})],
    ]
    run_ids = [await world.submit(*flow) for flow in flows for _ in range(count // len(flows))]
    wakes = world.executors[0].ownership.timers
    await wait_until_async(lambda: len(world.work.in_flight) == before[0] + 2 * count // 3, "calls are in flight", 60)
    await wait_until_async(lambda: len(wakes) == before[1] + count // 3, "the sleepers sleep", 60)
    await wait_until_async(lambda: not world.executors[0].takeover.adopting, "all are adopted")
    return run_ids


def cost(world: World) -> tuple[int, int, int]:
    """Return how many tasks, timers and watches there are."""
    loop: Any = asyncio.get_running_loop()
    timers = [handle for handle in loop._scheduled if not handle.cancelled()]
    store: Any = world.store
    return len(asyncio.all_tasks()), len(timers), len(store._watches)


def test_a_run_that_waits_costs_no_task_no_timer_and_no_watch() -> None:
    async def scenario() -> None:
        async with World.open() as world:
            await live_runs(world, FEW)
            few = cost(world)
            await live_runs(world, MANY - FEW)
            assert [more - less for more, less in zip(cost(world), few, strict=True)] == [0, 0, 0]

    run(scenario())


class Counted(dict[Any, Any]):
    """A table that counts how many of its entries are looked at one after the other."""

    looked_at = 0

    def __iter__(self) -> Iterator[Any]:
        for key in super().__iter__():
            Counted.looked_at += 1
            yield key

    def items(self) -> Any:
        return [(key, self[key]) for key in self]

    def values(self) -> Any:
        return [self[key] for key in self]


def test_what_is_done_for_one_run_does_not_look_at_all_others() -> None:
    async def scenario() -> None:
        async with World.open() as world:
            run_ids = await live_runs(world, MANY)
            executor, cluster = world.executors[0], world.control.cluster
            executor.ownership.drivers = Counted(executor.ownership.drivers)
            executor.hosts._calls = Counted(executor.hosts._calls)
            cluster.assignments = {name: Counted(table) for name, table in cluster.assignments.items()}
            Counted.looked_at = 0
            one, other = run_ids[0], run_ids[1]
            assert executor.drives_run(one)
            assert executor.items_ended(one) == 0
            assert cluster.owner_addresses(one) == {executor.id: ""}
            executor.listen(one, None)
            await world.control.cancel(one)
            assert (await world.ended(one)).status == "cancelled"
            executor.hosts.drop_caller(executor.ownership.drivers[(other, 0)])
            assert Counted.looked_at == 0

    run(scenario())
