"""`Deadlines` with arbitrary items: cancels, expiry, and the size of the heap. Calls with deadlines: `test_life`."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from support import wait_until_async
from support.scripted_host import run_async

from component_host.deadlines import Deadlines
from stepflow.timer_heap import EMPTY_MIN

if TYPE_CHECKING:
    from component_host.deadlines import DeadlineClock

SOON_MS = 10
LATE_MS = 3_600_000


def never_waiting(_: str) -> bool:
    return False


def test_an_item_that_another_expiry_cancels_does_not_expire() -> None:
    async def main() -> None:
        expired: list[str] = []
        clocks: dict[str, DeadlineClock[str]] = {}

        def expire(item: str, _: str) -> None:
            expired.append(item)
            for clock in clocks.values():
                deadlines.cancel(clock)

        deadlines = Deadlines(expire, never_waiting)
        clocks["a"] = deadlines.start_clock("a", SOON_MS, 0)
        clocks["b"] = deadlines.start_clock("b", SOON_MS, 0)
        await wait_until_async(lambda: expired and not len(deadlines), "the first has expired, and the heap is empty")
        assert len(expired) == 1
        assert len(deadlines) == 0

    run_async(main)


def test_cancels_of_expired_items_do_not_count_as_empty_entries() -> None:
    async def main() -> None:
        expired: list[str] = []
        deadlines = Deadlines(lambda item, _: expired.append(item), never_waiting)
        clocks = [deadlines.start_clock(f"soon {number}", SOON_MS, 0) for number in range(2 * EMPTY_MIN)]
        await wait_until_async(lambda: len(expired) == 2 * EMPTY_MIN, "all have expired")
        for clock in clocks:
            deadlines.cancel(clock)

        late = [deadlines.start_clock(f"late {number}", LATE_MS, 0) for number in range(3 * EMPTY_MIN)]
        for clock in late[: 2 * EMPTY_MIN]:
            deadlines.cancel(clock)
        assert len(deadlines) < 3 * EMPTY_MIN, "more than half are empty: the heap was cleaned"
        assert len(deadlines) >= EMPTY_MIN, "what is not cancelled stays"
        deadlines.close()

    run_async(main)


def test_a_waiting_item_loses_no_idle_time() -> None:
    async def main() -> None:
        expired: list[str] = []
        waiting = True
        deadlines = Deadlines(lambda item, _: expired.append(item), lambda _: waiting)
        deadlines.start_clock("asks", 0, SOON_MS)
        await asyncio.sleep(10 * SOON_MS / 1000)  # time itself: nothing happens
        assert expired == []
        waiting = False
        await wait_until_async(lambda: expired, "it has expired")
        assert expired == ["asks"]

    run_async(main)
