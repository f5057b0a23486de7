"""The flush: the outboxes of all partitions, submitted to the fenced writer together.

- At most one flush is undecided at a time; meanwhile the next flush gathers.
- A partition's write may need several parts (keys); each part requires the part before, so a journal has no gap.
- After the end of a session, none of its commits releases an effect.

Not here: what is written (`outbox`), and the final records of a partition (`PartitionDriver._close`).
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Protocol

from stepflow.store import present

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.drive import PartitionDriver
    from executor.effects import Effect
    from executor.session import CurrentSession, Session
    from stepflow.errors import StepflowError


class WritesOwner(Protocol):
    """The side of the ownership table that the flush uses."""

    def run_guarded(self, driver: PartitionDriver, work: Callable[..., None], *arguments: object) -> None: ...
    def write_refused(self, driver: PartitionDriver, error: StepflowError) -> None: ...


class JournalWrites:
    """The partitions with unwritten entries, and the undecided flush."""

    def __init__(self, owner: WritesOwner, session: CurrentSession) -> None:
        self._owner = owner
        self._session = session
        self._dirty: dict[PartitionDriver, None] = {}
        self._scheduled = False
        self._undecided = 0
        """Partitions of the flush whose last part is not decided."""

    def mark_dirty(self, driver: PartitionDriver) -> None:
        """Include a partition in the next flush. Idempotent."""
        self._dirty[driver] = None
        if not self._scheduled and not self._undecided:
            self._schedule()

    def drop_partition(self, driver: PartitionDriver) -> None:
        """Write nothing more of a partition, apart from the undecided flush. Idempotent."""
        self._dirty.pop(driver, None)

    def clear(self) -> None:
        """Forget all partitions and the undecided flush: the session is gone."""
        self._dirty.clear()
        self._undecided = 0

    def _schedule(self) -> None:
        self._scheduled = True
        asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        # 1. One flush at a time: the entries of this turn go with the next one.
        self._scheduled = False
        session = self._session()
        if session is None or self._undecided:
            return

        # 2. Submit every outbox. A partition that is ending comes again with its final records.
        drivers, self._dirty = self._dirty, {}
        for driver in drivers:
            if not driver.writable:
                continue
            try:
                self._submit_writes(session, driver)
            except Exception as error:  # else the other partitions of this flush would never be written
                self._owner.run_guarded(driver, _raise, error)

    def _submit_writes(self, session: Session, driver: PartitionDriver) -> None:
        """Submit the parts of a partition's outbox in order; the effects wait for the last one."""
        writes, effects = driver.outbox.take_writes()
        before: str | None = None
        for ops in writes:
            last = ops is writes[-1]
            session.writer.submit(
                ops,
                # A later part without the one before it would be a gap in the journal.
                compares=() if before is None else (present(before),),
                on_commit=partial(self._committed, session, driver, effects) if last else _part_committed,
                on_reject=partial(self._rejected, session, driver, last),
            )
            self._undecided += last  # only now: what was not submitted will not be decided
            before = ops[0].key

    def _committed(self, session: Session, driver: PartitionDriver, effects: list[Effect]) -> None:
        """Release the effects of a partition's write: the last part is durable, and so are the parts before."""
        if session is self._session():
            self._decided()
            self._owner.run_guarded(driver, driver.committed, effects)

    def _rejected(self, session: Session, driver: PartitionDriver, last: bool, error: StepflowError) -> None:
        if session is not self._session():
            return
        driver.refusal = driver.refusal or error  # the first: later parts fail only because it is missing
        if last:
            self._decided()
            if not driver.gone:
                self._owner.write_refused(driver, driver.refusal)

    def _decided(self) -> None:
        self._undecided -= 1
        if not self._undecided and self._dirty and not self._scheduled:
            self._schedule()


def _raise(error: Exception) -> None:
    raise error


def _part_committed() -> None:
    """Ignore the commit of a part: the last part decides."""


__all__ = ["JournalWrites", "WritesOwner"]
