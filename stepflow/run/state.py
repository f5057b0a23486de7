"""The state of a run tree: what the journal says, and what its owner has worked out from it. Data only.

Numbers: a *scope* is the run itself (0) or a sub-run (n = the n-th SubRunStarted of the journal); an *item* is an
index within its scope; a *step* is an index within its scope's flow.

Who changes which part:
- `JournaledRun` and `JournaledStep`: `apply` alone, so replaying the same entries gives the same values;
- `Scope` and `Item`: derived from the entries by `apply` and `advance`, in the same way for every owner;
- the rest of `RunState` and `StepRun`: volatile, lost with the owner, and found again by the next one;
- code outside this package: nothing, except through the methods here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any

from stepflow.codec import Json
from stepflow.run.phases import IN_FLIGHT, READY, TARGETS, IllegalTransition, Phase

if TYPE_CHECKING:
    from stepflow.errors import Failure
    from stepflow.flow import CompiledFlow, Env
    from stepflow.mesh.v1 import journal_pb2, state_pb2

ENGINE_VERSION = 1
"""Raised when an older engine would misread the entries; placement compares it."""

ADOPTIONS_IN_A_ROW_MAX = 5
"""Owners that may die in a row, without one fact in between, before the run is abandoned."""

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

Blobs = Mapping[str, bytes | None]
"""Loaded blobs by id; None if the blob does not exist."""


class Stored(Json):
    """A JSON value in the blob store; `raw` is empty until it is loaded."""

    __slots__ = ("blob",)

    def __init__(self, blob: str) -> None:
        super().__init__(b"")
        self.blob = blob

    @property
    def loaded(self) -> bool:
        return bool(self.raw)

    def load(self, raw: bytes) -> None:
        self.raw = raw

    def unload(self) -> None:
        self.__init__(self.blob)  # type: ignore[misc]  # back to the state without bytes and without a tree


class JournaledStep:
    """The part of an active step that `apply` alone changes.

    `StepRun` sets the initial values: a second constructor would cost every step a call.
    """

    __slots__ = ("component_failed", "signal", "transport_failed", "wake_at_ms")

    transport_failed: int
    """Failed attempts charged to the transport budget."""
    component_failed: int
    """Failed attempts charged to the step's own budget."""
    wake_at_ms: int
    """Instant of the step's only valid timer; -1 if the timer was cancelled."""
    signal: Json | None
    """Payload of the signal that the step received."""


class StepRun(JournaledStep):
    """An active step of one item."""

    __slots__ = (
        "attempt",
        "call_id",
        "callbacks_live",
        "index",
        "item",
        "memo",
        "phase",
        "ready_at",
        "rejoin",
        "started_at_ms",
        "sub_runs",
    )

    def __init__(self, item: Item, index: int, ready_at: int) -> None:
        self.transport_failed = self.component_failed = 0
        self.wake_at_ms = 0
        self.signal = None

        self.item = item
        self.index = index
        self.phase = READY
        self.ready_at = ready_at
        """Number of adoptions of the run at the time when the step became ready."""
        self.attempt = 0
        """Attempt number of the call in flight, 1-based."""
        self.call_id = 0
        """The owner's number for the call in flight; 0 until it is sent."""
        self.rejoin = 0
        """Attempt that a host still holds: the next dispatch joins it instead of starting another."""
        self.started_at_ms = 0
        self.sub_runs: list[Scope] | None = None
        self.callbacks_live = 0
        """Open sub-runs that the step's component started; while there are any, the step's slot is lent."""
        self.memo: Any = None
        """Decoded input of an engine component, a cache between two decisions."""

    def enter(self, phase: Phase) -> None:
        """Change the phase. Raises: IllegalTransition."""
        if phase not in TARGETS[self.phase]:
            raise IllegalTransition(f"step {self.id!r} cannot go from {self.phase.name} to {phase.name}")
        self.phase = phase

    def rejoin_attempt(self, attempt: int) -> None:
        """Let the next dispatch join this attempt, which a host still holds, instead of starting another."""
        self.rejoin = attempt

    def note_sent(self, call_id: int) -> None:
        """Note the number under which the owner sent the call in flight to a host."""
        self.call_id = call_id

    @property
    def id(self) -> str:
        return self.item.scope.plan.steps[self.index].id

    @property
    def key(self) -> str:
        """The idempotency key: the same for all attempts and owners."""
        item = self.item
        return f"{item.scope.key}/{item.index + item.scope.first_item}/{self.id}"


class Item:
    """One input of a scope, and the progress toward its outcome."""

    __slots__ = (
        "active",
        "completed_at_ms",
        "dirty",
        "env",
        "index",
        "missing",
        "open",
        "outcome",
        "output_ready",
        "scope",
        "seen",
        "step_failed",
        "waiters",
    )

    def __init__(self, scope: Scope, index: int, env: Env) -> None:
        self.scope = scope
        self.index = index
        self.env = env
        self.active: dict[int, StepRun] = {}
        self.seen: set[int] = set()
        """Steps that are or were needed."""
        self.open = 0
        """Number of needed steps without a result."""
        self.dirty = 0
        """Number of completed steps whose readers are not updated yet."""
        self.missing: dict[int, int] = {}
        """By reader: number of results it still waits for before it is examined again."""
        self.waiters: dict[int, list[int]] = {}
        """By step: the readers that wait for its result."""
        self.output_ready = False
        self.outcome: Json | Failure | None = None
        self.completed_at_ms = 0
        self.step_failed = False


