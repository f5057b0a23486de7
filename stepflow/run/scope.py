"""Scopes, items and steps: the tree below a run's state. Data only.

Numbers: a *scope* is the run itself (0) or a sub-run (n = the n-th SubRunStarted of the journal); an *item* is an
index within its scope; a *step* is an index within its scope's flow. See `state` for the writers of each part.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.run.phases import READY, TARGETS, IllegalTransition, Phase

if TYPE_CHECKING:
    from stepflow.codec import Json
    from stepflow.errors import Failure
    from stepflow.flow import CompiledFlow, Env
    from stepflow.flow.values import Value


class JournaledStep:
    """The part of an active step with `apply` as the only writer.

    `StepRun` sets the initial values: a second constructor would cost every step a call.
    """

    __slots__ = ("component_failed", "signal", "started_at_ms", "transport_failed", "wait_ms", "wake_at_ms")

    transport_failed: int
    """Failed attempts charged to the transport budget."""
    component_failed: int
    """Failed attempts charged to the step's own budget."""
    started_at_ms: int
    """Of an engine component that waits: when its attempt began, which may have been under an earlier owner. Else 0."""
    wake_at_ms: int
    """Instant of the step's only valid timer; -1 if the timer was cancelled."""
    wait_ms: int
    """The same wait as a duration; 0 = unknown. Bounds the wait under a later owner."""
    signal: Json | None
    """Payload of the signal that the step received."""


class StepRun(JournaledStep):
    """An active step of an item."""

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
        "sub_runs",
    )

    def __init__(self, item: Item, index: int, ready_at: int) -> None:
        self.transport_failed = self.component_failed = 0
        self.started_at_ms = self.wake_at_ms = self.wait_ms = 0
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
        """Let the next dispatch join an attempt that a host still holds, instead of starting another."""
        self.rejoin = attempt

    def note_sent(self, call_id: int) -> None:
        """Note the owner's number for the call in flight."""
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
    """An input of a scope, and the progress toward an outcome."""

    __slots__ = (
        "active",
        "completed_at_ms",
        "dirty",
        "env",
        "index",
        "marked",
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

        self.marked: set[str] | None = None
        """Marked values of an input in the blob store, kept once the input was loaded."""
        self.output_ready = False
        self.outcome: Json | Failure | None = None
        self.completed_at_ms = 0
        self.step_failed = False


class Scope:
    """The root run or a sub-run."""

    __slots__ = (
        "batch",
        "concurrency_max",
        "copied_bytes",
        "created_at_ms",
        "depth",
        "ended_at_ms",
        "first_item",
        "index",
        "inputs",
        "items",
        "items_done",
        "iterated",
        "key",
        "kind",
        "number",
        "outcome_bytes",
        "parent",
        "plan",
        "run_id",
        "sub_key",
        "value_bytes_max",
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
        value_bytes_max: int = PAYLOAD_BYTES_MAX,
        batch: bool = False,
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
        self.batch = batch
        """Of the root: the run has several items, not all of which may be in this partition."""

        self.ended_at_ms = 0
        self.depth: int = 0 if parent is None else parent.item.scope.depth + 1
        self.items: list[Item] = []
        """Items opened so far, in order."""
        self.items_done = 0
        self.outcome_bytes = 0
        """Bytes of the items' results, of a `map`."""
        self.copied_bytes = 0
        """Bytes of the items' results that are in memory only."""
        self.iterated: tuple[str, Value] | None = None
        """Of an iteration with a result: the member that counts, `result` or `next`. From engine version 2 on."""
        self.value_bytes_max = value_bytes_max
        """Bound on the composed values of the items."""

    @property
    def ended(self) -> bool:
        return self.items_done == len(self.inputs)
