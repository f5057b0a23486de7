"""The last revisions with the previous state of each changed key, bounded in number and bytes.

Watches that start in the past read the history; ranges at an older revision undo it.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.store.protocol import KeyValue, StoreCompacted, StoreEvent

if TYPE_CHECKING:
    from collections.abc import Iterator

HISTORY_REVISIONS_MAX = 10_000
"""Revisions by which a slow watch or a paging reader may lag."""

HISTORY_BYTES_MAX = 8 * 1024 * 1024
"""Total size of keys and values in memory, new and previous."""


@dataclass(frozen=True, slots=True)
class Record:
    """The changes of one revision. `before[i]` is the previous state of the key of `events[i]`."""

    revision: int
    events: tuple[StoreEvent, ...]
    before: tuple[KeyValue | None, ...]
    size: int


class Change:
    """Collects the changes of one transaction, under its revision."""

    __slots__ = ("before", "events", "revision", "size")

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.events: list[StoreEvent] = []
        self.before: list[KeyValue | None] = []
        self.size = 0

    def add(self, event: StoreEvent, before: KeyValue | None) -> None:
        self.events.append(event)
        self.before.append(before)
        self.size += len(event.kv.key) + len(event.kv.value) + (0 if before is None else len(before.value))

    def record(self) -> Record:
        return Record(self.revision, tuple(self.events), tuple(self.before), self.size)


class History:
    """Committed records, oldest first. `compacted` is the last revision without a record."""

    def __init__(self, revision: int) -> None:
        """Begin at the revision of an opened database. An empty one (revision 1) has lost nothing."""
        self.compacted = 0 if revision == 1 else revision
        self._records: deque[Record] = deque()
        self._bytes = 0

    def extend(self, records: list[Record]) -> None:
        self._records.extend(records)
        self._bytes += sum(record.size for record in records)
        while self._records and (
            len(self._records) > HISTORY_REVISIONS_MAX
            or self._bytes > HISTORY_BYTES_MAX
            or self._records[0].revision <= self.compacted
        ):
            oldest = self._records.popleft()
            self._bytes -= oldest.size
            self.compacted = max(self.compacted, oldest.revision)

    def compact(self, revision: int) -> None:
        """Discard the records up to a revision, which may belong to an uncommitted change."""
        self.compacted = max(self.compacted, revision)
        self.extend([])

    def newest_first(self) -> Iterator[Record]:
        return reversed(self._records)

    def too_old(self, revision: int) -> StoreCompacted:
        return StoreCompacted(
            "STORE_COMPACTED",
            f"revision {revision} is gone; the history begins behind {self.compacted}",
            revision=revision,
            compacted=self.compacted,
        )
