"""Runs whose executors are killed, pause, or cannot continue."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_for_value, wait_until_async
from support.parts import World, echo, gated, kinds, of

from control_plane import takeover as control_takeover
from control_plane.events import Events
from control_plane.history import HistoryEndsEarly, RunDone, StepDone
from control_plane.unreadable import unreadable_partitions
from executor import calls, give_back, takeover
from executor.adoption import PartitionReader
from stepflow.errors import Code, Failure, Unavailable
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.run.state import ADOPTIONS_IN_A_ROW_MAX, ENGINE_VERSION
from stepflow.store import Put, Txn, delete, keys, put

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from executor.executor import Executor

SHORT_S = 0.6
"""A lease that runs out while a test waits."""


@pytest.fixture(autouse=True)
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short, so that tests need not wait."""
    monkeypatch.setattr(give_back, "RETURN_S_MIN", 0.01)
    monkeypatch.setattr(give_back, "RETURN_S_MAX", 0.05)
    monkeypatch.setattr(takeover, "ISOLATION_S", 0.1)


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


CHAIN = (echo("a", {"$input": "$"}), gated("b", of("a")), echo("c", of("b")))


async def registered_anew(executor: Executor, before: str) -> None:
    await wait_until_async(
        lambda: executor.id != before and executor.ownership.drivers, "it is there again, and has its runs"
    )


async def journal_grows(world: World, run_id: str, before: int) -> None:
    async with asyncio.timeout(10):
        watch = world.store.watch(keys.journal_of_run(run_id))
        while len(await world.journal(run_id)) == before:
            await anext(watch)
        watch.close()


async def called(world: World, count: int = 1) -> None:
    await wait_until_async(lambda: len(world.work.in_flight) == count, f"{count} calls are in flight")


def test_a_call_in_flight_survives_the_death_of_its_executor_and_is_not_made_again() -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:
            ids = [await world.submit(*CHAIN, inputs=[n]) for n in range(6)]
            await called(world, 6)
            dead = await world.kill(world.executors[0])
            await world.bury(dead)
            await wait_until_async(lambda: len(world.executors[0].ownership.drivers) == 6, "the other one has all runs")
            world.work.release_all()
            for n, run_id in enumerate(ids):
                assert (await world.ended(run_id)).status == "completed"
                assert await world.results(run_id) == [{"outcome": "success", "result": n}]
            for name in "abc":
                assert world.work.executions(name) == [1] * 6
            assert await world.keys(keys.ASSIGNED) == []

    run(main())


def test_an_executor_that_stopped_without_a_word_is_noticed_by_its_lease() -> None:
    async def main() -> None:
        async with World.open(executors=0) as world:
            first = await world.add_executor(lease_ttl_s=SHORT_S)
            run_id = await world.submit(*CHAIN)
            await called(world)
            await world.add_executor()
            await world.kill(first)
            await wait_until_async(lambda: world.executors[0].ownership.drivers, "its lease has run out")
            world.work.release_all()
            assert (await world.ended(run_id)).status == "completed"
            assert world.work.executions("b") == [1]

    run(main())


def test_a_held_result_reaches_the_next_owner_although_nobody_listened_when_it_came() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(*CHAIN)
            await called(world)
            dead = await world.kill(world.executors[0])
            world.work.release_all()
            await world.bury(dead)
            await world.add_executor()
            assert (await world.ended(run_id)).status == "completed"
            assert world.work.executions("b") == [1]
            await wait_until_async(lambda: world.hosts[0][0].calls_held == 0, "what is journaled is held no longer")

    run(main())


def test_a_second_attempt_in_flight_is_joined_too() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(gated("b", 1))
            await called(world)
            world.work.in_flight.popitem()[1].fail(Failure(Code.UNREACHABLE, "lost"))
            await called(world)
            assert world.work.executions("b") == [1, 2]
            dead = await world.kill(world.executors[0])
            await world.bury(dead)
            await world.add_executor()
            await wait_until_async(lambda: world.executors[0].ownership.drivers, "adopted")
            world.work.release_all()
            assert (await world.ended(run_id)).status == "completed"
            assert world.work.executions("b") == [1, 2]

    run(main())


