"""Lists of steps: those in segments and those of the replaying process tell what a replay in the service tells."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async
from support.archive import opened
from support.corpus import CORPUS, SIGNALS
from support.packing import run_world, store_run
from support.parts import World, echo, gated, of

from control_plane.archive import run_reader, step_index
from control_plane.archive.rewriting import rewrite
from control_plane.control_plane import ControlPlane
from control_plane.replay import in_service, process
from control_plane.replay.in_service import ReplayInService
from control_plane.replay.process import ReplayLost, ReplayProcess
from stepflow.errors import StepflowError
from stepflow.run import replay
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import Put, Txn, keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from support.archive import PackingWorld

    from stepflow.run.views import StepView


def within(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(110):
            await main

    asyncio.run(bounded())


class Entries:
    """Counts the entries that this process replays."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self._apply = replay.apply
        monkeypatch.setattr(replay, "apply", self)

    def __call__(self, *arguments: Any) -> None:
        self.count += 1
        self._apply(*arguments)


@asynccontextmanager
async def replaying(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ReplayProcess]:
    """Yield a process that gets all partitions, however small."""
    monkeypatch.setattr(in_service, "INLINE_BYTES", 0)
    apart = ReplayProcess()
    try:
        yield apart
    finally:
        await apart.close()


async def fill(world: PackingWorld) -> None:
    """Put an ended run of each flow of the corpus into the store."""
    for number, name in enumerate(CORPUS, 1):
        inputs = [{"n": 1}] if name in SIGNALS else [{"n": 1}, {"n": 2}]
        run = run_world(
            number,
            dict(CORPUS[name]),
            inputs=inputs,
            signals=list(SIGNALS.get(name, ())),
            engine_version=ENGINE_VERSION,
        )
        run.run()
        world.run_ids.append(await store_run(world.store, world.blobs, run, [1, 2]))


async def steps_of(control: ControlPlane, run_ids: list[str]) -> list[list[StepView]]:
    return [await control.steps(run_id, with_results=True) for run_id in run_ids]


@pytest.mark.parametrize("fits_memory", [True, False])
def test_a_page_of_a_packed_run_with_a_list_of_steps_replays_no_entry(
    fits_memory: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(step_index, "INDEXED_ENTRIES", 0)
    monkeypatch.setattr(step_index, "CHUNK_ROWS", 2)
    if not fits_memory:
        monkeypatch.setattr(run_reader, "WHOLE_RUN_BYTES_MAX", 10)
        monkeypatch.setattr(run_reader, "KEYS_PER_RUN", 1)

    async def main() -> None:
        async with opened(None) as world:
            await fill(world)
            expected = await steps_of(world.control, world.run_ids)
            term = await world.leaders.undisturbed()
            entries = Entries(monkeypatch)
            assert await steps_of(world.control, world.run_ids) == expected

            # In another segment, too; without the journals there are no steps.
            for strip in (False, True):
                await rewrite(world.blobs, term.segments, sorted(term.segments.manifests), strip=strip)
                found = await steps_of(world.control, world.run_ids)
                assert found == ([[] for _ in world.run_ids] if strip else expected)
            assert entries.count == 0

    within(main())


def test_a_list_of_steps_that_breaks_off_or_is_damaged_is_not_taken_for_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_index, "INDEXED_ENTRIES", 0)
    monkeypatch.setattr(step_index, "CHUNK_ROWS", 1)

    async def main(*, fits_memory: bool) -> None:
        async with opened(None) as world:
            await world.fill("chain", "chain")
            expected = await steps_of(world.control, world.run_ids)

            # 1. The process ends in the middle of the first run.
            index_rows = ReplayInService.index_rows
            left = [2]

            async def lost(*arguments: Any) -> Any:
                left[0] -= 1
                if not left[0]:
                    raise ReplayLost
                return await index_rows(*arguments)

            monkeypatch.setattr(run_reader, "WHOLE_RUN_BYTES_MAX", 2**20 if fits_memory else 10)
            monkeypatch.setattr(ReplayInService, "index_rows", lost)
            await world.leaders.undisturbed()
            assert left[0] < 0
            control = ControlPlane(world.store, world.blobs)
            assert await steps_of(control, world.run_ids) == expected

            # 2. A row is damaged.
            for path, (content, kind) in world.backend._blobs.items():
                if path.startswith("segments/"):
                    assert b"/c/add" in content
                    world.backend._blobs[path] = (content.replace(b"/c/add", b"/c/bad"), kind)
            await control.close()
            control = ControlPlane(world.store, world.blobs)
            with pytest.raises(StepflowError) as damaged:
                await control.steps(world.run_ids[1])
            assert damaged.value.reason == "SEGMENT_CORRUPT"
            await control.close()

    within(main(fits_memory=True))
    within(main(fits_memory=False))


