"""Handing all partitions over to other executors, so that no run loses an attempt or waits for a lease to expire.

- A partition goes with its last entries, in one transaction of the owner's writer: the next owner replays a complete
  journal. If the next owner has just died, the assignment is an ordinary orphan.
- Later results of the partition's calls are left to the next owner, which asks the hosts for held calls.
- Without another executor the partitions wait as orphans, and the leader assigns them to the next executor.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from stepflow.errors import StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys, range_all
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.drive import PartitionDriver
    from executor.hosts.pool import HostPool
    from stepflow.store import Store

log = get_logger(__name__)

POLL_S = 0.01
"""Interval at which partitions are handed over that could not go before: being adopted, or still being written."""


async def hand_over(
    store: Store,
    executor_id: str,
    hosts: HostPool[PartitionDriver],
    owned: Callable[[], list[PartitionDriver] | None],
    timeout_s: float,
) -> int:
    """Hand over all partitions listed by `owned`, until `owned` returns None; return the number handed over.

    Partitions left after the time-out are taken over later, as after a death.
    """
    # 1. Find the executors that can take partitions.
    others = await _others(store, executor_id)
    orphaned = keys.handed_over_by(executor_id)

    # 2. Hand over in turn to each, until nothing is left.
    handed_over = 0
    until_s = time.monotonic() + timeout_s
    while (drivers := owned()) is not None and time.monotonic() < until_s:
        for driver in drivers:
            version = driver.record.policy.engine_version
            takers = [other for other, session in others.items() if session.engine_version >= version]
            taker = takers[handed_over % len(takers)] if takers else orphaned
            if driver.hand_over(keys.assigned(taker, driver.run_id, driver.partition)):
                hosts.drop_caller(driver)  # the next owner asks the hosts for these calls
                handed_over += 1
        await asyncio.sleep(POLL_S)

    log.info("runs handed over", executor_id=executor_id, count=handed_over)
    return handed_over


async def _others(store: Store, executor_id: str) -> dict[str, state_pb2.ExecutorSession]:
    """Return the other executors that do not drain, by id. Without any, partitions go to the leader as orphans."""
    others: dict[str, state_pb2.ExecutorSession] = {}
    try:
        async for item in range_all(store, keys.EXECUTOR_SESSIONS):
            other = keys.tail(keys.EXECUTOR_SESSIONS, item.key)
            session = state_pb2.ExecutorSession.FromString(item.value)
            if other != executor_id and not session.draining:
                others[other] = session
    except StepflowError as error:
        log.warning("other executors are not known", reason=error.reason)
        return {}
    return others


__all__ = ["hand_over"]
