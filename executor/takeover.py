"""Take-over: from an assignment in the store to a driven partition.

- An owner that dies while it reads the journal is counted, too (`readings`).
- The first entry of an owner is `Adopted`. If there may have been an earlier owner, the entry is durable before the run
  does anything, so that runs that kill their executors are counted (`ADOPTIONS_IN_A_ROW_MAX`).
- The hosts are asked for held calls before any dispatch: a held call is joined, never repeated.
- A run suspected of killing its last owners is adopted alone, so that only its own count grows.
- After a refused write a partition is taken up once more from its journal, to end with the reason. So is one that needs
  more memory than there is; if it cannot be read either, it ends unread (`unread`).
"""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import TYPE_CHECKING

from executor.adoption import HeldCalls, LoadedPartition, PartitionReader, rejoin
from executor.drive import PartitionDriver
from executor.give_back import OUT_OF_MEMORY, defect, out_of_memory
from executor.inbox import Inbox
from executor.readings import Readings
from stepflow.clock import SteadyClock
from stepflow.errors import Code, Conflict, DataLoss, FailedPrecondition, Failure, NotFound, StepflowError
from stepflow.mesh.v1 import journal_pb2, state_pb2
from stepflow.run.state import ADOPTIONS_IN_A_ROW_MAX
from stepflow.store import Delete, keys
from stepflow.telemetry import get_logger
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Sequence

    from executor.drive import PartitionId
    from executor.ownership import Ownership
    from executor.session import CurrentSession, Session
    from executor.unread import UnreadEnd
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
        self,
        ownership: Ownership,
        reader: PartitionReader,
        held_calls: HeldCalls,
        unread_end: UnreadEnd,
        session: CurrentSession,
    ) -> None:
        self.inbox = Inbox(ownership)
        self.readings = Readings(session)
        self.adopting: dict[PartitionId, asyncio.Task[None]] = {}
        self._ownership = ownership
        self._reader = reader
        self._held_calls = held_calls
        self._unread_end = unread_end
        self._session = session

        self._unread: dict[PartitionId, tuple[KeyValue, StepflowError]] = {}
        """Partitions to end unread once their adoption in progress has broken off, and why."""
        self._ending_unread: set[PartitionId] = set()
        """Partitions being ended unread: without memory for that either, they are given back."""
        self._isolation = asyncio.Lock()
        ownership.on_refused = self._must_end

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

    def clear(self) -> None:
        """Forget all adoptions; their tasks have ended, and the session is gone."""
        self.adopting.clear()
        self._unread.clear()
        self._ending_unread.clear()

    def _must_end(self, driver: PartitionDriver, error: StepflowError) -> None:
        """End a run after a refused write or for want of memory, from the state in its journal."""
        partition_id = (driver.run_id, driver.partition)
        again = driver.doomed or partition_id in self.adopting
        starved = error.reason == OUT_OF_MEMORY
        if isinstance(error, Conflict) or (again and not starved):
            self._ownership.abandon(driver, error)
            return

        log.error("run must end", run_id=driver.run_id, reason=error.reason, error=error.message)
        self._ownership.drop(driver, cancel=True)
        if not again:
            self._adopt(partition_id, driver.assignment, refusal=error)
        else:
            self._end_unread(partition_id, driver.assignment, error)  # its journal takes the same memory once more

    def _end_unread(self, partition_id: PartitionId, assignment: KeyValue, error: StepflowError) -> None:
        """End a run without its journal, after the adoption in progress."""
        self._unread[partition_id] = (assignment, error)
        self._ending_unread.add(partition_id)
        if partition_id not in self.adopting:
            self._start_unread(partition_id)

    def _start_unread(self, partition_id: PartitionId) -> None:
        session = self._session()
        assignment, error = self._unread.pop(partition_id)
        if session is not None:
            failure = Failure(Code.ORCHESTRATOR_ERROR, error.message)
            now_ms = SteadyClock().now_ms()
            end = partial(
                self._unread_end.end, session, partition_id, assignment, journal_pb2.RUN_STATUS_FAILED, failure, now_ms
            )
            self._start(partition_id, self._guard(partition_id, assignment, end))

    def _adopt(self, partition_id: PartitionId, assignment: KeyValue, refusal: StepflowError | None = None) -> None:
        """Adopt a partition in a new task; with `refusal`, to end the run for this reason."""
        session = self._session()
        if session is None or partition_id in self.adopting:
            return
        adopt = partial(self._adopt_partition, session, partition_id, assignment, refusal)
        self._start(partition_id, self._guard(partition_id, assignment, adopt))

    def _start(self, partition_id: PartitionId, work: Coroutine[object, object, None]) -> None:
        def finished(task: asyncio.Task[None]) -> None:
            if self.adopting.get(partition_id) is task:
                del self.adopting[partition_id]
                if partition_id in self._unread:
                    self._start_unread(partition_id)

        task = asyncio.create_task(work, name=f"adopt {partition_id[0]}")
        self.adopting[partition_id] = task
        task.add_done_callback(finished)

    async def _guard(
        self, partition_id: PartitionId, assignment: KeyValue, work: Callable[[], Coroutine[object, object, None]]
    ) -> None:
        self.inbox.keep_for(partition_id)
        try:
            await work()
            self.readings.end(partition_id)
        except Exception as error:
            self.readings.take_back(partition_id)
            self._adoption_failed(partition_id, assignment, error)
        finally:
            self.inbox.stop_keeping(partition_id)
            if partition_id not in self._unread:
                self._ending_unread.discard(partition_id)

    def _adoption_failed(self, partition_id: PartitionId, assignment: KeyValue, error: Exception) -> None:
        run_id = partition_id[0]
        driver = self._ownership.drivers.get(partition_id)
        if isinstance(error, MemoryError) and partition_id not in self._ending_unread:
            if driver is not None:
                self._ownership.drop(driver, cancel=True)
            self._end_unread(partition_id, assignment, out_of_memory(run_id))
            return

        known = error if isinstance(error, StepflowError) else defect(run_id, error)
        if driver is not None:
            self._ownership.abandon(driver, known)
        else:
            unreadable = isinstance(error, (DataLoss, FailedPrecondition, NotFound))
            self._ownership.return_assignment(partition_id, assignment, known, unreadable=unreadable)

    async def _adopt_partition(
        self, session: Session, partition_id: PartitionId, assignment: KeyValue, refusal: StepflowError | None
    ) -> None:
        # 1. Read how many owners were lost while they read the journal.
        opened = await self._reader.open(partition_id, assignment, driven_before=refusal is not None)
        if opened is None:
            return  # the assignment is gone
        lost = opened.adopting.count
        if lost >= ADOPTIONS_IN_A_ROW_MAX:
            failure = Failure(
                Code.ORCHESTRATOR_ERROR, f"{lost} executors in a row died while they read the journal of this run"
            )
            status = journal_pb2.RUN_STATUS_RECOVERY_FAILED
            now_ms = SteadyClock().now_ms()
            await self._unread_end.end(session, partition_id, assignment, status, failure, now_ms)
            return

        # 2. Replay the journal, alone if it may have killed its last readers.
        if lost >= ISOLATION_THRESHOLD:
            async with self._isolation:
                await self.readings.begin(session, opened, assignment)
                loaded = await self._reader.load(opened)
                await self._take_up_alone(loaded, assignment, session.id, refusal)
            return
        await self.readings.begin(session, opened, assignment)
        loaded = await self._reader.load(opened)

        # 3. Take the partition up, alone if it may have killed its last owners.
        if loaded.state.adoptions_in_a_row < ISOLATION_THRESHOLD:
            await self._take_up(loaded, assignment, session.id, refusal)
            return
        async with self._isolation:
            await self._take_up_alone(loaded, assignment, session.id, refusal)

    async def _take_up_alone(
        self, loaded: LoadedPartition, assignment: KeyValue, executor_id: str, refusal: StepflowError | None
    ) -> None:
        """Take a suspicious partition up under `_isolation`, and give it time to kill this executor."""
        driver = await self._take_up(loaded, assignment, executor_id, refusal)
        await _first_progress(driver)
        self._ownership.run_guarded(driver, driver.note_survived)

    async def _take_up(
        self, loaded: LoadedPartition, assignment: KeyValue, executor_id: str, refusal: StepflowError | None
    ) -> PartitionDriver:
        ownership = self._ownership

        # 1. Own the partition: from here on its messages and write results find it.
        driver = PartitionDriver(
            ownership, loaded.state, loaded.record, assignment=assignment, first_seqs=loaded.first_seqs
        )
        ownership.own(driver)

        # 2. Record `Adopted`, then the messages that have come.
        moved = state_pb2.Assignment.FromString(assignment.value)
        driver.note_adopted(executor_id, moved)
        if not loaded.fresh:
            driver.outbox.riders = [Delete(keys.adopting(driver.run_id, driver.partition))]
        self.inbox.feed_to(driver, loaded.inbox)

        if refusal is not None:
            driver.doomed = True
            starved = refusal.reason == OUT_OF_MEMORY
            why = refusal.message if starved else f"the run cannot be journaled: {refusal.message}"
            driver.fail_run(Failure(Code.ORCHESTRATOR_ERROR, why))
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
