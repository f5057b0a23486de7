"""Signals to runs: the run's owner takes each once, in order; over the API and in the parts of a mesh."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import wait_for_value
from support.api import api_mesh
from support.parts import World, of, step

from control_plane import signals
from control_plane.signals import signal
from executor import messages
from stepflow.client import Client
from stepflow.errors import FailedPrecondition, Invalid, NotFound, Overloaded, StepflowError
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

ASK = {
    "name": "ask",
    "steps": [
        {"id": "first", "component": "/builtin/wait_for_signal", "input": {"name": "answer"}},
        {
            "id": "second",
            "component": "/builtin/wait_for_signal",
            "input": {"name": "answer", "after": {"$step": "first"}},
        },
    ],
    "output": [{"$step": "first", "path": "payload"}, {"$step": "second", "path": "payload"}],
}


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


def waiting(step_id: str, **more: Any) -> dict[str, Any]:
    return step(step_id, "/builtin/wait_for_signal", {"name": "go", **more})


# --- in the parts of a mesh --------------------------------------------------------------------------------------


async def in_journal(world: World, run_id: str, kind: str, partition: int = 0, count: int = 1) -> None:
    async def found() -> int:
        return [entry.WhichOneof("kind") for entry in await world.journal(run_id, partition)].count(kind)

    await wait_for_value(found, f"{count} entries {kind}", lambda now: now >= count)


async def emptied(world: World, run_id: str) -> None:
    inbox = partial(world.store.range, keys.inbox_of_run(run_id))
    await wait_for_value(inbox, "the inbox is emptied", lambda page: not page.items)


def test_what_a_dead_owner_had_taken_and_what_came_meanwhile_reach_the_next_one_once() -> None:
    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(waiting("a"), waiting("b", after=of("a")), waiting("c", after=of("b")))
            await in_journal(world, run_id, "signal_awaited")
            await signal(world.store, world.blobs, run_id, "go", b"1")
            await in_journal(world, run_id, "signal_awaited", count=2)
            dead = await world.kill(world.executors[0])
            for number in (b"2", b'"' + b"x" * 50_000 + b'"', b"4"):  # a large one goes by way of the blob store
                await signal(world.store, world.blobs, run_id, "go", number)
            await world.bury(dead)
            await world.add_executor()
            assert (await world.ended(run_id)).status == "completed"
            assert await world.results(run_id) == [
                {"outcome": "success", "result": {"payload": "x" * 50_000, "timed_out": False}}
            ]
            taken = [e.inbox_taken.id for e in await world.journal(run_id) if e.WhichOneof("kind") == "inbox_taken"]
            assert len(taken) == len(set(taken)), "a signal was taken twice"

    run(main())


def test_a_signal_reaches_the_item_that_it_is_for_in_whatever_partition() -> None:
    async def main() -> None:
        async with World.open(executors=2) as world:
            run_id = await world.submit(waiting("a"), inputs=list(range(130)), concurrency_max=200)
            await in_journal(world, run_id, "signal_awaited", partition=2, count=2)
            await signal(world.store, world.blobs, run_id, "go", b"7", item=129)
            await in_journal(world, run_id, "step_completed", partition=2)
            for partition in (0, 1):
                kinds = {entry.WhichOneof("kind") for entry in await world.journal(run_id, partition)}
                assert "inbox_taken" not in kinds
            await world.control.cancel(run_id)
            assert (await world.ended(run_id)).status == "cancelled"

    run(main())


def test_a_run_that_waits_for_an_executor_keeps_the_signals_for_it() -> None:
    async def main() -> None:
        async with World.open(executors=0) as world:
            run_id = await world.submit(waiting("a"))
            await signal(world.store, world.blobs, run_id, "go", b"5")
            await world.add_executor()
            await world.ended(run_id)
            assert (await world.results(run_id))[0]["result"]["payload"] == 5

    run(main())


def test_the_bound_of_an_inbox_counts_only_messages_that_are_not_taken_yet() -> None:
    """Each item waits for its approval: more approvals in all than an inbox may hold."""
    items = 2 * signals.INBOX_MESSAGES_MAX

    async def main() -> None:
        async with World.open(executors=1) as world:
            run_id = await world.submit(waiting("a"), inputs=list(range(items)), concurrency_max=items)
            for item in range(items):
                await signal(world.store, world.blobs, run_id, "go", b"1", item=item)
                if item % 500 == 0:
                    await emptied(world, run_id)
            assert (await world.ended(run_id)).status == "completed"
            assert [key async for key in range_all(world.store, keys.inbox_of_run(run_id))] == []

    run(main())


def test_an_inbox_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "INBOX_MESSAGES_MAX", 3)
    monkeypatch.setattr(messages, "SIGNALS_UNRECEIVED_MAX", 2)

    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(waiting("a"))
            for number in range(2):  # taken, though no step waits for them
                await signal(world.store, world.blobs, run_id, "other", str(number).encode())
            await in_journal(world, run_id, "inbox_taken", count=2)
            for _ in range(3):
                await signal(world.store, world.blobs, run_id, "other", b"null")
            with pytest.raises(Overloaded):
                await signal(world.store, world.blobs, run_id, "other", b"null")
            await world.control.cancel(run_id)
            assert (await world.ended(run_id)).status == "cancelled", "a full inbox takes a cancel all the same"

    run(main())


def test_a_signal_left_in_the_inbox_reaches_the_step_that_comes_to_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(messages, "SIGNALS_UNRECEIVED_MAX", 1)

    async def main() -> None:
        async with World.open() as world:
            steps = [waiting("a"), waiting("b", name="later", after=of("a")), waiting("c", name="later", after=of("b"))]
            run_id = await world.submit(*steps)
            await in_journal(world, run_id, "signal_awaited")
            for name, payload in (("other", b"0"), ("later", b"1"), ("later", b"2"), ("go", b"3")):
                await signal(world.store, world.blobs, run_id, name, payload)
            assert (await world.ended(run_id)).status == "completed"
            assert (await world.results(run_id))[0]["result"]["payload"] == 2

    run(main())


def test_a_repeated_signal_changes_nothing_after_it_was_taken_and_after_the_run_has_ended() -> None:
    async def main() -> None:
        async with World.open() as world:
            run_id = await world.submit(waiting("a"), waiting("b", after=of("a")))
            await in_journal(world, run_id, "signal_awaited")
            first = str(uuid4())
            await signal(world.store, world.blobs, run_id, "go", b"1", signal_id=first)
            await in_journal(world, run_id, "signal_awaited", count=2)
            assert await signal(world.store, world.blobs, run_id, "go", b"1", signal_id=first) == first
            await signal(world.store, world.blobs, run_id, "go", b"2")
            assert (await world.ended(run_id)).status == "completed"
            assert (await world.results(run_id))[0]["result"]["payload"] == 2
            assert await signal(world.store, world.blobs, run_id, "go", b"1", signal_id=first) == first
            with pytest.raises(FailedPrecondition):
                await signal(world.store, world.blobs, run_id, "go", b"1", signal_id=str(uuid4()))

    run(main())


# --- over the API ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talk() -> Iterator[Callable[[Callable[[Client], Awaitable[Any]]], Any]]:
    with api_mesh() as (mesh, _):

        def converse(work: Callable[[Client], Awaitable[Any]]) -> Any:
            async def main() -> Any:
                async with asyncio.timeout(30), Client(mesh.address) as client:
                    return await work(client)

            return asyncio.run(main())

        yield converse


def test_a_client_signals_a_run_and_watchers_see_it(talk: Any) -> None:
    async def work(client: Client) -> tuple[Any, list[tuple[str, str]]]:
        run_id = await client.submit(ASK)
        again = str(uuid4())
        for _ in range(3):  # one signal, however often it is sent
            assert await client.signal(run_id, "answer", {"n": 1}, signal_id=again) == again
        seen = []
        async for event in client.watch(run_id):
            seen.append((event.kind, event.message))
            if event.kind == "step_waiting" and event.step_id == "second":
                assert event.until_ms is None
                assert (await client.get(run_id)).status == "running"
                await client.signal(run_id, "answer", [2])
        assert await client.signal(run_id, "answer", {"n": 1}, signal_id=again) == again, "it was sent, and taken"
        (item,) = [item async for item in client.items(run_id)]
        return item.result, seen

    result, seen = talk(work)
    assert result == [{"n": 1}, [2]]
    assert seen.count(("signalled", "answer")) == 2
    assert seen.count(("step_waiting", "answer")) == 2


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"name": ""}, Invalid, "SIGNAL_INVALID"),
        ({"name": "x" * 129}, Invalid, "SIGNAL_INVALID"),
        ({"item": 1}, Invalid, "SIGNAL_INVALID"),
        ({"signal_id": "no/uuid"}, Invalid, "SIGNAL_INVALID"),
        ({"run_id": str(uuid4())}, NotFound, "RUN_NOT_FOUND"),
        ({"run_id": "x"}, Invalid, "RUN_ID_INVALID"),
    ],
)
def test_a_signal_that_cannot_be_is_refused_and_leaves_nothing(
    talk: Any, arguments: dict[str, Any], error: type[StepflowError], reason: str
) -> None:
    async def work(client: Client) -> list[str]:
        run_id = await client.submit(ASK)
        with pytest.raises(error) as refused:
            await client.signal(**{"run_id": run_id, "name": "x", **arguments})
        assert refused.value.reason == reason
        await client.cancel(run_id)
        return [event.kind async for event in client.watch(run_id)]

    assert "signalled" not in talk(work)


def test_a_signal_to_a_run_that_has_ended_says_so(talk: Any) -> None:
    async def work(client: Client) -> None:
        run_id = await client.submit({"output": 1})
        await client.wait(run_id, timeout_s=20)
        with pytest.raises(FailedPrecondition) as refused:
            await client.signal(run_id, "answer")
        assert refused.value.reason == "RUN_ENDED"

    talk(work)
