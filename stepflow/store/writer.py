"""All durable writes of an executor: ordered, fenced, at most once.

`FencedWriter` gathers submissions and sends them as transactions, one in flight, each under two compares: the
executor's session has the revision of its registration (the *token*), and its *cursor*, a key that every transaction
puts, has the version left by the previous transaction. Hence:

- Writes keep the order of submissions, and a submission is never split over two transactions.
- Each submission is written at most once, however often its transaction is sent: a repeat meets a moved cursor.
- No delayed transaction writes after the session has gone.
- Callbacks run on the event loop in the order of submission. Each submission gets exactly one call: `on_commit` after
  its commit, or `on_reject`.

A transaction is *decided* by a result, by Invalid or by NotFound; a store that raises these has written nothing. After
any other error the same bytes are sent again until the transaction is decided, and no other is sent meanwhile.

Not here: limiting the backlog, which is the owner's task (`backlog_bytes`), and keep-alives of the lease (`lease`).
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.errors import AlreadyExists, Conflict, DataLoss, Invalid, NotFound, StepflowError
from stepflow.retry import doubling
from stepflow.store import keys
from stepflow.store.checks import op_bytes
from stepflow.store.flush import Flush, Submission, WriteOp, refusal
from stepflow.store.protocol import Compare, Get, KeyValue, Put, Store, Txn, TxnResult, absent, created_at, version_is
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger(__name__)

BACKOFF_S_MIN = 0.010
BACKOFF_S_MAX = 1.0
"""Doubling pause between two sendings of one transaction, plus up to a fifth of jitter."""


@dataclass(slots=True)
class WriterStats:
    """Totals since registration. `flush_ms` counts from the first sending of a flush to its decision."""

    flushes: int = 0
    submissions: int = 0
    ops: int = 0
    bytes: int = 0
    resends: int = 0
    rejected: int = 0
    flush_ms: float = 0.0


class _Lost(Exception):  # a signal within this module
    """The right to write has ended."""

    def __init__(self, reason: StepflowError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class FencedWriter:
    """Writes of one executor from `register` to `close`, see the head of this module."""

    def __init__(
        self,
        store: Store,
        executor_id: str,
        token: int,
        *,
        clock_valid: Callable[[], bool] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Adopt a fresh registration; callers use `register`."""
        self.executor_id = executor_id
        self.token = token
        self.lost = asyncio.Event()
        self.stats = WriterStats()
        self._store = store
        self._session = keys.session_executor(executor_id)
        self._cursor = keys.cursor(executor_id)
        self._cursor_version = 1
        self._signature = secrets.token_hex(
            8
        )  # identifies the writer in the cursor's value, as the version alone does not
        self._clock_valid = clock_valid
        self._on_lost = on_lost

        self._queue: deque[Submission] = deque()
        self._singly = 0  # number of the next submissions that each go alone
        self._backlog_bytes = 0
        self._gone: StepflowError | None = None  # why this writer has ended

        self._wake: asyncio.Future[None] | None = None
        self._in_flight: Flush | None = None
        self._idle = asyncio.Event()
        self._idle.set()
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._run(), name=f"writer {executor_id}")

    @classmethod
    async def register(
        cls,
        store: Store,
        executor_id: str,
        session_value: bytes,
        lease: int,
        *,
        clock_valid: Callable[[], bool] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> FencedWriter:
        """Create session and cursor on the lease, in one transaction, and return their writer.

        Retries while the store is unavailable; a caller with a deadline cancels the call.

        Args:
            clock_valid: True while the executor counts its lease as held; otherwise sending pauses.
            on_lost: called once when the session has gone (or the store is damaged), after `lost` is set and before
                all undecided submissions are rejected.

        Raises:
            AlreadyExists: `EXECUTOR_ID_TAKEN`.
            NotFound: `LEASE_GONE`.
        """
        session, cursor = keys.session_executor(executor_id), keys.cursor(executor_id)
        txn = Txn(
            (absent(session), absent(cursor)),
            (Put(session, session_value, lease), Put(cursor, b"1", lease)),
            (Get(session), Get(cursor)),
        )

        result = await _decide_registration(store, txn, executor_id)
        token = result.revision if result.succeeded else _token_of_lost_reply(result, session_value, lease)
        if not token:
            raise AlreadyExists(
                "EXECUTOR_ID_TAKEN", f"there is an executor {executor_id} already", executor_id=executor_id
            )
        return cls(store, executor_id, token, clock_valid=clock_valid, on_lost=on_lost)

    @property
    def backlog_bytes(self) -> int:
        """Bytes of undecided submissions."""
        return self._backlog_bytes

    def submit(
        self,
        ops: list[WriteOp] | tuple[WriteOp, ...],
        *,
        compares: tuple[Compare, ...] = (),
        on_commit: Callable[[], None],
        on_reject: Callable[[StepflowError], None] | None = None,
    ) -> None:
        """Queue operations to be written together. Never blocks; callbacks run after it has returned.

        `on_reject` gets Invalid (the store refuses the operations), NotFound (a put names an expired lease), Conflict
        `COMPARE_FAILED` (one of `compares` did not hold), or Conflict `LEASE_LOST` or `WRITER_CLOSED`, which leave open
        whether the operations were written.
        """
        submission = Submission(
            tuple(ops),
            compares,
            on_commit,
            on_reject,
            sum(map(op_bytes, ops)) + sum(map(op_bytes, compares)),
            frozenset([op.key for op in ops]),
        )
        error = self._gone or refusal(submission, self._cursor)
        if error is not None:
            self._loop.call_soon(self._reject, submission, error)
            return

        self._backlog_bytes += submission.size
        self._queue.append(submission)
        self._idle.clear()
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def check(self) -> None:
        """End this writer if the store has forgotten its session or writes: an older copy of it was restored.

        Raises: StepflowError, not known now.
        """
        version = self._cursor_version
        result = await self._store.txn(Txn((), (Get(self._session), Get(self._cursor))))
        session, cursor = result.responses
        known = isinstance(session, KeyValue) and session.create_revision == self.token
        if self._gone is None and not (known and isinstance(cursor, KeyValue) and cursor.version >= version):
            self._task.cancel()
            self._lose(self._fenced())

    async def drain(self) -> None:
        """Wait until all submissions, those of callbacks included, are decided. Raises: Conflict, see `submit`."""
        await self._idle.wait()
        if self._gone is not None:
            raise self._gone

    async def close(self) -> None:
        """Stop writing at once and reject undecided submissions; `drain` first to keep them. Idempotent."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._gone is None:
            self._gone = Conflict("WRITER_CLOSED", f"the writer of {self.executor_id} was closed")
            self._reject_all(self._gone)

    async def _run(self) -> None:
        try:
            while True:
                if not self._queue:
                    self._idle.set()
                    self._wake = self._loop.create_future()
                    await self._wake
                flush = self._in_flight = self._gather()
                error = await self._decide(flush)
                self._in_flight = None
                self._settle(flush, error)
        except _Lost as lost:
            self._lose(lost.reason)
        except Exception as error:  # a bug: without this, all submissions would hang
            self._loop.call_exception_handler({"message": "the writer failed", "exception": error})
            self._lose(Conflict("WRITER_FAILED", f"the writer of {self.executor_id} failed: {error!r}"))

    def _gather(self) -> Flush:
        flush = Flush()
        queue = self._queue
        while queue and flush.takes(queue[0]):
            flush.add(queue.popleft())
            if self._singly:
                self._singly -= 1
                break
        return flush

    async def _decide(self, flush: Flush) -> StepflowError | None:
        """Send until the outcome is known. Return None, or the error if nothing was written."""
        txn = self._txn(flush)
        start = time.perf_counter()
        for resends, pause_s in enumerate(doubling(BACKOFF_S_MIN, BACKOFF_S_MAX)):
            await self._wait_for_lease()
            try:
                result = await self._store.txn(txn)
                break
            except (Invalid, NotFound) as error:
                return error
            except DataLoss as error:
                raise _Lost(error) from None
            except StepflowError as error:
                if not resends:
                    _log_undecided(self.executor_id, error)
                self.stats.resends += 1
                await _pause(pause_s)

        stats = self.stats
        stats.flushes += 1
        stats.flush_ms += (time.perf_counter() - start) * 1000
        if not result.succeeded and not self._had_committed(*result.responses):
            return Conflict("COMPARE_FAILED", "something else was expected in the store")

        self._cursor_version += 1
        stats.submissions += len(flush.submissions)
        stats.ops += flush.ops
        stats.bytes += flush.bytes
        return None

    def _txn(self, flush: Flush) -> Txn:
        version = self._cursor_version
        compares: list[Compare] = [created_at(self._session, self.token), version_is(self._cursor, version)]
        ops: list[WriteOp] = []
        for submission in flush.submissions:
            compares += submission.compares
            ops += submission.ops
        ops.append(Put(self._cursor, self._cursor_value(version + 1), ignore_lease=True))
        return Txn(tuple(compares), tuple(ops), (Get(self._session), Get(self._cursor)))

    def _had_committed(self, session: object, cursor: object) -> bool:
        """Return True if an earlier sending committed, False if a compare of a submission failed.

        Raises: _Lost: this writer is fenced.
        """
        if not isinstance(session, KeyValue) or session.create_revision != self.token:
            raise _Lost(self._fenced())
        if isinstance(cursor, KeyValue):
            if cursor.version == self._cursor_version:
                return False
            if cursor.version == self._cursor_version + 1 and cursor.value == self._cursor_value(cursor.version):
                return True
        raise _Lost(self._fenced())  # another writer uses this executor's name

    def _cursor_value(self, version: int) -> bytes:
        return f"{version} {self._signature}".encode()

    async def _wait_for_lease(self) -> None:
        """Return once the executor counts its lease as held. Raises: _Lost, when the session has gone meanwhile."""
        if self._clock_valid is None:
            return
        for pause_s in doubling(BACKOFF_S_MIN, BACKOFF_S_MAX):
            if self._clock_valid():
                return
            await _pause(pause_s)
            try:
                session = await self._store.get(self._session)
            except StepflowError:
                continue
            if session is None or session.create_revision != self.token:
                raise _Lost(self._fenced())

    def _settle(self, flush: Flush, error: StepflowError | None) -> None:
        """Call the owners back, in order, or split a refused transaction."""
        if error is not None and len(flush.submissions) > 1:
            # One of them is at fault: each is sent alone, in the same order, ahead of the queue.
            self._queue.extendleft(reversed(flush.submissions))
            self._singly += len(flush.submissions)
            return
        for submission in flush.submissions:
            self._backlog_bytes -= submission.size
            if error is not None:
                self._reject(submission, error)
            else:
                self._call(submission.on_commit)

    def _lose(self, reason: StepflowError) -> None:
        """End this writer: report the loss first, then reject all undecided submissions."""
        self._gone = reason
        self.lost.set()
        if self._on_lost is not None:
            self._call(self._on_lost)
        self._reject_all(reason)

    def _reject_all(self, reason: StepflowError) -> None:
        undecided = [*(self._in_flight.submissions if self._in_flight else ()), *self._queue]
        self._in_flight = None
        self._queue.clear()
        self._backlog_bytes = 0
        self._idle.set()
        for submission in undecided:
            self._reject(submission, reason)

    def _reject(self, submission: Submission, error: StepflowError) -> None:
        self.stats.rejected += 1
        if submission.on_reject is not None:
            self._call(submission.on_reject, error)
        elif isinstance(error, (Invalid, NotFound)):
            self._loop.call_exception_handler({"message": "a rejected write without a callback", "exception": error})

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        """Call an owner back. Its exception is a bug of the owner and must not stop later callbacks."""
        try:
            callback(*args)
        except Exception as error:
            self._loop.call_exception_handler({"message": "a callback of the writer failed", "exception": error})

    def _fenced(self) -> Conflict:
        return Conflict("LEASE_LOST", f"executor {self.executor_id} has lost its session", executor_id=self.executor_id)


async def _pause(pause_s: float) -> None:
    """Sleep, with up to a fifth of jitter on top."""
    await asyncio.sleep(pause_s * (1 + random.random() / 5))  # noqa: S311  # jitter, not a secret


async def _decide_registration(store: Store, txn: Txn, executor_id: str) -> TxnResult:
    """Send the registration until its outcome is known. Raises: Invalid, NotFound, DataLoss."""
    for resends, pause_s in enumerate(doubling(BACKOFF_S_MIN, BACKOFF_S_MAX)):
        try:
            return await store.txn(txn)
        except (Invalid, NotFound, DataLoss):
            raise
        except StepflowError as error:
            if not resends:
                _log_undecided(executor_id, error)
            await _pause(pause_s)
    raise AssertionError("pauses do not end")


def _token_of_lost_reply(result: TxnResult, session_value: bytes, lease: int) -> int:
    """Return the token of an earlier sending of the same registration whose reply was lost; 0 for another executor."""
    held, counter = result.responses
    ours = (
        isinstance(held, KeyValue)
        and isinstance(counter, KeyValue)
        and held.lease == counter.lease == lease  # the lease is ours alone
        and held.value == session_value
        and held.version == counter.version == 1
    )
    return held.create_revision if ours and isinstance(held, KeyValue) else 0


def _log_undecided(executor_id: str, error: StepflowError) -> None:
    log.warning("store unavailable, sending again", executor_id=executor_id, reason=error.reason, error=error.message)
