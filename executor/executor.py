"""The executor: its life from registration to close, and its public interface.

- Every write goes through the session's fenced writer: a write without a session changes nothing.
- When the session is lost, all partitions are dropped on the spot and the executor registers under another id.
- Only the owner that has journaled a result acknowledges the result; results for other runs are left alone.
- A run that cannot be driven here (a defect, unreadable data, a later engine version) is given back (`give_back`):
  dropped at once, and moved to the leader's orphans, after a pause unless this executor cannot read the run. The leader
  prefers another executor. A defect that strikes again and again before the run makes progress ends the run as
  RECOVERY_FAILED.
- A run whose write the store refuses, or that needs more memory than there is, ends with ORCHESTRATOR_ERROR.

Does not choose its runs, nor interpret flows.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from executor.adoption import HeldCalls, PartitionReader
from executor.blobs import RunBlobs
from executor.frames import HostFrames
from executor.handover import hand_over
from executor.host_waits import HostWaits
from executor.hosts.pool import HostPool
from executor.ownership import Ownership
from executor.session import Session, fresh_id
from executor.takeover import TakeOver
from executor.unread import UnreadEnd
from stepflow.errors import FailedPrecondition, StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.run.state import ENGINE_VERSION
from stepflow.store import Put, keys
from stepflow.store.follow import follow
from stepflow.store.grouping import Grouping
from stepflow.store.lease import LEASE_TTL_S
from stepflow.telemetry import get_logger, log_defect
from stepflow.value_budget import Reports, ValueBudget
from stepflow.vital import Vitals, ended, keep_running

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from executor.drive import PartitionDriver
    from executor.ownership import Abandoned
    from stepflow.routing.table import PluginComponents, Rule
    from stepflow.store import Store
    from stepflow.store.blobs import BlobStore

log = get_logger(__name__)

RUNS_MAX = 10_000
"""Partitions owned at once."""

REGISTER_RETRY_S = 0.5
"""Pause between two tries to register after a lost session."""

HAND_OVER_S_MAX = 10.0


class Executor:
    """An executor of the mesh. After `start` the leader assigns runs; after `close` the runs are taken over."""

    def __init__(
        self,
        store: Store,
        blobs: BlobStore,
        *,
        rules: Mapping[str, Sequence[Rule]],
        builtins: Mapping[str, PluginComponents],
        name: str = "executor",
        address: str = "",
        runs_max: int = RUNS_MAX,
        lease_ttl_s: float = LEASE_TTL_S,
        queue_timeout_s: float = 0.0,
        value_bytes_max: int = 0,
    ) -> None:
        """`rules`, `builtins`, `queue_timeout_s`: see `HostPool`. `runs_max` counts partitions.

        `value_bytes_max`: memory for large values; 0 for a share of what the process has.
        """
        self.id = ""
        self.address = address
        """Where the control plane reaches it; read by `start`."""
        self.abandoned: Abandoned = lambda _run_id, _error: None
        """Called when a run can no longer be driven here, although it has not ended."""
        self._store = store
        self._blobs = blobs
        self._name = name
        self._runs_max = runs_max
        self._lease_ttl_s = lease_ttl_s
        self._session: Session | None = None
        self._renewal: asyncio.Task[None] | None = None
        self._watchers: list[asyncio.Task[None]] = []
        self._grouping = Grouping(store)
        self._draining = False
        self._stopping = False
        """The process ends: a drain is final."""
        self._closed = False

        self._reports = Reports(self.rewrite_session)
        self.values = ValueBudget(value_bytes_max, changed=self._reports.changed)
        run_blobs = self._run_blobs = RunBlobs(store, blobs)
        self.hosts: HostPool[PartitionDriver] = HostPool(rules, builtins, queue_timeout_s=queue_timeout_s)

        def abandoned(run_id: str, error: StepflowError) -> None:
            self.abandoned(run_id, error)  # as set by then

        def current_session() -> Session | None:
            return self._session

        self.ownership = Ownership(self.hosts, run_blobs, current_session, abandoned, self.values)
        self._host_waits = HostWaits(self.ownership, current_session) if queue_timeout_s else None
        held_calls = HeldCalls(self.hosts)
        reader = PartitionReader(store, self._grouping, run_blobs, self.values)
        unread_end = UnreadEnd(store, self.hosts, held_calls)
        self.takeover = TakeOver(self.ownership, reader, held_calls, unread_end, current_session)

        frames = HostFrames(self.ownership, held_calls)
        self.on_frame = frames.on_frame
        self.host_gone = frames.host_gone
        self.listen = self.ownership.listen

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Register and begin to take assignments. Raises: StepflowError."""
        # Before the session stands in the store: the leader may ask this executor for its id at once.
        self.id = fresh_id(self._name)
        session = await Session.open(self._store, self.id, self._value(), ttl_s=self._lease_ttl_s, on_lost=self._lost)
        self._session = session
        self.hosts.send_while(session.valid)

        takeover = self.takeover
        takeover.readings.take_all_back(session)  # broken off with a lost session, not by a death
        assigned = follow(self._store, keys.assigned_to(session.id), listed=takeover.listed, changed=takeover.changed)
        inbox = follow(self._store, keys.INBOX, listed=takeover.inbox.listed, changed=takeover.inbox.changed)
        bound = self._run_blobs.inline_bound.follow(self._store)
        self._watchers = [
            asyncio.create_task(bound, name="watch pressure"),
            asyncio.create_task(assigned, name="watch assignments"),
            asyncio.create_task(inbox, name="watch inbox"),
        ]
        if self._host_waits is not None:
            look = keep_running(log, "the look for missing hosts", self._host_waits.follow)
            self._watchers.append(asyncio.create_task(look, name="look for missing hosts"))
        log.info("executor registered", executor_id=self.id, token=session.writer.token)

    async def close(self) -> None:
        """Stop at once. Incomplete runs stay assigned until another executor takes over."""
        self._closed = True
        self._reports.close()
        if self._renewal is not None:
            self._renewal.cancel()
            await asyncio.gather(self._renewal, return_exceptions=True)
        session, self._session = self._session, None
        await self._end_incarnation(session)
        await self._grouping.close()
        self.hosts.close()

    async def hand_over(self, *, timeout_s: float = HAND_OVER_S_MAX, stopping: bool = False) -> int:
        """Take no new partitions and hand over all owned partitions (`handover`); return the number handed over.

        `stopping`: the process ends, and `end_drain` is refused.
        """
        # 1. Show in the session that this executor drains: the leader assigns nothing more to it.
        self._draining = True
        self._stopping = self._stopping or stopping
        session = self._session
        if session is None:
            return 0
        self.rewrite_session()

        # 2. Hand over, until nothing is owned or being adopted, the session is lost, or the drain ends.
        def owned() -> list[PartitionDriver] | None:
            drivers = self.ownership.drivers
            left = self._draining and session is self._session and (drivers or self.takeover.adopting)
            return list(drivers.values()) if left else None

        return await hand_over(self._store, session.id, self.hosts, owned, timeout_s)

    async def end_drain(self) -> None:
        """Take partitions again; return once the session says so. Idempotent. Raises: FailedPrecondition."""
        if self._stopping:
            raise FailedPrecondition("SERVICE_STOPPING", f"executor {self.id} is being stopped; its drain is final")
        self._draining = False
        await self.rewrite_session()

    def rewrite_session(self) -> asyncio.Future[None]:
        """Write the session's present value, if there is a session; the future is done once the write is decided."""
        decided: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def done(_error: StepflowError | None = None) -> None:
            if not decided.done():
                decided.set_result(None)

        session = self._session
        if session is None:
            done()
            return decided
        put = Put(keys.session_executor(session.id), self._value().SerializeToString(), ignore_lease=True)
        session.writer.submit([put], on_commit=done, on_reject=done)
        return decided

    def vitals(self) -> Vitals:
        """Return True if this executor can drive runs."""
        session = self._session
        if session is None:
            return Vitals("not registered", ended(self._renewal))
        problem = "" if session.valid() else "the lease does not count as held"
        return Vitals(problem, ended(*self._watchers, session.watcher))

    def _value(self) -> state_pb2.ExecutorSession:
        trouble = self._blobs.trouble
        return state_pb2.ExecutorSession(
            address=self.address,
            runs_max=self._runs_max,
            engine_version=ENGINE_VERSION,
            draining=self._draining,
            blob_error="" if trouble is None else trouble.message,
            value_memory=state_pb2.ValueMemory(bytes_max=self.values.bytes_max, waiting=self.values.waiting),
        )

    def _lost(self, session: Session) -> None:
        """Drop everything on the spot: without a session, nothing known here is current."""
        if self._closed or session is not self._session:
            return
        log.warning("session lost, registering again", executor_id=self.id)
        self._session = None
        self._renewal = asyncio.create_task(self._register_again(session), name="register again")
        self.ownership.drop_all()  # last: a defect in it must not keep this executor out of the cluster

    async def _register_again(self, former: Session) -> None:
        try:
            await self._end_incarnation(former)
        except Exception as error:
            log_defect(log, "former session not ended by a defect", error, executor_id=self.id)

        while True:
            try:
                await self.start()
            except StepflowError as error:
                log.warning("not registered", reason=error.reason, error=error.message)
            except Exception as error:  # no thread, no descriptor: the executor would be out of the cluster for good
                log_defect(log, "not registered by a defect", error)
            else:
                self._renewal = None
                return
            await asyncio.sleep(REGISTER_RETRY_S)

    async def _end_incarnation(self, session: Session | None) -> None:
        """Stop all work of a session. Tasks first: their writes would be refused anyway."""
        self.ownership.drop_all()
        tasks = [*self._watchers, *self.takeover.adopting.values(), *self.ownership.tasks]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self.takeover.clear()
        if session is not None:
            if self._closed:
                await self.takeover.readings.close(session)
            await session.close(revoke=True)

    # --- what is driven here ------------------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Return True while partitions are handed over and none is taken."""
        return self._draining

    @property
    def runs_left(self) -> int:
        """Return the number of partitions still assigned here."""
        return len(self.ownership.drivers) + len(self.takeover.adopting) + len(self.ownership.give_back)

    def drives_run(self, run_id: str) -> bool:
        """Return True if a partition of the run is driven or being adopted here."""
        return self.ownership.owns_run(run_id) or any(adopting == run_id for adopting, _ in self.takeover.adopting)

    def items_ended(self, run_id: str) -> int:
        """Return the number of ended items in a run's partitions driven here."""
        return sum(driver.state.root.items_done for driver in self.ownership.partitions_of(run_id))


__all__ = ["Executor"]
