"""The state of a run tree: the journaled part, and the part derived by its owner. Data only.

Writers of each part:
- `JournaledRun` and `JournaledStep`: `apply` alone, so replaying the same entries gives the same values;
- `Scope` and `Item`: derived from the entries by `apply` and `advance`, in the same way for every owner; `large_values`
  replaces a value by its blob;
- the rest of `RunState` and `StepRun`: volatile, lost with the owner, and found again by the next owner;
- code outside the package: only through the methods here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from typing import TYPE_CHECKING

from stepflow.run.phases import IN_FLIGHT, Phase

if TYPE_CHECKING:
    from stepflow.codec import Json
    from stepflow.flow.values import Stored
    from stepflow.mesh.v1 import journal_pb2, state_pb2
    from stepflow.run.scope import Item, Scope, StepRun

ENGINE_VERSION = 2
"""Raised when an older engine would misread the entries; placement compares it."""

COMPOSES_FROM = 2
"""Engine version of a run from which on results of sub-runs are derived, and composed values are kept in parts."""

ADOPTIONS_IN_A_ROW_MAX = 5
"""Owners that may die, or give the run back, in a row, without one fact in between, before the run is abandoned."""

POISON_WINDOW_MS = 60_000
"""Poison runs crash their executor at once, so an owner that lasted this long resets the count of deaths: it died, or
lost its session, for other reasons while the run waited for a timer or a long call."""

ADOPTIONS_FRUITLESS_MAX = 20
"""The same bound for owners that survive the adoption but never reach the run's next step. It is higher because a run
that waits for a long time may lose as many owners for unrelated reasons."""

JOURNAL_ENTRIES_MAX = 50_000
JOURNAL_BYTES_MAX = 64 * 1024 * 1024

ITEMS_MAX = 100_000
"""Items of one sub-run."""

DEPTH_MAX = 64
"""Levels of nested sub-runs; the bound for a flow that calls itself."""

OUTPUT = -1
"""Reader number of the item's output expression; the readers from 0 on are the inputs of the steps."""

FINISH = -2
"""Reader number of the same expression once everything that it needs is complete and only its value is missing."""

WANTED_BYTES_MAX = 64 * 1024 * 1024
"""Blobs to load at once; the others are asked for when these have served their readers."""

Blobs = Mapping[str, bytes | None]
"""Loaded blobs by id; None if the blob does not exist."""


class JournaledRun:
    """The part of a run's state with `apply` as the only writer."""

    __slots__ = (
        "adoptions",
        "adoptions_fruitless",
        "adoptions_given_back",
        "adoptions_in_a_row",
        "cancelled",
        "entries_journaled",
        "epoch",
        "inbox_taken",
        "last_at_ms",
        "log_tail_bytes",
        "quiet_ms",
        "signal_waits",
        "signals",
        "signals_unreceived",
        "status",
        "trace_bytes",
    )

    def __init__(self) -> None:
        self.entries_journaled = 0
        self.last_at_ms = 0
        """Instant of the newest entry."""
        self.log_tail_bytes = 0
        """Bytes of the log lines kept with failures."""
        self.quiet_ms = 0
        """Time between the two newest entries. Negative if the clock of a new owner lags behind the journal."""
        self.epoch = 0
        self.adoptions = 0
        self.adoptions_in_a_row = 0
        """Adoptions since the newest fact or proof of survival, hand-overs and give-backs excluded."""
        self.adoptions_given_back = 0
        """Adoptions since the newest fact whose former owner gave the run back."""
        self.adoptions_fruitless = 0
        """Adoptions since the newest fact, hand-overs and give-backs excluded."""
        self.cancelled = False
        self.inbox_taken: set[str] = set()
        """Ids of the messages that the run has taken."""
        self.signals: dict[tuple[int, str], deque[Json]] = {}
        """By item of the run and name: signals that no step has received yet, FIFO."""
        self.signals_unreceived = 0
        """Number of these signals."""
        self.signal_waits: dict[tuple[int, str], deque[StepRun]] = {}
        """By item of the run and name: waiting steps, FIFO. Steps that have ended stay until they are met."""
        self.status: journal_pb2.RunStatus | None = None
        self.trace_bytes = 0
        """Length of the traces in the journaled failures of steps."""