def test_a_call_is_joined_at_the_host_that_holds_it() -> None:
    async def main() -> None:
        async with World.open(executors=1, hosts=3) as world:
            ids = [await world.submit(*CHAIN, inputs=[n]) for n in range(9)]
            works = [work for _, work in world.hosts]
            await wait_until_async(lambda: sum(len(work.in_flight) for work in works) == 9, "all are called")
            assert [len(work.in_flight) for work in works] == [3, 3, 3], "the least busy host got each"
            dead = await world.kill(world.executors[0])
            await world.bury(dead)
            await world.add_executor()
            await wait_until_async(lambda: len(world.executors[0].ownership.drivers) == 9, "all are adopted")
            for work in works:
                work.release_all()
            for run_id in ids:
                assert (await world.ended(run_id)).status == "completed"
            assert sum(len(work.executions("b")) for work in works) == 9

    run(main())


def test_the_partitions_of_a_batch_are_taken_over_together() -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:
            flow = [gated("a", {"$input": "$"}), gated("b", of("a"))]
            run_id = await world.submit(*flow, inputs=list(range(200)), concurrency_max=256)
            await called(world, 200)
            dead = await world.kill(world.executors[0])
            await world.bury(dead)
            await wait_until_async(lambda: len(world.executors[0].ownership.drivers) == 4, "all partitions are there")
            world.work.release_all()
            assert (await world.ended(run_id)).items_completed == 200
            assert world.work.executions("a") + world.work.executions("b") == [1] * 400

    run(main())


def test_a_zombie_writes_nothing_after_the_take_over() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(*CHAIN)
            await called(world)
            zombie = world.executors[0]
            session = zombie._session
            assert session is not None
            assert session.watcher is not None
            session.watcher.cancel()  # it does not hear of its end
            await world.add_executor()
            await world.bury(session.id)
            await wait_until_async(lambda: world.executors[1].ownership.drivers, "the other one has the run")
            drive = zombie.ownership.drivers[(run_id, 0)]
            drive.messages.take("made-up", state_pb2.InboxMessage(cancel=True))
            drive.turn()
            await wait_until_async(lambda: zombie.id != session.id, "it finds out when it writes, and registers anew")
            world.work.release_all()
            assert (await world.ended(run_id)).status == "completed"
            journal = await world.journal(run_id)
            assert "inbox_taken" not in kinds(journal)
            epochs = [entry.adopted.epoch for entry in journal if entry.HasField("adopted")]
            assert len(epochs) == 2
            assert epochs[0] < epochs[1]

    run(main())


def test_nothing_is_sent_while_the_lease_does_not_count_as_held() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            executor = world.executors[0]
            assert executor._session is not None
            valid = executor._session.valid
            executor.hosts.send_while(lambda: False)
            run_id = await world.submit(gated("a"))
            await wait_until_async(lambda: executor.hosts._calls, "the call is decided")
            await world.store.revision()
            assert world.work.executed == []
            executor.hosts.send_while(valid)
            await called(world)
            world.work.release_all()
            await world.ended(run_id)

    run(main())


def test_an_executor_that_lost_its_session_drops_its_runs_and_gets_them_back() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            executor = world.executors[0]
            run_id = await world.submit(*CHAIN)
            await called(world)
            for _ in range(3):
                before = executor.id
                await world.bury(before)
                await registered_anew(executor, before)
            world.work.release_all()
            assert (await world.ended(run_id)).status == "completed"
            assert world.work.executions("b") == [1]
            other = await world.submit(echo("a"))
            assert (await world.ended(other)).status == "completed"

    run(main())


def test_a_result_that_comes_to_a_former_owner_is_left_for_the_next_one() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            executor = world.executors[0]
            run_id = await world.submit(*CHAIN)
            await called(world)
            executor.ownership.abandon(executor.ownership.drivers[(run_id, 0)], Unavailable("TEST", "given back"))
            world.work.release_all()  # the answer arrives without an owner
            assert (await world.ended(run_id)).status == "completed"
            assert world.work.executions("b") == [1]

    run(main())


