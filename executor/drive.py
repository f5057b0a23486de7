"""Driving a partition of a run: facts in, the engine's decisions out, no effect before its cause is journaled.

The rule of this module is *output commit*: the effects of entries up to n (dispatches, replies, acknowledgements) are
released when n is committed.

- `feed` applies a fact and puts the entry into the outbox.
- `turn` asks the engine for decisions, and queues entries and effects.
- The executor's flush writes the outbox of every partition in one transaction; `committed` releases the effects.
- The last entry is written together with status, results (`outcome`) and the end of the assignment, or not at all:
  `_close` queues these final records; between `RunCompleted` and them, nothing of the partition is written.
- All methods run on the event loop, and none awaits between reading and changing the state. Waiting work (blobs)
  runs in a task and comes back with `feed` or `turn`.

The parts: calls (`calls`), call-backs (`callbacks`), cancels and signals (`messages`), large values (`values`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias, assert_never

from executor.callbacks import RunCallbacks, send_report
from executor.calls import PartitionCalls
from executor.effects import Ack, AnswerCallback, Effect
from executor.messages import PartitionMessages
from executor.outbox import PartitionOutbox
from executor.outcome import partition_results, partition_status
from executor.values import PartitionValues
from stepflow.clock import SteadyClock
from stepflow.codec import INLINE_BYTES_MAX
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run import (
    Action,
    Append,
    CancelCall,
    Dispatch,
    RunState,
    ScopeEnded,
    WantBlob,
    apply,
    decide,
)
from stepflow.run.entries import failure_to_pb
from stepflow.run.large_values import note_outcome_stored, note_value_stored, take_large_outcomes, take_unstored
from stepflow.run.views import StepEvent, step_event
from stepflow.store import Delete, Put, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    from array import array
    from collections.abc import Callable, Coroutine

    from executor.blobs import RunBlobs
    from executor.hosts.caller import InFlight
    from executor.hosts.pool import HostPool
    from stepflow.errors import Failure, StepflowError
    from stepflow.flow.values import Stored
    from stepflow.run.scope import Item
    from stepflow.store import KeyValue
    from stepflow.value_budget import ValueBudget

log = get_logger(__name__)

PartitionId: TypeAlias = tuple[str, int]
"""Run and partition."""

Listener: TypeAlias = "Callable[[StepEvent], None]"


class Owner(Protocol):
    """The side of the executor that partitions use."""

    hosts: HostPool[PartitionDriver]
    blobs: RunBlobs
    value_budget: ValueBudget
    paused_ms: int

    def mark_dirty(self, driver: PartitionDriver, /) -> None: ...
    def wake_at(self, driver: PartitionDriver, at_ns: int, /) -> None: ...
    def spawn(self, driver: PartitionDriver, work: Coroutine[object, object, None]) -> None: ...
    def end_ownership(self, driver: PartitionDriver) -> None: ...


class PartitionDriver:
    """An owned partition. Implements `hosts.Caller`."""

    def __init__(
        self,
        owner: Owner,
        state: RunState,
        record: state_pb2.RunRecord,
        *,
        assignment: KeyValue,
        first_seqs: array[int],
    ) -> None:
        """`first_seqs`: number of the first entry of each value of the journal."""
        self.owner = owner
        self.state = state
        self.record = record
        self.run_id = state.run_id
        self.partition = state.partition
        self.flow_id = record.flow_id
        self.assignment = assignment
        self.epoch = assignment.create_revision

        self.outbox = PartitionOutbox(state, first_seqs)
        self.calls = PartitionCalls(self, owner.blobs)
        self.messages = PartitionMessages(self)
        self.waits_for = self.calls.waits_for
        # Each owner's time starts from its own wall clock and never jumps: all entries and timers use it.
        self.clock = SteadyClock()
        self.now_ms = self.clock.now_ms

        self.listener: Listener | None = None
        self.paused = True
        """Until the adoption is over: nothing is dispatched before the hosts have told what they hold."""
        self.closing = False
        """The end of this ownership is being composed or written: nothing is decided any more."""
        self.gone = False
        """No longer owned: results and timers that still come are dropped."""
        self.refusal: StepflowError | None = None
        """The first error with which the store refused a write."""
        self.doomed = False
        """Ends because of such a refusal."""

        self.written: asyncio.Event | None = None
        """Set whenever a write is decided; None while nothing waits for it."""
        self.values = PartitionValues(self, owner.blobs, owner.value_budget)
        self._callbacks: RunCallbacks | None = None
        """Made for the first call-back: most partitions have none."""

    # --- facts --------------------------------------------------------------------------------------------------------

    def feed(self, entry: pb.Entry) -> None:
        """Record a fact: apply the entry now, write the entry with the next flush."""
        if self.listener is not None:
            event = step_event(self.state, entry)
            if event is not None:
                self.tell(event)
        apply(self.state, entry)
        self.outbox.entries.append(entry)

    def note_adopted(self, executor_id: str, moved: state_pb2.Assignment) -> None:
        """Record the adoption: the first entry of an owner."""
        fact = pb.Adopted(
            epoch=self.epoch,
            executor_id=executor_id,
            handed_over=moved.handed_over,
            unnoted_owner="" if self.state.entries_journaled else moved.taken_from,
            given_back=moved.given_back,
        )
        self.feed(pb.Entry(at_ms=self.now_ms(), adopted=fact))

    def note_survived(self) -> None:
        """Record that the executor outlived the adoption of a suspicious run."""
        if not self.gone and not self.closing and self.state.status is None and self.state.adoptions_in_a_row:
            self.feed(pb.Entry(at_ms=self.now_ms(), survived=pb.Survived()))
            self.turn()

    def fail_run(self, failure: Failure) -> None:
        """End the run with a failure. Call `turn` afterwards."""
        if self.state.status is None:
            self.state.begin_ending()
            fact = pb.RunCompleted(status=pb.RUN_STATUS_FAILED, failure=failure_to_pb(failure))
            self.feed(pb.Entry(at_ms=self.now_ms(), run_completed=fact))

    def on_callback(self, flight: InFlight[PartitionDriver], callback: host_pb2.Callback) -> None:
        """Serve a call-back in a new task."""
        if self._callbacks is None:
            self._callbacks = RunCallbacks(self, self.owner.blobs)
        self.spawn(self._callbacks.answer(flight.peer, flight.step, callback))

    # --- decisions ----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Queue all decisions that follow from the facts fed so far. Idempotent."""
        if self.gone or self.closing or self.paused:
            return
        state, owner, outbox = self.state, self.owner, self.outbox

        # 1. Decide, until no action changes the state any more.
        now_ms = self.now_ms()
        again = True
        while again:
            again = False
            for action in decide(state, now_ms, owner.hosts.routes, self.values.blobs):
                again = self._queue_action(action) or again
        if state.large_outcomes:
            self._store_outcomes()
        if state.unstored:
            self._store_values()
        if self.values.active:
            self.values.after_turn()

        # 2. Write what there is; effects without new entries need not wait.
        if state.status is not None:
            self.closing = True
            self.spawn(self._close())
        elif outbox.entries:
            owner.mark_dirty(self)
        elif not outbox.undecided:
            self._release_effects()

        # 3. Answer call-backs whose sub-run is open now, and sleep until the next timer.
        if self._callbacks is not None:
            self._callbacks.answer_opened()
        wake_ms = state.next_wake_ms()
        if wake_ms is not None:
            owner.wake_at(self, self.clock.elapsed_at_ns(wake_ms))

    def spawn(self, work: Coroutine[object, object, None]) -> None:
        """Run work in a new task; a defect in the work gives the partition back."""
        self.owner.spawn(self, work)

    def queue_effect(self, effect: Effect) -> None:
        """Release an effect once all entries fed so far are durable."""
        self.outbox.effects.append(effect)
        if self.outbox.idle:
            self._release_effects()

    def _queue_action(self, action: Action) -> bool:
        """Queue an action; return True if the action changed the state, so `decide` must run again."""
        if isinstance(action, Append):
            entry = action.entry
            if len(entry.step_completed.result.json) > INLINE_BYTES_MAX:
                self.spawn(self._offload(entry))
                return False
            self.feed(entry)
            if self.messages.deferred and entry.HasField("signal_awaited"):
                self.messages.take_deferred()
            return True

        if isinstance(action, WantBlob):
            self.values.want(action)
            return False

        if isinstance(action, Dispatch) and len(action.input) > INLINE_BYTES_MAX:
            self.values.hold(len(action.input))
        self.outbox.effects.append(action)
        return False

    async def _offload(self, entry: pb.Entry) -> None:
        """Move a large result of an engine component into the blob store, then journal the blob's id."""
        payload = entry.step_completed.result
        size = len(payload.json)
        self.values.hold(size)
        payload.blob = await self.owner.blobs.put_blob(self.run_id, payload.json)
        payload.blob_bytes = size
        self.values.stored(size)
        if not self.gone and self.state.status is None:
            self.feed(entry)
            self.turn()

    def _store_outcomes(self) -> None:
        """Move large outcomes of items into the blob store. `_close` waits for none of them: it stores what is left."""
        for item, outcome in take_large_outcomes(self.state):
            self.values.hold(len(outcome.raw))
            self.spawn(self._store_outcome(item, outcome.raw))

    def _store_values(self) -> None:
        """Move large new values into the blob store. `_close` waits for none of them: it stores what is left."""
        for value in take_unstored(self.state):
            self.values.hold(value.size)
            self.spawn(self._store_value(value))

    async def _store_value(self, value: Stored) -> None:
        await self.owner.blobs.put_blob(self.run_id, value.raw)
        note_value_stored(value)
        self.values.stored(value.size)

    async def _store_outcome(self, item: Item, raw: bytes) -> None:
        blob = await self.owner.blobs.put_blob(self.run_id, raw)
        note_outcome_stored(item, blob, len(raw))
        self.values.stored(len(raw))

    def tell(self, event: StepEvent) -> None:
        """Pass an event to the listener; a raising listener is removed and never harms the run."""
        assert self.listener is not None
        try:
            self.listener(event)
        except Exception as error:
            log.error("listener failed, removed", run_id=self.run_id, error=type(error).__name__)
            self.listener = None

    # --- writing ------------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Return True if the outbox may be written now. The last entry waits for the final records."""
        return bool(self.outbox.final) or (bool(self.outbox.entries) and not self.closing)

    def committed(self, effects: list[Effect]) -> None:
        """Release the effects of a durable write."""
        outbox = self.outbox
        outbox.undecided -= 1
        if self.gone:
            return
        if self.written is not None:
            self.written.set()

        for effect in effects:
            self._perform(effect)
        if outbox.final_taken and not outbox.undecided:
            self.owner.end_ownership(self)
        if outbox.effects and outbox.idle:
            self._release_effects()

    def hand_over(self, assignment: str) -> bool:
        """Write all entries together with the assignment of the next owner; decide nothing any more.

        Return False for an ending partition.
        """
        if self.closing or self.gone:
            return False
        self.closing = True
        self.outbox.final = [
            Delete(self.assignment.key),
            Put(assignment, state_pb2.Assignment(handed_over=True).SerializeToString()),
        ]
        self.owner.mark_dirty(self)
        return True

    async def _close(self) -> None:
        """Write the end of the partition in one transaction: last entries, status, results, end of the assignment."""
        self.outbox.seal()
        results = await partition_results(self.state, self.owner.blobs, self.outbox.value_of)
        status = partition_status(self.state, self.record, self.owner.paused_ms)
        self.outbox.final = [
            Put(keys.status(self.run_id, self.partition), status.SerializeToString()),
            Put(keys.results(self.run_id, self.partition), results.SerializeToString()),
            Delete(self.assignment.key),
        ]
        self.owner.mark_dirty(self)

    # --- effects ------------------------------------------------------------------------------------------------------

    def _release_effects(self) -> None:
        for effect in self.outbox.take_effects():
            self._perform(effect)

    def _perform(self, effect: Effect) -> None:
        match effect:
            case Dispatch():
                self.calls.dispatch(effect)
            case Ack():
                self.owner.hosts.ack_result(effect.host, effect.key, effect.attempt)
            case CancelCall():
                self.owner.hosts.cancel_call(effect.step.call_id)
            case ScopeEnded():
                for answer in self._callbacks.take_waiting(effect.scope) if self._callbacks is not None else ():
                    self._perform(answer)
            case AnswerCallback():
                self.spawn(send_report(effect, self.run_id, self.owner.blobs))
            case _:
                assert_never(effect)

    def send_call(self, action: Dispatch, payload: pb.Payload, holder: str) -> bool:
        """Give a call to the pool of hosts; return False if no host runs the plugin and none is waited for."""
        return self.owner.hosts.dispatch(self, action, payload, holder=holder)


__all__ = ["Listener", "Owner", "PartitionDriver", "PartitionId"]
