"""The SQL of a store: one table of keys, read and written with few statements.

- The row with the empty key (which `check_key` refuses) holds the store's revision in `mod_revision`, so that a commit
  is one upsert, and one fsync, in the common case.
- A statement covers many rows: each statement releases the GIL once, and a busy event loop makes it expensive to
  acquire again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from stepflow.errors import DataLoss
from stepflow.store.checks import prefix_end
from stepflow.store.protocol import KeyValue

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator, Mapping

ROWS_MAX = 200
"""Rows of one statement; a larger batch takes several. Bounds the number of statements that SQLite keeps prepared."""

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


class Table:
    """The committed keys, over an open connection (autocommit, schema in place)."""

    def __init__(self, db: sqlite3.Connection) -> None:
        self._db = db
        self._prepared: dict[tuple[str, int], str] = {}

    def revision(self) -> int:
        """Return the committed revision. Raises: DataLoss `STORE_CORRUPT`."""
        row = self._db.execute("SELECT mod_revision FROM kv WHERE key = ''").fetchone()
        if row is None:
            raise DataLoss("STORE_CORRUPT", "the database has lost its revision")
        revision: int = row[0]
        return revision

    def fetch(self, keys: list[str]) -> Iterator[KeyValue]:
        """Yield the keys that exist, in no order."""
        for some in _chunks(keys, ROWS_MAX):
            statement = self._statement(f"SELECT {_COLUMNS} FROM kv WHERE key IN ({{}})", "?", len(some))  # noqa: S608  # only marks
            for row in self._db.execute(statement, some):
                yield KeyValue(*row)

    def rows(self, prefix: str, after: str) -> sqlite3.Cursor:
        """Return the rows under `prefix` that follow `after`, in order; each has the fields of `KeyValue`."""
        # The row with the empty key follows no `after`, and only the empty prefix covers it.
        where, values = ("key >= ?", [prefix]) if prefix > after else ("key > ?", [after])
        end = prefix_end(prefix)
        if end is not None:
            where += " AND key < ?"
            values.append(end)
        return self._db.execute(f"SELECT {_COLUMNS} FROM kv WHERE {where} ORDER BY key", values)  # noqa: S608  # constants

    def leased_keys(self) -> list[str]:
        """Return all keys with a lease, in order."""
        return [key for (key,) in self._db.execute("SELECT key FROM kv WHERE lease != 0 ORDER BY key")]

    def write(self, written: Mapping[str, KeyValue | None], revision: int) -> None:
        """Write the final state of changed keys (None: deleted) and the revision, in one SQLite transaction."""
        puts = [kv for kv in written.values() if kv is not None]
        puts.append(KeyValue(_REVISION_KEY, b"", 0, revision, 0))
        deletes = [key for key, kv in written.items() if kv is None]
        if len(puts) <= ROWS_MAX and not deletes:  # one statement is its own transaction
            self._upsert(puts)
            return

        self._db.execute("BEGIN IMMEDIATE")
        for some in _chunks(puts, ROWS_MAX):
            self._upsert(some)
        for keys in _chunks(deletes, ROWS_MAX):
            self._db.execute(self._statement("DELETE FROM kv WHERE key IN ({})", "?", len(keys)), keys)
        self._db.execute("COMMIT")

    def rollback(self) -> None:
        """Undo an interrupted `write`."""
        if self._db.in_transaction:
            self._db.execute("ROLLBACK")

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
        """Return `sql` for `count` rows, each time as the same object: sqlite3 finds the prepared form by its text."""
        statement = self._prepared.get((sql, count))
        if statement is None:
            statement = self._prepared[sql, count] = sql.format(",".join([marks] * count))
        return statement


def _chunks(items: list[_T], size: int) -> Iterator[list[_T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
