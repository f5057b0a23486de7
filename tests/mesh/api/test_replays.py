"""Steps, items and events of a run: the journal is replayed once, off the event loop, and never shown stale."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_for_value, wait_until_async
from support.parts import World, echo, gated, of, step

from control_plane.events import Events
from control_plane.history import ItemDone, StepDone
from control_plane.listing import PARTITIONS_READ_MAX
from control_plane.replay import in_service, replays
from control_plane.replay.in_service import ReplayInService
from stepflow.errors import StepflowError
from stepflow.run import replay
from stepflow.store import DeletePrefix, Put, Txn, keys, range_all

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from control_plane.views import ItemView


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


class Applied:
    """Counts the entries that readers replay, and the threads in which they do."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        self.threads: set[int] = set()
        self._apply = replay.apply
        monkeypatch.setattr(replay, "apply", self)

    def __call__(self, *arguments: Any) -> None:
        self.count += 1
        self.threads.add(threading.get_ident())
        self._apply(*arguments)

    def taken(self) -> int:
        count, self.count = self.count, 0
        return count


async def first_ended(world: World, run_id: str) -> ItemView:
    async def ended() -> list[ItemView]:
        return [item for item in await world.control.items(run_id) if item.status == "completed"]

    return (await wait_for_value(ended, "an item has ended"))[0]


def test_pages_of_steps_replay_each_entry_once_and_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world:
            inputs = [{"n": n} for n in range(60)]
            chain = [echo("s0", {"$input": "$"}), *(echo(f"s{n}", of(f"s{n - 1}")) for n in range(1, 30))]
            run_id = await world.submit(*chain, inputs=inputs)
            await world.ended(run_id)
            entries = len(await world.journal(run_id))
            monkeypatch.setattr(in_service, "INLINE_BYTES", 0)
            applied = Applied(monkeypatch)

            found, token, _ = await world.control.listing.steps(run_id, 100, "", with_results=True)
            assert applied.taken() == entries
            assert threading.get_ident() not in applied.threads
            while token:
                page, token, _ = await world.control.listing.steps(run_id, 100, token, with_results=True)
                found += page
            assert applied.taken() == 0
            assert [(view.item, view.step_id) for view in found] == [
                (item, f"s{n}") for item in range(60) for n in range(30)
            ]

    run(main())


