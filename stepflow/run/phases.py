"""Phases of an active step, and the only table of transitions.

A step becomes active when all results for its input are complete. Rules:
- `StepRun.enter` is the only writer of a phase and rejects transitions outside the table;
- a live owner decides first (READY to SETTLING, say) and applies the entry afterwards;
- a replay applies entries without decisions, so an entry may find a step in an earlier phase: such transitions are
  marked `replay_only`.

`docs/explanation/run-states.md` is drawn from the table.
"""

from __future__ import annotations

from enum import IntEnum

import msgspec


class Phase(IntEnum):
    READY = 1
    """Waits for a slot of the concurrency window, or for a decision."""
    IN_FLIGHT = 2
    """A dispatch was requested, and its result is not journaled yet."""
    RETRYING = 3
    """Waits until its next attempt is due."""
    SLEEPING = 4
    """Waits for a durable timer."""
    PARENT = 5
    """Waits for a sub-run that the engine opened for it."""
    WAITING = 6
    """Waits for a signal, or for the timer that ends the wait."""
    SETTLING = 7
    """Its next entry is being journaled."""
    DONE = 8
    """Its result is journaled; the step is no longer active."""


READY, IN_FLIGHT, RETRYING, SLEEPING, PARENT, WAITING, SETTLING, DONE = Phase
"""The members as globals for the hot path: in Python 3.11 `Phase.READY` costs more than a function call."""


class Transition(msgspec.Struct, frozen=True):
    """A legal transition. `cause` is a decision or a kind of entry."""

    source: Phase
    target: Phase
    cause: str
    replay_only: bool = False


def _on_entry(kind: str, target: Phase, *, live: tuple[Phase, ...], replay: tuple[Phase, ...]) -> list[Transition]:
    return [
        *(Transition(source, target, kind) for source in live),
        *(Transition(source, target, kind, replay_only=True) for source in replay),
    ]


_WAITS = (SLEEPING, PARENT, WAITING)

TRANSITIONS: tuple[Transition, ...] = (
    # Decisions.
    Transition(READY, IN_FLIGHT, "dispatch"),
    Transition(READY, SETTLING, "engine component, or no call possible"),
    Transition(RETRYING, READY, "next attempt due"),
    Transition(SLEEPING, SETTLING, "timer due"),
    Transition(PARENT, SETTLING, "sub-run ended"),
    Transition(WAITING, SETTLING, "signal received or wait timed out"),
    # Journaled entries.
    *_on_entry("TimerSet", SLEEPING, live=(SETTLING,), replay=(READY, RETRYING)),
    *_on_entry("SignalAwaited", WAITING, live=(SETTLING,), replay=(READY, RETRYING)),
    *_on_entry("SubRunStarted", PARENT, live=(SETTLING,), replay=(READY, RETRYING, PARENT)),
    *_on_entry(
        "AttemptFailed",
        RETRYING,
        live=(IN_FLIGHT, SETTLING),
        replay=(READY, RETRYING, *_WAITS),
    ),
    *_on_entry(
        "StepCompleted",
        DONE,
        live=(IN_FLIGHT, SETTLING),
        replay=(READY, RETRYING, *_WAITS),
    ),
)

TARGETS: dict[Phase, frozenset[Phase]] = {
    source: frozenset(each.target for each in TRANSITIONS if each.source is source) for source in Phase
}
"""The same table, for the look-up on the hot path."""


class IllegalTransition(Exception):
    """A phase change outside the table: a defect, or entries in an impossible order."""
