"""The state of a run tree, and the closed list of actions that `decide` may return. Data only.

Numbers: a *scope* is the run itself (0) or a sub-run (n = the n-th SubRunStarted of the journal); an *item* is an
index within its scope; a *step* is an index within its scope's flow.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from enum import IntEnum
from heapq import heappop
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from stepflow.codec import Json

if TYPE_CHECKING:
    from stepflow.errors import Failure
    from stepflow.flow import CompiledFlow, Env
    from stepflow.mesh.v1 import journal_pb2, state_pb2
    from stepflow.routing.table import NoRoute, Target

ENGINE_VERSION = 1
"""Raised when entries would be understood differently; placement respects it."""

ADOPTIONS_IN_A_ROW_MAX = 5
"""A run that has killed this many owners without one fact in between is given up."""

INNOCENT_MS = 60_000
"""A run that an owner had for so long did not kill it: what kills does so at once. It waits for a timer or a long call,
and its owners died, or lost their sessions, for other reasons."""

ADOPTIONS_FRUITLESS_MAX = 20
"""The same for a run whose owners outlive the moment in which they take it up, but never its next step. More, since a
run that waits for a long time may lose as many owners through no fault of its own."""

JOURNAL_ENTRIES_MAX = 50_000
JOURNAL_BYTES_MAX = 64 * 1024 * 1024

ITEMS_MAX = 100_000
"""Items of one sub-run."""

DEPTH_MAX = 64
"""Sub-runs within sub-runs; a flow that calls itself ends here."""

OUTPUT = -1
"""Stands for the item's output expression where a step index is expected."""

FINISH = -2
"""Stands for the evaluation of that expression, once everything that it needs is complete."""


class Phase(IntEnum):
    """What an active step (needed, everything it needs complete, itself not complete) is doing."""

    READY = 1
    """Waits for a place in the window."""
    IN_FLIGHT = 2
    """A call to a host was asked for."""
    RETRYING = 3
    """Waits for the time of its next attempt."""
    SLEEPING = 4
    """Waits for a durable timer."""
    PARENT = 5
    """Waits for the sub-run that the engine opened for it."""
    WAITING = 6
    """Waits for a signal, and for a timer that ends the waiting."""
    SETTLING = 7
    """Its outcome is on its way into the journal."""


class Stored(Json):
    """A JSON value that lives in the blob store; `raw` is empty unless it is loaded."""

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


class StepRun:
    """An active step of one item."""

    __slots__ = (
        "attempt",
        "call_id",
        "callbacks_live",
        "component_failed",
        "index",
        "item",
        "memo",
        "phase",
        "ready_at",
        "rejoin",
        "signal",
        "started_at_ms",
        "sub_runs",
        "transport_failed",
        "wake_at_ms",
    )

    def __init__(self, item: Item, index: int, ready_at: int) -> None:
        self.item = item
        self.index = index
        self.phase = Phase.READY
        self.ready_at = ready_at
        """Adoptions of the run when it became ready."""
        self.transport_failed = 0
        self.component_failed = 0
        self.attempt = 0
        """Of the call in flight."""
        self.call_id = 0
        """What the owner calls it by; 0 before it is sent."""
        self.rejoin = 0
        """An attempt that a host still holds: the next dispatch joins it instead of making another."""
        self.started_at_ms = 0
        self.wake_at_ms = 0
        self.signal: Json | None = None
        """What came with the signal that it has got."""
        self.sub_runs: list[Scope] | None = None
        self.callbacks_live = 0
        """Sub-runs of this step's component that have not ended; while there are any, its place is lent."""
        self.memo: Any = None
        """What the engine's own components keep between two decisions; rebuilt at will."""

    def rejoin_attempt(self, attempt: int) -> None:
        """Let the next dispatch join this attempt, which a host still holds, instead of making another."""
        self.rejoin = attempt

    def note_sent(self, call_id: int) -> None:
        """Note the number under which this owner has sent the call in flight to a host."""
        self.call_id = call_id

    @property
    def id(self) -> str:
        return self.item.scope.plan.steps[self.index].id

    @property
    def key(self) -> str:
        """The idempotency key: the same over all attempts and owners."""
        item = self.item
        return f"{item.scope.key}/{item.index + item.scope.first_item}/{self.id}"


class Item:
    """One input of a scope, on its way to an outcome."""

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
        self.dirty = 0
        """Completed steps whose waiters have not been told."""
        self.open = 0
        """Needed steps that are not complete."""
        self.missing: dict[int, int] = {}
        """How many completions a step (or OUTPUT) still waits for before it is examined again."""
        self.waiters: dict[int, list[int]] = {}
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
        """Opened so far, in order."""
        self.items_done = 0

    @property
    def ended(self) -> bool:
        return self.items_done == len(self.inputs)


