"""The gate that thins progress: what passes, what waits, and when."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from component_host.progress_gate import PERIOD_S, WAITING_MAX, ProgressGate, paced

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def test_a_few_reports_pass_at_once() -> None:
    gate: ProgressGate[int] = ProgressGate(reports_max=3)
    assert [gate.offer("a", number, 0.0) for number in range(3)] == [True] * 3
    assert gate.wait_s(0.0) is None


def test_of_more_reports_the_latest_of_each_call_waits_for_the_next_period() -> None:
    gate: ProgressGate[str] = ProgressGate(reports_max=1)
    assert gate.offer("a", "a1", 0.0)
    assert not any(gate.offer(report[0], report, 0.0) for report in ("a2", "b1", "a3", "b2"))
    assert gate.wait_s(0.0) == PERIOD_S
    assert gate.take_due(0.0) == []
    assert gate.take_due(PERIOD_S) == ["a3"], "FIFO by call, within the bound"
    assert gate.take_due(2 * PERIOD_S) == ["b2"]
    assert gate.wait_s(2 * PERIOD_S) is None


def test_a_report_never_overtakes_a_waiting_one_of_its_call() -> None:
    gate: ProgressGate[str] = ProgressGate(reports_max=1)
    gate.offer("a", "a1", 0.0)
    gate.offer("a", "a2", 0.0)
    assert not gate.offer("a", "a3", 2 * PERIOD_S)
    assert gate.take("a") == "a3"
    assert gate.take("a") is None


def test_calls_that_a_server_invents_are_bounded() -> None:
    gate: ProgressGate[int] = ProgressGate(reports_max=1)
    for number in range(2 * WAITING_MAX):
        gate.offer(number, number, 0.0)
    assert len(gate.take_all()) == WAITING_MAX


class Letters:
    """Passes the first letter of a chunk; the others wait."""

    def __init__(self) -> None:
        self.waiting: list[bytes] = []

    def feed(self, chunk: bytes, now: float) -> bytes:
        self.waiting += [chunk[1:]] if chunk[1:] else []
        return chunk[:1]

    def wait_s(self, now: float) -> float | None:
        return 0.0 if self.waiting else None

    def take_due(self, now: float) -> bytes:
        return self.finish()

    def finish(self) -> bytes:
        waiting, self.waiting = b"".join(self.waiting), []
        return waiting


def test_what_waits_in_a_stream_comes_without_a_further_chunk_and_at_the_end() -> None:
    go_on = asyncio.Event()

    async def chunks() -> AsyncIterator[bytes]:
        yield b"ab"
        await go_on.wait()
        yield b"cd"

    async def main() -> None:
        texts = paced(chunks(), Letters())
        assert [await anext(texts), await anext(texts)] == [b"a", b"b"]
        go_on.set()
        assert [text async for text in texts] == [b"c", b"d"]

    asyncio.run(main())


def test_a_stream_left_early_leaves_no_task() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"ab"
        await asyncio.Event().wait()

    async def main() -> None:
        texts = paced(chunks(), Letters())
        assert [await anext(texts), await anext(texts)] == [b"a", b"b"]
        waiting = asyncio.ensure_future(anext(texts))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await texts.aclose()
        assert asyncio.all_tasks() == {asyncio.current_task()}

    asyncio.run(main())
