"""While room is short, values above the leader's bound are blobs in everything that the store keeps of a run."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async
from support.parts import World, echo, of, step

from stepflow.codec import INLINE_BYTES_MAX, encode
from stepflow.mesh.v1 import host_pb2, pressure_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store import keys, put, range_all

if TYPE_CHECKING:
    from component_host.backend import HostCall

TEXT = "x" * 10_000
"""Inline by default, a blob while room is short."""

SUB_FLOW = {"steps": [echo("e", {"$input": "$"})], "output": of("e")}


async def largest(world: World, run_id: str) -> int:
    """Return the size of the largest value that the store has of a run, its record with the inputs excepted."""
    prefixes = (keys.journal_of_run(run_id), keys.results_of_run(run_id), keys.inbox_of_run(run_id))
    return max([len(item.value) for prefix in prefixes async for item in range_all(world.store, prefix)])


async def results(world: World) -> tuple[list[Any], int]:
    """Run a flow whose values enter the store at every place where they can."""

    async def ask(call: HostCall) -> Any:
        request = host_pb2.StartRun(
            flow=pb.Payload(json=encode(SUB_FLOW)), inputs=pb.Payload(json=encode([TEXT])), wait=True
        )
        report = await call.start_run(request)
        return [item.flow_result.json.decode() for item in report.items]

    world.work.asks = ask
    run_id = await world.submit(
        echo("a", {"$input": "$"}),
        step("mapped", "/builtin/map", {"workflow": {"$literal": SUB_FLOW}, "items": [of("a"), 1]}),
        step("asked", "/kit/ask"),
        echo("z", {"asked": of("asked"), "mapped": of("mapped")}),
        inputs=[TEXT],
        concurrency_max=1,
    )
    assert (await world.ended(run_id)).status == "completed"
    return await world.results(run_id), await largest(world, run_id)


@pytest.mark.parametrize("host_follows", [True, False], ids=["", "a host that does not know of the bound"])
def test_values_above_the_bound_are_stored_as_blobs_and_the_results_are_the_same(*, host_follows: bool) -> None:
    async def main() -> None:
        async with World.open() as world:
            before, inline = await results(world)
            assert inline > 10_000

            told = pressure_pb2.Pressure(inline_bytes_max=4_096).SerializeToString()
            await put(world.store, keys.pressure(), told)
            bound = world.executors[0]._run_blobs.inline_bound
            await wait_until_async(lambda: bound.bytes_max == 4_096, "the executor follows")
            if host_follows:
                world.hosts[0][0].inline_bound.bytes_max = 4_096  # its registration would follow the key

            after, stored = await results(world)
            assert after == before
            assert stored < 6_000 if host_follows else stored < INLINE_BYTES_MAX

    asyncio.run(asyncio.wait_for(main(), 60))
