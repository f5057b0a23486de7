"""The synchronous half of the SQLite store: the semantics of `stepflow.store` over one connection.

Everything here runs on one thread, the store's own, and there is no other writer. Requests come in batches: a batch
is executed request by request against the overlay of its own uncommitted changes, and then `commit` writes the
final state of every changed key in one SQLite transaction.

- Nothing a batch returned may be told to anybody before `commit` returned; when it raises, the batch never happened.
- The row with the empty key (which `check_key` refuses to everybody) holds the store's revision in `mod_revision`,
  so that a commit is one upsert, and one fsync, in the common case.
- A statement covers many rows: each statement lets go of the GIL once, and a busy event loop makes it expensive to
  get it back.
- `history` holds the last revisions with what each key was before, bounded in number and bytes. From it come the
  past that a watch asks for and, by undoing, ranges at an older revision.
- Leases live in memory only. A set of a lease's keys may name too many (a key that was put again without the lease):
  what counts is the lease in the key itself.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from stepflow.errors import DataLoss, Invalid, NotFound, Refused
from stepflow.store import (
    PAGE_BYTES_MAX,
    PAGE_KEYS_MAX,
    Compare,
    Delete,
    DeletePrefix,
    Event,
    Get,
    KeyValue,
    Op,
    Page,
    Put,
    Range,
    Response,
    StoreCompacted,
    Txn,
    TxnResult,
    check_key,
    check_range,
    check_txn,
    prefix_end,
)

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterable, Iterator, Mapping

HISTORY_REVISIONS_MAX = 10_000
"""Revisions that a slow watch or a paging reader may lie behind."""

HISTORY_BYTES_MAX = 8 * 1024 * 1024
"""Keys and values, new and old, that the history keeps in memory."""

ROWS_MAX = 200
"""Rows of one statement; above that a batch takes several. Bounds the statements that SQLite keeps prepared."""

SCHEMA = """
CREATE TABLE kv (
  key             TEXT PRIMARY KEY NOT NULL,
  value           BLOB NOT NULL,
  create_revision INTEGER NOT NULL,
  mod_revision    INTEGER NOT NULL,
  version         INTEGER NOT NULL,
  lease           INTEGER NOT NULL
);
INSERT INTO kv VALUES ('', x'', 0, 1, 0, 0);
"""

_T = TypeVar("_T")

_COLUMNS = "key, value, create_revision, mod_revision, version, lease"
_REVISION_KEY = ""


@dataclass(slots=True)
class Lease:
    """`expires_at` is on the clock of whoever passes `now`, in seconds."""

    ttl_s: float
    expires_at: float
    keys: set[str] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Record:
    """What one revision changed: `before[i]` is what `events[i].kv.key` was until then."""

    revision: int
    events: tuple[Event, ...]
    before: tuple[KeyValue | None, ...]
    size: int


class Engine:
    """Owns an open connection (autocommit, schema in place); see the head of this module."""

    def __init__(self, db: sqlite3.Connection, *, read_only: bool = False) -> None:
        self._db = db
        self._read_only = read_only
        self.revision = self._committed = self._stored_revision()
        self.compacted = 0 if self.revision == 1 else self.revision
        self._history: deque[Record] = deque()
        self._history_bytes = 0
        self._records: list[Record] = []  # of the batch
        self._written: dict[str, KeyValue | None] = {}  # by the batch; None: deleted
        self._seen: dict[str, KeyValue | None] = {}  # read by the batch
        self._leases: dict[int, Lease] = {}
        self._leases_ended: dict[int, Lease] = {}  # by the batch
        self._lease_last = 0
        self._prepared: dict[tuple[str, int], str] = {}

    # -- a batch ----------------------------------------------------------------------------------------------

    def commit(self) -> list[Record]:
        """Make the batch durable; return what it changed, in order.

        After sqlite3.Error, from here or from a request, the batch is to be given up with `forget`.
        """
        records = self._records
        if records:
            self._flush()
            self._remember(records)
            self._committed = self.revision
            self._records = []
            self._written = {}
        self._leases_ended.clear()
        self._seen = {}
        return records

    def forget(self) -> None:
        """Undo the batch: it never happened."""
        self.revision = self._committed
        self._records = []
        self._written = {}
        self._seen = {}
        self._leases.update(self._leases_ended)
        self._leases_ended.clear()
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

    def _flush(self) -> None:
        puts = [kv for kv in self._written.values() if kv is not None]
        puts.append(KeyValue(_REVISION_KEY, b"", 0, self.revision, 0))
        deletes = [key for key, kv in self._written.items() if kv is None]
        if len(puts) <= ROWS_MAX and not deletes:
            self._upsert(puts)
            return
        self._db.execute("BEGIN IMMEDIATE")
        for some in _chunks(puts, ROWS_MAX):
            self._upsert(some)
        for keys in _chunks(deletes, ROWS_MAX):
            self._db.execute(self._statement("DELETE FROM kv WHERE key IN ({})", "?", len(keys)), keys)
        self._db.execute("COMMIT")

    def _upsert(self, kvs: list[KeyValue]) -> None:
        values: list[str | bytes | int] = []
        for kv in kvs:
            values += (kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)
        self._db.execute(
            self._statement(
                "INSERT INTO kv VALUES {} ON CONFLICT (key) DO UPDATE SET value = excluded.value, "
                "create_revision = excluded.create_revision, mod_revision = excluded.mod_revision, "
                "version = excluded.version, lease = excluded.lease",
                "(?,?,?,?,?,?)",
                len(kvs),
            ),
            values,
        )

    def _statement(self, sql: str, marks: str, count: int) -> str:
        """Return `sql` for so many rows, the same text object each time: sqlite3 finds its prepared form by it."""
        statement = self._prepared.get((sql, count))
        if statement is None:
            statement = self._prepared[sql, count] = sql.format(",".join([marks] * count))
        return statement

    def _remember(self, records: list[Record]) -> None:
        self._history.extend(records)
        self._history_bytes += sum(record.size for record in records)
        while len(self._history) > HISTORY_REVISIONS_MAX or self._history_bytes > HISTORY_BYTES_MAX:
            oldest = self._history.popleft()
            self._history_bytes -= oldest.size
            self.compacted = oldest.revision

    def _stored_revision(self) -> int:
        row = self._db.execute("SELECT mod_revision FROM kv WHERE key = ''").fetchone()
        if row is None:
            raise DataLoss("STORE_CORRUPT", "the database has lost its revision")
        revision: int = row[0]
        return revision

    # -- reading ----------------------------------------------------------------------------------------------

    def get(self, key: str) -> KeyValue | None:
        check_key(key)
        return self._current(key)

    def range(self, prefix: str, after: str, limit: int, revision: int) -> Page:
        check_range(prefix, after, limit)
        if revision > self.revision:
            raise Invalid(
                "REVISION_IN_FUTURE",
                f"revision {revision} lies in the future; the current one is {self.revision}",
                revision=revision,
                current=self.revision,
            )
        revision = revision or self.revision
        return self._page(prefix, after, limit, revision, self._overlay(revision))

    def history(self, prefix: str, from_revision: int) -> list[Record]:
        """Return the records from that revision on; nothing for 0 and for revisions yet to come."""
        _check_watch(prefix, from_revision)
        if not from_revision:
            return []
        if from_revision <= self.compacted:
            raise self._too_old(from_revision)
        return list(reversed([record for record in self._backwards() if record.revision >= from_revision]))

    def current_revision(self) -> int:
        return self.revision

    def _current(self, key: str) -> KeyValue | None:
        if key in self._written:
            return self._written[key]
        if key not in self._seen:
            self._fetch([key])
        return self._seen[key]

    def _fetch(self, keys: Iterable[str]) -> None:
        """Read the keys that the batch has not seen yet, with one statement."""
        missing = list({key for key in keys if key not in self._written and key not in self._seen})
        if not missing:
            return
        self._seen.update(dict.fromkeys(missing))
        for some in _chunks(missing, ROWS_MAX):
            statement = self._statement(f"SELECT {_COLUMNS} FROM kv WHERE key IN ({{}})", "?", len(some))  # noqa: S608  # only marks
            for row in self._db.execute(statement, some):
                self._seen[row[0]] = KeyValue(*row)

    def _overlay(self, revision: int) -> Mapping[str, KeyValue | None]:
        """Return what differs at `revision` from what the file holds; None: not there."""
        if revision == self.revision:
            return self._written
        if revision < self.compacted:
            raise self._too_old(revision)
        overlay = dict(self._written)
        for record in self._backwards():
            if record.revision <= revision:
                break
            for event, before in zip(record.events, record.before, strict=True):
                overlay[event.kv.key] = before
        return overlay

    def _backwards(self) -> Iterator[Record]:
        yield from reversed(self._records)
        yield from reversed(self._history)

    def _page(self, prefix: str, after: str, limit: int, revision: int, overlay: Mapping[str, KeyValue | None]) -> Page:
        items: list[KeyValue] = []
        size = 0
        limit = min(limit, PAGE_KEYS_MAX)
        for kv in self._scan(prefix, after, overlay):
            if len(items) == limit or size >= PAGE_BYTES_MAX:
                return Page(items, True, revision)
            items.append(kv)
            size += len(kv.value)
        return Page(items, False, revision)

    def _scan(self, prefix: str, after: str, overlay: Mapping[str, KeyValue | None]) -> Iterator[KeyValue]:
        """Yield what begins with `prefix` and lies behind `after`, in order, the overlay before the file."""
        over = sorted((key for key in overlay if key.startswith(prefix) and key > after), reverse=True)
        for row in self._rows(prefix, after):
            while over and over[-1] < row[0]:
                kv = overlay[over.pop()]
                if kv is not None:
                    yield kv
            if over and over[-1] == row[0]:
                continue  # the next turn, or the last loop, yields the overlay's
            yield KeyValue(*row)
        for key in reversed(over):
            kv = overlay[key]
            if kv is not None:
                yield kv

    def _rows(self, prefix: str, after: str) -> sqlite3.Cursor:
        # The row with the empty key is behind no `after` and begins with no prefix but the empty one.
        where, values = ("key >= ?", [prefix]) if prefix > after else ("key > ?", [after])
        end = prefix_end(prefix)
        if end is not None:
            where += " AND key < ?"
            values.append(end)
        return self._db.execute(f"SELECT {_COLUMNS} FROM kv WHERE {where} ORDER BY key", values)  # noqa: S608  # constants

    def _too_old(self, revision: int) -> StoreCompacted:
        return StoreCompacted(
            "STORE_COMPACTED",
            f"revision {revision} is gone; the history begins behind {self.compacted}",
            revision=revision,
            compacted=self.compacted,
        )

    # -- transactions -----------------------------------------------------------------------------------------

    def txn(self, txn: Txn) -> TxnResult:
        check_txn(txn)
        # One statement for the compares and the branch that nearly always runs.
        self._fetch([compare.key for compare in txn.compares] + _point_keys(txn.then))
        succeeded = all(self._holds(compare) for compare in txn.compares)
        ops = txn.then if succeeded else txn.orelse
        self._fetch(_point_keys(ops))
        self._check_puts(ops)
        change = _Change(self.revision + 1)
        responses = tuple([self._apply(op, change) for op in ops])
        self._finish(change)
        return TxnResult(succeeded, self.revision, responses)

    def _holds(self, compare: Compare) -> bool:
        kv = self._current(compare.key)
        if compare.target == "value":
            return kv is not None and kv.value == compare.operand
        actual: int = 0 if kv is None else getattr(kv, compare.target)
        assert isinstance(compare.operand, int)
        return actual == compare.operand if compare.relation == "=" else actual > compare.operand

    def _check_puts(self, ops: tuple[Op, ...]) -> None:
        """Refuse a branch before any of it is done."""
        for op in ops:
            if self._read_only and isinstance(op, (Put, Delete, DeletePrefix)):
                raise Refused("STORE_READ_ONLY", "this database was opened for reading only")
            if not isinstance(op, Put):
                continue
            if op.ignore_lease and self._current(op.key) is None:
                raise Invalid("KEY_NOT_FOUND", f"{op.key!r} does not exist, so it has no lease to keep", key=op.key)
            if op.lease:
                self._lease(op.lease)

    def _apply(self, op: Op, change: _Change) -> Response:
        match op:
            case Put():
                self._put(op, change)
                return None
            case Delete(key):
                return int(self._delete(key, change))
            case DeletePrefix(prefix):
                found = {kv.key: kv for kv in self._scan(prefix, "", self._written)}
                self._seen.update(found)
                return sum([self._delete(key, change) for key in found])
            case Get(key):
                return self._current(key)
            case Range(prefix, limit, after):
                revision = change.revision if change.events else self.revision
                return self._page(prefix, after, limit, revision, self._written)

    def _put(self, put: Put, change: _Change) -> None:
        before = self._current(put.key)
        lease = before.lease if put.ignore_lease and before is not None else put.lease
        kv = KeyValue(
            put.key,
            put.value,
            change.revision if before is None else before.create_revision,
            change.revision,
            1 if before is None else before.version + 1,
            lease,
        )
        self._written[put.key] = kv
        if lease:
            self._leases[lease].keys.add(put.key)
        change.add(Event("put", kv), before)

    def _delete(self, key: str, change: _Change) -> bool:
        before = self._current(key)
        if before is None:
            return False
        self._written[key] = None
        change.add(Event("delete", KeyValue(key, b"", 0, change.revision, 0)), before)
        return True

    def _finish(self, change: _Change) -> None:
        if change.events:
            self.revision = change.revision
            self._records.append(Record(change.revision, tuple(change.events), tuple(change.before), change.size))

    # -- leases -----------------------------------------------------------------------------------------------

    def lease_grant(self, ttl_s: float, now: float) -> int:
        if self._read_only:
            raise Refused("STORE_READ_ONLY", "this database was opened for reading only")
        if not 0 < ttl_s < 1e9:
            raise Invalid("LEASE_TTL_INVALID", f"a lease of {ttl_s} s: it must last longer than 0", ttl_s=ttl_s)
        self._lease_last += 1
        self._leases[self._lease_last] = Lease(ttl_s, now + ttl_s)
        return self._lease_last

    def lease_keep_alive(self, lease_id: int, now: float) -> float:
        lease = self._lease(lease_id)
        lease.expires_at = now + lease.ttl_s
        return lease.ttl_s

    def lease_revoke(self, lease_id: int) -> None:
        lease = self._lease(lease_id)
        self._leases_ended[lease_id] = self._leases.pop(lease_id)
        change = _Change(self.revision + 1)
        self._fetch(lease.keys)
        for key in sorted(lease.keys):
            kv = self._current(key)
            if kv is not None and kv.lease == lease_id:
                self._delete(key, change)
        self._finish(change)

    def expire_leases(self, now: float) -> None:
        """End every lease whose time is up, each in a revision of its own."""
        for lease_id in [lease_id for lease_id, lease in self._leases.items() if lease.expires_at <= now]:
            self.lease_revoke(lease_id)

    def renew_leases(self, now: float) -> None:
        """Start the time of all leases anew."""
        for lease in self._leases.values():
            lease.expires_at = now + lease.ttl_s

    def next_expiry(self) -> float | None:
        """Return when the next lease ends, None without any."""
        return min((lease.expires_at for lease in self._leases.values()), default=None)

    def drop_leased_keys(self) -> None:
        """Delete, in one revision, the keys that an earlier process left on its leases. Part of a batch."""
        change = _Change(self.revision + 1)
        for (key,) in self._db.execute("SELECT key FROM kv WHERE lease != 0 ORDER BY key").fetchall():
            self._delete(key, change)
        self._finish(change)

    def _lease(self, lease_id: int) -> Lease:
        lease = self._leases.get(lease_id)
        if lease is None:
            raise NotFound("LEASE_GONE", f"lease {lease_id} has ended", lease=lease_id)
        return lease


class _Change:
    """Collects what a transaction does under its revision."""

    __slots__ = ("before", "events", "revision", "size")

    def __init__(self, revision: int) -> None:
        self.revision = revision
        self.events: list[Event] = []
        self.before: list[KeyValue | None] = []
        self.size = 0

    def add(self, event: Event, before: KeyValue | None) -> None:
        self.events.append(event)
        self.before.append(before)
        self.size += len(event.kv.key) + len(event.kv.value) + (0 if before is None else len(before.value))


def _check_watch(prefix: str, from_revision: int) -> None:
    check_range(prefix, "", 1)
    if from_revision < 0:
        raise Invalid("REVISION_INVALID", f"there is no revision {from_revision}", revision=from_revision)


def _point_keys(ops: tuple[Op, ...]) -> list[str]:
    return [op.key for op in ops if isinstance(op, (Put, Delete, Get))]


def _chunks(items: list[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
