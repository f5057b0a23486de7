"""Driving one partition of a run: the engine's decisions in, effects out, nothing out before it is journaled.

The rule of this module is *output commit*: what follows from entries up to n (dispatches, replies, acknowledgements)
is released when n is committed. `feed` journals and applies a fact; `turn` asks the engine what to do and queues the
entries and effects; the executor's flush turns them into one write; `committed` lets the effects go.

The entry that ends the run is written together with status, results and the end of the assignment, or not at all:
from `RunCompleted` until those are composed, the drive has nothing to write.

All methods run on the event loop and none awaits between reading and changing the state. What must wait (blobs) runs
beside, and comes back with `feed` or `turn`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, TypeAlias

import msgspec

from stepflow.codec import INLINE_BYTES_MAX, Json, encode
from stepflow.errors import Code, Failure, Invalid, NotFound, StepflowError
from stepflow.flow import InputValidator
from stepflow.mesh.v1 import host_pb2, state_pb2
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run import (
    Action,
    Append,
    CancelCall,
    Dispatch,
    Phase,
    RunState,
    Scope,
    ScopeEnded,
    StepRun,
    WantBlob,
    apply,
    decide,
    settle,
    start_callback,
)
from stepflow.run.builtins import callback_plan
from stepflow.run.entries import failure_from_pb, failure_to_pb, flow_result, json_of
from stepflow.run.views import StepEvent, call_event, step_event
from stepflow.store import Delete, Put, keys
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

    from executor.hosts.pool import Hosts, InFlight, Peer
    from stepflow.store import KeyValue

log = get_logger(__name__)

ENTRIES_BYTES_MAX = 192 * 1024
"""Entries written under one key; a flush takes several keys when there are more."""

RESULTS_INLINE_BYTES_MAX = 256 * 1024
"""All results of a partition that stand in the store itself; above it the single ones go to the blob store."""


MESSAGE_CHARS_MAX = 1_000
"""Of a failure whose share of those bytes is too small for more."""


class Owner(Protocol):
    """What a drive needs of its executor."""

    hosts: Hosts

    def now_ms(self) -> int: ...
    def mark_dirty(self, drive: Drive) -> None: ...
    def wake_at(self, drive: Drive, at_ms: int) -> None: ...
    def spawn(self, drive: Drive, work: Coroutine[object, object, None]) -> None: ...
    def safely(self, drive: Drive, work: Callable[..., None], *arguments: object) -> None: ...
    def ended(self, drive: Drive) -> None: ...
    async def put_blob(self, run_id: str, content: bytes) -> str: ...
    async def get_blob(self, run_id: str, blob: str, *, shared: bool) -> bytes | None: ...


class Ack:
    """Tell the host that a result is in the journal."""

    __slots__ = ("attempt", "host", "key")

    def __init__(self, host: str, key: str, attempt: int) -> None:
        self.host, self.key, self.attempt = host, key, attempt


class Reply:
    """Answer a component's request about a scope."""

    __slots__ = ("callback_id", "peer", "scope")

    def __init__(self, peer: Peer, callback_id: int, scope: Scope) -> None:
        self.peer, self.callback_id, self.scope = peer, callback_id, scope


Effect: TypeAlias = Dispatch | CancelCall | ScopeEnded | Ack | Reply
Listener: TypeAlias = "Callable[[StepEvent], None]"


