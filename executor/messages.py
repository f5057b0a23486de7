"""The messages of one partition: each cancel and signal is recorded once, and its key goes with the record.

- A signal that no step waits for is recorded too, up to `SIGNALS_UNRECEIVED_MAX`. Beyond, signals stay in the inbox
  until steps have received some: the control plane refuses more when the inbox is full.
- The key of a signal is deleted in the transaction that records the signal, or a later one: never before.
- A cancel keeps its key: it is meant for every partition.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store import keys

if TYPE_CHECKING:
    from executor.outbox import PartitionOutbox
    from stepflow.mesh.v1 import state_pb2
    from stepflow.run import RunState

SIGNALS_UNRECEIVED_MAX = 1_000
"""Recorded signals of a partition that no step has received yet."""


class MessagedPartition(Protocol):
    """The side of a partition that messages use."""

    state: RunState
    outbox: PartitionOutbox

    def now_ms(self) -> int: ...
    def feed(self, entry: pb.Entry) -> None: ...


class PartitionMessages:
    """Records the messages of one partition. After `take` and `take_deferred` the partition needs a `turn`."""

    __slots__ = ("_partition", "deferred")

    def __init__(self, partition: MessagedPartition) -> None:
        self.deferred: dict[str, state_pb2.InboxMessage] = {}
        """By id, FIFO: signals left in the inbox."""
        self._partition = partition

    def take(self, message_id: str, message: state_pb2.InboxMessage) -> None:
        """Record a cancel or a signal, at most once."""
        partition, state = self._partition, self._partition.state
        if state.status is not None or state.ending:
            return

        item = message.item - state.root.first_item
        is_signal = message.HasField("signal")
        if is_signal and not 0 <= item < len(state.root.inputs):
            return  # a signal to an item of another partition
        if message_id in state.inbox_taken:
            if is_signal:  # repeated by a client, or taken by an owner that kept keys
                partition.outbox.drop_key(keys.inbox(state.run_id, message_id))
            return

        awaited = is_signal and state.signal_waits.get((item, message.signal.name))
        if is_signal and not awaited and state.signals_unreceived >= SIGNALS_UNRECEIVED_MAX:
            self.deferred[message_id] = message
            return

        taken = pb.InboxTaken(id=message_id, cancel=message.cancel)
        if is_signal:
            taken.signal.CopyFrom(message.signal)
        partition.feed(pb.Entry(at_ms=partition.now_ms(), item=max(item, 0), inbox_taken=taken))
        if is_signal:
            partition.outbox.note_taken(keys.inbox(state.run_id, message_id))

    def take_deferred(self) -> None:
        """Record deferred signals for which a step waits now, or for which there is room."""
        deferred, self.deferred = self.deferred, {}
        for message_id, message in deferred.items():
            self.take(message_id, message)


__all__ = ["SIGNALS_UNRECEIVED_MAX", "PartitionMessages"]