def test_orphans_wait_for_an_executor_that_can_take_them() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            ids = [await world.submit(*CHAIN) for _ in range(60)]
            await called(world, 60)
            dead = await world.kill(world.executors[0])
            await world.bury(dead)
            await wait_until_async(lambda: not world.control.cluster.sessions, "nobody is there")
            assert len(await world.keys(keys.assigned_to(dead))) == 60
            await world.add_executor(runs_max=50)
            await world.add_executor(runs_max=50)
            world.work.release_all()
            for run_id in ids:
                assert (await world.ended(run_id)).status == "completed"
            assert world.work.executions("b") == [1] * 60

    run(main())


# --- the leader -------------------------------------------------------------------------------------------------------


def test_a_leader_that_dies_is_succeeded_and_its_late_transactions_change_nothing() -> None:
    async def main() -> None:
        async with World.open(executors=1, planes=0) as world:
            first = await world.add_plane(lease_ttl_s=SHORT_S)
            await wait_until_async(lambda: first._leader.leading, "the first leads")
            second = await world.add_plane()
            await world.seen(world.executors[0])
            fence = first._leader.fence()
            assert not second._leader.leading
            assert first._leader._task is not None
            await delete(world.store, keys.leader())
            first._leader._task.cancel()
            await wait_until_async(lambda: second._leader.leading, "the second has succeeded it")
            late = await world.store.txn(Txn((fence,), (Put(keys.pending("x"), b""),)))
            assert not late.succeeded
            run_id = await world.submit(*CHAIN)
            await called(world)
            dead = await world.kill(world.executors[0])
            await world.bury(dead)
            await world.add_executor()
            world.work.release_all()
            assert (await world.ended(run_id)).status == "completed"

    run(main())


def test_a_leader_whose_term_was_interrupted_leads_again() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            leader = world.control._leader
            await wait_until_async(lambda: leader.leading, "it leads")
            term = leader._leading
            leader._on_lost()
            await wait_until_async(lambda: leader.leading and leader._leading != term, "it leads anew")
            held = await world.store.get(keys.leader())
            assert held is not None
            assert held.create_revision == leader._leading

    run(main())


# --- runs that cannot go on -------------------------------------------------------------------------------------------


def test_a_run_whose_owners_die_again_and_again_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(takeover, "ISOLATION_S", 60.0)  # however slow the machine, no owner outlives it

    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(gated("b", 1))
            await called(world)
            for _ in range(ADOPTIONS_IN_A_ROW_MAX):
                executor = world.executors[0]
                before = len(await world.journal(run_id))
                await world.add_executor()
                await world.bury(await world.kill(executor))
                await journal_grows(world, run_id, before)
            view = await world.ended(run_id)
            assert (view.status, view.items_failed) == ("recovery_failed", 1)
            assert world.work.executions("b") == [1]
            assert kinds(await world.journal(run_id)) == ["adopted"] * (ADOPTIONS_IN_A_ROW_MAX + 1) + ["run_completed"]

    run(main())