class Drive:
    """One owned partition."""

    def __init__(self, owner: Owner, state: RunState, record: state_pb2.RunRecord, *, assignment: KeyValue) -> None:
        self.owner = owner
        self.state = state
        self.record = record
        self.run_id = state.run_id
        self.partition = state.partition
        self.flow_id = record.flow_id
        self.assignment = assignment
        self.epoch = assignment.create_revision
        self.calls: dict[int, InFlight] = {}
        """Those of its calls that hosts have, by call id; kept by `Hosts`."""
        self.listener: Listener | None = None
        self.paused = True
        """Until the adoption is over: what hosts hold must be known before anything is dispatched."""
        self.gone = False
        """Not ours any more: whatever still comes back for it is dropped."""
        self.refusal: StepflowError | None = None
        """Why the store would not take what was to be written."""
        self.doomed = False
        """Ends because of such a refusal."""
        self.written: asyncio.Event | None = None
        """Set whenever a write of this drive is decided; None where nobody waits for that."""
        self.holders: dict[str, tuple[int, str]] = {}
        """By key: the attempt that a host holds, and that host. Its dispatch goes there and joins it."""
        self._seq = state.entries_journaled
        self._buffer: list[pb.Entry] = []
        self._effects: list[Effect] = []
        self._writes = 0
        """Submitted and not committed."""
        self._blobs: dict[str, bytes | None] = {}
        self._bringing: set[str] = set()
        self._waiters: dict[int, list[Reply]] = {}
        """Call-backs that wait for a scope to end, by its number."""
        self._opening: dict[int, tuple[Peer, int, bool]] = {}
        """Call-backs that wait for a scope to be opened, by its number: host, call-back, and if to wait for its end."""
        self._closing = False
        self._final: list[Put | Delete] = []
        """What ends the run besides its last entries, in the same transaction."""
        self._final_taken = False

    # --- facts --------------------------------------------------------------------------------------------------------

    def feed(self, entry: pb.Entry) -> None:
        """Record a fact: it will be in the next flush."""
        if self.listener is not None:
            event = step_event(self.state, entry)
            if event is not None:
                self._tell(event)
        apply(self.state, entry)
        self._buffer.append(entry)

    def adopted(self, executor_id: str, *, handed_over: bool = False, unnoted_owner: str = "") -> None:
        """Record that this owner has come: its first entry."""
        fact = pb.Adopted(
            epoch=self.epoch, executor_id=executor_id, handed_over=handed_over, unnoted_owner=unnoted_owner
        )
        self.feed(pb.Entry(at_ms=self.owner.now_ms(), adopted=fact))

    def survived(self) -> None:
        """Record that this owner lives although it has taken up a run that may have killed others."""
        if not self.gone and not self._closing and self.state.status is None and self.state.adoptions_in_a_row:
            self.feed(pb.Entry(at_ms=self.owner.now_ms(), survived=pb.Survived()))
            self.turn()

    def fail(self, failure: Failure) -> None:
        """End the run with this failure, whatever it was about to do. Ask for a `turn` afterwards."""
        if self.state.status is None:
            self.state.ending = True
            fact = pb.RunCompleted(status=pb.RUN_STATUS_FAILED, failure=failure_to_pb(failure))
            self.feed(pb.Entry(at_ms=self.owner.now_ms(), run_completed=fact))

    def on_result(self, flight: InFlight, result: host_pb2.CallResult) -> None:
        """A host has answered a call. Ask for a `turn` afterwards."""
        step = flight.step
        ack = Ack(flight.peer.id, result.key, result.attempt)
        if step.item.active.get(step.index) is not step or step.phase is not Phase.IN_FLIGHT:
            self._effects.append(ack)  # superseded: nobody needs it
            return
        failed = result.WhichOneof("outcome") == "failure"
        outcome: Json | Failure = failure_from_pb(result.failure) if failed else json_of(result.result)
        entry = settle(
            self.state,
            step,
            outcome,
            origin=result.failure.origin if failed else pb.ORIGIN_UNSPECIFIED,
            attempt=flight.attempt,
            started_at_ms=result.started_at_ms,
            host=flight.peer.id,
            now_ms=self.owner.now_ms(),
        )
        self.feed(entry)
        self._effects.append(ack)

    def on_progress(self, flight: InFlight, progress: host_pb2.Progress) -> None:
        if self.listener is not None:
            self._tell(call_event(flight.step, "progress", self.owner.now_ms(), progress.message))

    def on_lost(self, flight: InFlight, why: str) -> None:
        """The host of a call is gone, and the call with it. Ask for a `turn` afterwards."""
        step = flight.step
        if step.item.active.get(step.index) is step and step.phase is Phase.IN_FLIGHT:
            self._unreachable(step, flight.attempt, why, flight.peer.id)

    def on_inbox(self, message_id: str, message: state_pb2.InboxMessage) -> None:
        """A cancel or a signal has come in. Taken at most once. Ask for a `turn` afterwards."""
        if self.state.status is None and not self.state.ending and message_id not in self.state.inbox_taken:
            item = message.item - self.state.root.first_item
            taken = pb.InboxTaken(id=message_id, cancel=message.cancel)
            if message.HasField("signal"):
                if not 0 <= item < len(self.state.root.inputs):
                    return  # another partition's
                taken.signal.CopyFrom(message.signal)
            self.feed(pb.Entry(at_ms=self.owner.now_ms(), item=max(item, 0), inbox_taken=taken))

    # --- decisions ----------------------------------------------------------------------------------------------------

    def turn(self) -> None:
        """Do what follows from all that has been fed."""
        if self.gone or self._closing or self.paused:
            return
        state, owner = self.state, self.owner
        now_ms = owner.now_ms()
        again = True
        while again:
            again = False
            for action in decide(state, now_ms, owner.hosts, self._blobs):
                again = self._take(action) or again
        if self._blobs and not (state.blocked or state.blocked_steps or state.unopened):
            self._blobs.clear()
        if state.status is not None:
            self._closing = True
            owner.spawn(self, self._close())
        elif self._buffer:
            owner.mark_dirty(self)
        elif not self._writes:
            self._release()
        if self._opening:
            self._answer_opened()
        wake = state.next_wake_ms()
        if wake is not None:
            owner.wake_at(self, wake)

    def _tell(self, event: StepEvent) -> None:
        """Tell whoever watches. What a watcher does wrong is no business of the run's."""
        assert self.listener is not None
        try:
            self.listener(event)
        except Exception as error:
            log.error("a listener failed and is told nothing more", run_id=self.run_id, error=type(error).__name__)
            self.listener = None

    def _take(self, action: Action) -> bool:
        """Queue an action; return whether it has changed the state, so that `decide` is to be asked again."""
        if isinstance(action, Append):
            entry = action.entry
            if len(entry.step_completed.result.json) > INLINE_BYTES_MAX:
                self.owner.spawn(self, self._offload(entry))
                return False
            self.feed(entry)
            return True
        if isinstance(action, WantBlob):
            if action.blob not in self._bringing:
                self._bringing.add(action.blob)
                self.owner.spawn(self, self._bring(action))
            return False
        self._effects.append(action)
        return False

    async def _offload(self, entry: pb.Entry) -> None:
        """Move a large result of the engine's own into the blob store, then journal it by its id."""
        payload = entry.step_completed.result
        payload.blob = await self.owner.put_blob(self.run_id, payload.json)
        if not self.gone and self.state.status is None:
            self.feed(entry)
            self.turn()

    async def _bring(self, want: WantBlob) -> None:
        content = await self.owner.get_blob(self.run_id, want.blob, shared=want.shared)
        self._bringing.discard(want.blob)
        self._blobs[want.blob] = content
        self.turn()

    # --- writing ------------------------------------------------------------------------------------------------------

    @property
    def writable(self) -> bool:
        """Whether there is something to write. The last entry waits for what is written with it."""
        return bool(self._final) or (bool(self._buffer) and not self._closing)

    def take_writes(self) -> tuple[list[list[Put | Delete]], list[Effect]]:
        """Return what is to be written, a list of operations for each transaction, in order, and the effects that
        wait for the last of them."""
        effects, self._effects = self._effects, []
        self._writes += 1
        writes: list[list[Put | Delete]] = [[put] for put in self._journal_writes()]
        if self._final:
            writes.append([*(writes.pop() if writes else []), *self._final])
            self._final = []
            self._final_taken = True
        return writes, effects

    def _journal_writes(self) -> list[Put]:
        entries, self._buffer = self._buffer, []
        writes: list[Put] = []
        first = 0
        size = 0
        for index, entry in enumerate(entries):
            size += entry.ByteSize()
            if size >= ENTRIES_BYTES_MAX or index == len(entries) - 1:
                batch = pb.EntryBatch(entries=entries[first : index + 1]).SerializeToString()
                writes.append(Put(keys.journal(self.run_id, self.state.partition, self._seq), batch))
                self._seq += index + 1 - first
                self.state.bytes_journaled += len(batch)
                first, size = index + 1, 0
        return writes

    def committed(self, effects: list[Effect]) -> None:
        """The writes are durable: let their effects go."""
        self._writes -= 1
        if self.gone:
            return
        if self.written is not None:
            self.written.set()
        for effect in effects:
            self._perform(effect)
        if self._final_taken and not self._writes:
            self.owner.ended(self)
        if not self._writes and not self._buffer and self._effects:
            self._release()

    def _release(self) -> None:
        effects, self._effects = self._effects, []
        for effect in effects:
            self._perform(effect)

    def hand_over(self, assignment: str) -> bool:
        """Write what there is, and with it the assignment of the next owner; nothing is decided here any more.

        Return false for a run that is just ending: there is nothing to hand over.
        """
        if self._closing or self.gone:
            return False
        self._closing = True
        self._final = [
            Delete(self.assignment.key),
            Put(assignment, state_pb2.Assignment(handed_over=True).SerializeToString()),
        ]
        self.owner.mark_dirty(self)
        return True

    async def _close(self) -> None:
        """Write the end of the run: last entries, status, results, and the assignment gone, all at once."""
        results = await self._results()
        p = self.state.partition
        self._final = [
            Put(keys.status(self.run_id, p), self._final_status().SerializeToString()),
            Put(keys.results(self.run_id, p), results.SerializeToString()),
            Delete(self.assignment.key),
        ]
        self.owner.mark_dirty(self)

    async def _results(self) -> state_pb2.PartitionResults:
        items = self.state.root.items
        inline_max = min(INLINE_BYTES_MAX, RESULTS_INLINE_BYTES_MAX // max(1, len(items)))
        results = state_pb2.PartitionResults()
        for item in items:
            result = results.items.add(
                item=self.state.root.first_item + item.index, completed_at_ms=item.completed_at_ms
            )
            outcome = item.outcome
            assert outcome is not None, "a run ended with an item that has not"
            if isinstance(outcome, Failure):
                result.status = pb.RUN_STATUS_CANCELLED if outcome.code is Code.CANCELLED else pb.RUN_STATUS_FAILED
                result.failure.CopyFrom(failure_to_pb(_shortened(outcome, inline_max)))
            else:
                result.status = pb.RUN_STATUS_COMPLETED
                if len(outcome.raw) > inline_max:
                    result.result.blob = await self.owner.put_blob(self.run_id, outcome.raw)
                else:
                    result.result.json = outcome.raw
        return results

    def _final_status(self) -> state_pb2.PartitionStatus:
        state = self.state
        items = state.root.items
        cancelled = sum(isinstance(item.outcome, Failure) and item.outcome.code is Code.CANCELLED for item in items)
        failed = sum(isinstance(item.outcome, Failure) for item in items) - cancelled
        return state_pb2.PartitionStatus(
            status=state.status or pb.RUN_STATUS_UNSPECIFIED,
            items_total=len(items),
            items_completed=len(items) - failed - cancelled,
            items_failed=failed,
            items_cancelled=cancelled,
            created_at_ms=self.record.created_at_ms,
            completed_at_ms=state.last_at_ms,
        )

    # --- effects ------------------------------------------------------------------------------------------------------

    def _perform(self, effect: Effect) -> None:
        if isinstance(effect, Dispatch):
            self._dispatch(effect)
        elif isinstance(effect, Ack):
            self.owner.hosts.ack(effect.host, effect.key, effect.attempt)
        elif isinstance(effect, CancelCall):
            self.owner.hosts.cancel(effect.step)
        elif isinstance(effect, ScopeEnded):
            for reply in self._waiters.pop(effect.scope.number, ()):
                self._perform(reply)
        else:
            self.owner.spawn(self, self._report(effect))

    def waits_for(self, action: Dispatch) -> bool:
        """Whether the call is still wanted."""
        step = action.step
        return step.phase is Phase.IN_FLIGHT and step.attempt == action.attempt and not self._closing

    def _dispatch(self, action: Dispatch) -> None:
        if not self.waits_for(action):
            return
        if len(action.input) > INLINE_BYTES_MAX:
            self.owner.spawn(self, self._dispatch_large(action))
        else:
            self._send(action, pb.Payload(json=action.input))

    async def _dispatch_large(self, action: Dispatch) -> None:
        blob = await self.owner.put_blob(self.run_id, action.input)
        if not self.gone and self.waits_for(action):
            self._send(action, pb.Payload(blob=blob))

    def _send(self, action: Dispatch, payload: pb.Payload) -> None:
        if self.listener is not None:
            self._tell(call_event(action.step, "started", self.owner.now_ms()))
        held = self.holders.pop(action.step.key, None) if self.holders else None
        holder = held[1] if held is not None and held[0] == action.attempt else ""
        if not self.owner.hosts.dispatch(self, action, payload, holder=holder):
            self.unreachable(action)

    def unreachable(self, action: Dispatch) -> None:
        """No host took the call."""
        if self.gone or not self.waits_for(action):
            return
        self._unreachable(action.step, action.attempt, f"no live host runs plugin {action.target.plugin!r}", "")
        self.turn()

    def _unreachable(self, step: StepRun, attempt: int, why: str, host: str) -> None:
        entry = settle(
            self.state,
            step,
            Failure(Code.UNREACHABLE, why),
            origin=pb.ORIGIN_DISPATCH,
            attempt=attempt,
            started_at_ms=0,
            host=host,
            now_ms=self.owner.now_ms(),
        )
        self.feed(entry)

    # --- what components ask for --------------------------------------------------------------------------------------

    def on_callback(self, flight: InFlight, callback: host_pb2.Callback) -> None:
        self.owner.spawn(self, self._answer(flight, callback))

    async def _answer(self, flight: InFlight, callback: host_pb2.Callback) -> None:
        try:
            kind = callback.WhichOneof("request")
            if kind == "start_run":
                await self._start_run(flight, callback)
            elif kind == "get_run":
                self._get_run(flight, callback)
            else:
                flow = await self.owner.get_blob(self.run_id, callback.get_flow.flow_id, shared=True)
                if flow is None:
                    raise NotFound("FLOW_NOT_FOUND", f"there is no flow {callback.get_flow.flow_id}")
                flight.peer.reply(host_pb2.CallbackReply(callback_id=callback.callback_id, flow_json=flow))
        except StepflowError as error:
            reply = host_pb2.CallbackReply(callback_id=callback.callback_id)
            reply.error.reason, reply.error.message = error.reason, error.message
            reply.error.not_found = isinstance(error, NotFound)
            flight.peer.reply(reply)

    async def _start_run(self, flight: InFlight, callback: host_pb2.Callback) -> None:
        request = callback.start_run
        document = await self._payload(request.flow, shared=True)
        inputs = await self._payload(request.inputs, shared=False)
        plan = callback_plan(document, request.overrides_json)
        validator = None if self.record.policy.input_unchecked else InputValidator.for_input(plan.flow)
        if validator is not None:
            values = msgspec.json.decode(inputs, type=list[msgspec.Raw])
            problem = validator.first_misfit(map(bytes, values))
            if problem is not None:
                number, pointer, message = problem
                raise Invalid(
                    "INPUT_INVALID", f"input {number} does not fit the flow's schema at {pointer or '/'}: {message}"
                )
        brought = {p.blob: text for p, text in ((request.flow, document), (request.inputs, inputs)) if p.blob}
        for payload, text in ((request.flow, document), (request.inputs, inputs)):
            if not payload.blob and len(text) > INLINE_BYTES_MAX:
                payload.blob = await self.owner.put_blob(self.run_id, text)
                brought[payload.blob] = text
        if self.gone or self._closing:
            return  # the call ends with the run, and its call-backs with it
        started = start_callback(self.state, flight.step, request, self.owner.now_ms())
        if isinstance(started, pb.Entry):
            self._opening[len(self.state.scopes) + len(self.state.unopened)] = (
                flight.peer,
                callback.callback_id,
                request.wait,
            )
            self._blobs.update(brought)  # after the last await: any turn before would have dropped them
            self.feed(started)
            self.turn()
        else:
            self._answer_when(started, Reply(flight.peer, callback.callback_id, started), wait=request.wait)

    def _answer_opened(self) -> None:
        """Answer, or let wait for their end, the call-backs whose sub-run has been opened meanwhile."""
        for number in [number for number in self._opening if number < len(self.state.scopes)]:
            peer, callback_id, wait = self._opening.pop(number)
            scope = self.state.scopes[number]
            self._answer_when(scope, Reply(peer, callback_id, scope), wait=wait)

    def _get_run(self, flight: InFlight, callback: host_pb2.Callback) -> None:
        run_id = callback.get_run.run_id
        for scope in self.state.scopes:
            if scope.run_id == run_id:
                reply = Reply(flight.peer, callback.callback_id, scope)
                self._answer_when(scope, reply, wait=callback.get_run.wait)
                return
        raise NotFound("RUN_NOT_FOUND", f"run {run_id} is not part of this run's tree")

    def _answer_when(self, scope: Scope, reply: Reply, *, wait: bool) -> None:
        if wait and not scope.ended:
            self._waiters.setdefault(scope.number, []).append(reply)
            return
        self._effects.append(reply)
        if not self._buffer and not self._writes:
            self._release()

    async def _payload(self, payload: pb.Payload, *, shared: bool) -> bytes:
        if not payload.blob:
            return payload.json
        content = await self.owner.get_blob(self.run_id, payload.blob, shared=shared)
        if content is None:
            raise NotFound("BLOB_NOT_FOUND", f"there is no blob {payload.blob}")
        return content

    async def _report(self, effect: Reply) -> None:
        scope = effect.scope
        report = host_pb2.RunReport(
            run_id=scope.run_id,
            flow_name=scope.plan.flow.name or "",
            status=scope_status(scope),
            created_at_ms=scope.created_at_ms,
            completed_at_ms=scope.ended_at_ms,
        )
        for index in range(len(scope.inputs)):
            item = report.items.add(status=pb.RUN_STATUS_RUNNING)
            outcome = scope.items[index].outcome if index < len(scope.items) else None
            if outcome is None:
                continue
            item.status = pb.RUN_STATUS_FAILED if isinstance(outcome, Failure) else pb.RUN_STATUS_COMPLETED
            text = flow_result(outcome)
            if len(text) > INLINE_BYTES_MAX:
                item.flow_result.blob = await self.owner.put_blob(self.run_id, text)
            else:
                item.flow_result.json = text
        effect.peer.reply(host_pb2.CallbackReply(callback_id=effect.callback_id, report=report))


def _shortened(failure: Failure, bytes_max: int) -> Failure:
    """Cut a failure down to its share of the partition's results; the journal has it in full."""
    if len(failure.data) + len(failure.message) <= bytes_max:
        return failure
    data = encode({"reason": "DETAILS_TOO_LARGE", "bytes": len(failure.data)}) if failure.data else b""
    return Failure(failure.code, failure.message[:MESSAGE_CHARS_MAX], data)


def scope_status(scope: Scope) -> pb.RunStatus:
    """A sub-run has failed if any of its steps has, whatever its items say."""
    if not scope.ended:
        return pb.RUN_STATUS_RUNNING
    return pb.RUN_STATUS_FAILED if any(item.step_failed for item in scope.items) else pb.RUN_STATUS_COMPLETED


__all__ = ["Drive", "Owner", "StepRun", "scope_status"]
