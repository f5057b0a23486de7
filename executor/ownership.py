"""The partitions driven by an executor, by run, and the guard around all work for them.

- A defect or error in the work for a partition gives the partition back, and never harms another. A partition that
  needs more memory than there is ends: the next executor would have no more.
- A partition leaves the table when it has ended, when it is dropped, or with all others when the session is lost.
- A dropped partition leaves a complete journal to the next owner.

Does not adopt partitions (`takeover`).
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Protocol

from executor.give_back import GiveBack, defect, out_of_memory
from executor.timers import WakeTimers
from executor.writes import JournalWrites
from stepflow.errors import StepflowError
from stepflow.run.state import release_state

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from executor.blobs import RunBlobs
    from executor.drive import Listener, PartitionDriver, PartitionId
    from executor.hosts.pool import HostPool
    from executor.session import CurrentSession
    from stepflow.run import Dispatch
    from stepflow.store import KeyValue
    from stepflow.value_budget import ValueBudget


class Abandoned(Protocol):
    """Called when a run can no longer be driven here, although the run has not ended."""

    def __call__(self, run_id: str, error: StepflowError, /) -> None: ...


class Ownership:
    """The owned partitions of an executor. Implements `drive.Owner` and `writes.WritesOwner`."""

    def __init__(
        self,
        hosts: HostPool[PartitionDriver],
        blobs: RunBlobs,
        session: CurrentSession,
        abandoned: Abandoned,
        value_budget: ValueBudget,
    ) -> None:
        self.hosts = hosts
        self.blobs = blobs
        self.value_budget = value_budget
        self.paused_ms = 0
        """How long no process drove the only run of the store; 0 in a mesh."""
        self.drivers: dict[PartitionId, PartitionDriver] = {}
        self.give_back = GiveBack(session)
        self.writes = JournalWrites(self, session)
        self.timers: WakeTimers[PartitionDriver] = WakeTimers(self._wake)
        self.tasks: set[asyncio.Task[None]] = set()

        self.on_refused: Callable[[PartitionDriver, StepflowError], None] = self.abandon
        """Called when a partition must end: the store refuses a write of it, or its memory does not suffice."""

        # Without forwarding methods in between: called for every step.
        self.mark_dirty = self.writes.mark_dirty
        self.wake_at = self.timers.wake_at

        self.on_ended: Callable[[PartitionDriver], None] = lambda _: None
        """Called when the final records of a partition are durable."""

        self._abandoned = abandoned
        self._by_run: dict[str, list[PartitionDriver]] = {}
        """The same partitions by run: work for one of ten thousand runs must not scan all."""
        self._listeners: dict[str, Listener] = {}

        hosts.on_routes_changed = self._turn_all
        hosts.queue.on_unreachable = self._unreachable

    # --- the table ----------------------------------------------------------------------------------------------------

    def own(self, driver: PartitionDriver) -> None:
        """Add a partition."""
        driver.listener = self._listeners.get(driver.run_id)
        self.drivers[driver.run_id, driver.partition] = driver
        self._by_run.setdefault(driver.run_id, []).append(driver)

    def partitions_of(self, run_id: str) -> Sequence[PartitionDriver]:
        """Return the owned partitions of a run."""
        return tuple(self._by_run.get(run_id, ()))

    def owns_run(self, run_id: str) -> bool:
        return run_id in self._by_run

    def listen(self, run_id: str, listener: Listener | None) -> None:
        """Subscribe to a run's step events, including partitions adopted later. None unsubscribes."""
        if listener is None:
            self._listeners.pop(run_id, None)
        else:
            self._listeners[run_id] = listener
        for driver in self._by_run.get(run_id, ()):
            driver.listener = listener

    def end_ownership(self, driver: PartitionDriver) -> None:
        """Remove a partition after its final records are durable."""
        self.on_ended(driver)
        driver.gone = True
        self._remove(driver)
        self.give_back.forget_partition((driver.run_id, driver.partition))
        self.hosts.drop_caller(driver)
        release_state(driver.state)

    def drop(self, driver: PartitionDriver, *, cancel: bool = False) -> None:
        """Stop driving a partition. Hosts keep the calls for the next owner, unless `cancel` is set."""
        driver.gone = True
        self.hosts.drop_caller(driver, cancel=cancel)
        self._remove(driver)
        self.writes.drop_partition(driver)
        if driver.written is not None:
            driver.written.set()

    def abandon(self, driver: PartitionDriver, error: StepflowError) -> None:
        """Stop driving a partition, and give the partition back."""
        if not driver.gone:
            self.drop(driver)
            self.return_assignment((driver.run_id, driver.partition), driver.assignment, error)

    def return_assignment(
        self, partition_id: PartitionId, assignment: KeyValue, error: StepflowError, *, unreadable: bool = False
    ) -> None:
        """Give back a partition that is not (or no longer) driven; `unreadable`: this executor cannot read it."""
        if self.give_back.give_back(partition_id, assignment, error, unreadable=unreadable):
            self._abandoned(partition_id[0], error)

    def write_refused(self, driver: PartitionDriver, error: StepflowError) -> None:
        self.on_refused(driver, error)

    def drop_all(self) -> None:
        """Drop every partition on the spot: the session is gone."""
        for driver in self.drivers.values():
            driver.gone = True
            driver.values.close()
        self.hosts.drop_all()
        self.drivers.clear()
        self._by_run.clear()
        self.writes.clear()
        self.timers.clear()
        self.give_back.cancel_all()

    def _remove(self, driver: PartitionDriver) -> None:
        self.timers.drop_key(driver)
        driver.values.close()
        if self.drivers.pop((driver.run_id, driver.partition), None) is not None:
            drivers = self._by_run[driver.run_id]
            drivers.remove(driver)
            if not drivers:
                del self._by_run[driver.run_id]

    # --- the guard ----------------------------------------------------------------------------------------------------

    def run_guarded(self, driver: PartitionDriver, work: Callable[..., None], *arguments: object) -> None:
        """Do work for a partition; a defect or error in the work gives the partition back."""
        try:
            work(*arguments)
        except Exception as error:
            self._work_failed(driver, error)

    def spawn(self, driver: PartitionDriver, work: Coroutine[object, object, None]) -> None:
        """Do work for a partition in a new task, under the same guard."""
        task = asyncio.create_task(self._guard(driver, work))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def _guard(self, driver: PartitionDriver, work: Coroutine[object, object, None]) -> None:
        try:
            await work
        except Exception as error:
            self._work_failed(driver, error)

    def _work_failed(self, driver: PartitionDriver, error: Exception) -> None:
        if isinstance(error, StepflowError):
            self.abandon(driver, error)
        elif not isinstance(error, MemoryError):
            self.abandon(driver, defect(driver.run_id, error))
        elif not driver.gone:
            self.on_refused(driver, out_of_memory(driver.run_id))

    def _wake(self, driver: PartitionDriver) -> None:
        self.run_guarded(driver, driver.turn)

    def _turn_all(self) -> None:
        for driver in list(self.drivers.values()):
            self.run_guarded(driver, driver.turn)

    def _unreachable(self, driver: PartitionDriver, action: Dispatch) -> None:
        self.run_guarded(driver, driver.calls.on_unreachable, action)


__all__ = ["Ownership"]
