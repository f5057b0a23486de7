"""A replica of the control plane: admission, placement, take-over, and the answers to clients.

- Stateless: every replica answers every call, and a restart loses nothing.
- A run is admitted once, and placed in the same transaction if an executor has room (`admission`).
- An assignment moves only after its executor's session has ended, and only to an executor with a live session
  (`takeover`).
- Of an admitted run, the control plane writes the assignments, the first statuses and the inbox; never a journal.

Runs are driven by executors.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

from control_plane.activity import Activity
from control_plane.admission import Admission
from control_plane.archive.due_runs import DueRuns
from control_plane.archive.packed_runs import PackedRuns
from control_plane.archive.reader import Archive
from control_plane.archive.run_store import RunStore
from control_plane.cancel import Canceller
from control_plane.cluster import Cluster
from control_plane.flow_checks import FlowChecks
from control_plane.flow_store import FlowStore
from control_plane.formats import Formats
from control_plane.leader import Leader
from control_plane.listing import Listing
from control_plane.liveness import Liveness
from control_plane.offers import MeshOffers
from control_plane.paging import PAGE_SIZE_MAX
from control_plane.run_list import RunList
from control_plane.unreadable import unreadable_partitions
from control_plane.waits import Waits
from stepflow.config import RetryConfig
from stepflow.store.grouping import Grouping
from stepflow.store.lease import LEASE_TTL_S
from stepflow.vital import ended

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from control_plane.admission import RunRequest
    from control_plane.replay.process import ReplayProcess
    from control_plane.views import ItemView, RunView
    from stepflow.flow import Flow
    from stepflow.rpc.tls import Tls
    from stepflow.run.views import StepView
    from stepflow.store import Compare, Store
    from stepflow.store.blobs import BlobStore


class ControlPlane:
    """One replica: answers clients, and by default stands for leader."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        *,
        lease_ttl_s: float = LEASE_TTL_S,
        tls: Tls | None = None,
        retry: RetryConfig | None = None,
        newest_formats: Callable[[], bool] | None = None,
        replay_process: ReplayProcess | None = None,
    ) -> None:
        """`tls`: for connections to executors. `retry`: default of runs without a retry policy.

        `newest_formats`: as for `Admission`; None: as all replicas agreed (`formats`).

        `replay_process`: as for `Replays`; it stays its owner's.
        """
        # The view of the store, and the leader's work.
        self.id = f"control-plane-{uuid4().hex[:12]}"
        self.cluster = Cluster(store, lambda: self._leader.look())  # noqa: PLW0108  # the leader is made below
        """A hint: its watches may lag behind the store."""
        liveness = Liveness(store, self.id, tls=tls)
        self._leader = Leader(store, self.cluster, self.id, liveness, lease_ttl_s=lease_ttl_s)

        # Clients' calls.
        self.formats = Formats(store)
        """From when on the mesh writes what older versions cannot read."""
        self._archive = Archive(store, blobs)
        self.run_store = RunStore(store, self._archive)
        """The store for readers of runs: it answers for packed runs, too."""
        packed = PackedRuns(store, self.run_store)
        self.run_list = RunList(store, self.run_store, packed)
        """Pages of runs."""
        self.listing = Listing(self.run_store, blobs, replay_process)
        """Pages of items and steps."""
        self._grouping = Grouping(store)
        # The leader looks, too: a partition that ends makes room for another.
        self.due_runs = DueRuns()
        """What the leader packs next."""
        self.activity = Activity()
        """Counts what comes to the store and what leaves it."""
        self._waits = Waits(self.run_store, self._grouping, self._leader.look, self.due_runs, self.activity)
        self._flows = FlowStore(store)
        self._offers = MeshOffers(store)
        self.checks = FlowChecks(self._offers, self.run_store)
        """Checks of flows against what the hosts offer."""
        self.admission = Admission(
            self._flows,
            packed,
            blobs,
            self.cluster,
            self._grouping,
            retry or RetryConfig(),
            self._leader.look,
            checks=self.checks,
            newest_formats=newest_formats or (lambda: self.formats.active),
        )
        """Submissions, and the inputs of large batches."""
        self._canceller = Canceller(self.run_store, self._waits.view, partial(unreadable_partitions, self.cluster))

        self._tasks: list[asyncio.Task[None]] = []

    async def start(self, *, lead: bool = True) -> None:
        """Follow the cluster; `lead`: stand for leader."""
        self._tasks = [
            asyncio.create_task(self._waits.follow(), name="watch statuses"),
            asyncio.create_task(self._archive.manifests.follow(), name="watch segments"),
            asyncio.create_task(self.formats.follow(), name="watch formats"),
        ]
        await self.cluster.start()
        if lead:
            self._leader.start()

    async def close(self) -> None:
        """Resign, and stop following. The store stays open."""
        await self._leader.close()
        await self.cluster.close()
        await self._offers.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._grouping.close()

    def ended(self) -> list[str]:
        """Return the tasks that have ended although this replica goes on."""
        return [*ended(*self._tasks, *self.cluster.tasks), *self._offers.ended(), *self._leader.ended()]

    def leadership(self) -> Compare | None:
        """Return the compare that holds while this replica leads; None for a replica that does not lead."""
        return self._leader.fence() if self._leader.leading else None

    async def store_flow(self, flow: Flow) -> str:
        """Store a flow and return its id. Idempotent. Raises: Invalid, fatal diagnostics."""
        return await self._flows.put(flow)

    async def find_flow(self, flow_id: str) -> Flow:
        """Return a stored flow. Raises: NotFound."""
        return await self._flows.get(flow_id)

    async def get_flow(self, flow_id: str) -> bytes:
        """Return the normalised document. Raises: NotFound."""
        return await self._flows.document(flow_id)

    async def submit(self, request: RunRequest) -> str:
        """Admit a run and return the run id. Idempotent for a given run id.

        Raises:
            Invalid: the flow can never run with these inputs, variables or overrides.
            AlreadyExists: RUN_EXISTS, the id belongs to another request.
            Overloaded: TOO_MANY_PENDING; PLACEMENT_UNSTABLE, each chosen executor died.
        """
        return await self.admission.submit(request)

    async def cancel(self, run_id: str) -> RunView:
        """Request the run's end; an ended run stays as it is. Raises: NotFound, Conflict."""
        return await self._canceller.cancel(run_id)

    async def get_run(self, run_id: str) -> RunView:
        """Return the run. Raises: NotFound."""
        return await self._waits.view(run_id)

    async def items(self, run_id: str) -> list[ItemView]:
        """Return every item in index order; large results are read from the blob store. Raises: NotFound, DataLoss."""
        return [item async for item in self.listing.each_item(run_id)]

    async def steps(
        self, run_id: str, *, with_results: bool = False, on_incomplete: Callable[[str], None] | None = None
    ) -> list[StepView]:
        """Return the steps that have started, sub-runs included, from the journals. Raises: NotFound, DataLoss.

        `with_results`: load results from the blob store too. `on_incomplete`: called with the reason if later steps are
        missing, because a later version wrote them.
        """
        views: list[StepView] = []
        token = ""
        while True:
            page = await self.listing.steps(run_id, PAGE_SIZE_MAX, token, with_results=with_results)
            views += page.steps
            token = page.token
            if page.incomplete and on_incomplete is not None:
                on_incomplete(page.incomplete)
                on_incomplete = None
            if not token:
                return views

    async def wait(self, run_id: str, *, timeout_s: float | None = None) -> RunView:
        """Return the run once it has ended, or after the time-out. Raises: NotFound."""
        return await self._waits.wait(run_id, timeout_s=timeout_s)

    def changes(self, run_id: str) -> AbstractContextManager[asyncio.Event]:
        """Yield an event that is set whenever the status of a partition may have changed."""
        return self._waits.changes(run_id)


__all__ = ["ControlPlane"]