class RunState(JournaledRun):
    """A partition of a run, with all sub-runs."""

    __slots__ = (
        "blocked",
        "blocked_steps",
        "bytes_journaled",
        "composes",
        "cut_off",
        "dirty",
        "due",
        "ending",
        "engine_ready",
        "fresh",
        "large_outcomes",
        "loaded",
        "lost_blob",
        "opening",
        "partition",
        "policy",
        "ready",
        "run_id",
        "scopes",
        "scopes_ended",
        "scopes_live",
        "signalled",
        "slots_used",
        "stored",
        "timers",
        "unopened",
        "unstored",
        "wanted",
        "wanted_bytes",
    )

    def __init__(self, run_id: str, partition: int, policy: state_pb2.Policy) -> None:
        super().__init__()
        self.run_id = run_id
        self.partition = partition
        self.policy = policy
        self.composes = policy.engine_version >= COMPOSES_FROM
        """True if results are derived and composed, see `COMPOSES_FROM`."""
        self.scopes: list[Scope] = []
        self.scopes_live = 0
        self.bytes_journaled = 0

        # Work for `advance`.
        self.dirty: deque[tuple[Item, int]] = deque()
        """Completed steps whose readers are not updated yet."""
        self.opening: deque[Scope] = deque()
        """Scopes that may open further items."""
        self.unopened: deque[tuple[StepRun, journal_pb2.Entry]] = deque()
        """Sub-runs recorded but not opened: their flow or inputs may be in the blob store."""
        self.blocked: list[tuple[Item, int]] = []
        """Readers (steps, OUTPUT or FINISH) that wait for a blob."""

        # Blobs.
        self.stored = False
        """True if some value of this run is in the blob store, or composed."""
        self.wanted: dict[str, bool] = {}
        """Blobs to load; True if a user supplied the id (`eval`)."""
        self.wanted_bytes: dict[str, int] = {}
        """Lengths of these blobs, or estimates; they stay until other blobs are wanted."""
        self.loaded: list[Stored] = []
        self.large_outcomes: list[Item] = []
        """Items of the run whose outcome is to be moved to the blob store; see `note_outcome_stored`."""
        self.unstored: list[Stored] = []
        """New values to be moved to the blob store; see `note_value_stored`."""
        self.lost_blob = ""
        """Id of a missing blob of the run's own: the run cannot continue."""

        # Work for `decide`.
        self.fresh: list[StepRun] = []
        """Steps that became ready and are in no queue yet."""
        self.engine_ready: list[StepRun] = []
        self.ready: list[tuple[int, int, int, StepRun]] = []
        """Heap: item, step, scope."""
        self.blocked_steps: list[StepRun] = []
        """Ready steps whose input waits for a blob, or whose route is not known yet."""
        self.slots_used = 0
        """Slots of the concurrency window in use; see `start_flight`."""
        self.timers: list[tuple[int, int, int, int, StepRun]] = []
        """Heap: instant, then scope, item and step to break ties. Stale if `wake_at_ms` of the step differs."""
        self.due: list[StepRun] = []
        """Parents whose sub-run has ended."""
        self.signalled: list[StepRun] = []
        """Steps that have received their signal."""
        self.scopes_ended: list[Scope] = []
        self.cut_off: list[StepRun] = []
        """Steps that were active when the run ended early, for listings."""
        self.ending = False
        """True while the entry that ends the run is being journaled."""

    @property
    def root(self) -> Scope:
        return self.scopes[0]

    # A step uses a slot while it is IN_FLIGHT and its component has no open sub-run. These four methods keep count.

    def start_flight(self, step: StepRun) -> None:
        """Put a step in flight and take its slot."""
        step.enter(IN_FLIGHT)
        if not step.callbacks_live:
            self.slots_used += 1

    def leave_flight(self, step: StepRun, phase: Phase) -> None:
        """Move a step to `phase` and release its slot, if in use."""
        if step.phase is IN_FLIGHT and not step.callbacks_live:
            self.slots_used -= 1
        step.enter(phase)

    def lend_slot(self, step: StepRun) -> None:
        """Release the step's slot for a sub-run started by its component."""
        if not step.callbacks_live and step.phase is IN_FLIGHT:
            self.slots_used -= 1
        step.callbacks_live += 1

    def reclaim_slot(self, step: StepRun) -> None:
        """Take the step's slot again after its last sub-run has ended, beyond the bound if need be."""
        step.callbacks_live -= 1
        if not step.callbacks_live and step.phase is IN_FLIGHT:
            self.slots_used += 1

    def push_timer(self, step: StepRun) -> None:
        """Queue the step for `wake_at_ms`."""
        item = step.item
        heappush(self.timers, (step.wake_at_ms, item.scope.number, item.index, step.index, step))

    def next_wake_ms(self) -> int | None:
        """Return the instant for the next call of `decide` if no entry arrives before."""
        timers = self.timers
        while timers and timers[0][4].wake_at_ms != timers[0][0]:
            heappop(timers)
        return timers[0][0] if timers else None

    def begin_ending(self) -> None:
        """Stop making decisions: the last entry is being journaled."""
        self.ending = True

    def note_journaled(self, size_bytes: int) -> None:
        """Count written or replayed entries toward the size limit of the journal."""
        self.bytes_journaled += size_bytes

    def take_wanted(self) -> dict[str, bool]:
        """Return the blobs to load, each with True if a user supplied the id, and clear the list."""
        wanted, self.wanted = self.wanted, {}
        return wanted


def release_state(state: RunState) -> None:
    """Drop all values and break the reference cycles. The state must not be used afterwards.

    Without it an ended run would stay in memory until the garbage collector meets it, which counts objects, not the
    megabytes that they hold.
    """
    for scope in state.scopes:
        for item in scope.items:
            item.active.clear()
        scope.items.clear()
        scope.inputs = []
    state.scopes = []
    state.cut_off.clear()
