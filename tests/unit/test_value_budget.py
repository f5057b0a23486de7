"""The budget for large values: order, bounds, and the default from the limits of the process."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepflow.value_budget import BYTES_MIN, ValueBudget, default_bytes, memory_bytes

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

GIB = 2**30


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 30))


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


@given(st.lists(st.integers(min_value=1, max_value=150), max_size=30))
def test_values_are_admitted_in_order_and_never_above_the_bound_unless_alone(sizes: list[int]) -> None:
    async def main() -> None:
        budget = ValueBudget(100)
        admitted: list[int] = []
        held: list[int] = []

        async def taker(number: int, size: int) -> None:
            await budget.take(size)
            admitted.append(number)
            held.append(size)
            assert sum(held) <= 100 or len(held) == 1

        tasks = [asyncio.create_task(taker(number, size)) for number, size in enumerate(sizes)]
        while len(admitted) < len(sizes):
            await turns()
            if held:
                budget.release(held.pop(0))
        await asyncio.gather(*tasks)
        assert admitted == sorted(admitted)
        for size in held:
            budget.release(size)
        assert (budget.bytes_used, budget.waiting) == (0, 0)

    run(main())


def test_a_small_value_does_not_overtake_a_large_one_that_waits() -> None:
    async def main() -> None:
        budget = ValueBudget(100)
        await budget.take(60)
        large, small = (asyncio.create_task(budget.take(size)) for size in (50, 1))
        await turns()
        assert (budget.waiting, budget.bytes_used) == (2, 60)
        budget.release(60)
        await asyncio.gather(large, small)
        assert budget.bytes_used == 51

    run(main())


@pytest.mark.parametrize("admitted", [False, True])
def test_a_cancelled_taker_takes_nothing(admitted: bool) -> None:
    async def main() -> None:
        budget = ValueBudget(100)
        await budget.take(100)
        cancelled, behind = (asyncio.create_task(budget.take(size)) for size in (60, 40))
        await turns()
        if admitted:
            budget.release(100)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        if not admitted:
            budget.release(100)
        await behind
        assert (budget.bytes_used, budget.waiting) == (40, 0)

    run(main())


def test_every_change_of_the_queue_is_told() -> None:
    async def main() -> None:
        told: list[int] = []
        budget = ValueBudget(10)
        budget.changed = lambda: told.append(budget.waiting)
        await budget.take(10)
        waiting = asyncio.create_task(budget.take(10))
        await turns()
        budget.release(10)
        await waiting
        assert told == [1, 0]

    run(main())


def test_the_lowest_limit_of_the_process_and_of_the_groups_above_it_counts(tmp_path: Path) -> None:
    group = tmp_path / "kubepods" / "pod"
    group.mkdir(parents=True)
    own = tmp_path / "own"
    own.write_text("0::/kubepods/pod\n")
    (group / "memory.max").write_text("max\n")
    (group.parent / "memory.max").write_text(f"{GIB // 2}\n")
    assert memory_bytes(tmp_path, own) == GIB // 2
    (group / "memory.max").write_text(f"{GIB // 4}\n")
    assert memory_bytes(tmp_path, own) == GIB // 4


def test_the_limit_of_a_container_and_of_the_first_version_is_read_too(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/\n")
    (tmp_path / "memory.max").write_text(f"{GIB // 2}\n")
    assert memory_bytes(tmp_path, own) == GIB // 2
    (tmp_path / "memory.max").unlink()
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{GIB // 4}\n")
    assert memory_bytes(tmp_path, own) == GIB // 4


def test_without_any_limit_the_machine_counts(tmp_path: Path) -> None:
    assert memory_bytes(tmp_path, tmp_path / "absent") > BYTES_MIN
    assert default_bytes() >= BYTES_MIN