class Reading:
    """Reads of journals that do not end until `go_on`, so that their executors can be killed in the middle."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
        self.begun: list[str] = []
        self.going_on = asyncio.Event()
        self._world = world
        replay = PartitionReader._replay

        async def slow(reader: PartitionReader, loaded: Any) -> None:
            self.begun.append(loaded.state.run_id)
            await self.going_on.wait()
            await replay(reader, loaded)

        monkeypatch.setattr(PartitionReader, "_replay", slow)

    async def kill_reader(self) -> None:
        """Let the next executor begin to read all runs that may be read, and kill it."""
        self.begun.clear()
        (executor,) = self._world.executors
        await self._world.add_executor()
        await self._world.bury(await self._world.kill(executor))

    async def has_begun(self, *run_ids: str) -> None:
        await wait_until_async(lambda: set(run_ids) <= set(self.begun), "the journals are being read")


def test_a_run_that_kills_every_executor_that_reads_it_is_given_up_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            reading = Reading(monkeypatch, world)
            run_id = await world.submit(gated("a"), inputs=[1, 2])
            await called(world, 2)
            journal = await world.journal(run_id)
            for _ in range(ADOPTIONS_IN_A_ROW_MAX):
                await reading.kill_reader()
                await reading.has_begun(run_id)
            await reading.kill_reader()
            view = await world.ended(run_id)
            assert (view.status, view.items_failed) == ("recovery_failed", 2)
            assert "5 executors in a row died while they read" in (await world.results(run_id))[1]["error"]["message"]
            assert reading.begun == []
            assert await world.journal(run_id) == journal
            assert await world.keys(keys.ADOPTING) == await world.keys(keys.ASSIGNED) == []
            assert await world.control.steps(run_id) == []
            await wait_until_async(lambda: not world.hosts[0][0].calls_held, "the host has let its calls go")

    run(main())


def test_runs_read_together_with_one_that_kills_are_read_alone_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            reading = Reading(monkeypatch, world)
            run_ids = [await world.submit(gated("a", n)) for n in range(4)]
            await called(world, 4)
            for _ in range(takeover.ISOLATION_THRESHOLD):
                await reading.kill_reader()
                await reading.has_begun(*run_ids)
            for _ in range(2):  # each time, the one that reads alone dies
                await reading.kill_reader()
                await wait_until_async(lambda: reading.begun, "one is being read")
                assert len(reading.begun) == 1
            reading.going_on.set()
            await wait_until_async(lambda: len(world.executors[0].ownership.drivers) == 4, "all are driven")
            world.work.release_all()
            for run_id in run_ids:
                assert (await world.ended(run_id)).status == "completed"
            assert await world.keys(keys.ADOPTING) == []

    run(main())


@pytest.mark.parametrize("ending", ["closed", "session lost", "unreadable"])
def test_a_reading_that_breaks_off_without_a_death_is_not_counted(monkeypatch: pytest.MonkeyPatch, ending: str) -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            reading = Reading(monkeypatch, world)
            run_id = await world.submit(gated("a"))
            await called(world)
            await reading.kill_reader()
            await reading.has_begun(run_id)
            assert await world.keys(keys.ADOPTING) == [keys.adopting(run_id, 0)]
            (executor,) = world.executors
            if ending == "closed":
                world.executors.remove(executor)
                await executor.close()
            elif ending == "session lost":
                before = executor.id
                monkeypatch.setattr(world.control.cluster, "choose", lambda *_, **__: None)  # nobody takes it
                await world.bury(before)
                await wait_until_async(lambda: executor.id != before, "it is registered again")
            else:
                await break_run(world, run_id, "garbage")
                reading.going_on.set()
            await wait_for_value(lambda: world.keys(keys.ADOPTING), "it is not counted", lambda found: not found)

    run(main())


def test_a_run_that_takes_all_memory_fails_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:
            other = await world.submit(gated("a"))
            run_id = await world.submit(echo("a"), gated("b", of("a")))
            await called(world, 2)
            settle = calls.settle

            def greedy(state: Any, *arguments: Any, **named: Any) -> Any:
                if state.run_id == run_id:
                    raise MemoryError
                return settle(state, *arguments, **named)

            monkeypatch.setattr(calls, "settle", greedy)
            world.work.release_all()
            assert (await world.ended(run_id)).status == "failed"
            (result,) = await world.results(run_id)
            assert (result["error"]["code"], "more memory" in result["error"]["message"]) == (
                "ORCHESTRATOR_ERROR",
                True,
            )
            journal = kinds(await world.journal(run_id))
            assert (journal.count("adopted"), journal[-1]) == (2, "run_completed")
            assert (await world.ended(other)).status == "completed"

    run(main())


def test_a_run_that_takes_all_memory_when_it_is_read_fails_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(gated("a"))
            await called(world)

            def greedy(*_: object) -> Any:
                raise MemoryError

            with monkeypatch.context() as patch:
                patch.setattr(PartitionReader, "_replay", greedy)
                (executor,) = world.executors
                await world.add_executor()
                await world.bury(await world.kill(executor))
                view = await world.ended(run_id)
            assert (view.status, view.items_failed) == ("failed", 1)
            assert kinds(await world.journal(run_id)) == ["adopted"]
            assert await world.keys(keys.ADOPTING) == await world.keys(keys.ASSIGNED) == []
            assert (await world.ended(await world.submit(echo("a")))).status == "completed"

    run(main())


@pytest.mark.parametrize("damage", ["gap", "unknown kind", "garbage", "engine version"])
def test_a_run_that_nobody_here_can_read_waits_and_harms_no_other(damage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(*CHAIN)
            await called(world)
            dead = await world.kill(world.executors[0])
            await break_run(world, run_id, damage)
            await world.bury(dead)
            reasons: list[str] = []
            executor = await world.add_executor()
            executor.abandoned = lambda _run_id, error: reasons.append(error.reason)
            await wait_until_async(
                lambda: unreadable_partitions(world.control.cluster, run_id), "it is tried, and given back"
            )
            assert reasons == [REASONS[damage]]
            other = await world.submit(echo("a"))
            assert (await world.ended(other)).status == "completed"
            assert (await world.control.get_run(run_id)).status == "running"
            assert world.work.executions("b") == [1]

            # A new executor may be able to.
            await world.add_executor()
            await wait_until_async(lambda: _refusals(world, run_id) == 2, "the new one has tried it, too")
            assert reasons == [REASONS[damage]]

            # So may the first, once an operator has mended the run.
            take_over = world.control._leader._take_over
            await wait_until_async(lambda: take_over._unreadable_since_s, "the leader has seen it")
            monkeypatch.setattr(control_takeover, "REFUSED_RETRY_S", 0.0)
            world.control._leader.look()
            await wait_until_async(lambda: len(reasons) >= 2, "it is tried again")

    run(main())


@pytest.mark.parametrize("damage", ["gap", "unknown kind", "garbage", "engine version"])
@pytest.mark.parametrize("moment", ["before it is given back", "while it waits"])
def test_a_run_that_nobody_can_read_can_be_cancelled(damage: str, moment: str) -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(*CHAIN)
            await called(world)
            dead = await world.kill(world.executors[0])
            await break_run(world, run_id, damage)
            if moment == "before it is given back":
                assert (await world.control.cancel(run_id)).status == "running"
            await world.bury(dead)
            await world.add_executor()
            if moment == "while it waits":
                await wait_until_async(lambda: unreadable_partitions(world.control.cluster, run_id), "it is given back")
                assert (await world.control.cancel(run_id)).status == "cancelled"

            view = await world.ended(run_id)
            assert (view.status, view.items_cancelled) == ("cancelled", view.items_total)
            assert await world.keys(keys.ASSIGNED) == []
            (item,) = await world.control.items(run_id)
            assert isinstance(item.outcome, Failure)
            assert "no executor could read" in item.outcome.message
            assert (await world.control.cancel(run_id)).status == "cancelled"

    run(main())


def _refusals(world: World, run_id: str) -> int:
    return max((len(orphan.refused_by) for orphan in unreadable_partitions(world.control.cluster, run_id)), default=0)


UNKNOWN = {
    "kind": pb.Entry(at_ms=1),
    "failure code": pb.Entry(at_ms=1, step=1, step_completed=pb.StepCompleted(failure=pb.Failure(code=99))),  # type: ignore[arg-type]  # of a later version
    "failure code of an attempt": pb.Entry(
        at_ms=1,
        step=1,
        attempt_failed=pb.AttemptFailed(failure=pb.Failure(code=99)),  # type: ignore[arg-type]  # of a later version
    ),
    "sub-run kind": pb.Entry(at_ms=1, step=1, sub_run_started=pb.SubRunStarted(kind=99)),  # type: ignore[arg-type]  # of a later version
    "run status": pb.Entry(at_ms=1, run_completed=pb.RunCompleted(status=99)),  # type: ignore[arg-type]  # of a later version
}


@pytest.mark.parametrize("what", UNKNOWN)
def test_what_precedes_an_entry_of_a_later_version_is_shown_and_followed_to_the_end(what: str) -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(*CHAIN)
            await called(world)
            dead = await world.kill(world.executors[0])
            entry = pb.EntryBatch(entries=[UNKNOWN[what]]).SerializeToString()
            await put(world.store, keys.journal(run_id, 0, len(await world.journal(run_id))), entry)
            await world.bury(dead)
            await world.add_executor()
            await wait_until_async(lambda: unreadable_partitions(world.control.cluster, run_id), "it is given back")

            reasons: list[str] = []
            for _ in range(2):
                steps = await world.control.steps(run_id, on_incomplete=reasons.append)
                assert [(step.step_id, step.status) for step in steps] == [("a", "completed"), ("b", "running")]
            assert len(reasons) == 2
            assert "later version" in reasons[0]
            assert [item.status for item in await world.control.items(run_id)] == ["running"]

            events = Events(world.control, world.store, world.blobs)
            told: list[Any] = []
            async for batch in events.follow(run_id, {}):
                told += batch.events
                if any(isinstance(event, StepDone) for event in batch.events):
                    await world.control.cancel(run_id)
            assert isinstance(told[-1], RunDone)
            (early,) = [event for event in told if isinstance(event, HistoryEndsEarly)]
            assert early.reason == reasons[0]
            assert told[-1].run.status == "cancelled"
            await events.close()

    run(main())


REASONS = {
    "gap": "JOURNAL_GAP",
    "unknown kind": "ENTRY_UNKNOWN",
    "garbage": "JOURNAL_CORRUPT",
    "engine version": "ENGINE_VERSION_UNKNOWN",
}


async def break_run(world: World, run_id: str, damage: str) -> None:
    if damage == "gap":
        assert await delete(world.store, keys.journal(run_id, 0, 0))
    elif damage == "engine version":
        found = await world.store.get(keys.run(run_id))
        assert found is not None
        record = state_pb2.RunRecord.FromString(found.value)
        record.policy.engine_version = ENGINE_VERSION + 1
        await put(world.store, keys.run(run_id), record.SerializeToString())
    else:
        entry = pb.EntryBatch(entries=[pb.Entry(at_ms=1)]).SerializeToString()
        seq = len(await world.journal(run_id))
        await put(world.store, keys.journal(run_id, 0, seq), entry if damage == "unknown kind" else b"\xff\xff\xff")


def test_a_defect_while_driving_gives_the_run_back_and_in_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:

            def broken(*_: object, **__: object) -> Any:
                raise ZeroDivisionError("a mistake of ours")

            run_id = await world.submit(gated("a"))
            await called(world)
            with monkeypatch.context() as patch:
                patch.setattr("executor.calls.settle", broken)
                world.work.release()
                view = await world.ended(run_id)
            assert view.status == "recovery_failed"
            (result,) = await world.results(run_id)
            assert "5 executors in a row gave this run back" in result["error"]["message"]
            other = await world.submit(echo("a"))
            assert (await world.ended(other)).status == "completed"

    run(main())


def test_a_run_that_was_given_back_goes_to_another_executor() -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:
            run_id = await world.submit(gated("a"))
            await called(world)
            (owner,) = [executor for executor in world.executors if executor.ownership.drivers]
            owner.ownership.abandon(owner.ownership.drivers[(run_id, 0)], Unavailable("TEST", "given back"))
            (other,) = [executor for executor in world.executors if executor is not owner]
            await wait_until_async(lambda: other.ownership.drivers, "the other one has it")
            world.work.release_all()
            assert (await world.ended(run_id)).status == "completed"
            assert world.work.executions("a") == [1]

    run(main())


def test_an_assignment_that_is_told_again_after_its_end_begins_nothing() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            executor = world.executors[0]
            reasons: list[str] = []
            executor.abandoned = lambda _run_id, error: reasons.append(error.reason)
            run_id = await world.submit(gated("a"))
            await called(world)
            assignment = executor.ownership.drivers[(run_id, 0)].assignment
            world.work.release_all()
            await world.ended(run_id)
            journal = await world.journal(run_id)
            executor.takeover.take_assignment(assignment)
            await wait_until_async(lambda: not executor.takeover.adopting, "it has been looked at")
            assert executor.ownership.drivers == {}
            assert reasons == []
            assert await world.journal(run_id) == journal
            assert world.work.executions("a") == [1]

    run(main())


def test_a_stale_assignment_cannot_be_given_back() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(gated("a"))
            await called(world)
            executor = world.executors[0]
            partition_id = (run_id, 0)
            assignment = executor.ownership.drivers[partition_id].assignment
            assert executor._session is not None
            await put(world.store, keys.inbox(run_id, "other"), b"")
            await delete(world.store, assignment.key)
            executor.ownership.give_back._move_away(executor._session, partition_id, assignment)
            await executor._session.writer.drain()
            assert await world.keys(keys.ASSIGNED) == []

    run(main())
