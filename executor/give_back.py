"""Giving back runs that cannot be driven here: after a pause, the assignment goes to nobody, where the leader sees it.

The pause doubles each time a run comes back, up to a minute, and is forgotten once the run has ended here.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from stepflow.errors import StepflowError, Unavailable
from stepflow.store import Delete, Put, created_at, keys
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable

    from executor.session import Session
    from stepflow.store import KeyValue

log = get_logger(__name__)

Place = tuple[str, int]
"""Run and partition."""

RETURN_S_MIN = 1.0
RETURN_S_MAX = 60.0
"""Before a run is given back, doubling each time."""

FORGET_S = 10 * RETURN_S_MAX
"""A run that did not come back for so long has found another executor."""


class Returns:
    """The runs of one executor that are on their way back. `session` is the one that stands just now, if any does."""

    def __init__(self, session: Callable[[], Session | None]) -> None:
        self._session = session
        self._timers: dict[Place, asyncio.TimerHandle] = {}
        self._counts: dict[Place, tuple[int, float]] = {}
        """How often a run was given back, and when last, by the loop's clock."""

    def __contains__(self, place: Place) -> bool:
        """Whether it is on its way back: not to be adopted again meanwhile."""
        return place in self._timers

    def __len__(self) -> int:
        return len(self._timers)

    def give_back(self, place: Place, assignment: KeyValue, error: StepflowError) -> bool:
        """Give a run back after its pause; return false when it is on its way already, or nothing is owned here."""
        session = self._session()
        if session is None or place in self._timers:
            return False
        loop = asyncio.get_running_loop()
        self._counts = {each: (count, at) for each, (count, at) in self._counts.items() if loop.time() - at < FORGET_S}
        count = self._counts.get(place, (0, 0.0))[0]
        self._counts[place] = (count + 1, loop.time())
        pause_s = min(RETURN_S_MIN * 2 ** min(count, 10), RETURN_S_MAX)
        log.error(
            "run cannot be driven here", run_id=place[0], reason=error.reason, error=error.message, back_in_s=pause_s
        )
        self._timers[place] = loop.call_later(pause_s, self._move_to_nobody, session, place, assignment)
        return True

    def forget(self, place: Place) -> None:
        """The run has ended here."""
        self._counts.pop(place, None)

    def cancel_all(self) -> None:
        """The session is gone, and with it the right to move anything."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()

    def _move_to_nobody(self, session: Session, place: Place, assignment: KeyValue) -> None:
        if session is not self._session():
            return

        def done(_error: StepflowError | None = None) -> None:
            self._timers.pop(place, None)

        session.writer.submit(
            [Delete(assignment.key), Put(keys.assigned(keys.returned_by(session.id), *place), b"")],
            compares=(created_at(assignment.key, assignment.create_revision),),
            on_commit=done,
            on_reject=done,
        )


def defect(run_id: str, error: Exception) -> StepflowError:
    """Log a bug of this project, and return the error that stands for it."""
    log_defect(log, "a defect", error, run_id=run_id)
    return Unavailable(
        "DRIVE_DEFECT", f"a defect of the executor stops run {run_id} ({type(error).__name__}); see its log"
    )


__all__ = ["Place", "Returns", "defect"]
