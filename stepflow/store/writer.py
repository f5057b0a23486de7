"""The one door for an executor's durable writes: ordered, fenced, at most once.

`FencedWriter` gathers submissions and sends them as transactions, one in flight, each under two compares: the
executor's session still has the revision at which it was registered (the *token*), and its *cursor*, a key that every
transaction puts, has the version that the last one left. From this follows:

- The order of submissions is the order of the writes; a submission is never split over two transactions.
- Every submission is written at most once, however often its transaction is sent: a repeat meets a moved cursor.
- Nothing is written after the session is gone, whenever a delayed transaction arrives.
- Callbacks run on the event loop in the order of submission, `on_commit` after the commit is known. Exactly one of
  `on_commit` and `on_reject` is called for every submission.

A transaction is *decided* by a result, by Invalid and by NotFound, which a store answers without writing anything.
After any other error it is sent again byte for byte until it is decided, and nothing else is written meanwhile.

Two bounds decide how much goes into one transaction (`FLUSH_OPS_MAX`, `FLUSH_BYTES_MAX`); what may wait is the
owner's business (`backlog_bytes`). The lease is kept alive elsewhere; this module only asks `clock_valid`.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

from stepflow.errors import Conflict, DataLoss, Exists, Invalid, NotFound, StepflowError
from stepflow.store import keys
from stepflow.store.checks import check_branch, check_key, op_bytes
from stepflow.store.protocol import (
    TXN_BYTES_MAX,
    TXN_OPS_MAX,
    Compare,
    Delete,
    Get,
    KeyValue,
    Put,
    Store,
    Txn,
    absent,
    created_at,
    version_is,
)
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

log = get_logger(__name__)

FLUSH_OPS_MAX = 120
"""Operations, and compares, that are gathered for one transaction; the cursor and the session come on top."""

FLUSH_BYTES_MAX = 256 * 1024
"""Keys and values of one transaction; etcd keeps the last 10,000 transactions in memory."""

SUBMISSION_OPS_MAX = TXN_OPS_MAX - 1
"""Operations of one submission, which goes alone above `FLUSH_OPS_MAX`."""

SUBMISSION_COMPARES_MAX = TXN_OPS_MAX - 2

ENVELOPE_BYTES = 4096
"""Room for session and cursor in a transaction: their keys, three to five times."""

SUBMISSION_BYTES_MAX = TXN_BYTES_MAX - ENVELOPE_BYTES

assert FLUSH_OPS_MAX < SUBMISSION_COMPARES_MAX < SUBMISSION_OPS_MAX < TXN_OPS_MAX
assert FLUSH_BYTES_MAX < SUBMISSION_BYTES_MAX

BACKOFF_S_MIN = 0.010
BACKOFF_S_MAX = 1.0
"""Between two sendings of one transaction, doubling, plus up to a fifth of jitter."""

WriteOp: TypeAlias = Put | Delete


@dataclass(slots=True)
class WriterStats:
    """Sums since registration. `flush_ms`: from the first sending to the decision, all flushes together."""

    flushes: int = 0
    submissions: int = 0
    ops: int = 0
    bytes: int = 0
    resends: int = 0
    rejected: int = 0
    flush_ms: float = 0.0


@dataclass(slots=True, eq=False)
class _Submission:
    ops: tuple[WriteOp, ...]
    compares: tuple[Compare, ...]
    on_commit: Callable[[], None]
    on_reject: Callable[[StepflowError], None] | None
    size: int
    keys: frozenset[str]


@dataclass(slots=True)
class _Flush:
    """What is gathered for one transaction."""

    submissions: list[_Submission] = field(default_factory=list)
    ops: int = 0
    compares: int = 0
    bytes: int = 0
    keys: set[str] = field(default_factory=set)

    def takes(self, submission: _Submission) -> bool:
        """Return whether the submission may join those that are here."""
        if not self.submissions:
            return True
        return (
            self.ops + len(submission.ops) <= FLUSH_OPS_MAX
            and self.compares + len(submission.compares) <= FLUSH_OPS_MAX
            and self.bytes + submission.size <= FLUSH_BYTES_MAX
            and self.keys.isdisjoint(submission.keys)
            # Compares see the state before the whole transaction, so what they look at must not be written in it.
            and not any(compare.key in self.keys for compare in submission.compares)
        )

    def add(self, submission: _Submission) -> None:
        self.submissions.append(submission)
        self.ops += len(submission.ops)
        self.compares += len(submission.compares)
        self.bytes += submission.size
        self.keys |= submission.keys


class _Lost(Exception):  # not an error: the end of this writer's right to write
    def __init__(self, reason: StepflowError) -> None:
        super().__init__(reason.message)
        self.reason = reason


class FencedWriter:
    """See the head of this module; made by `register`, ended by `close`."""

    def __init__(
        self,
        store: Store,
        executor_id: str,
        token: int,
        *,
        clock_valid: Callable[[], bool] | None = None,
        on_lost: Callable[[], None] | None = None,
    ) -> None:
        """Take over a registration just made; use `register`."""
        self.executor_id = executor_id
        self.token = token
        self.lost = asyncio.Event()
        self.stats = WriterStats()
        self._store = store
        self._session = keys.session_executor(executor_id)
        self._cursor = keys.cursor(executor_id)
        self._cursor_version = 1
        self._signature = secrets.token_hex(8)  # in the cursor's value: who wrote it, not only how often
        self._clock_valid = clock_valid
        self._on_lost = on_lost
        self._queue: deque[_Submission] = deque()
        self._singly = 0  # so many of the next submissions go each in a transaction of its own
        self._backlog_bytes = 0
        self._gone: StepflowError | None = None  # why nothing is written any more
        self._wake: asyncio.Future[None] | None = None
        self._in_flight: _Flush | None = None
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

        While the store is unavailable this goes on trying; a caller with a deadline cancels it.

        Args:
            clock_valid: the executor's own judgement of its lease; while it is False nothing is sent.
            on_lost: called once, when the session is found gone (or the store damaged), before everything undecided is
                rejected; also `lost` is set then.

        Raises:
            Exists: `EXECUTOR_ID_TAKEN`.
            NotFound: `LEASE_GONE`.
        """
        session, cursor = keys.session_executor(executor_id), keys.cursor(executor_id)
        txn = Txn(
            (absent(session), absent(cursor)),
            (Put(session, session_value, lease), Put(cursor, b"1", lease)),
            (Get(session), Get(cursor)),
        )
        backoff = _Backoff()
        while True:
            try:
                result = await store.txn(txn)
                break
            except (Invalid, NotFound, DataLoss):
                raise
            except StepflowError as error:
                if not backoff.count:
                    _log_undecided(executor_id, error)
                await backoff.wait()
        token = result.revision
        if not result.succeeded:
            held, counter = result.responses
            # Our own first sending, whose reply was lost? Nobody else has this lease.
            ours = (
                isinstance(held, KeyValue)
                and isinstance(counter, KeyValue)
                and held.lease == counter.lease == lease
                and held.value == session_value
                and held.version == counter.version == 1
            )
            if not ours:
                raise Exists(
                    "EXECUTOR_ID_TAKEN", f"there is an executor {executor_id} already", executor_id=executor_id
                )
            assert isinstance(held, KeyValue)
            token = held.create_revision
        return cls(store, executor_id, token, clock_valid=clock_valid, on_lost=on_lost)

    @property
    def backlog_bytes(self) -> int:
        """Bytes submitted and not decided yet."""
        return self._backlog_bytes

    def submit(
        self,
        ops: list[WriteOp] | tuple[WriteOp, ...],
        *,
        compares: tuple[Compare, ...] = (),
        on_commit: Callable[[], None],
        on_reject: Callable[[StepflowError], None] | None = None,
    ) -> None:
        """Queue operations that are to be written together; never blocks, calls nothing back before it returned.

        `on_reject` gets Invalid (the store refuses these operations), NotFound (a put names a lease that has ended),
        Conflict `COMPARE_FAILED` (one of `compares` did not hold), or Conflict `LEASE_LOST` or `WRITER_CLOSED`: then
        whether it was written is for whoever reads the store next.
        """
        submission = _Submission(
            tuple(ops),
            compares,
            on_commit,
            on_reject,
            sum(map(op_bytes, ops)) + sum(map(op_bytes, compares)),
            frozenset([op.key for op in ops]),
        )
        error = self._gone or self._refusal(submission)
        if error is not None:
            self._loop.call_soon(self._reject, submission, error)
            return
        self._backlog_bytes += submission.size
        self._queue.append(submission)
        self._idle.clear()
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def drain(self) -> None:
        """Wait until everything submitted so far and from callbacks is decided. Raises: Conflict, see `submit`."""
        await self._idle.wait()
        if self._gone is not None:
            raise self._gone

    async def close(self) -> None:
        """Stop writing at once and reject what is not decided; `drain` first to lose nothing. Safe to repeat."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        if self._gone is None:
            self._gone = Conflict("WRITER_CLOSED", f"the writer of {self.executor_id} was closed")
            self._reject_all(self._gone)

    # -- the loop ---------------------------------------------------------------------------------------------

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
        except Exception as error:  # a bug; without this everything submitted would wait for ever
            self._loop.call_exception_handler({"message": "the writer failed", "exception": error})
            self._lose(Conflict("WRITER_FAILED", f"the writer of {self.executor_id} failed: {error!r}"))

    def _gather(self) -> _Flush:
        flush = _Flush()
        queue = self._queue
        while queue and flush.takes(queue[0]):
            flush.add(queue.popleft())
            if self._singly:
                self._singly -= 1
                break
        return flush

    async def _decide(self, flush: _Flush) -> StepflowError | None:
        """Send until the outcome is known: None, or why nothing was written."""
        txn = self._txn(flush)
        start = time.perf_counter()
        backoff = _Backoff()
        while True:
            await self._wait_for_lease()
            try:
                result = await self._store.txn(txn)
            except (Invalid, NotFound) as error:
                return error
            except DataLoss as error:
                raise _Lost(error) from None
            except StepflowError as error:
                if not backoff.count:
                    _log_undecided(self.executor_id, error)
                self.stats.resends += 1
                await backoff.wait()
                continue
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

    def _txn(self, flush: _Flush) -> Txn:
        version = self._cursor_version
        compares: list[Compare] = [created_at(self._session, self.token), version_is(self._cursor, version)]
        ops: list[WriteOp] = []
        for submission in flush.submissions:
            compares += submission.compares
            ops += submission.ops
        ops.append(Put(self._cursor, self._cursor_value(version + 1), ignore_lease=True))
        return Txn(tuple(compares), tuple(ops), (Get(self._session), Get(self._cursor)))

    def _had_committed(self, session: object, cursor: object) -> bool:
        """Read the failure branch: an earlier sending committed, or else a compare of a submission failed.

        Raises: _Lost, when it shows that this writer is fenced.
        """
        if not isinstance(session, KeyValue) or session.create_revision != self.token:
            raise _Lost(self._fenced())
        if isinstance(cursor, KeyValue):
            if cursor.version == self._cursor_version:
                return False
            if cursor.version == self._cursor_version + 1 and cursor.value == self._cursor_value(cursor.version):
                return True
        raise _Lost(self._fenced())  # somebody else writes under our name

    def _cursor_value(self, version: int) -> bytes:
        return f"{version} {self._signature}".encode()

    async def _wait_for_lease(self) -> None:
        """Return once the executor holds its lease valid. Raises: _Lost, when the session is found gone meanwhile."""
        if self._clock_valid is None or self._clock_valid():
            return
        backoff = _Backoff()
        while not self._clock_valid():
            await backoff.wait()
            try:
                session = await self._store.get(self._session)
            except StepflowError:
                continue
            if session is None or session.create_revision != self.token:
                raise _Lost(self._fenced())

    def _settle(self, flush: _Flush, error: StepflowError | None) -> None:
        """Tell the owners, in order; or take a refused transaction apart."""
        if error is not None and len(flush.submissions) > 1:
            # One of them is at fault: each goes alone now, in the same order, before everything behind them.
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
        """Say that the right to write is gone, before the rejections that follow from it."""
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

    def _reject(self, submission: _Submission, error: StepflowError) -> None:
        self.stats.rejected += 1
        if submission.on_reject is not None:
            self._call(submission.on_reject, error)
        elif isinstance(error, (Invalid, NotFound)):
            self._loop.call_exception_handler({"message": "a rejected write that nobody hears of", "exception": error})

    def _call(self, callback: Callable[..., None], *args: object) -> None:
        """Call an owner back; what it raises is its own bug and must not keep the next one from being told."""
        try:
            callback(*args)
        except Exception as error:
            self._loop.call_exception_handler({"message": "a callback of the writer failed", "exception": error})

    def _refusal(self, submission: _Submission) -> StepflowError | None:
        """Return why no store would take this submission, or None."""
        if len(submission.ops) > SUBMISSION_OPS_MAX or len(submission.compares) > SUBMISSION_COMPARES_MAX:
            return Invalid(
                "TXN_TOO_MANY_OPS",
                f"{len(submission.ops)} operations under {len(submission.compares)} compares at once; "
                f"the limits are {SUBMISSION_OPS_MAX} and {SUBMISSION_COMPARES_MAX}",
            )
        if self._cursor in submission.keys:
            return Invalid("DUPLICATE_KEY", "the cursor is written by the writer only", key=self._cursor)
        if len(submission.keys) < len(submission.ops):
            return Invalid("DUPLICATE_KEY", "one submission changes a key twice")
        try:
            check_branch(submission.ops)
            for compare in submission.compares:
                check_key(compare.key)
        except Invalid as error:
            return error
        if submission.size > SUBMISSION_BYTES_MAX:
            return Invalid(
                "TXN_TOO_LARGE",
                f"{submission.size:,} bytes at once; the limit is {SUBMISSION_BYTES_MAX:,}",
                size=submission.size,
                bytes_max=SUBMISSION_BYTES_MAX,
            )
        return None

    def _fenced(self) -> Conflict:
        return Conflict("LEASE_LOST", f"executor {self.executor_id} has lost its session", executor_id=self.executor_id)


class _Backoff:
    __slots__ = ("_delay_s", "count")

    def __init__(self) -> None:
        self.count = 0
        self._delay_s = BACKOFF_S_MIN

    async def wait(self) -> None:
        self.count += 1
        await asyncio.sleep(self._delay_s * (1 + random.random() / 5))  # noqa: S311  # jitter, not a secret
        self._delay_s = min(2 * self._delay_s, BACKOFF_S_MAX)


def _log_undecided(executor_id: str, error: StepflowError) -> None:
    log.warning("store unavailable, sending again", executor_id=executor_id, reason=error.reason, error=error.message)