class Scope:
    """The run itself, or one of its sub-runs."""

    __slots__ = (
        "concurrency_max",
        "created_at_ms",
        "depth",
        "ended_at_ms",
        "first_item",
        "index",
        "inputs",
        "items",
        "items_done",
        "key",
        "kind",
        "number",
        "parent",
        "plan",
        "run_id",
        "sub_key",
        "variables",
    )

    def __init__(
        self,
        *,
        number: int,
        run_id: str,
        key: str,
        plan: CompiledFlow,
        inputs: list[Json],
        variables: dict[str, Json],
        parent: StepRun | None = None,
        kind: int = 0,
        sub_key: str = "",
        index: int = 0,
        concurrency_max: int = 0,
        first_item: int = 0,
        created_at_ms: int = 0,
    ) -> None:
        self.number = number
        self.run_id = run_id
        self.key = key
        self.plan = plan
        self.inputs = inputs
        self.variables = variables
        self.parent = parent
        self.kind = kind
        self.sub_key = sub_key
        self.index = index
        self.concurrency_max = concurrency_max
        self.first_item = first_item
        self.created_at_ms = created_at_ms
        self.ended_at_ms = 0
        self.depth: int = 0 if parent is None else parent.item.scope.depth + 1
        self.items: list[Item] = []
        """Items opened so far, in order."""
        self.items_done = 0

    @property
    def ended(self) -> bool:
        return self.items_done == len(self.inputs)


class JournaledRun:
    """The part of a run's state that `apply` alone changes."""

    __slots__ = (
        "adoptions",
        "adoptions_fruitless",
        "adoptions_in_a_row",
        "cancelled",
        "entries_journaled",
        "epoch",
        "inbox_taken",
        "last_at_ms",
        "quiet_ms",
        "signal_waits",
        "signals",
        "status",
    )

    def __init__(self) -> None:
        self.entries_journaled = 0
        self.last_at_ms = 0
        """Instant of the newest entry."""
        self.quiet_ms = 0
        """Time between the two newest entries."""
        self.epoch = 0
        self.adoptions = 0
        self.adoptions_in_a_row = 0
        """Adoptions since the newest fact or proof of survival, hand-overs excluded."""
        self.adoptions_fruitless = 0
        """Adoptions since the newest fact, hand-overs excluded."""
        self.cancelled = False
        self.inbox_taken: set[str] = set()
        """Ids of the messages that the run has taken."""
        self.signals: dict[tuple[int, str], deque[Json]] = {}
        """By item of the run and name: signals that no step has received yet, FIFO."""
        self.signal_waits: dict[tuple[int, str], deque[StepRun]] = {}
        """By item of the run and name: waiting steps, FIFO. Steps that have ended stay until they are met."""
        self.status: journal_pb2.RunStatus | None = None


class RunState(JournaledRun):
    """One partition of a run, with all its sub-runs."""

    __slots__ = (
        "blocked",
        "blocked_steps",
        "bytes_journaled",
        "dirty",
        "due",
        "ending",
        "engine_ready",
        "fresh",
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
        "wanted",
    )

    def __init__(self, run_id: str, partition: int, policy: state_pb2.Policy) -> None:
        super().__init__()
        self.run_id = run_id
        self.partition = partition
        self.policy = policy
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
        """True if some value of this run is in the blob store."""
        self.wanted: dict[str, bool] = {}
        """Blobs to load; True if a user supplied the id (`eval`)."""
        self.loaded: list[Stored] = []
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
        self.ending = False
        """True while the entry that ends the run is being journaled."""

    @property
    def root(self) -> Scope:
        return self.scopes[0]

    # A step uses a slot while it is IN_FLIGHT and its component has no open sub-run. These four methods keep count.

    def start_flight(self, step: StepRun) -> None:
        """Put a step in flight and take a slot for it."""
        step.enter(IN_FLIGHT)
        if not step.callbacks_live:
            self.slots_used += 1

    def leave_flight(self, step: StepRun, phase: Phase) -> None:
        """Move a step to `phase` and release its slot, if it uses one."""
        if step.phase is IN_FLIGHT and not step.callbacks_live:
            self.slots_used -= 1
        step.enter(phase)

    def lend_slot(self, step: StepRun) -> None:
        """Release the step's slot for a sub-run that its component has started."""
        if not step.callbacks_live and step.phase is IN_FLIGHT:
            self.slots_used -= 1
        step.callbacks_live += 1

    def reclaim_slot(self, step: StepRun) -> None:
        """Take the step's slot again after its last sub-run has ended, beyond the bound if need be."""
        step.callbacks_live -= 1
        if not step.callbacks_live and step.phase is IN_FLIGHT:
            self.slots_used += 1

    def push_timer(self, step: StepRun) -> None:
        """Queue the step for its `wake_at_ms`."""
        item = step.item
        heappush(self.timers, (step.wake_at_ms, item.scope.number, item.index, step.index, step))

    def next_wake_ms(self) -> int | None:
        """Return the instant at which to call `decide` even if nothing happens before."""
        timers = self.timers
        while timers and timers[0][4].wake_at_ms != timers[0][0]:
            heappop(timers)
        return timers[0][0] if timers else None

    def begin_ending(self) -> None:
        """Make no further decisions: the entry that ends the run is being journaled."""
        self.ending = True

    def note_journaled(self, size_bytes: int) -> None:
        """Count entries that were written or read back toward the size limit of the journal."""
        self.bytes_journaled += size_bytes

    def take_wanted(self) -> dict[str, bool]:
        """Return the blobs to load, each with True if a user supplied the id, and clear the list."""
        wanted, self.wanted = self.wanted, {}
        return wanted
