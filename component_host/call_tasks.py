"""Tasks for single calls, off the hot path: blobs and large outputs.

A defect in a task breaks the call off: each call gets a result. `wait_bounded` is for the end of the host.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from stepflow.errors import Code, Failure
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from component_host.call import Call

log = get_logger(__name__)

CLOSE_WAIT_S = 30.0
"""Limit for a backend to stop its server; longer than any backend's grace."""


class CallTasks:
    """The tasks of one host."""

    def __init__(self, host_id: str) -> None:
        self._host_id = host_id
        self._tasks: set[asyncio.Task[None]] = set()

    def spawn(self, call: Call, work: Callable[..., Awaitable[None]], *arguments: Any) -> None:
        """Run `work(*arguments)` for a call in a separate task."""
        task = asyncio.get_running_loop().create_task(self._attend(call, partial(work, *arguments)))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Cancel all tasks and wait for the end, at most `CLOSE_WAIT_S`."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await wait_bounded(tasks, "task of a call still running at the host's end")

    async def _attend(self, call: Call, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as error:
            log_defect(log, "host failed on a call by a defect", error, plugin=call.request.plugin)
            message = f"component host {self._host_id}: {type(error).__name__}"
            call.break_off(Failure(Code.ORCHESTRATOR_ERROR, message))


async def wait_bounded(tasks: list[asyncio.Task[None]], complaint: str) -> None:
    """Wait until the tasks have ended, at most `CLOSE_WAIT_S`. Failed and hanging tasks are logged.

    `complaint` is the log message for a hanging task.
    """
    if not tasks:
        return
    done, hanging = await asyncio.wait(tasks, timeout=CLOSE_WAIT_S)

    for task in done:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.warning("stopping the host: a task failed", what=task.get_name(), error=type(error).__name__)

    for task in hanging:
        log.warning(complaint, what=task.get_name())


__all__ = ["CallTasks", "wait_bounded"]
