"""Giving back undrivable partitions: after a pause, the assignment is moved to the leader's orphans.

The pause doubles each time a partition comes back, up to a minute, and starts over once the partition has ended here
or has stayed away for `FORGET_S`. A partition that this executor cannot read is moved at once, with a note: the leader
offers it to others.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import Overloaded, StepflowError, Unavailable
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Delete, Put, created_at, keys
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from executor.drive import PartitionId
    from executor.session import CurrentSession, Session
    from stepflow.store import KeyValue

log = get_logger(__name__)

OUT_OF_MEMORY = "OUT_OF_MEMORY"

RETURN_S_MIN = 1.0
RETURN_S_MAX = 60.0
"""Pause before a partition is given back, doubling each time."""

REFUSED_BY_MAX = 100
"""Executors named in an assignment that none of them could read."""

FORGET_S = 10 * RETURN_S_MAX
"""A partition that did not come back within this time has found another executor."""


class GiveBack:
    """The partitions of an executor waiting to be given back."""

    def __init__(self, session: CurrentSession) -> None:
        self._session = session
        self._timers: dict[PartitionId, asyncio.TimerHandle] = {}
        self._counts: dict[PartitionId, tuple[int, float]] = {}
        """How often a partition was given back, and the last time by the loop's clock."""

    def __contains__(self, partition_id: PartitionId) -> bool:
        """Return True while a partition waits to be given back, and so must not be adopted."""
        return partition_id in self._timers

    def __len__(self) -> int:
        return len(self._timers)

    def give_back(
        self, partition_id: PartitionId, assignment: KeyValue, error: StepflowError, *, unreadable: bool = False
    ) -> bool:
        """Give a partition back after its pause; return False if one is scheduled already, or without a session.

        `unreadable`: this executor cannot read the run.
        """
        session = self._session()
        if session is None or partition_id in self._timers:
            return False

        loop = asyncio.get_running_loop()
        self._counts = {each: (count, at) for each, (count, at) in self._counts.items() if loop.time() - at < FORGET_S}
        count = self._counts.get(partition_id, (0, 0.0))[0]
        self._counts[partition_id] = (count + 1, loop.time())

        pause_s = 0.0 if unreadable else min(RETURN_S_MIN * 2 ** min(count, 10), RETURN_S_MAX)
        log.error(
            "run cannot be driven here",
            run_id=partition_id[0],
            reason=error.reason,
            error=error.message,
            back_in_s=pause_s,
        )
        returned = state_pb2.Assignment()
        if unreadable:
            before = state_pb2.Assignment.FromString(assignment.value).refused_by
            returned.refused_by.extend([*before, session.id][-REFUSED_BY_MAX:])
        self._timers[partition_id] = loop.call_later(
            pause_s, self._move_away, session, partition_id, assignment, returned.SerializeToString()
        )
        return True

    def forget_partition(self, partition_id: PartitionId) -> None:
        """Start the pauses over: the partition has ended here."""
        self._counts.pop(partition_id, None)

    def cancel_all(self) -> None:
        """Give nothing back: with the session, the right to move assignments is gone."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _move_away(self, session: Session, partition_id: PartitionId, assignment: KeyValue, value: bytes = b"") -> None:
        """Move an assignment to this executor's key for returned runs, unless the leader was faster."""
        if session is not self._session():
            return

        def done(_error: StepflowError | None = None) -> None:
            self._timers.pop(partition_id, None)

        session.writer.submit(
            [Delete(assignment.key), Put(keys.assigned(keys.returned_by(session.id), *partition_id), value)],
            compares=(created_at(assignment.key, assignment.create_revision),),
            on_commit=done,
            on_reject=done,
        )


def out_of_memory(run_id: str) -> StepflowError:
    """Return the error of a run that took all memory; log it."""
    log.error("run out of memory", run_id=run_id)
    return Overloaded(OUT_OF_MEMORY, f"run {run_id} needs more memory than its executor has")


def defect(run_id: str, error: Exception) -> StepflowError:
    """Log a bug of this project, and return an error to pass on."""
    log_defect(log, "a defect", error, run_id=run_id)
    return Unavailable(
        "DRIVE_DEFECT", f"a defect of the executor stops run {run_id} ({type(error).__name__}); see its log"
    )


__all__ = ["GiveBack", "defect"]
