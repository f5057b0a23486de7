"""The outbox of a partition: entries to be journaled, and the effects waiting for them.

- Entries are written under consecutive keys, each named by the number of its first entry.
- Effects leave with the write of all earlier entries: *output commit*.
- The final records (status, results, assignment) go into the transaction of the last entries.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store import Delete, Put, keys

if TYPE_CHECKING:
    from executor.effects import Effect
    from stepflow.run import RunState

ENTRIES_BYTES_MAX = 192 * 1024
"""Entries written under one key; a flush takes several keys when there are more."""


class PartitionOutbox:
    """Entries and effects of a partition, and the count of its undecided writes."""

    __slots__ = ("_seq", "effects", "entries", "final", "final_taken", "riders", "state", "undecided")

    def __init__(self, state: RunState) -> None:
        self.state = state
        self.entries: list[pb.Entry] = []
        """Applied and not submitted."""
        self.effects: list[Effect] = []
        self.undecided = 0
        """Writes that are submitted and not committed."""
        self.riders: list[Put | Delete] = []
        """Operations for the transaction of the next entry."""
        self.final: list[Put | Delete] = []
        """Records that end this ownership, written in the transaction of the last entries."""
        self.final_taken = False
        """The final records are submitted: the next time that nothing is undecided, all is durable."""
        self._seq = state.entries_journaled

    @property
    def idle(self) -> bool:
        """Return True if all entries are durable: effects need not wait."""
        return not self.entries and not self.undecided

    def take_writes(self) -> tuple[list[list[Put | Delete]], list[Effect]]:
        """Return the operations of each transaction, in order, and the effects to release after the last commit."""
        effects, self.effects = self.effects, []
        self.undecided += 1
        writes: list[list[Put | Delete]] = [[put] for put in self._journal_writes()]
        if self.riders and writes:
            writes[0] += self.riders
            self.riders = []
        if self.final:
            writes.append([*(writes.pop() if writes else []), *self.final])
            self.final = []
            self.final_taken = True
        return writes, effects

    def take_effects(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    def _journal_writes(self) -> list[Put]:
        entries, self.entries = self.entries, []
        state = self.state
        writes: list[Put] = []
        first = 0
        size = 0

        for index, entry in enumerate(entries):
            size += entry.ByteSize()
            if size >= ENTRIES_BYTES_MAX or index == len(entries) - 1:
                batch = pb.EntryBatch(entries=entries[first : index + 1]).SerializeToString()
                writes.append(Put(keys.journal(state.run_id, state.partition, self._seq), batch))
                self._seq += index + 1 - first
                self.state.note_journaled(len(batch))
                first, size = index + 1, 0

        return writes


__all__ = ["ENTRIES_BYTES_MAX", "PartitionOutbox"]