def test_steps_and_items_of_a_live_run_are_shown_as_they_end(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world:
            big = step("big", "/kit/big", 40_000)
            flow = (echo("a", {"$input": "$"}), big, gated("b", [of("a"), of("big")]))
            run_id = await world.submit(*flow, inputs=[0, 1, 2])
            await wait_until_async(lambda: len(world.work.in_flight) == 3, "all wait")
            applied = Applied(monkeypatch)
            assert [view.status for view in await world.control.steps(run_id)] == 3 * [
                "completed",
                "completed",
                "running",
            ]
            seen = applied.taken()
            assert [item.status for item in await world.control.items(run_id)] == 3 * ["running"]
            assert applied.taken() == 0

            world.work.release(1)
            done = await first_ended(world, run_id)
            assert 1 <= applied.taken() < seen
            world.work.release_all()
            await world.ended(run_id)
            assert (await world.control.items(run_id))[done.item] == done
            assert {view.status for view in await world.control.steps(run_id)} == {"completed"}

    run(main())


def test_a_journal_that_is_gone_or_replaced_is_not_shown_from_memory() -> None:
    async def main() -> None:
        async with World.open() as world:
            first, second = await world.submit(echo("a", 1)), await world.submit(echo("a", 2))
            for run_id in (first, second):
                await world.ended(run_id)
            (view,) = await world.control.steps(first, with_results=True)
            prefix = keys.journal_of_partition(first, 0)
            other = [item async for item in range_all(world.store, keys.journal_of_partition(second, 0))]
            await world.store.txn(Txn((), (DeletePrefix(prefix),)))
            assert await world.control.steps(first) == []

            moved = tuple(Put(item.key.replace(second, first), item.value) for item in other)
            await world.store.txn(Txn((), moved))
            (anew,) = await world.control.steps(first, with_results=True)
            assert anew != view

    run(main())


def test_pages_of_steps_of_a_batch_that_waits_read_a_bounded_number_of_partitions() -> None:
    async def main() -> None:
        async with World.open(executors=0) as world:
            run_id = await world.submit(echo("a"), inputs=[0] * (64 * (PARTITIONS_READ_MAX + 5)))
            page = await world.control.listing.steps(run_id, 100, "", with_results=False)
            assert (page.steps, bool(page.token)) == ([], True)
            assert await world.control.steps(run_id) == []
            assert not world.control.listing.replays._kept

    run(main())


def test_a_damaged_journal_leaves_the_items_of_a_live_run_in_the_list() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(gated("a"))
            await wait_until_async(lambda: world.work.in_flight, "it waits")
            await world.store.txn(Txn((), (Put(keys.journal(run_id, 0, 0), b"\xff"),)))
            assert [item.status for item in await world.control.items(run_id)] == ["running"]
            with pytest.raises(StepflowError) as damaged:
                await world.control.steps(run_id)
            assert damaged.value.reason == "JOURNAL_CORRUPT"
            world.work.release_all()

    run(main())


def test_a_follower_of_a_journal_that_was_set_back_is_told_so() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(echo("a"), gated("b", of("a")))
            events = Events(world.control, world.store, world.blobs)

            async def follow() -> None:
                async for batch in events.follow(run_id, {}):
                    if any(isinstance(event, StepDone) for event in batch.events):
                        await world.store.txn(Txn((), (DeletePrefix(keys.journal_of_partition(run_id, 0)),)))
                        events._feeds[run_id].mark_doubtful({0})

            with pytest.raises(StepflowError) as gone:
                await follow()
            assert gone.value.reason == "HISTORY_GONE"
            await events.close()
            world.work.release_all()

    run(main())


def test_partitions_are_kept_within_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replays, "KEPT_BYTES_MAX", 3 * 4 * replays.ENTRY_BYTES)

    async def main() -> None:
        async with World.open() as world:
            ids = [await world.submit(echo("a")) for _ in range(6)]
            for run_id in ids:
                await world.ended(run_id)
                await world.control.steps(run_id)
            kept = world.control.listing.replays._kept
            assert [run_id for run_id, _ in kept] == ids[-len(kept) :]
            assert 1 <= len(kept) <= 3

    run(main())


def test_a_reading_that_is_cancelled_or_fails_does_not_spoil_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(echo("a"), inputs=[1, 2])
            await world.ended(run_id)
            expected = await world.control.steps(run_id)
            world.control.listing.replays._kept.clear()
            begun = asyncio.Event()

            add = ReplayInService.add

            async def hangs_at_the_end(*arguments: Any) -> None:
                await add(*arguments)
                if not begun.is_set():
                    begun.set()
                    await asyncio.Event().wait()

            monkeypatch.setattr(ReplayInService, "add", hangs_at_the_end)
            reading = asyncio.create_task(world.control.steps(run_id))
            waiting = asyncio.create_task(world.control.steps(run_id))
            await begun.wait()
            reading.cancel()
            assert await waiting == expected
            assert await world.control.steps(run_id) == expected

    run(main())


def test_a_follower_behind_a_position_replays_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(echo("a", {"$input": "$"}), inputs=[{"n": n} for n in range(64)])
            await world.ended(run_id)
            monkeypatch.setattr(in_service, "INLINE_BYTES", 0)
            applied = Applied(monkeypatch)
            events = Events(world.control, world.store, world.blobs)
            for after in ({}, {0: 40}):
                batches = [batch async for batch in events.follow(run_id, after, with_results=True)]
                told = [event for batch in batches for event in batch.events]
                done = [event for event in told if isinstance(event, StepDone)]
                assert len(done) == len([event for event in told if isinstance(event, ItemDone)]) <= 64
                assert all(event.result is not None for event in done)
            assert threading.get_ident() not in applied.threads
            with pytest.raises(StepflowError):
                await anext(events.follow(run_id.replace("7", "8"), {}))
            await events.close()

    run(main())
