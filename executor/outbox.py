"""The outbox of a partition: entries to be journaled, and the effects waiting for them.

- Entries are written under consecutive keys, each named by the number of its first entry.
- Effects leave with the write of all earlier entries: *output commit*.
- The keys of signals are deleted with the entries that record them.
- The final records (status, results, assignment) go into the transaction of the last entries.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import TYPE_CHECKING

from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store import Delete, Put, keys

if TYPE_CHECKING:
    from array import array

    from executor.effects import Effect
    from stepflow.run import RunState

TAKEN_MAX = 50
"""Signals recorded under one key: each deletes a key of the inbox, and a transaction has a bound on its operations."""

ENTRIES_BYTES_MAX = 192 * 1024
"""Entries written under one key; a flush takes several keys when there are more."""


class PartitionOutbox:
    """Entries and effects of a partition, and the count of its undecided writes."""

    __slots__ = (
        "_dropped",
        "_sealed",
        "_seq",
        "_taken",
        "effects",
        "entries",
        "final",
        "final_taken",
        "first_seqs",
        "riders",
        "state",
        "undecided",
    )

    def __init__(self, state: RunState, first_seqs: array[int]) -> None:
        """`first_seqs`: of the values that earlier owners have written."""
        self.state = state
        self.first_seqs = first_seqs
        """Number of the first entry of each value of the journal."""
        self._sealed: list[list[Put | Delete]] = []
        """The last writes, divided into values before they are taken."""
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
        self._taken: dict[int, str] = {}
        """By index of the entry: the key in the inbox of the signal that the entry records."""
        self._dropped: list[str] = []

    @property
    def idle(self) -> bool:
        """Return True if all entries are durable: effects need not wait."""
        return not self.entries and not self.undecided

    def take_writes(self) -> tuple[list[list[Put | Delete]], list[Effect]]:
        """Return the operations of each transaction, in order, and the effects to release after the last commit."""
        effects, self.effects = self.effects, []
        self.undecided += 1
        writes = [*self._sealed, *self._journal_writes()]
        self._sealed = []
        if self.riders and writes:
            writes[0] += self.riders
            self.riders = []
        if self.final:
            writes.append([*(writes.pop() if writes else []), *self.final])
            self.final = []
            self.final_taken = True
        return writes, effects

    def seal(self) -> None:
        """Divide the last entries into values: the results of the run refer to them."""
        self._sealed += self._journal_writes()

    def value_of(self, entry: int) -> tuple[int, int]:
        """Return the first entry of the value that holds an entry, and the index of the entry in the value."""
        first = self.first_seqs[bisect_right(self.first_seqs, entry) - 1]
        return first, entry - first

    def note_taken(self, key: str) -> None:
        """Delete a key of the inbox with the newest entry, which records its message."""
        self._taken[len(self.entries) - 1] = key

    def drop_key(self, key: str) -> None:
        """Delete a key of the inbox with one of the next entries. Its message is recorded in an earlier one."""
        self._dropped.append(key)

    def take_effects(self) -> list[Effect]:
        effects, self.effects = self.effects, []
        return effects

    def _journal_writes(self) -> list[list[Put | Delete]]:
        entries, self.entries = self.entries, []
        state = self.state
        writes: list[list[Put | Delete]] = []
        first = 0
        size = 0
        deletes: list[str] = []
        taken, self._taken = self._taken, {}

        for index, entry in enumerate(entries):
            size += entry.ByteSize()
            if taken and index in taken:
                deletes.append(taken[index])

            if size >= ENTRIES_BYTES_MAX or len(deletes) >= TAKEN_MAX or index == len(entries) - 1:
                batch = pb.EntryBatch(entries=entries[first : index + 1]).SerializeToString()
                put = Put(keys.journal(state.run_id, state.partition, self._seq), batch)
                writes.append([put, *map(Delete, deletes)])
                self.first_seqs.append(self._seq)
                self._seq += index + 1 - first
                self.state.note_journaled(len(batch))
                first, size = index + 1, 0
                deletes = []

        # Of messages recorded before these entries. A key twice in one transaction would be refused.
        if writes and self._dropped:
            dropped, self._dropped = self._dropped[:TAKEN_MAX], self._dropped[TAKEN_MAX:]
            present = {op.key for op in writes[-1]}
            writes[-1] += [Delete(key) for key in dict.fromkeys(dropped) if key not in present]

        return writes


__all__ = ["ENTRIES_BYTES_MAX", "PartitionOutbox"]