class RunState:
    """One partition of a run, with all its sub-runs."""

    __slots__ = (
        "adoptions",
        "adoptions_fruitless",
        "adoptions_in_a_row",
        "blocked",
        "blocked_steps",
        "bytes_journaled",
        "cancelled",
        "dirty",
        "due",
        "ending",
        "engine_ready",
        "entries_journaled",
        "epoch",
        "fresh",
        "inbox_taken",
        "last_at_ms",
        "loaded",
        "lost_blob",
        "opening",
        "partition",
        "places_taken",
        "policy",
        "ready",
        "run_id",
        "scopes",
        "scopes_ended",
        "scopes_live",
        "signal_waits",
        "signalled",
        "signals",
        "status",
        "stored",
        "timers",
        "unopened",
        "wanted",
    )

    def __init__(self, run_id: str, partition: int, policy: state_pb2.Policy) -> None:
        self.run_id = run_id
        self.partition = partition
        self.policy = policy
        self.scopes: list[Scope] = []
        self.scopes_live = 0
        self.adoptions = 0
        self.adoptions_in_a_row = self.adoptions_fruitless = 0
        self.epoch = 0
        self.entries_journaled = 0
        self.bytes_journaled = 0
        self.last_at_ms = 0
        """Instant of the newest entry."""
        self.cancelled = False
        self.inbox_taken: set[str] = set()
        self.signals: dict[tuple[int, str], deque[Json]] = {}
        """By item of the run and name: signals that no step has got yet, in the order of their coming."""
        self.signal_waits: dict[tuple[int, str], deque[StepRun]] = {}
        """The steps that wait for one, in the order of their beginning; some have long ended."""
        self.status: journal_pb2.RunStatus | None = None
        # The volatile part.
        self.dirty: deque[tuple[Item, int]] = deque()
        """Completed steps whose waiters have not been told."""
        self.unopened: deque[tuple[StepRun, journal_pb2.Entry]] = deque()
        """Sub-runs recorded but not opened: their flow or inputs may lie in the blob store."""
        self.blocked: list[tuple[Item, int]] = []
        """Expressions that wait for a blob; the second member as in `dirty`, or OUTPUT, or FINISH."""
        self.blocked_steps: list[StepRun] = []
        """Ready steps whose input waits for a blob."""
        self.opening: deque[Scope] = deque()
        """Scopes that may open further items."""
        self.wanted: dict[str, bool] = {}
        """Blobs to be brought; true where the id came from a user (`eval`)."""
        self.stored = False
        """Some value of this run lies in the blob store."""
        self.lost_blob = ""
        """A blob of the run's own that is gone: the run cannot go on."""
        self.loaded: list[Stored] = []
        self.fresh: list[StepRun] = []
        self.engine_ready: list[StepRun] = []
        self.ready: list[tuple[int, int, int, StepRun]] = []
        """Heap: item, step, scope."""
        self.places_taken = 0
        self.timers: list[tuple[int, int, int, int, StepRun]] = []
        """Heap: instant, then scope, item and step to break ties."""
        self.due: list[StepRun] = []
        """Parents whose sub-run has ended."""
        self.signalled: list[StepRun] = []
        """Steps that have got their signal."""
        self.scopes_ended: list[Scope] = []
        self.ending = False
        """The run's end is on its way into the journal."""

    @property
    def root(self) -> Scope:
        return self.scopes[0]

    def begin_ending(self) -> None:
        """Make no further decisions: the entry that ends the run is being journaled."""
        self.ending = True

    def note_journaled(self, size_bytes: int) -> None:
        """Count the size of entries that were written or read back toward the bound of the journal."""
        self.bytes_journaled += size_bytes

    def take_wanted(self) -> dict[str, bool]:
        """Return the blobs to load, each with True where a user supplied the id, and clear the list."""
        wanted, self.wanted = self.wanted, {}
        return wanted

    def next_wake_ms(self) -> int | None:
        """Return the instant at which `decide` should be asked again even if nothing happens."""
        timers = self.timers
        while timers and timers[0][4].wake_at_ms != timers[0][0]:
            heappop(timers)
        return timers[0][0] if timers else None


class Routes(Protocol):
    """What the engine asks of the mesh's routing table."""

    def resolve(self, path: str, input: Json) -> Target | NoRoute | None:
        """None: not known yet, a server that may have the component is still starting."""
        ...

    def may_be_engine(self, path: str) -> bool: ...


Blobs = Mapping[str, bytes | None]
"""Blobs that were brought, by id; None = there is no such blob."""


class Append(msgspec.Struct, frozen=True):
    """Journal this fact: move a large payload into the blob store, apply the entry, ask `decide` again."""

    entry: journal_pb2.Entry


class Dispatch(msgspec.Struct, frozen=True):
    """Call a component. Exactly one of `input` and `blob` is set."""

    step: StepRun
    attempt: int
    target: Target
    input: bytes
    blob: str = ""


class CancelCall(msgspec.Struct, frozen=True):
    """The call in flight is not wanted any more."""

    step: StepRun


class ScopeEnded(msgspec.Struct, frozen=True):
    """A sub-run has ended: whoever waits for it from outside may be answered."""

    scope: Scope


class WantBlob(msgspec.Struct, frozen=True):
    """Bring the bytes of this blob. `shared`: the id is a user's (a flow for `eval`), not one of the run's own."""

    blob: str
    shared: bool = msgspec.field(default=False)


Action = Append | Dispatch | CancelCall | ScopeEnded | WantBlob
