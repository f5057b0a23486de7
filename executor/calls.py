"""The calls of a partition: dispatches out, and results and losses recorded as facts.

- A call is dispatched once its cause is journaled, and only while the step still waits for the call.
- An input above `INLINE_BYTES_MAX` travels as a blob.
- A result is acknowledged together with the entry that records the result; a superseded result, at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from executor.effects import Ack
from stepflow.codec import INLINE_BYTES_MAX, Json
from stepflow.errors import Code, Failure
from stepflow.log_lines import lines_from_pb
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.run import settle
from stepflow.run.entries import failure_from_pb, json_of
from stepflow.run.phases import IN_FLIGHT
from stepflow.run.secrets import text_without_secrets
from stepflow.run.views import call_event

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from executor.blobs import RunBlobs
    from executor.hosts.caller import InFlight
    from executor.outbox import PartitionOutbox
    from executor.values import PartitionValues
    from stepflow.mesh.v1 import host_pb2
    from stepflow.run import Dispatch, RunState, StepRun
    from stepflow.run.views import StepEvent


class CallingPartition(Protocol):
    """The side of a partition that calls use."""

    run_id: str
    state: RunState
    outbox: PartitionOutbox
    values: PartitionValues
    gone: bool
    closing: bool
    listener: Callable[[StepEvent], None] | None

    def now_ms(self) -> int: ...
    def feed(self, entry: pb.Entry) -> None: ...
    def turn(self) -> None: ...
    def tell(self, event: StepEvent) -> None: ...
    def spawn(self, work: Coroutine[object, object, None]) -> None: ...
    def send_call(self, action: Dispatch, payload: pb.Payload, holder: str) -> bool: ...


class PartitionCalls:
    """See the head of this module. After `on_result` and `on_lost` the partition needs a `turn`."""

    __slots__ = ("_blobs", "_partition", "holders")

    def __init__(self, partition: CallingPartition, blobs: RunBlobs) -> None:
        self.holders: dict[str, tuple[int, str]] = {}
        """By key: an attempt that a host holds, and the id of the host. The dispatch goes there and joins it."""
        self._partition = partition
        self._blobs = blobs

    # --- dispatches ---------------------------------------------------------------------------------------------------

    def waits_for(self, action: Dispatch) -> bool:
        """Return True if the step still waits for the call of this action."""
        step = action.step
        return step.phase is IN_FLIGHT and step.attempt == action.attempt and not self._partition.closing

    def dispatch(self, action: Dispatch) -> None:
        """Make a call, unless the step no longer waits for the call."""
        if len(action.input) > INLINE_BYTES_MAX:
            self._partition.spawn(self._dispatch_large(action))
        elif self.waits_for(action):
            self._send(action, pb.Payload(json=action.input))

    async def _dispatch_large(self, action: Dispatch) -> None:
        """Move the input to the blob store, then make the call. The partition holds memory for it since `decide`."""
        partition, size = self._partition, len(action.input)
        blob = await self._blobs.put_blob(partition.run_id, action.input) if self.waits_for(action) else ""
        partition.values.stored(size)
        if not partition.gone and self.waits_for(action):
            self._send(action, pb.Payload(blob=blob, blob_bytes=size))

    def _send(self, action: Dispatch, payload: pb.Payload) -> None:
        partition = self._partition
        if partition.listener is not None:
            partition.tell(call_event(action.step, "started", partition.now_ms()))
        held = self.holders.pop(action.step.key, None) if self.holders else None
        holder = held[1] if held is not None and held[0] == action.attempt else ""
        if not partition.send_call(action, payload, holder):
            self.on_unreachable(action)

    # --- what becomes of them -----------------------------------------------------------------------------------------

    def on_result(self, flight: InFlight[Any], result: host_pb2.CallResult) -> None:
        """Record a host's result of a call."""
        partition = self._partition
        step = flight.step
        ack = Ack(flight.peer.id, result.key, result.attempt)
        if step.item.active.get(step.index) is not step or step.phase is not IN_FLIGHT:
            partition.outbox.effects.append(ack)  # superseded: the host may drop it
            return

        failed = result.WhichOneof("outcome") == "failure"
        outcome: Json | Failure = failure_from_pb(result.failure) if failed else json_of(result.result)
        entry = settle(
            partition.state,
            step,
            outcome,
            origin=result.failure.origin if failed else pb.ORIGIN_UNSPECIFIED,
            attempt=flight.attempt,
            started_at_ms=result.started_at_ms,
            duration_ms=result.duration_ms,
            host=flight.peer.id,
            now_ms=partition.now_ms(),
            log_tail=lines_from_pb(result.log_tail) if failed else (),
        )
        partition.feed(entry)
        partition.outbox.effects.append(ack)

    def on_lost(self, flight: InFlight[Any], why: str) -> None:
        """Record the loss of a call with its host."""
        step = flight.step
        if step.item.active.get(step.index) is step and step.phase is IN_FLIGHT:
            self._fail_attempt(step, flight.attempt, why, flight.peer.id)

    def on_unreachable(self, action: Dispatch) -> None:
        """Record a call without a host as a failed attempt, and let the partition go on."""
        if self._partition.gone or not self.waits_for(action):
            return
        why = f"no live host offers `{action.target.component}` of plugin {action.target.plugin!r}"
        self._fail_attempt(action.step, action.attempt, why, "")
        self._partition.turn()

    def on_progress(self, flight: InFlight[Any], progress: host_pb2.Progress) -> None:
        if self._partition.listener is not None:
            now_ms = self._partition.now_ms()
            text = text_without_secrets(flight.step.item, progress.message)
            self._partition.tell(
                call_event(flight.step, "progress", now_ms, text, done=progress.done, total=progress.total)
            )

    def _fail_attempt(self, step: StepRun, attempt: int, why: str, host: str) -> None:
        partition = self._partition
        entry = settle(
            partition.state,
            step,
            Failure(Code.UNREACHABLE, why),
            origin=pb.ORIGIN_DISPATCH,
            attempt=attempt,
            started_at_ms=0,
            duration_ms=0,
            host=host,
            now_ms=partition.now_ms(),
        )
        partition.feed(entry)


__all__ = ["PartitionCalls"]
