"""Tasks that a service cannot work without: they outlive every exception."""

from __future__ import annotations

import asyncio
import io
from typing import TYPE_CHECKING

from support import wait_until_async

from stepflow import telemetry, vital
from stepflow.vital import ended, guarded, keep_running

if TYPE_CHECKING:
    import pytest

LOG = telemetry.get_logger("vital")


def log_lines(buffer: io.StringIO) -> list[str]:
    return [line for line in buffer.getvalue().splitlines() if "defect" in line]


def test_work_is_started_again_after_any_exception_until_it_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vital, "RESTART_S_MIN", 0.0)
    log = io.StringIO()
    telemetry.configure("error", log)
    errors: list[Exception | None] = [OSError(24, "Too many open files"), MemoryError(), TimeoutError("secret"), None]

    async def work() -> None:
        error = errors.pop(0)
        if error is not None:
            raise error

    try:
        asyncio.run(asyncio.wait_for(keep_running(LOG, "the work", work, plugin="tools"), 10))
    finally:
        telemetry.configure()
    assert errors == []
    assert len(log_lines(log)) == 3
    assert all("plugin=tools" in line for line in log_lines(log))
    assert "secret" not in log.getvalue()


def test_a_cancelled_work_ends() -> None:
    async def scenario() -> None:
        begun = asyncio.Event()

        async def work() -> None:
            begun.set()
            await asyncio.Event().wait()

        task = asyncio.create_task(keep_running(LOG, "the work", work), name="the task")
        await begun.wait()
        assert ended(task, None) == []
        task.cancel()
        await wait_until_async(task.done, "the work has ended")
        assert ended(task, None) == ["the task"]

    asyncio.run(asyncio.wait_for(scenario(), 10))


def test_a_defect_in_one_piece_of_work_spares_the_others() -> None:
    done: list[int] = []

    def work(number: int) -> None:
        done.append(10 // number)

    telemetry.configure("error", io.StringIO())
    try:
        for number in (1, 0, 5):
            guarded(LOG, "a piece", work, number)
    finally:
        telemetry.configure()
    assert done == [10, 2]