def test_results_without_room_in_a_list_of_steps_are_replayed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_index, "INDEXED_ENTRIES", 0)
    body = {"steps": [{"id": "s", "component": "/c/medium", "input": {"$input": "$"}}], "output": {"$step": "s"}}
    mapped = {"workflow": {"$literal": body}, "items": {"$literal": [*range(300)]}}
    each = {"id": "each", "component": "/builtin/map", "input": mapped}
    again = {
        "id": "again",
        "component": "/builtin/eval",
        "input": {"workflow": {"$literal": {"output": {"$input": "$"}}}},
    }
    again["input"]["input"] = {"$step": "each"}  # type: ignore[index]  # a tree

    async def main(room_bytes: int, *, replays: bool) -> None:
        async with opened(None) as world:
            tree = {"steps": [each, again], "output": {"$step": "again"}}
            run = run_world(1, tree, inputs=[{"n": 1}], engine_version=ENGINE_VERSION)
            run.run()
            world.run_ids.append(await store_run(world.store, world.blobs, run))
            expected = await steps_of(world.control, world.run_ids)
            monkeypatch.setattr(step_index, "_room", lambda _: room_bytes)
            await world.leaders.undisturbed()

            entries = Entries(monkeypatch)
            assert len(await world.control.steps(world.run_ids[0])) == len(expected[0])
            assert entries.count == 0
            control = ControlPlane(world.store, world.blobs)
            assert await steps_of(control, world.run_ids) == expected
            assert (entries.count > 0) == replays
            await control.close()

    within(main(1_000_000, replays=False))
    within(main(40_000, replays=True))


