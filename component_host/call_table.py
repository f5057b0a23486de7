"""The calls of a host, in flight or held, by idempotency key and by partition.

- Each partition has the epoch of the newest known owner. `ComponentHost.admit` compares it, to refuse former owners.
- A partition with calls is never dropped; idle partitions are, the oldest first, beyond `PARTITIONS_MAX`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from component_host.backend import Backend
    from component_host.call import Call

PARTITIONS_MAX = 100_000
"""Partitions whose epoch is remembered. An epoch dropped too early only admits a former owner; the store refuses
all writes of that owner."""


@dataclass(slots=True, eq=False)
class PartitionEntry:
    """The calls of one partition of a run."""

    epoch: int = 0
    """Newest owner's epoch; 0 before any."""
    calls: dict[str, Call] = field(default_factory=dict)
    """In flight or held, by idempotency key."""


class CallTable:
    """All calls of one host."""

    def __init__(self) -> None:
        self._partitions: OrderedDict[tuple[str, int], PartitionEntry] = OrderedDict()
        self._by_key: dict[str, PartitionEntry] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def partitions(self) -> int:
        """Number of partitions in the table, including idle partitions."""
        return len(self._partitions)

    def all_calls(self) -> list[Call]:
        """Return all calls, in the order of admission."""
        return [partition.calls[key] for key, partition in self._by_key.items()]

    def calls_in(self, backend: Backend) -> int:
        """Return the number of calls that a backend executes."""
        return sum(call.backend is backend and not call.settled for call in self.all_calls())

    def find_call(self, key: str) -> Call | None:
        partition = self._by_key.get(key)
        return None if partition is None else partition.calls[key]

    def add_call(self, partition: PartitionEntry, call: Call) -> None:
        key = call.request.key
        self._by_key[key] = partition
        partition.calls[key] = call

    def remove_call(self, call: Call) -> None:
        """Raises: KeyError, the table does not have the call."""
        key = call.request.key
        del self._by_key.pop(key).calls[key]

    def partition(self, run_id: str, number: int) -> PartitionEntry:
        """Return the entry of a partition; a new entry if absent."""
        partition_id = (run_id, number)
        partition = self._partitions.get(partition_id)

        if partition is None:
            partition = self._partitions[partition_id] = PartitionEntry()
            if len(self._partitions) > PARTITIONS_MAX:
                self._trim()

        return partition

    def _trim(self) -> None:
        """Drop the oldest idle partition. Each new partition checks two, so that the table shrinks after a peak."""
        for _ in range(2):
            partition_id, partition = self._partitions.popitem(last=False)
            if partition.calls:
                self._partitions[partition_id] = partition
            if len(self._partitions) <= PARTITIONS_MAX:
                return


__all__ = ["CallTable", "PartitionEntry"]
