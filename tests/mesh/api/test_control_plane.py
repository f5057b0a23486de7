"""The control plane's guarantees, over one store with a real executor and host."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async
from support.parts import World, echo, gated, of, step

from control_plane import admission
from control_plane import inputs as run_inputs
from control_plane.run_list import RunFilter
from stepflow.errors import AlreadyExists, Invalid, NotFound, StepflowError
from stepflow.flow import Flow
from stepflow.ids import new_run_id
from stepflow.store import Get, Range, StoreCompacted, delete, keys

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from stepflow.store import Txn

N_SCHEMA = {"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}
SCHEMA = {"type": "object", "properties": {"input": N_SCHEMA}}


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


async def refused(work: Coroutine[Any, Any, Any]) -> StepflowError:
    with pytest.raises(StepflowError) as caught:
        await work
    return caught.value


# --- admission --------------------------------------------------------------------------------------------------------


def test_fifty_submissions_of_one_run_id_make_one_run() -> None:
    async def main() -> None:
        async with World.open(executors=2, planes=2) as world:
            request = world.request(echo("a", {"$input": "$"}), inputs=[{"n": 1}], run_id=new_run_id())
            ids = await asyncio.gather(*(world.planes[n % 2].submit(request) for n in range(50)))
            assert set(ids) == {request.run_id}
            await world.ended(ids[0])
            assert world.work.executions("a") == [1]
            assert len((await world.control.run_list.page(RunFilter(), 100, ""))[0]) == 1
            assert await world.control.submit(request) == request.run_id

    run(main())


def test_a_run_of_a_flow_that_a_wiped_store_has_lost_is_admitted_with_the_flow() -> None:
    async def main() -> None:
        async with World.open() as world:
            request = world.request(echo("a"))
            assert isinstance(request.flow, Flow)
            flow_id = await world.control.store_flow(request.flow)
            assert await delete(world.store, keys.flow(flow_id))
            run_id = await world.control.submit(replace(request, flow=flow_id))
            assert (await world.ended(run_id)).status == "completed"

    run(main())


def test_another_request_under_the_same_run_id_is_refused() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(echo("a"), inputs=[1])
            error = await refused(world.submit(echo("a"), inputs=[2], run_id=run_id))
            assert (type(error), error.reason) == (AlreadyExists, "RUN_EXISTS")
            await world.ended(run_id)

    run(main())


def test_what_can_never_run_is_refused_and_leaves_nothing() -> None:
    async def main() -> None:
        async with World.open() as world:
            step_a = echo("a", {"$input": "$"})
            cases: list[tuple[str, Coroutine[Any, Any, str]]] = [
                ("FLOW_INVALID", world.submit(echo("a", of("b")), echo("b", of("a")))),
                ("CONCURRENCY_INVALID", world.submit(step_a, concurrency_max=0)),
                ("RUN_ID_INVALID", world.submit(step_a, run_id="mine")),
                ("TOO_MANY_ITEMS", world.submit(step_a, inputs=[1] * (run_inputs.RUN_ITEMS_MAX + 1))),
                ("VARIABLES_TOO_LARGE", world.submit(step_a, variables={"v": "x" * 300_000})),
                ("INPUT_INVALID", world.submit(step_a, inputs=[{"n": 1}, {"n": "x"}], schemas=SCHEMA)),
            ]
            for reason, submission in cases:
                error = await refused(submission)
                assert (type(error), error.reason) == (Invalid, reason), error.message
            assert await world.keys(keys.RUNS) == []
            assert await world.keys(keys.STATUS) == []
            assert isinstance(await refused(world.submit(step_a, overrides={"a": 3})), Invalid)

    run(main())


def test_an_input_that_does_not_fit_is_named_by_item_and_place() -> None:
    async def main() -> None:
        async with World.open() as world:
            error = await refused(world.submit(echo("a"), inputs=[{"n": 1}, {"n": "x"}], schemas=SCHEMA))
            assert "input 1 " in error.message
            assert "/n" in error.message
            assert (error.details["item"], error.details["pointer"]) == (1, "/n")

    run(main())


def test_the_id_of_an_unknown_flow_is_not_found() -> None:
    async def main() -> None:
        async with World.open() as world:
            request = world.request(echo("a"))
            unknown = admission.RunRequest(flow="ab" * 32, inputs=request.inputs)
            error = await refused(world.control.submit(unknown))
            assert (type(error), error.reason) == (NotFound, "FLOW_NOT_FOUND")

    run(main())


@pytest.mark.parametrize(
    ("items", "size"), [(1, 1 << 20), (2_000, 10), (300, 4_000)], ids=["one of 1 MiB", "two thousand", "1.2 MB in all"]
)
def test_large_inputs_arrive_as_they_were_given(items: int, size: int) -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:
            inputs = [f"{index}:" + "x" * size for index in range(items)]
            run_id = await world.submit(echo("a", {"$input": "$"}), inputs=inputs, concurrency_max=64)
            assert (await world.ended(run_id)).status == "completed"
            assert [result["result"] for result in await world.results(run_id)] == inputs

    run(main())


def test_partitions_whose_inputs_are_too_large_for_one_blob_are_admitted_all_the_same() -> None:
    async def main() -> None:
        async with World.open() as world:
            inputs = ["x" * (1 << 20)] * 17  # more than the 16 MiB that a blob may have
            run_id = await world.submit(echo("a", 1), inputs=inputs)
            assert (await world.ended(run_id)).items_completed == 17

    run(main())


def test_a_run_waits_while_nobody_has_room_and_those_behind_it_do_not_overtake() -> None:
    async def main() -> None:
        async with World.open(executors=0) as world:
            first, second = [await world.submit(gated("a")) for _ in range(2)]
            assert (await world.control.get_run(first)).status == "running"
            assert len(await world.keys(keys.PENDING)) == 2
            await world.add_executor(runs_max=1)
            await wait_until_async(lambda: world.work.executed, "the first run starts")
            third = await world.submit(gated("a"))
            assert [keys.pending(second), keys.pending(third)] == sorted(await world.keys(keys.PENDING))
            world.work.release_all()
            for run_id in (first, second, third):
                await world.ended(run_id)
            assert [key.split("/")[0] for key, _ in world.work.executed] == [first, second, third]

    run(main())


def test_a_burst_of_runs_spreads_over_the_executors() -> None:
    async def main() -> None:
        async with World.open(executors=4) as world:
            ids = await asyncio.gather(*(world.submit(gated("a")) for _ in range(40)))
            await wait_until_async(lambda: len(world.work.in_flight) == 40, "all are called")
            assert sorted(len(executor.ownership.drivers) for executor in world.executors) == [10, 10, 10, 10]
            world.work.release_all()
            for run_id in ids:
                await world.ended(run_id)

    run(main())


# --- batches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [1, 3, 10])
def test_a_batch_keeps_its_window_over_all_partitions(window: int) -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:
            flow = [gated("a", {"$input": "$"}), gated("b", of("a"))]
            run_id = await world.submit(*flow, inputs=list(range(200)), concurrency_max=window)
            while not (await world.control.get_run(run_id)).terminal:
                world.work.release(1)
                await asyncio.sleep(0)
            view = await world.control.get_run(run_id)
            assert (view.status, view.items_total, view.items_completed) == ("completed", 200, 200)
            assert len(await world.keys(keys.status_of_run(run_id))) == 4
            assert world.work.in_flight_max <= window
            assert [result["result"] for result in await world.results(run_id)] == list(range(200))
            assert set(world.work.executions("a") + world.work.executions("b")) == {1}

    run(main())


def test_a_batch_with_a_failed_item_has_failed_and_counts_it() -> None:
    async def main() -> None:
        async with World.open() as world:
            choice = step("a", "/kit/echo", {"$if": {"$input": "$"}, "then": 1, "else": {"$input": "missing"}})
            run_id = await world.submit(choice, inputs=[True] * 99 + [False])
            view = await world.ended(run_id)
            assert (view.status, view.items_completed, view.items_failed) == ("failed", 99, 1)
            items = await world.control.items(run_id)
            assert [item.status for item in items] == ["completed"] * 99 + ["failed"]

    run(main())


def test_a_run_without_items_completes_without_results() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(echo("a"), inputs=[])
            view = await world.ended(run_id)
            assert (view.status, view.items_total) == ("completed", 0)
            assert await world.control.items(run_id) == []

    run(main())


def test_failures_with_many_details_still_fit_the_results_of_a_partition() -> None:
    async def main() -> None:
        async with World.open() as world:
            details = ["d" * 30_000] * 64
            run_id = await world.submit(step("a", "/kit/fail", {"$input": "$"}), inputs=details, concurrency_max=64)
            assert (await world.ended(run_id)).items_failed == 64
            for result in await world.results(run_id):
                assert result["error"]["message"] == "it failed"
                assert result["error"]["data"]["reason"] == "DETAILS_TOO_LARGE"

    run(main())


# --- waiting ----------------------------------------------------------------------------------------------------------


def test_a_wait_that_times_out_gives_the_running_run() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(gated("a"))
            view = await world.control.wait(run_id, timeout_s=0.05)
            assert (view.status, view.items_running) == ("running", 1)
            world.work.release_all()
            await world.ended(run_id)

    run(main())


def test_waiting_for_a_run_that_does_not_exist_is_not_found() -> None:
    async def main() -> None:
        async with World.open() as world:
            error = await refused(world.control.wait(new_run_id()))
            assert (type(error), error.reason) == (NotFound, "RUN_NOT_FOUND")

    run(main())


def test_a_thousand_waiters_read_nothing_while_nothing_changes() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(gated("a"))
            other = await world.submit(gated("a"))
            waiters = [asyncio.create_task(world.control.wait(run_id)) for _ in range(1_000)]
            reads = 0
            read = world.store.txn

            async def counted(txn: Txn) -> Any:
                nonlocal reads
                reads += any(isinstance(op, (Get, Range)) for op in txn.then)
                return await read(txn)

            waited = world.control._waits._waited
            await wait_until_async(lambda: run_id in waited and len(waited[run_id].events) == 1_000, "all wait")
            await wait_until_async(lambda: waited[run_id].view is not None, "the run has been read")
            world.store.txn = counted  # type: ignore[method-assign]  # counts, and does the same
            await wait_until_async(lambda: len(world.work.in_flight) == 2, "both are called")
            for call in [call for key, call in world.work.in_flight.items() if key.startswith(other)]:
                call.succeed(b"1")
            assert (await world.ended(other)).terminal
            assert reads <= 3, "another run's change is no business of theirs"
            reads = 0
            world.work.release_all()
            assert {view.status for view in await asyncio.gather(*waiters)} == {"completed"}
            assert reads == 0, "the watch has told the end"
            assert waited == {}

    run(main())


def test_waiters_are_woken_although_the_watch_was_cut_off() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(gated("a"))
            waiter = asyncio.create_task(world.control.wait(run_id))
            await wait_until_async(lambda: world.work.in_flight, "the call is there")
            for watch in tuple(world.store._watches):  # type: ignore[attr-defined]  # as if all had fallen behind
                watch.fail(StoreCompacted("STORE_COMPACTED", "too far behind", compacted=1))
            world.work.release_all()
            assert (await waiter).status == "completed"
            again = await world.submit(echo("a"))
            assert (await world.ended(again)).status == "completed"

    run(main())


# --- cancel -----------------------------------------------------------------------------------------------------------


def test_a_run_that_waits_for_an_executor_can_be_cancelled() -> None:
    async def main() -> None:
        async with World.open(executors=0) as world:
            run_id = await world.submit(gated("a"), inputs=[1, 2, 3])
            view = await world.control.cancel(run_id)
            assert (view.status, view.items_cancelled) == ("cancelled", 3)
            assert [item.status for item in await world.control.items(run_id)] == ["cancelled"] * 3
            await world.add_executor()
            other = await world.submit(echo("b"))
            await world.ended(other)
            assert world.work.executions("a") == []

    run(main())


def test_cancelling_a_running_run_cancels_its_calls_and_starts_no_step() -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:
            run_id = await world.submit(gated("a"), gated("b", of("a")))
            await wait_until_async(lambda: world.work.in_flight, "the first step is called")
            await world.control.cancel(run_id)
            view = await world.ended(run_id)
            assert (view.status, view.items_cancelled) == ("cancelled", 1)
            await wait_until_async(lambda: world.work.cancelled == [f"{run_id}/0/a"], "the call is cancelled")
            assert world.work.executions("b") == []
            assert await world.keys(keys.ASSIGNED) == []
            assert (await world.results(run_id))[0]["error"]["code"] == "CANCELLED"

    run(main())


def test_cancelling_a_run_that_has_ended_changes_nothing() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(echo("a"))
            before = await world.ended(run_id)
            assert await world.control.cancel(run_id) == before
            assert await world.keys(keys.INBOX) == []
            error = await refused(world.control.cancel(new_run_id()))
            assert (type(error), error.reason) == (NotFound, "RUN_NOT_FOUND")

    run(main())


def test_cancelling_a_batch_ends_the_partitions_that_were_never_placed() -> None:
    async def main() -> None:
        async with World.open(executors=1, runs_max=1) as world:
            run_id = await world.submit(gated("a"), inputs=list(range(150 * 64)), concurrency_max=2)
            await wait_until_async(lambda: world.work.in_flight, "the first partition runs")
            await world.control.cancel(run_id)
            view = await world.ended(run_id)
            assert (view.status, view.items_cancelled) == ("cancelled", 150 * 64)
            items = await world.control.items(run_id)
            assert {item.status for item in items} == {"cancelled"}
            assert {result["error"]["code"] for result in await world.results(run_id)} == {"CANCELLED"}
            assert await world.keys(keys.PENDING) == []

    run(main())
