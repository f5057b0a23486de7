"""Refusals of admissions that end by themselves say when to try again, to programs of every kind."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_until_async
from support.parts import World, echo

from control_plane import admission
from stepflow.errors import Overloaded
from stepflow.rpc.errors import retry_after_ms
from stepflow.store import delete, keys

if TYPE_CHECKING:
    from collections.abc import Coroutine


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


def test_too_many_waiting_runs_refuse_further_ones_with_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "PENDING_RUNS_MAX", 2)

    async def main() -> None:
        async with World.open(executors=0) as world:
            for _ in range(2):
                await world.submit(echo("a"))
            await wait_until_async(lambda: len(world.control.cluster.pending) == 2, "the waiting runs are counted")
            with pytest.raises(Overloaded) as refused:
                await world.submit(echo("a"))
            assert refused.value.reason == "TOO_MANY_PENDING"
            assert retry_after_ms(refused.value) > 0

    run(main())


def test_executors_that_die_before_they_get_a_run_refuse_it_with_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "ADMISSION_RETRY_S", 0)

    async def main() -> None:
        async with World.open() as world:
            dead = world.executors[0].id
            monkeypatch.setattr(world.control.cluster, "choose", lambda *_args, **_options: dead)
            await delete(world.store, keys.session_executor(dead))
            with pytest.raises(Overloaded) as refused:
                await world.submit(echo("a"))
            assert refused.value.reason == "PLACEMENT_UNSTABLE"
            assert retry_after_ms(refused.value) > 0

    run(main())
