"""Giving all runs to other executors in good order, so that none of them loses an attempt or waits for a lease.

- A run goes with its last entries, in one transaction of its owner's writer: whoever finds the new assignment finds a
  complete journal. If the new owner has just died, the assignment is an orphan like any other.
- What its calls return from then on is left to the next owner, which asks the hosts for it.
- Where there is nobody to take the runs they are given to nobody, and the leader gives them to the first who comes.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from stepflow.errors import StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import keys, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.drive import Drive
    from executor.hosts.pool import Hosts
    from stepflow.store import Store

log = get_logger(__name__)

POLL_S = 0.01
"""Between two looks for runs that have still to be given away, or are still being written."""


async def hand_over(
    store: Store, executor_id: str, hosts: Hosts, drives: Callable[[], list[Drive] | None], timeout_s: float
) -> int:
    """Give away what `drives` lists until it gives None; return how many runs went.

    What is left after the time-out is taken over later, like the runs of an executor that died.
    """
    takers = await _takers(store, executor_id)
    given = 0
    until_s = time.monotonic() + timeout_s
    while (mine := drives()) is not None and time.monotonic() < until_s:
        for drive in mine:
            if drive.hand_over(keys.assigned(takers[given % len(takers)], drive.run_id, drive.partition)):
                hosts.forget(drive)
                given += 1
        await asyncio.sleep(POLL_S)
    log.info("runs handed over", executor_id=executor_id, count=given)
    return given


async def _takers(store: Store, executor_id: str) -> list[str]:
    """Return the ids of those that can take our runs."""
    nobody = [keys.handed_over_by(executor_id)]
    others: list[str] = []
    try:
        async for item in range_all(store, keys.EXECUTOR_SESSIONS):
            other = keys.tail(keys.EXECUTOR_SESSIONS, item.key)
            session = state_pb2.ExecutorSession.FromString(item.value)
            if other != executor_id and not session.draining and session.engine_version >= ENGINE_VERSION:
                others.append(other)
    except StepflowError as error:
        log.warning("other executors are not known", reason=error.reason)
        return nobody
    return others or nobody


__all__ = ["hand_over"]
