"""Take-over: from an assignment in the store to a driven partition.

- The first entry of an owner is `Adopted`. If there may have been an earlier owner, the entry is durable before the run
  does anything, so that runs that kill their executors are counted (`ADOPTIONS_IN_A_ROW_MAX`).
- The hosts are asked for held calls before any dispatch: a held call is joined, never repeated.
- A run suspected of killing its last owners is adopted alone, so that only its own count grows.
- After a refused write a partition is taken up once more from its journal, to end with the reason.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from executor.adoption import HeldCalls, LoadedPartition, PartitionReader, rejoin
from executor.drive import PartitionDriver
from executor.give_back import defect
from executor.inbox import Inbox
from stepflow.errors import Code, Conflict, DataLoss, FailedPrecondition, Failure, NotFound, StepflowError
from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys
from stepflow.telemetry import get_logger
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Sequence

    from executor.drive import PartitionId
    from executor.ownership import Ownership
    from executor.session import CurrentSession
    from stepflow.store import KeyValue, StoreEvent

log = get_logger(__name__)

ISOLATION_THRESHOLD = 3
"""Adoptions in a row from which on runs are adopted one at a time: one of them may be killing executors."""

ISOLATION_S = 0.25
"""How long an isolated run has for its first progress before the next one is adopted. A poison run crashes its executor
at once, and innocent runs that wait for a long call must not hold up hundreds of others."""


class TakeOver:
    """The adoptions of an executor, at most one for each partition."""

    def __init__(
        self, ownership: Ownership, reader: PartitionReader, held_calls: HeldCalls, session: CurrentSession
    ) -> None:
        self.inbox = Inbox(ownership)
        self.adopting: dict[PartitionId, asyncio.Task[None]] = {}
        self._ownership = ownership
        self._reader = reader
        self._held_calls = held_calls
        self._session = session
        self._isolation = asyncio.Lock()
        ownership.on_refused = self._write_refused

    def listed(self, items: list[KeyValue]) -> None:
        for item in items:
            guarded(log, "an assignment", self.take_assignment, item, key=item.key)

    def changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                guarded(log, "an assignment", self.take_assignment, event.kv, key=event.kv.key)

    def take_assignment(self, assignment: KeyValue) -> None:
        """Begin to adopt an assigned partition. Idempotent."""
        _, run_id, partition = keys.parse_assigned(assignment.key)
        partition_id = (run_id, partition)
        if partition_id not in self._ownership.drivers and partition_id not in self._ownership.give_back:
            self._adopt(partition_id, assignment)

    def _write_refused(self, driver: PartitionDriver, error: StepflowError) -> None:
        """End a run after a refused write, from the state in its journal."""
        partition_id = (driver.run_id, driver.partition)
        if isinstance(error, Conflict) or driver.doomed or partition_id in self.adopting:
            self._ownership.abandon(driver, error)
            return
        log.error("write refused", run_id=driver.run_id, reason=error.reason, error=error.message)
        self._ownership.drop(driver, cancel=True)
        self._adopt(partition_id, driver.assignment, refusal=error)

    def _adopt(self, partition_id: PartitionId, assignment: KeyValue, refusal: StepflowError | None = None) -> None:
        """Adopt a partition in a new task; with `refusal`, to end the run for this reason."""
        session = self._session()
        if session is None or partition_id in self.adopting:
            return

        def finished(task: asyncio.Task[None]) -> None:
            if self.adopting.get(partition_id) is task:
                del self.adopting[partition_id]

        guarded = self._adopt_guarded(partition_id, assignment, session.id, refusal)
        task = asyncio.create_task(guarded, name=f"adopt {partition_id[0]}")
        self.adopting[partition_id] = task
        task.add_done_callback(finished)

    async def _adopt_guarded(
        self, partition_id: PartitionId, assignment: KeyValue, executor_id: str, refusal: StepflowError | None
    ) -> None:
        self.inbox.keep_for(partition_id)
        try:
            await self._adopt_partition(partition_id, assignment, executor_id, refusal)
        except Exception as error:
            known = error if isinstance(error, StepflowError) else defect(partition_id[0], error)
            driver = self._ownership.drivers.get(partition_id)
            if driver is not None:
                self._ownership.abandon(driver, known)
            else:
                unread = isinstance(error, (DataLoss, FailedPrecondition, NotFound))
                self._ownership.return_assignment(partition_id, assignment, known, unread=unread)
        finally:
            self.inbox.stop_keeping(partition_id)

    async def _adopt_partition(
        self, partition_id: PartitionId, assignment: KeyValue, executor_id: str, refusal: StepflowError | None
    ) -> None:
        # 1. Replay the journal.
        loaded = await self._reader.load(partition_id, assignment, driven_before=refusal is not None)
        if loaded is None:
            return  # the assignment is gone

        # 2. Take the partition up, alone if it may have killed its last owners.
        if loaded.state.adoptions_in_a_row < ISOLATION_THRESHOLD:
            await self._take_up(loaded, assignment, executor_id, refusal)
            return
        async with self._isolation:
            driver = await self._take_up(loaded, assignment, executor_id, refusal)
            await _first_progress(driver)
            self._ownership.run_guarded(driver, driver.note_survived)

    async def _take_up(
        self, loaded: LoadedPartition, assignment: KeyValue, executor_id: str, refusal: StepflowError | None
    ) -> PartitionDriver:
        ownership = self._ownership

        # 1. Own the partition: from here on its messages and write results find it.
        driver = PartitionDriver(ownership, loaded.state, loaded.record, assignment=assignment)
        ownership.own(driver)

        # 2. Record `Adopted`, then the messages that have come.
        moved = state_pb2.Assignment.FromString(assignment.value)
        unnoted = "" if loaded.state.entries_journaled else moved.taken_from
        driver.note_adopted(executor_id, handed_over=moved.handed_over, unnoted_owner=unnoted)
        self.inbox.feed_to(driver, loaded.inbox)

        if refusal is not None:
            driver.doomed = True
            driver.fail_run(Failure(Code.ORCHESTRATOR_ERROR, f"the run cannot be journaled: {refusal.message}"))
        elif not loaded.fresh:
            # 3. Ask the hosts what they hold, while `Adopted` becomes durable.
            driver.written = asyncio.Event()
            ownership.mark_dirty(driver)
            held = await self._held_calls.ask(driver.run_id, driver.partition, driver.epoch)
            await driver.written.wait()
            driver.written = None
            if driver.gone:
                return driver

            # 4. Rejoin the calls that hosts hold (before any dispatch).
            rejoin(driver, ownership.hosts, held, loaded.failed_attempts)

        # 5. Go on.
        driver.paused = False
        driver.turn()
        return driver


async def _first_progress(driver: PartitionDriver) -> None:
    """Wait until an isolated run has made progress, or has outlived `ISOLATION_S`."""
    until_s = time.monotonic() + ISOLATION_S
    # An event instead would cost every fact of every run a look at it.
    while not driver.gone and driver.state.adoptions_in_a_row and time.monotonic() < until_s:  # noqa: ASYNC110  # see above
        await asyncio.sleep(ISOLATION_S / 20)


__all__ = ["ISOLATION_S", "ISOLATION_THRESHOLD", "TakeOver"]
