"""The executor's guarantees towards the store, the hosts and its runs."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async
from support.parts import World, echo, gated, kinds, of, step

from executor import callbacks
from executor.hosts.peer import HostPeer
from stepflow.codec import encode
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store import StoreCompacted, flush, keys, put
from stepflow.store.follow import follow
from stepflow.store.lease import LeaseKeeper
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from component_host.backend import HostCall
    from stepflow.run import views


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


# --- what is written --------------------------------------------------------------------------------------------------


def test_nothing_is_dispatched_before_its_cause_is_durable() -> None:
    async def main() -> None:
        async with World.open() as world:
            seen: list[list[str]] = []
            execute = world.work.execute

            def spy(call: HostCall) -> None:
                seen.append([call.request.step_id])
                execute(call)

            world.work.execute = spy  # type: ignore[method-assign]  # records, and does the same
            run_id = await world.submit(gated("a"), gated("b", of("a")))
            await wait_until_async(lambda: world.work.in_flight, "the first is called")
            assert kinds(await world.journal(run_id)) == ["adopted"]
            world.work.release()
            await wait_until_async(lambda: len(seen) == 2, "the second is called")
            assert kinds(await world.journal(run_id)) == ["adopted", "step_completed"]
            world.work.release_all()
            await world.ended(run_id)

    run(main())


def test_the_end_of_a_run_is_written_at_once_with_status_results_and_assignment() -> None:
    async def main() -> None:
        async with World.open() as world:
            watch = world.store.watch("")
            run_id = await world.submit(echo("a", 1), step("b", "/kit/big", 40_000))
            await world.ended(run_id)
            while True:
                batch = await anext(watch)
                ended = [event for event in batch.events if event.kv.key.startswith(keys.results_of_run(run_id))]
                if ended:
                    break
            watch.close()
            touched = {event.kv.key for event in batch.events}
            assert keys.status(run_id, 0) in touched
            assert any(key.startswith(keys.ASSIGNED) for key in touched)
            (journal,) = [event.kv.value for event in batch.events if event.kv.key.startswith(keys.JOURNAL)]
            assert kinds(list(pb.EntryBatch.FromString(journal).entries))[-1] == "run_completed"

    run(main())


@pytest.mark.parametrize("submission_bytes_max", [3_000, 9_000])
def test_a_run_whose_write_is_refused_fails_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, submission_bytes_max: int
) -> None:
    async def main() -> None:
        async with World.open() as world:
            monkeypatch.setattr(flush, "SUBMISSION_BYTES_MAX", submission_bytes_max)
            others = [await world.submit(gated("a")) for _ in range(5)]
            run_id = await world.submit(gated("slow"), step("a", "/kit/big", 10_000), echo("b", [of("a"), of("slow")]))
            for other in others:
                assert other
            await wait_until_async(lambda: world.work.cancelled == [f"{run_id}/0/slow"], "its other call is cancelled")
            assert (await world.ended(run_id)).status == "failed"
            (result,) = await world.results(run_id)
            assert result["error"]["code"] == "ORCHESTRATOR_ERROR"
            assert "cannot be journaled" in result["error"]["message"]
            world.work.release_all()
            for other in others:
                assert (await world.ended(other)).status == "completed"
            assert world.work.executions("b") == []
            assert await world.keys(keys.ASSIGNED) == []

    run(main())


def test_a_run_that_ends_of_a_refused_write_keeps_what_its_journal_had(monkeypatch: pytest.MonkeyPatch) -> None:
    """The owner adopts the run again to end it; without a replay it overwrote the first entries of the journal."""

    async def main() -> None:
        async with World.open() as world:
            monkeypatch.setattr(flush, "SUBMISSION_BYTES_MAX", 9_000)
            run_id = await world.submit(echo("a", 10_000), step("big", "/kit/big", of("a")))
            assert (await world.ended(run_id)).status == "failed"
            entries = kinds(await world.journal(run_id))
            assert entries[0] == "adopted"
            assert "step_completed" in entries
            assert entries[-1] == "run_completed"
            steps = await world.control.steps(run_id)
            assert [(view.step_id, view.status) for view in steps] == [("a", "completed"), ("big", "cancelled")]

    run(main())


def test_parts_of_a_flush_behind_a_refused_one_are_not_written(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world:
            monkeypatch.setattr("executor.outbox.ENTRIES_BYTES_MAX", 1)  # every entry in a part of its own
            monkeypatch.setattr(flush, "SUBMISSION_BYTES_MAX", 9_000)
            inputs = [1_000, 10_000, 1_000, 1_000]
            run_id = await world.submit(step("a", "/kit/big", {"$input": "$"}), inputs=inputs)
            view = await world.ended(run_id)
            assert view.status == "failed"
            journal = await world.journal(run_id)
            assert kinds(journal)[0] == "adopted"
            assert kinds(journal)[-1] == "run_completed"

    run(main())


def test_closing_is_quick_and_loses_nothing() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            ids = [await world.submit(echo("a", n), gated("b", of("a"))) for n in range(50)]
            await wait_until_async(lambda: len(world.work.in_flight) == 50, "all are called")
            executor = world.executors.pop()
            start = time.monotonic()
            await executor.close()
            await executor.close()
            assert time.monotonic() - start < 5, "a bound, not a measurement"
            assert await world.keys(keys.EXECUTOR_SESSIONS) == []
            world.work.release_all()
            await world.add_executor()
            for n, run_id in enumerate(ids):
                await world.ended(run_id)
                assert await world.results(run_id) == [{"outcome": "success", "result": n}]
            assert world.work.executions("a") + world.work.executions("b") == [1] * 100

    run(main())


# --- hosts ------------------------------------------------------------------------------------------------------------


def test_calls_of_a_host_that_is_gone_are_made_again_elsewhere() -> None:
    async def main() -> None:
        async with World.open(hosts=2) as world:
            ids = [await world.submit(gated("a", n)) for n in range(10)]
            first, second = [work for _, work in world.hosts]
            await wait_until_async(lambda: len(first.in_flight) == len(second.in_flight) == 5, "both are busy")
            world.executors[0].host_gone("host-0", "its session has ended")
            await wait_until_async(lambda: len(second.in_flight) == 10, "the other has all")
            second.release_all()
            for run_id in ids:
                assert (await world.ended(run_id)).status == "completed"
            assert sorted(attempt for _, attempt in second.executed) == [1] * 5 + [2] * 5

    run(main())


def test_a_plugin_that_no_known_host_runs_is_unreachable_at_once() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(step("a", "/absent/thing"))
            await world.ended(run_id)
            (result,) = await world.results(run_id)
            assert result["error"]["code"] == "UNREACHABLE"
            assert "'absent'" in result["error"]["message"]
            assert [entry.attempt_failed.attempt for entry in await world.journal(run_id)][1:4] == [1, 2, 3]

    run(main())


def test_a_call_waits_for_a_host_and_goes_to_the_first_that_comes() -> None:
    async def main() -> None:
        async with World.open(hosts=0, queue_timeout_s=30.0) as world:
            run_id = await world.submit(echo("a", 7))
            await wait_until_async(lambda: world.executors[0].hosts.queue.waiting, "the call waits")
            await world.add_host()
            assert (await world.ended(run_id)).status == "completed"
            assert world.work.executions("a") == [1]

    run(main())


def test_a_call_that_has_waited_long_enough_for_a_host_is_unreachable() -> None:
    async def main() -> None:
        async with World.open(hosts=0, queue_timeout_s=0.02) as world:
            run_id = await world.submit(echo("a", 7), transport_retries_max=1)
            await world.ended(run_id)
            assert (await world.results(run_id))[0]["error"]["code"] == "UNREACHABLE"
            assert world.executors[0].hosts.queue.waiting == {}

    run(main())


def test_a_host_that_drains_counts_as_none_for_a_call_that_has_no_other() -> None:
    """It may stay drained for days: a busy one is waited for as long as it lives."""

    async def main() -> None:
        async with World.open(hosts=1, queue_timeout_s=0.02) as world:
            hosts = world.executors[0].hosts
            ((peer, _),) = world.streams[world.executors[0]]
            peer.draining = True
            hosts.set_peer(peer)
            run_id = await world.submit(echo("a", 7), transport_retries_max=1)
            await world.ended(run_id)
            assert (await world.results(run_id))[0]["error"]["code"] == "UNREACHABLE"
            assert world.work.executions("a") == []
            await world.add_host()
            assert (await world.ended(await world.submit(echo("a", 7)))).status == "completed"

    run(main())


def test_a_cancelled_run_waits_for_no_host() -> None:
    async def main() -> None:
        async with World.open(hosts=0, queue_timeout_s=30.0) as world:
            run_id = await world.submit(echo("a", 7))
            await wait_until_async(lambda: world.executors[0].hosts.queue.waiting, "the call waits")
            await world.control.cancel(run_id)
            assert (await world.ended(run_id)).status == "cancelled"
            assert (await world.add_host()).executed == []

    run(main())


# --- what components ask for ------------------------------------------------------------------------------------------


SUB_FLOW = {"steps": [echo("inner", {"$input": "$"})], "output": of("inner")}


def test_a_component_gets_the_result_of_a_flow_with_large_parts() -> None:
    async def main() -> None:
        async with World.open() as world:
            big = "x" * 100_000

            async def ask(call: HostCall) -> Any:
                flow = {**SUB_FLOW, "description": "d" * 50_000}
                request = host_pb2.StartRun(
                    flow=pb.Payload(json=encode(flow)), inputs=pb.Payload(json=encode([big, big])), wait=True
                )
                report = await call.start_run(request)
                return [item.status for item in report.items]

            world.work.asks = ask
            noise = [await world.submit(echo("n", {"$input": "$"}), inputs=["y" * 50_000]) for _ in range(3)]
            run_id = await world.submit(step("a", "/kit/ask"))
            await world.ended(run_id)
            assert await world.results(run_id) == [{"outcome": "success", "result": [pb.RUN_STATUS_COMPLETED] * 2}]
            for other in noise:
                assert (await world.ended(other)).status == "completed"

    run(main())


def test_the_frame_of_a_report_is_bounded_however_many_small_results_it_has(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world:
            frame_bytes: list[int] = []
            reply = HostPeer.reply

            def measured(peer: HostPeer, message: host_pb2.CallbackReply) -> None:
                frame_bytes.append(message.ByteSize())
                reply(peer, message)

            monkeypatch.setattr(HostPeer, "reply", measured)
            monkeypatch.setattr(callbacks, "REPORT_INLINE_BYTES_MAX", 50_000)

            async def ask(call: HostCall) -> Any:
                inputs = pb.Payload(json=encode(["x" * 2_000] * 100))
                request = host_pb2.StartRun(flow=pb.Payload(json=encode(SUB_FLOW)), inputs=inputs, wait=True)
                report = await call.start_run(request)
                return sum(len(item.flow_result.json) for item in report.items) // 100

            world.work.asks = ask
            run_id = await world.submit(step("a", "/kit/ask"))
            await world.ended(run_id)
            (result,) = await world.results(run_id)
            assert result["result"] > 2_000
            assert max(frame_bytes) < 50_000 + 100 * 100

    run(main())


def test_a_request_that_comes_while_its_run_ends_hangs_nobody() -> None:
    async def main() -> None:
        async with World.open() as world:
            answers: list[str] = []

            async def ask(call: HostCall) -> Any:
                while True:
                    request = host_pb2.StartRun(
                        flow=pb.Payload(json=encode(SUB_FLOW)), inputs=pb.Payload(json=b"[1]"), wait=True
                    )
                    try:
                        await call.start_run(request)
                    except Exception as error:
                        answers.append(type(error).__name__)
                        raise

            world.work.asks = ask
            run_id = await world.submit(step("a", "/kit/ask"))
            await wait_until_async(lambda: len(world.work.executed) > 5, "it asks and asks")
            await world.control.cancel(run_id)
            assert (await world.ended(run_id)).status == "cancelled"
            await wait_until_async(lambda: answers, "the last request is answered")
            assert world.executors[0].ownership.drivers == {}

    run(main())


# --- listeners, time --------------------------------------------------------------------------------------------------


def test_a_listener_that_was_there_before_the_run_hears_all_and_one_that_fails_harms_nothing() -> None:
    async def main() -> None:
        async with World.open() as world:
            request = world.request(gated("a"), run_id="01890a5d-ac96-774b-bcce-b302099a8057")
            heard: list[views.StepEvent] = []
            world.executors[0].listen(request.run_id or "", heard.append)
            run_id = await world.control.submit(request)
            world.work.release_all()
            await world.ended(run_id)
            assert [event.kind for event in heard] == ["started", "completed"]

            def broken(event: views.StepEvent) -> None:
                raise ValueError("a listener's own mistake")

            other = await world.submit(gated("a"), gated("b", of("a")), inputs=[1, 2])
            world.executors[0].listen(other, broken)
            assert (await world.ended(other)).status == "completed"

    run(main())


def test_durable_sleeps_of_many_runs_share_one_timer_and_leave_nothing_behind() -> None:
    async def main() -> None:
        async with World.open() as world:
            nap = step("nap", "/builtin/sleep", {"duration_ms": 20})
            long = step("long", "/builtin/sleep", {"duration_ms": 3_600_000})
            ids = [await world.submit(nap, echo("b", of("nap"))) for _ in range(50)]
            never = await world.submit(long)
            for run_id in ids:
                assert (await world.ended(run_id)).status == "completed"
            await world.control.cancel(never)
            await world.ended(never)
            assert world.executors[0].ownership.timers.next_ns() is None

    run(main())


# --- following the store, leases --------------------------------------------------------------------------------------


def test_following_lists_again_after_an_error_and_in_any_case_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        monkeypatch.setattr("stepflow.store.follow.RELIST_PAUSE_S", 0.01)
        store = await SqliteStore.open(":memory:")
        listed: list[list[str]] = []
        changed: list[str] = []
        task = asyncio.create_task(
            follow(
                store,
                "k/",
                listed=lambda items: listed.append([item.key for item in items]),
                changed=lambda events: changed.extend(event.kv.key for event in events),
                relist_interval_s=0.05,
            )
        )
        await wait_until_async(lambda: listed == [[]], "the first list")
        await put(store, "k/1", b"")
        await wait_until_async(lambda: changed == ["k/1"], "the change is told")
        await wait_until_async(lambda: ["k/1"] in listed, "and listed again, although nothing was wrong")
        for watch in tuple(store._watches):
            watch.fail(StoreCompacted("STORE_COMPACTED", "too far behind", compacted=1))
        count = len(listed)
        await wait_until_async(lambda: len(listed) > count, "listed again after the error")
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        assert store._watches == set()
        await store.close()

    run(main())


def test_a_lease_counts_as_held_by_the_holders_own_clock_only() -> None:
    async def main() -> None:
        store = await SqliteStore.open(":memory:")
        now = 100.0
        lost: list[bool] = []
        keeper = LeaseKeeper(store, lambda: lost.append(True), ttl_s=5.0, clock=lambda: now)
        await keeper.start()
        assert keeper.valid()
        now += 4.4
        assert keeper.valid()
        now += 0.2
        assert not keeper.valid(), "half a second before the store can think so"
        await keeper.stop(revoke=True)
        await keeper.stop(revoke=True)
        assert not keeper.valid()
        assert lost == []
        await store.close()

    run(main())


def test_a_lease_that_the_store_has_ended_is_lost_once() -> None:
    async def main() -> None:
        store = await SqliteStore.open(":memory:")
        lost: list[bool] = []
        keeper = LeaseKeeper(store, lambda: lost.append(True), ttl_s=0.3)
        lease = await keeper.start()
        await store.lease_revoke(lease)
        await wait_until_async(lambda: lost, "it notices")
        assert not keeper.valid()
        await keeper.stop(revoke=True)
        assert lost == [True]
        await store.close()

    run(main())
