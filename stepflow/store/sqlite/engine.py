"""The synchronous half of the SQLite store: the semantics of `stepflow.store` over one connection.

All of it runs on one thread, the store's own, and there is no other writer. Requests come in batches: a batch executes
request by request over its own uncommitted changes, then `commit` writes them in one SQLite transaction.

Results must not leave the thread before `commit` has returned; when it raises, the batch never happened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stepflow.errors import FailedPrecondition, Invalid
from stepflow.store.checks import check_key, check_range, check_txn
from stepflow.store.protocol import (
    Compare,
    Delete,
    DeletePrefix,
    Get,
    KeyValue,
    Op,
    Page,
    Put,
    Range,
    Response,
    Txn,
    TxnResult,
)
from stepflow.store.sqlite.batch import Batch
from stepflow.store.sqlite.leases import Leases
from stepflow.store.sqlite.table import Table

if TYPE_CHECKING:
    import sqlite3

    from stepflow.store.sqlite.history import Change, Record


class Engine:
    """Executes requests over an open connection (autocommit, schema in place). Instants are `time.monotonic()`."""

    def __init__(self, db: sqlite3.Connection, *, read_only: bool = False) -> None:
        self._table = Table(db)
        self._batch = Batch(self._table)
        self._leases = Leases()
        self._read_only = read_only

    def commit(self) -> list[Record]:
        """Make the batch durable; return its records, in order.

        After sqlite3.Error, from here or from a request, `forget` the batch.
        """
        records = self._batch.commit()
        self._leases.commit()
        return records

    def forget(self) -> None:
        """Undo the batch."""
        self._leases.forget()
        self._batch.forget()

    def current_revision(self) -> int:
        return self._batch.revision

    def get(self, key: str) -> KeyValue | None:
        check_key(key)
        return self._batch.get(key)

    def range(self, prefix: str, after: str, limit: int, revision: int) -> Page:
        check_range(prefix, after, limit)
        self._check_past(revision)
        return self._batch.page(prefix, after, limit, revision or None)

    def compact(self, revision: int) -> None:
        """Discard the history before a revision. Raises: Invalid."""
        self._check_past(revision)
        self._batch.history.compact(revision)

    def history(self, prefix: str, from_revision: int) -> list[Record]:
        """Return the records from a revision on; none for 0 and for future revisions. Raises: StoreCompacted."""
        check_range(prefix, "", 1)
        if from_revision < 0:
            raise Invalid("REVISION_INVALID", f"there is no revision {from_revision}", revision=from_revision)
        if not from_revision:
            return []

        history = self._batch.history
        if from_revision <= history.compacted:
            raise history.too_old(from_revision)
        return list(reversed([record for record in self._batch.newest_first() if record.revision >= from_revision]))

    def txn(self, txn: Txn) -> TxnResult:
        check_txn(txn)
        batch = self._batch

        # 1. Compare. One statement reads the keys of the compares and of `then`, the branch that nearly always runs.
        batch.fetch([compare.key for compare in txn.compares] + _point_keys(txn.then))
        succeeded = all(self._holds(compare) for compare in txn.compares)

        # 2. Check the whole branch before any of its operations runs.
        ops = txn.then if succeeded else txn.orelse
        batch.fetch(_point_keys(ops))
        self._check_branch(ops)

        # 3. Apply.
        change = batch.begin_change()
        responses = tuple([self._apply(op, change) for op in ops])
        batch.add_change(change)
        return TxnResult(succeeded, batch.revision, responses)

    def _holds(self, compare: Compare) -> bool:
        kv = self._batch.get(compare.key)
        if compare.target == "value":
            return kv is not None and kv.value == compare.operand
        actual: int = 0 if kv is None else getattr(kv, compare.target)
        assert isinstance(compare.operand, int)
        return actual == compare.operand if compare.relation == "=" else actual > compare.operand

    def _check_branch(self, ops: tuple[Op, ...]) -> None:
        for op in ops:
            if isinstance(op, (Put, Delete, DeletePrefix)):
                self._check_writable()
            if not isinstance(op, Put):
                continue
            if op.ignore_lease and self._batch.get(op.key) is None:
                raise Invalid("KEY_NOT_FOUND", f"{op.key!r} does not exist, so it has no lease to keep", key=op.key)
            if op.lease:
                self._leases.find(op.lease)

    def _apply(self, op: Op, change: Change) -> Response:
        batch = self._batch
        match op:
            case Put():
                self._put(op, change)
                return None
            case Delete(key):
                return int(batch.delete(change, key))
            case DeletePrefix(prefix):
                return sum([batch.delete(change, key) for key in batch.keys_under(prefix)])
            case Get(key):
                return batch.get(key)
            case Range():
                return batch.page_within(change, op)

    def _put(self, put: Put, change: Change) -> None:
        lease = put.lease
        if put.ignore_lease:
            before = self._batch.get(put.key)
            lease = 0 if before is None else before.lease
        self._batch.put(change, put.key, put.value, lease)
        if lease:
            self._leases.find(lease).keys.add(put.key)

    def lease_grant(self, ttl_s: float, now_s: float) -> int:
        self._check_writable()
        return self._leases.grant(ttl_s, now_s)

    def lease_keep_alive(self, lease_id: int, now_s: float) -> float:
        lease = self._leases.find(lease_id)
        lease.expires_at_s = now_s + lease.ttl_s
        return lease.ttl_s

    def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys, in one revision."""
        lease = self._leases.end(lease_id)
        batch = self._batch
        batch.fetch(lease.keys)

        change = batch.begin_change()
        for key in sorted(lease.keys):
            kv = batch.get(key)
            if kv is not None and kv.lease == lease_id:
                batch.delete(change, key)
        batch.add_change(change)

    def expire_leases(self, now_s: float) -> None:
        """Revoke each expired lease, in a revision of its own."""
        for lease_id in self._leases.expired(now_s):
            self.lease_revoke(lease_id)

    def renew_leases(self, now_s: float) -> None:
        self._leases.renew_all(now_s)

    def next_expiry_s(self) -> float | None:
        return self._leases.next_expiry_s()

    def drop_leased_keys(self) -> None:
        """Delete, in one revision, the keys that an earlier process left on its leases. Part of a batch."""
        change = self._batch.begin_change()
        for key in self._table.leased_keys():
            self._batch.delete(change, key)
        self._batch.add_change(change)

    def _check_past(self, revision: int) -> None:
        current = self._batch.revision
        if revision > current:
            raise Invalid(
                "REVISION_IN_FUTURE",
                f"revision {revision} lies in the future; the current one is {current}",
                revision=revision,
                current=current,
            )

    def _check_writable(self) -> None:
        if self._read_only:
            raise FailedPrecondition("STORE_READ_ONLY", "this database was opened for reading only")


def _point_keys(ops: tuple[Op, ...]) -> list[str]:
    return [op.key for op in ops if isinstance(op, (Put, Delete, Get))]
