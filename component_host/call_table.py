"""The calls of a host, in flight or held, by idempotency key and by partition of their run.

- Each partition has the newest owner's epoch that the host has seen: the fence against former owners.
- A partition with calls is never dropped. Of the idle ones the table remembers the newest `PARTITIONS_MAX`.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from component_host.call import Call

PARTITIONS_MAX = 100_000
"""Partitions whose epoch is remembered. Dropping one too early only lets a former owner in, whose writes the store
refuses anyway."""


@dataclass(slots=True, eq=False)
class PartitionCalls:
    """One partition of a run, as this host has seen it."""

    epoch: int = 0
    """Newest owner's epoch; 0 before any."""
    calls: dict[str, Call] = field(default_factory=dict)
    """In flight or held, by idempotency key."""


class CallTable:
    """See the head of this module."""

    def __init__(self) -> None:
        self._partitions: OrderedDict[tuple[str, int], PartitionCalls] = OrderedDict()
        self._by_key: dict[str, PartitionCalls] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    @property
    def partitions(self) -> int:
        """Number of partitions in the table, idle ones included."""
        return len(self._partitions)

    def all_calls(self) -> list[Call]:
        """Return all calls, in the order of their admission."""
        return [partition.calls[key] for key, partition in self._by_key.items()]

    def find_call(self, key: str) -> Call | None:
        partition = self._by_key.get(key)
        return None if partition is None else partition.calls[key]

    def add_call(self, partition: PartitionCalls, call: Call) -> None:
        key = call.request.key
        self._by_key[key] = partition
        partition.calls[key] = call

    def remove_call(self, call: Call) -> None:
        """Raises: KeyError, the table does not have the call."""
        key = call.request.key
        del self._by_key.pop(key).calls[key]

    def partition(self, run_id: str, number: int) -> PartitionCalls:
        """Return a partition's entry, new if the table has none."""
        partition_id = (run_id, number)
        partition = self._partitions.get(partition_id)

        if partition is None:
            partition = self._partitions[partition_id] = PartitionCalls()
            if len(self._partitions) > PARTITIONS_MAX:
                self._trim()

        return partition

    def _trim(self) -> None:
        """Drop the oldest idle partition. Each new one checks two, so that the table shrinks after a peak of calls."""
        for _ in range(2):
            partition_id, partition = self._partitions.popitem(last=False)
            if partition.calls:
                self._partitions[partition_id] = partition
            if len(self._partitions) <= PARTITIONS_MAX:
                return


__all__ = ["CallTable", "PartitionCalls"]
