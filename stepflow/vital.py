"""Tasks that a service cannot work without: started again after a failure of any kind.

A task that dies of an unforeseen exception dies unnoticed: nothing awaits it before the shutdown. So each long-lived
task of a service either handles every exception itself, or runs under `keep_running`; and the health checks ask for
tasks that have `ended` all the same.

Not here: the state that a task loses by its failure; the task begins without it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, NamedTuple

from stepflow.retry import doubling
from stepflow.telemetry import log_defect

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from stepflow.telemetry import Logger

RESTART_S_MIN = 0.1
RESTART_S_MAX = 30.0
"""Pauses before the work starts again, doubling."""

HEALTHY_S = 60.0
"""Work that lasted this long before a failure begins again with the shortest pause."""


async def keep_running(log: Logger, what: str, work: Callable[[], Awaitable[None]], **fields: object) -> None:
    """Run `work` until it returns or is cancelled; log every exception as a defect, pause, and run `work` again."""
    pauses_s = doubling(RESTART_S_MIN, RESTART_S_MAX)
    while True:
        started_s = time.monotonic()
        try:
            await work()
        except Exception as error:
            log_defect(log, f"{what} failed by a defect, starting again", error, **fields)
        else:
            return
        if time.monotonic() - started_s >= HEALTHY_S:
            pauses_s = doubling(RESTART_S_MIN, RESTART_S_MAX)
        await asyncio.sleep(next(pauses_s))


def guarded(log: Logger, what: str, work: Callable[..., None], *arguments: object, **fields: object) -> None:
    """Do one of many independent pieces of work; a defect in it is logged, and the others go on."""
    try:
        work(*arguments)
    except Exception as error:
        log_defect(log, f"{what} failed by a defect", error, **fields)


class Vitals(NamedTuple):
    """What the health checks ask a service."""

    problem: str = ""
    """What keeps the service from working at the moment; empty if nothing does."""
    ended: Sequence[str] = ()
    """Tasks that have ended although the service goes on; only a restart of the process brings them back."""


def ended(*tasks: asyncio.Task[None] | None) -> list[str]:
    """Return the names of the tasks that have ended."""
    return [task.get_name() for task in tasks if task is not None and task.done()]


__all__ = ["Vitals", "ended", "guarded", "keep_running"]
