"""Partitions that wait for a component host: their statuses tell clients why nothing happens.

- A partition is *queued* while a step of it needs a plugin that no host runs, and no call of it is at a host. It stays
  queued through the pauses between its attempts.
- Statuses go through the executor's fenced writer, so the status of an ended partition is never overwritten.
- One look per second, at most `STATUSES_PER_LOOK` writes after it. While every plugin has a host, a look costs nothing.

Readers believe the reason of the present owner alone (`PartitionStatus.queued_epoch`): the next owner looks itself.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Protocol

from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Put, keys

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from executor.drive import PartitionDriver
    from executor.hosts.pool import HostPool
    from executor.session import CurrentSession

LOOK_INTERVAL_S = 1.0

STATUSES_PER_LOOK = 200
"""Statuses written after one look; the others follow after the next looks."""

WAITS_PER_TURN = 2_000
"""Waiting calls and partitions read in one turn of the event loop."""

PLUGINS_SHOWN = 3


class OwnedPartitions(Protocol):
    """The side of the ownership table that is read here."""

    @property
    def drivers(self) -> Mapping[Any, PartitionDriver]: ...
    @property
    def hosts(self) -> HostPool[PartitionDriver]: ...


class HostWaits:
    """The partitions whose statuses say that they are queued."""

    def __init__(self, owned: OwnedPartitions, session: CurrentSession) -> None:
        self._owned = owned
        self._session = session
        self._told: dict[PartitionDriver, frozenset[str]] = {}
        """By partition: the missing plugins that its status names."""

    async def follow(self) -> None:
        """Look until cancelled."""
        while True:
            await asyncio.sleep(LOOK_INTERVAL_S)
            await self.look()

    async def look(self) -> None:
        """Find the waiting partitions, and write the statuses that have changed."""
        # 1. Find out who waits. A partition between two attempts of a call still does.
        missing = await self._missing_plugins()
        self._told = {driver: plugins for driver, plugins in self._told.items() if not driver.gone}
        for driver, plugins in self._told.items():
            if driver not in missing and self._pauses(driver, plugins):
                missing[driver] = set(plugins)

        # 2. Write the changes.
        found = {driver: frozenset(plugins) for driver, plugins in missing.items()}
        changed = [driver for driver, plugins in found.items() if self._told.get(driver) != plugins]
        changed += [driver for driver in self._told if driver not in found]
        for driver in changed[:STATUSES_PER_LOOK]:
            self._write(driver, found.get(driver, frozenset()))

    async def _missing_plugins(self) -> dict[PartitionDriver, set[str]]:
        """Return the plugins without a host, by partition that waits for them."""
        found: dict[PartitionDriver, set[str]] = {}
        pool = self._owned.hosts

        # 1. Calls that are routed.
        for number, call in enumerate(pool.queue.hostless(), 1):
            if call.wanted and not pool.has_calls(call.caller):
                found.setdefault(call.caller, set()).add(call.action.target.plugin)
            if not number % WAITS_PER_TURN:
                await asyncio.sleep(0)

        # 2. Steps that are not routed before the plugins on their paths have been heard of.
        if pool.routes.waits:
            for number, driver in enumerate(list(self._owned.drivers.values()), 1):
                for step in driver.state.blocked_steps if not pool.has_calls(driver) else ():
                    plugins = pool.routes.missing_plugins(step.item.scope.plan.steps[step.index].component)
                    if plugins:
                        found.setdefault(driver, set()).update(plugins)
                if not number % WAITS_PER_TURN:
                    await asyncio.sleep(0)
        return found

    def _pauses(self, driver: PartitionDriver, plugins: frozenset[str]) -> bool:
        """Return True if a queued partition waits for its next attempt, and its plugins still have no host."""
        pool = self._owned.hosts
        hosted = any(map(pool.routes.has_host, plugins)) or pool.has_calls(driver)
        return not hosted and driver.state.next_wake_ms() is not None

    def _write(self, driver: PartitionDriver, plugins: frozenset[str]) -> None:
        """Write the status of a partition: queued, or without missing plugins running."""
        session = self._session()
        if session is None or driver.gone or driver.closing:
            return

        status = state_pb2.PartitionStatus(
            status=pb.RUN_STATUS_RUNNING,
            items_total=len(driver.state.root.items),
            created_at_ms=driver.record.created_at_ms,
        )
        if plugins:
            status.queued_reason = _reason(plugins)
            status.queued_epoch = driver.epoch
            self._told[driver] = plugins
        else:
            self._told.pop(driver, None)

        # Before the last records of the partition: they are submitted later, and the writer keeps the order.
        put = Put(keys.status(driver.run_id, driver.partition), status.SerializeToString())
        session.writer.submit([put], on_commit=_decided, on_reject=_decided)


def _reason(plugins: Collection[str]) -> str:
    names = sorted(plugins)
    shown = ", ".join(names[:PLUGINS_SHOWN])
    more = f" and {len(names) - PLUGINS_SHOWN:,} more" if len(names) > PLUGINS_SHOWN else ""
    return f"no host for plugin{'s' if len(names) > 1 else ''} {shown}{more}"


def _decided(_error: object = None) -> None:
    """Ignore the outcome: a status is a note for clients, and a lost session has no status to write."""


__all__ = ["HostWaits"]
