"""The uncommitted state of a batch: an overlay of changed keys over the table.

Nothing read from a batch may leave the thread before `commit` has returned; when `commit` raises, the batch never
happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.store.protocol import PAGE_BYTES_MAX, PAGE_KEYS_MAX, KeyValue, Page, StoreEvent
from stepflow.store.sqlite.history import Change, History, Record

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from stepflow.store.protocol import Range
    from stepflow.store.sqlite.table import Table


class Batch:
    """One batch after another over `table`. `revision` counts uncommitted changes."""

    def __init__(self, table: Table) -> None:
        self._table = table
        self.revision = self._committed = table.revision()
        self.history = History(self.revision)
        self._records: list[Record] = []
        self._written: dict[str, KeyValue | None] = {}  # None: deleted
        self._seen: dict[str, KeyValue | None] = {}  # read from the table

    def commit(self) -> list[Record]:
        """Make the batch durable; return its records, in order. After sqlite3.Error call `forget`."""
        records = self._records
        if records:
            self._table.write(self._written, self.revision)
            self.history.extend(records)
            self._committed = self.revision
            self._records = []
            self._written = {}
        self._seen = {}
        return records

    def forget(self) -> None:
        """Undo the batch."""
        self.revision = self._committed
        self.history.compacted = min(self.history.compacted, self._committed)
        self._records = []
        self._written = {}
        self._seen = {}
        self._table.rollback()

    def get(self, key: str) -> KeyValue | None:
        if key in self._written:
            return self._written[key]
        if key not in self._seen:
            self.fetch([key])
        return self._seen[key]

    def fetch(self, keys: Iterable[str]) -> None:
        """Read ahead, with one statement, the keys that the batch has not read yet."""
        missing = list({key for key in keys if key not in self._written and key not in self._seen})
        if not missing:
            return
        self._seen.update(dict.fromkeys(missing))
        for kv in self._table.fetch(missing):
            self._seen[kv.key] = kv

    def keys_under(self, prefix: str) -> list[str]:
        """Return the keys under a prefix, in order, and keep what was read."""
        found = {kv.key: kv for kv in self._scan(prefix, "", self._written)}
        self._seen.update(found)
        return list(found)

    def page(self, prefix: str, after: str, limit: int, revision: int | None = None) -> Page:
        """Read a page, as of an older revision if one is given. Raises: StoreCompacted."""
        overlay: Mapping[str, KeyValue | None] = self._written
        if revision is None:
            revision = self.revision
        elif revision != self.revision:
            overlay = self._overlay_at(revision)
        return self._page(prefix, after, limit, revision, overlay)

    def page_within(self, change: Change, op: Range) -> Page:
        """Read a page inside a transaction; it has the revision of the transaction once that has changed a key."""
        revision = change.revision if change.events else self.revision
        return self._page(op.prefix, op.after, op.limit, revision, self._written, op.before)

    def put(self, change: Change, key: str, value: bytes, lease: int) -> None:
        before = self.get(key)
        kv = KeyValue(
            key,
            value,
            change.revision if before is None else before.create_revision,
            change.revision,
            1 if before is None else before.version + 1,
            lease,
        )
        self._written[key] = kv
        change.add(StoreEvent("put", kv), before)

    def delete(self, change: Change, key: str) -> bool:
        """Delete a key; return True if it existed."""
        before = self.get(key)
        if before is None:
            return False
        self._written[key] = None
        change.add(StoreEvent("delete", KeyValue(key, b"", 0, change.revision, 0)), before)
        return True

    def begin_change(self) -> Change:
        return Change(self.revision + 1)

    def add_change(self, change: Change) -> None:
        """Append a finished change. An empty one makes no revision."""
        if change.events:
            self.revision = change.revision
            self._records.append(change.record())

    def newest_first(self) -> Iterator[Record]:
        """Yield all retained records, uncommitted ones included."""
        yield from reversed(self._records)
        yield from self.history.newest_first()

    def _overlay_at(self, revision: int) -> Mapping[str, KeyValue | None]:
        """Return the keys whose state at `revision` differs from the table's (None: missing then)."""
        if revision < self.history.compacted:
            raise self.history.too_old(revision)
        overlay = dict(self._written)
        for record in self.newest_first():
            if record.revision <= revision:
                break
            for event, before in zip(record.events, record.before, strict=True):
                overlay[event.kv.key] = before
        return overlay

    def _page(
        self,
        prefix: str,
        after: str,
        limit: int,
        revision: int,
        overlay: Mapping[str, KeyValue | None],
        before: str = "",
    ) -> Page:
        items: list[KeyValue] = []
        size = 0
        limit = min(limit, PAGE_KEYS_MAX)
        for kv in self._scan(prefix, after, overlay):
            if before and kv.key >= before:
                break
            if len(items) == limit or size >= PAGE_BYTES_MAX:
                return Page(items, True, revision)
            items.append(kv)
            size += len(kv.value)
        return Page(items, False, revision)

    def _scan(self, prefix: str, after: str, overlay: Mapping[str, KeyValue | None]) -> Iterator[KeyValue]:
        """Merge overlay and table, the overlay winning: yield the keys under `prefix` that follow `after`, in order."""
        over = sorted((key for key in overlay if key.startswith(prefix) and key > after), reverse=True)

        for row in self._table.rows(prefix, after):
            while over and over[-1] < row[0]:
                kv = overlay[over.pop()]
                if kv is not None:
                    yield kv
            if over and over[-1] == row[0]:
                continue  # the next turn, or the last loop, yields the overlay's state
            yield KeyValue(*row)

        for key in reversed(over):
            kv = overlay[key]
            if kv is not None:
                yield kv
