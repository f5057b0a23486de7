"""Results composed of journaled results and of blobs: each value is stored once, and joined only for components."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from support import wait_until_async
from support.parts import World, echo, gated, of, step

from control_plane.admission import RunRequest
from stepflow.codec import LargeJson, decode
from stepflow.errors import Failure
from stepflow.flow import flow_from_tree
from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from control_plane.views import ItemView

KIB = 1024
ANSWERS = 2_000
ANSWER_BYTES = 10 * KIB
BLOB_BYTES = 3_000_000

BOTH = {"output": {"result": {"$input": "$"}}}
ANSWER = {"steps": [step("a", "/kit/big", {"$input": "$"})], "output": of("a")}


def run(main: Coroutine[Any, Any, None], timeout_s: float = 60) -> None:
    asyncio.run(asyncio.wait_for(main, timeout_s))


def answers(count: int = ANSWERS, size: int = ANSWER_BYTES) -> dict[str, Any]:
    """Return a `map` step over as many answers of a model."""
    return step("m", "/builtin/map", {"workflow": {"$literal": ANSWER}, "items": [size] * count})


async def the_item(world: World, run_id: str) -> ItemView:
    ((item,), _) = await world.control.listing.items(run_id, 10, "")
    return item


async def text_of(world: World, run_id: str) -> bytes:
    """Return the text of the result of the only item."""
    found = await world.control.listing.result(run_id, 0)
    text = b"".join([chunk async for chunk in found.chunks])
    assert len(text) == found.text_bytes
    return text


async def bytes_stored(world: World, run_id: str, *prefixes: str) -> int:
    """Return the bytes of the run's values in the store."""
    total = 0
    for prefix in prefixes:
        async for item in range_all(world.store, prefix + run_id):
            total += len(item.value)
    return total


def test_a_path_reads_its_part_of_a_map_over_many_answers() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(
                answers(),
                echo("n", of("m") | {"path": "successful"}),
                echo("one", of("m") | {"path": "results[1999].result"}),
                echo("both", [of("n"), of("one")]),
            )
            assert (await world.ended(run_id)).status == "completed"
            count, one = decode(await text_of(world, run_id))
            assert (count, len(one)) == (ANSWERS, ANSWER_BYTES)

    run(main())


def test_a_result_of_many_answers_refers_to_the_journal_and_is_streamed() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(answers())
            assert (await world.ended(run_id)).status == "completed"
            outcome = (await the_item(world, run_id)).outcome
            assert isinstance(outcome, LargeJson)
            assert outcome.text_bytes > ANSWERS * ANSWER_BYTES

            whole = decode(await text_of(world, run_id))
            assert (whole["successful"], whole["failed"]) == (ANSWERS, 0)
            assert {len(each["result"]) for each in whole["results"]} == {ANSWER_BYTES}
            assert await bytes_stored(world, run_id, keys.RESULTS) < 32 * KIB

    run(main())


def test_an_output_that_gathers_more_than_a_component_may_get_succeeds() -> None:
    async def main() -> None:
        async with World.open() as world:
            steps = [step(f"s{index}", "/kit/big", BLOB_BYTES) for index in range(6)]
            output = {"all": [of(f"s{index}") for index in range(6)], "again": of("s0")}
            flow = flow_from_tree({"steps": steps, "output": output})
            run_id = await world.control.submit(RunRequest(flow=flow, inputs=[b"null"]))
            assert (await world.ended(run_id)).status == "completed"
            text = await text_of(world, run_id)
            assert len(text) > 6 * BLOB_BYTES
            assert [len(each) for each in decode(text)["all"]] == [BLOB_BYTES] * 6

    run(main())


def test_an_input_above_the_limit_fails_before_the_call_and_names_the_way_out() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(answers(), echo("e", of("m")))
            assert (await world.ended(run_id)).status == "failed"
            outcome = (await the_item(world, run_id)).outcome
            assert isinstance(outcome, Failure)
            for told in ("20,5", "the limit is 16,777,216", "path", "put_blob"):
                assert told in outcome.message
            assert not world.work.executions("e")

    run(main())


def test_a_single_result_is_stored_once() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(step("a", "/kit/big", 30 * KIB))
            assert (await world.ended(run_id)).status == "completed"
            assert await bytes_stored(world, run_id, keys.RESULTS) < 200
            assert await bytes_stored(world, run_id, keys.JOURNAL, keys.RESULTS) < 31 * KIB
            assert decode(await text_of(world, run_id)) == "x" * 30 * KIB

    run(main())


def test_a_run_taken_over_refers_to_the_journal_of_both_owners() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            flow_id = await world.control.store_flow(flow_from_tree(ANSWER))
            run_id = await world.submit(
                answers(20),
                gated("g", of("m") | {"path": "failed"}),
                step("z", "/builtin/eval", {"flow_id": flow_id, "input": 20_000, "after": of("g")}),
                step(
                    "d", "/builtin/iterate", {"flow": {"$literal": BOTH}, "initial_input": [of("m"), of("g"), of("z")]}
                ),
            )
            await wait_until_async(lambda: bool(world.work.in_flight), "the map has ended")
            await world.bury(await world.kill(world.executors[0]))
            await world.add_executor()
            world.work.release_all()
            assert (await world.ended(run_id)).status == "completed"
            mapped, one, evaluated = decode(await text_of(world, run_id))["result"]
            assert (mapped["successful"], one, len(evaluated["result"]["result"])) == (20, 0, 20_000)

    run(main())


def test_steps_and_events_show_a_derived_result() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(answers(3))
            assert (await world.ended(run_id)).status == "completed"
            page = await world.control.listing.steps(run_id, 10, "", with_results=True)
            shown = {view.step_id: view.outcome for view in page.steps}
            assert decode(shown["m"].raw) == decode(await text_of(world, run_id))

    run(main())


def test_a_run_of_the_former_version_keeps_its_results_as_before() -> None:
    async def main() -> None:
        async with World.open() as world:
            world.newest_formats = False
            run_id = await world.submit(answers(3), echo("e", of("m")))
            assert (await world.ended(run_id)).status == "completed"
            found = await world.store.get(keys.results(run_id, 0))
            assert found is not None
            (item,) = state_pb2.PartitionResults.FromString(found.value).items
            assert item.WhichOneof("outcome") == "result"
            assert not [entry for entry in await world.journal(run_id) if entry.step_completed.of_sub_run]

            refused = await world.submit(answers(), echo("n", of("m") | {"path": "successful"}))
            outcome = (await the_item(world, refused)).outcome if await world.ended(refused) else None
            assert isinstance(outcome, Failure)
            assert "the limit is 16,777,216" in outcome.message

    run(main())
