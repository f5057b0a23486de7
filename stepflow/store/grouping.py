"""Transactions of many askers sent as few: what is asked for while one is on its way goes into the next, together.

For transactions that know nothing of each other, such as admissions of runs and reads of their records; what must be
ordered or fenced goes through `stepflow.store.writer`.

- A transaction's result is what it would be alone, had they been sent one behind the other. None goes together with one
  before it that changes what it changes or compares; when a compare of one of them does not hold, or the store refuses
  one, each is sent alone.
- One is on its way at a time. Nobody waits for company: what is asked for alone leaves at once.
- `StoreUnavailable` reaches all that were sent together, and leaves each as undecided as it would be alone.
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
"""Compares, and operations, of what is sent together."""

GROUP_BYTES_MAX = 256 * 1024
"""Keys and values written together: etcd keeps the last 10,000 transactions in memory."""

GROUP_KEYS_READ_MAX = 128
"""Keys read together, a range counting as its limit: what comes back has no other bound. A key of a journal may have
192 KiB, so 24 MiB at the worst."""

assert GROUP_OPS_MAX < TXN_OPS_MAX
assert GROUP_BYTES_MAX < TXN_BYTES_MAX


@dataclass(slots=True, eq=False)
class _Asked:
    txn: Txn
    result: asyncio.Future[TxnResult]
    bytes: int
    keys_read: int
    changed: frozenset[str]
    meant: frozenset[str]
    """Keys that nobody before it may change: compares see what was there before all of the group."""
    groups: bool
    """Whether it may go with others: a prefix that is deleted may hold anybody's keys."""


class Grouping:
    """Sends to one store. Bound to the event loop; ended by `close`."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._queue: deque[_Asked] = deque()
        self._sender: asyncio.Task[None] | None = None

    async def txn(self, txn: Txn) -> TxnResult:
        """Run a transaction, perhaps together with others. Raises: as `Store.txn`."""
        asked = _asked(txn)
        self._queue.append(asked)
        if self._sender is None:
            self._sender = asyncio.create_task(self._send_all(), name="grouped transactions")
        return await asked.result

    async def close(self) -> None:
        """Stop sending; whoever still waits is cancelled. Safe to repeat."""
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
                finally:
                    for asked in group:
                        asked.result.cancel()  # without effect on those that are answered
        finally:
            self._sender = None  # at once: whoever asks next must start another one

    def _gather(self) -> list[_Asked]:
        group: list[_Asked] = []
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

    async def _send_together(self, group: list[_Asked]) -> bool:
        """Return whether all are answered; nothing was done if not."""
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
        first = 0
        for asked in group:
            behind = first + len(asked.txn.then)
            _answer(asked, TxnResult(True, result.revision, result.responses[first:behind]))
            first = behind
        return True

    async def _send_alone(self, asked: _Asked) -> None:
        try:
            _answer(asked, await self._store.txn(asked.txn))
        except Exception as error:
            _fail(asked, error)


def _asked(txn: Txn) -> _Asked:
    ops: tuple[Op, ...] = txn.then
    changed = frozenset([op.key for op in ops if isinstance(op, (Put, Delete))])
    return _Asked(
        txn,
        asyncio.get_running_loop().create_future(),
        sum(map(op_bytes, txn.compares)) + sum(map(op_bytes, ops)),
        sum(op.limit if isinstance(op, Range) else 1 for op in ops),
        changed,
        changed.union([compare.key for compare in txn.compares]),
        not any(isinstance(op, DeletePrefix) for op in ops),
    )


def _answer(asked: _Asked, result: TxnResult) -> None:
    if not asked.result.done():  # else whoever asked has gone
        asked.result.set_result(result)


def _fail(asked: _Asked, error: Exception) -> None:
    if not asked.result.done():
        asked.result.set_exception(error)


__all__ = ["Grouping"]