def test_the_process_lists_steps_as_the_service_does(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with opened(None) as world, replaying(monkeypatch) as apart:
            await fill(world)
            expected = await steps_of(world.control, world.run_ids)
            control = ControlPlane(world.store, world.blobs, replay_process=apart)
            entries = Entries(monkeypatch)
            assert await steps_of(control, world.run_ids) == expected
            for run_id in world.run_ids:
                pages = [view async for view in _by_two(control, run_id)]
                assert pages == await control.steps(run_id)
            assert entries.count == 0
            await control.close()

    within(main())


async def _by_two(control: ControlPlane, run_id: str) -> AsyncIterator[StepView]:
    page = await control.listing.steps(run_id, 2, "", with_results=False)
    while True:
        for view in page.steps:
            yield view
        if not page.token:
            return
        page = await control.listing.steps(run_id, 2, page.token, with_results=False)


def test_the_process_follows_a_live_run_and_its_death_costs_a_replay(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world, replaying(monkeypatch) as apart:
            big = {"id": "big", "component": "/kit/big", "input": 40_000}
            flow = (echo("a", {"$input": "$"}), big, gated("b", [of("a"), of("big")]))
            run_id = await world.submit(*flow, inputs=[0, 1, 2])
            control = ControlPlane(world.store, world.blobs, replay_process=apart)

            async def check_alike() -> None:
                for with_results in (False, True):
                    expected = await world.control.steps(run_id, with_results=with_results)
                    assert await control.steps(run_id, with_results=with_results) == expected
                assert await control.items(run_id) == await world.control.items(run_id)

            await wait_until_async(lambda: len(world.work.in_flight) == 3, "all wait")
            await check_alike()
            world.work.release(1)
            await wait_until_async(lambda: len(world.work.in_flight) == 2, "one has ended")
            await check_alike()

            assert apart._process is not None
            os.kill(apart._process.pid, signal.SIGKILL)
            await check_alike()
            world.work.release_all()
            await world.ended(run_id)
            await check_alike()
            assert apart.generation == 2
            await control.close()

    within(main())


def test_a_journal_that_outgrows_the_event_loop_moves_into_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world, replaying(monkeypatch) as apart:
            monkeypatch.setattr(in_service, "INLINE_BYTES", 400)
            later = [echo(f"c{n}", of("b" if n == 0 else f"c{n - 1}")) for n in range(9)]
            run_id = await world.submit(echo("a"), gated("b", of("a")), *later)
            await wait_until_async(lambda: world.work.in_flight, "it waits")
            control = ControlPlane(world.store, world.blobs, replay_process=apart)
            assert len(await control.steps(run_id)) == 2
            assert apart.generation == 0
            world.work.release_all()
            await world.ended(run_id)
            assert await control.steps(run_id) == await world.control.steps(run_id)
            assert apart.generation == 1
            await control.close()

    within(main())


def test_a_short_journal_with_many_active_steps_goes_to_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    body = {"steps": [gated("s", {"$input": "$"})], "output": of("s")}
    each = {
        "id": "each",
        "component": "/builtin/map",
        "input": {"workflow": {"$literal": body}, "items": {"$input": "$"}},
    }

    async def main() -> None:
        async with World.open() as world, replaying(monkeypatch) as apart:
            monkeypatch.setattr(in_service, "INLINE_BYTES", 16 * 1024)
            control = ControlPlane(world.store, world.blobs, replay_process=apart)
            for generation, items in ((0, ["x"] * 500), (1, ["x"] * 1_100), (1, ["y" * 40] * 2_000)):
                run_id = await world.submit(each, inputs=[items])
                await wait_until_async(lambda: world.work.in_flight, "it waits")
                assert len(await control.steps(run_id)) == 1 + len(items)
                assert apart.generation == generation
                await world.control.cancel(run_id)
                await world.ended(run_id)
            entries = Entries(monkeypatch)
            assert {step.status for step in await control.steps(run_id)} == {"cancelled"}
            assert entries.count == 0
            await control.close()

    within(main())


def test_a_process_that_cannot_replay_a_run_fails_the_readers_of_that_run(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world, replaying(monkeypatch) as apart:
            run_id = await world.submit(echo("a"))
            await world.ended(run_id)
            control = ControlPlane(world.store, world.blobs, replay_process=apart)

            async def refused() -> str:
                with pytest.raises(StepflowError) as failed:
                    await control.steps(run_id)
                return failed.value.reason

            # 1. It cannot be started, ends at once, or takes too long.
            works = process.COMMAND
            for command in (("/absent",), ("/bin/true",), ("/bin/cat",)):
                monkeypatch.setattr(process, "COMMAND", command)
                assert await refused() == "REPLAY_FAILED"
            monkeypatch.setattr(process, "COMMAND", ("/bin/sleep", "1000"))
            monkeypatch.setattr(process, "ANSWER_S", 0.05)
            assert await refused() == "REPLAY_FAILED"

            # 2. A damaged journal is an error of its own, and costs no process.
            monkeypatch.setattr(process, "COMMAND", works)
            monkeypatch.setattr(process, "ANSWER_S", 60.0)
            assert len(await control.steps(run_id)) == 1
            generation = apart.generation
            run_id = await world.submit(echo("a"))
            await world.ended(run_id)
            await world.store.txn(Txn((), (Put(keys.journal(run_id, 0, 0), b"\xff"),)))
            assert await refused() == "JOURNAL_CORRUPT"
            assert apart.generation == generation
            await control.close()

    within(main())


def test_the_process_ends_when_nobody_needs_it_and_with_its_service(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world, replaying(monkeypatch) as apart:
            run_id = await world.submit(echo("a"))
            await world.ended(run_id)
            control = ControlPlane(world.store, world.blobs, replay_process=apart)
            expected = await control.steps(run_id)
            monkeypatch.setattr(process, "IDLE_S", 0.0)
            assert await control.steps(run_id) == expected
            await wait_until_async(lambda: apart._process is None, "it has ended")
            monkeypatch.setattr(process, "IDLE_S", 300.0)
            assert await control.steps(run_id) == expected

            # The end of its input, as with the death of the service.
            assert apart._process is not None
            assert apart._process.stdin is not None
            apart._process.stdin.close()
            assert await asyncio.wait_for(apart._process.wait(), 30) == 0
            await control.close()

    within(main())
