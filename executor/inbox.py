"""Messages to runs (cancels, signals), passed to partitions that are owned or being read.

A list and a watch may deliver a message twice; a partition records each id at most once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.mesh.v1 import state_pb2
from stepflow.store import keys
from stepflow.telemetry import get_logger
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from executor.drive import PartitionDriver, PartitionId
    from executor.ownership import Ownership
    from stepflow.store import KeyValue, StoreEvent

log = get_logger(__name__)


class Inbox:
    """The inbox of the mesh, followed by an executor."""

    def __init__(self, ownership: Ownership) -> None:
        self._ownership = ownership
        self._early: dict[str, dict[int, list[KeyValue]]] = {}
        """Messages that came while their partition was being read, by run and partition."""

    def listed(self, items: list[KeyValue]) -> None:
        for item in sorted(items, key=_arrival):
            guarded(log, "a message", self._deliver, item, key=item.key)

    def changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                guarded(log, "a message", self._deliver, event.kv, key=event.kv.key)

    def keep_for(self, partition_id: PartitionId) -> None:
        """Keep messages for a partition being read, from now until `feed_to` or `stop_keeping`."""
        run_id, partition = partition_id
        self._early.setdefault(run_id, {})[partition] = []

    def feed_to(self, driver: PartitionDriver, read: Iterable[KeyValue]) -> None:
        """Feed a partition the messages `read` with the journal and all later messages, in order of arrival."""
        early = self._early[driver.run_id].pop(driver.partition)
        for item in sorted((*read, *early), key=_arrival):
            driver.messages.take(keys.parse_inbox(item.key)[1], state_pb2.InboxMessage.FromString(item.value))

    def stop_keeping(self, partition_id: PartitionId) -> None:
        """Drop the messages kept for a partition. Idempotent."""
        run_id, partition = partition_id
        early = self._early.get(run_id, {})
        early.pop(partition, None)
        if not early:
            self._early.pop(run_id, None)

    def _deliver(self, item: KeyValue) -> None:
        run_id, message_id = keys.parse_inbox(item.key)
        for driver in self._ownership.partitions_of(run_id):
            self._ownership.run_guarded(driver, _take_message, driver, message_id, item.value)
        for early in self._early.get(run_id, {}).values():
            early.append(item)


def _take_message(driver: PartitionDriver, message_id: str, value: bytes) -> None:
    driver.messages.take(message_id, state_pb2.InboxMessage.FromString(value))
    driver.turn()


def _arrival(item: KeyValue) -> int:
    return item.create_revision


__all__ = ["Inbox"]
