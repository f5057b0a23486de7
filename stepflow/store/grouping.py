"""Independent transactions of many callers, sent together: while one group is in flight, the next one gathers.

For transactions that are independent of each other, such as admissions of runs and reads of their records. Ordered or
fenced writes go through `stepflow.store.writer`.

- Each result equals that of sending the transactions one after the other. A transaction never joins an earlier one that
  changes a key it changes or compares. If a compare fails, or the store refuses the group, each is sent alone.
- One group is in flight at a time. No transaction is delayed to gather a group.
- `StoreUnavailable` reaches all callers of a group and leaves each transaction as undecided as if sent alone.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.errors import Invalid, NotFound
from stepflow.store.checks import op_bytes
from stepflow.store.protocol import TXN_BYTES_MAX, TXN_OPS_MAX, Delete, DeletePrefix, Put, Range, Txn, TxnResult

if TYPE_CHECKING:
    from stepflow.store.protocol import Op, Store

GROUP_OPS_MAX = 120
"""Compares, and operations, of one group."""

GROUP_BYTES_MAX = 256 * 1024
"""Keys and values written by one group: etcd keeps the last 10,000 transactions in memory."""

GROUP_KEYS_READ_MAX = 128
"""Keys read by one group, a range counting as its limit; the only bound of a reply. A key of a journal may have
192 KiB, so the worst case is 24 MiB."""

assert GROUP_OPS_MAX < TXN_OPS_MAX
assert GROUP_BYTES_MAX < TXN_BYTES_MAX


@dataclass(slots=True, eq=False)
class _GroupedTxn:
    """A transaction with its caller and its share of a group's limits."""

    txn: Txn
    result: asyncio.Future[TxnResult]
    bytes: int
    keys_read: int
    changed: frozenset[str]
    meant: frozenset[str]
    """Keys that no earlier transaction of the group may change: compares see the state before the group."""
    groups: bool
    """False for a deletion of a prefix, which may hold keys of any other transaction."""


class Grouping:
    """Sends groups to one store until `close`. Bound to the event loop."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: deque[_GroupedTxn] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def txn(self, txn: Txn) -> TxnResult:
        """Run a transaction, possibly in a group. Raises: as `Store.txn`."""
        asked = _grouped(txn)
        self._queue.append(asked)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="grouped transactions")
        return await asked.result

    async def close(self) -> None:
        """Stop sending and cancel all waiting callers. Idempotent."""
        sender = self._sender
        if sender is not None:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)
            self._sender = None
        while self._queue:
            self._queue.popleft().result.cancel()

    async def _send_all(self) -> None:
        try:
            while self._queue:
                group = self._gather()
                try:
                    if len(group) == 1 or not await self._send_together(group):
                        await asyncio.gather(*map(self._send_alone, group))
                except Exception as error:  # a defect: the callers get it, and the queue goes on
                    for asked in group:
                        _fail(asked, error)
                finally:
                    for asked in group:
                        asked.result.cancel()  # no effect on answered ones
        finally:
            self._sender = (
                None  # without an await after the last check: a caller that found a sender would never be sent
            )

    def _gather(self) -> list[_GroupedTxn]:
        group: list[_GroupedTxn] = []
        changed: set[str] = set()
        ops = size = keys_read = 0
        while self._queue and len(group) < GROUP_OPS_MAX:
            asked = self._queue[0]
            txn = asked.txn
            ops += max(len(txn.compares), len(txn.then))
            size += asked.bytes
            keys_read += asked.keys_read
            fits = ops <= GROUP_OPS_MAX and size <= GROUP_BYTES_MAX and keys_read <= GROUP_KEYS_READ_MAX
            if group and not (fits and asked.groups and group[0].groups and changed.isdisjoint(asked.meant)):
                break
            group.append(self._queue.popleft())
            changed |= asked.changed
        return group

    async def _send_together(self, group: list[_GroupedTxn]) -> bool:
        """Send one transaction for the group. Return False if nothing was done, True if all callers are answered."""
        compares = dict.fromkeys(compare for asked in group for compare in asked.txn.compares)
        ops = [op for asked in group for op in asked.txn.then]
        try:
            result = await self._store.txn(Txn(tuple(compares), tuple(ops)))
        except (Invalid, NotFound):
            return False
        except Exception as error:
            for asked in group:
                _fail(asked, error)
            return True

        if not result.succeeded:
            return False

        # Split the responses between the callers.
        first = 0
        for asked in group:
            behind = first + len(asked.txn.then)
            _answer(asked, TxnResult(True, result.revision, result.responses[first:behind]))
            first = behind
        return True

    async def _send_alone(self, asked: _GroupedTxn) -> None:
        try:
            _answer(asked, await self._store.txn(asked.txn))
        except Exception as error:
            _fail(asked, error)


def _grouped(txn: Txn) -> _GroupedTxn:
    ops: tuple[Op, ...] = txn.then
    changed = frozenset([op.key for op in ops if isinstance(op, (Put, Delete))])
    return _GroupedTxn(
        txn,
        asyncio.get_running_loop().create_future(),
        sum(map(op_bytes, txn.compares)) + sum(map(op_bytes, ops)),
        sum(op.limit if isinstance(op, Range) else 1 for op in ops),
        changed,
        changed.union([compare.key for compare in txn.compares]),
        not any(isinstance(op, DeletePrefix) for op in ops),
    )


def _answer(asked: _GroupedTxn, result: TxnResult) -> None:
    if not asked.result.done():  # done: its caller was cancelled
        asked.result.set_result(result)


def _fail(asked: _GroupedTxn, error: Exception) -> None:
    if not asked.result.done():
        asked.result.set_exception(error)


__all__ = ["Grouping"]
