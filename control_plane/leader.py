"""Leadership: one replica at a time places waiting runs and takes over the runs of dead executors.

- The leader holds the key `leader` on its lease. Every transaction of the work below compares the key (the fence), so
  a former leader changes nothing.
- Work starts with a change of the cluster, and every `SCAN_INTERVAL_S` as a backstop.
- The lease ends with the term: a `leader` key without a leader would block the election of another replica.

The work is in `takeover`, `placement` and `liveness`.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from control_plane.placement import Placement
from control_plane.takeover import OrphanTakeOver
from stepflow.errors import StepflowError
from stepflow.store import Compare, Get, KeyValue, Put, Txn, absent, created_at, keys
from stepflow.store.lease import LEASE_TTL_S, LeaseKeeper
from stepflow.telemetry import get_logger, log_defect
from stepflow.vital import ended

if TYPE_CHECKING:
    from control_plane.cluster import Cluster
    from control_plane.liveness import Liveness
    from stepflow.store import Store

log = get_logger(__name__)

SCAN_INTERVAL_S = 30.0
"""Full-scan interval, the backstop for missed watch events."""

ELECTION_INTERVAL_S = 1.0


class Leader:
    """A candidate: campaigns until elected, works until the lease is lost, then campaigns again."""

    def __init__(
        self,
        store: Store,
        cluster: Cluster,
        replica_id: str,
        liveness: Liveness,
        *,
        lease_ttl_s: float = LEASE_TTL_S,
    ) -> None:
        self._store = store
        self._liveness = liveness
        self._replica_id = replica_id
        self._lease_ttl_s = lease_ttl_s

        # The work.
        self._take_over = OrphanTakeOver(store, cluster)
        self._placement = Placement(store, cluster)

        # The term.
        self._work = asyncio.Event()
        self._lease_lost = False
        self._task: asyncio.Task[None] | None = None
        self._leading = 0
        """Create revision of our `leader` key; 0 while this replica does not lead."""

    @property
    def leading(self) -> bool:
        """True if this replica leads, as far as known. A hint: only the fence decides."""
        return bool(self._leading)

    def ended(self) -> list[str]:
        """Return the tasks that have ended although the candidate goes on."""
        return ended(self._task)

    def fence(self) -> Compare:
        """Return the compare that holds while this replica leads."""
        return created_at(keys.leader(), self._leading)

    def start(self) -> None:
        self._task = asyncio.create_task(self._run(), name="leader")

    async def close(self) -> None:
        """Stop, and resign if leading."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def look(self) -> None:
        """Scan for work soon, after a change."""
        self._work.set()

    async def _run(self) -> None:
        while True:
            try:
                await self._term()
            except StepflowError as error:
                log.warning("leadership interrupted", reason=error.reason, error=error.message)
            except Exception as error:  # Logged, not raised: without this task the mesh could stay without a leader.
                log_defect(log, "leadership failed by a defect", error)
            await asyncio.sleep(ELECTION_INTERVAL_S)

    async def _term(self) -> None:
        """Campaign, then lead until the lease is lost."""
        self._lease_lost = False
        keeper = LeaseKeeper(self._store, self._on_lost, ttl_s=self._lease_ttl_s)
        try:
            # 1. Get a lease, and the `leader` key on it.
            await self._campaign(await keeper.start())

            # 2. Watch the executors.
            self._liveness.start(self.fence())

            # 3. Take over and place, until the lease is lost.
            await self._lead()
        finally:
            # 4. Resign. Revoked at once: until the lease expired no other replica could lead.
            self._leading = 0
            await self._liveness.close()
            await keeper.stop(revoke=True)

    def _on_lost(self) -> None:
        self._lease_lost = True
        self._work.set()

    async def _campaign(self, lease: int) -> None:
        """Return once this replica leads or the lease is lost."""
        key = keys.leader()
        txn = Txn((absent(key),), (Put(key, self._replica_id.encode(), lease),), (Get(key),))

        while not self._lease_lost:
            result = await self._store.txn(txn)
            existing = result.responses[0]
            if result.succeeded:
                self._leading = result.revision
            elif isinstance(existing, KeyValue) and existing.lease == lease:
                # An earlier attempt had committed, and its reply was lost.
                self._leading = existing.create_revision
            if self._leading:
                log.info("leading", replica=self._replica_id)
                return
            await asyncio.sleep(ELECTION_INTERVAL_S)

    async def _lead(self) -> None:
        while not self._lease_lost:
            self._work.clear()  # Before the scan: a change during the scan must start another one.

            # Orphans first: their runs have begun, those that wait have not.
            await self._take_over.take_over_orphans(self.fence())
            await self._placement.place_pending(self.fence())

            try:
                async with asyncio.timeout(SCAN_INTERVAL_S):  # wait_for of Python 3.11 can swallow a cancellation
                    await self._work.wait()
            except TimeoutError:
                continue


__all__ = ["Leader"]
