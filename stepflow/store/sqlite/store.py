"""The embedded store: the semantics of `stepflow.store` in one SQLite file, or in memory.

`SqliteStore` is the asynchronous half. A thread executes requests in FIFO order (see `engine`), takes all waiting
requests as one batch with one commit, and hands their results to the event loop together.

- Results and events reach the loop after the commit, events before the results of the requests that made them.
- A watch is opened by a request in the same queue, so its first event has an exact position in that order.
- A watch that lags by `WATCH_BACKLOG_MAX` revisions ends with StoreCompacted, which bounds its memory.
- After a stall of the whole process (a suspended laptop, SIGSTOP) all leases are renewed: no keep-alive was possible.

Not here: several processes on one file (use etcd), and fencing (`stepflow.store.writer`).
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import threading
import time
from functools import partial
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, TypeVar

from stepflow.errors import FailedPrecondition
from stepflow.store.protocol import (
    PAGE_KEYS_MAX,
    KeyValue,
    Page,
    StoreCompacted,
    StoreUnavailable,
    Txn,
    TxnResult,
    WatchBatch,
)
from stepflow.store.sqlite import file
from stepflow.store.sqlite.engine import Engine
from stepflow.store.watch_queue import WatchQueue

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from stepflow.store.sqlite.history import Record

BATCH_REQUESTS_MAX = 256
"""Requests of one commit; bounds the wait of the first for the last."""

STALL_S = 0.1
"""A wake-up this late means that the process was suspended."""

_T = TypeVar("_T")


class SqliteStore:
    """A `stepflow.store.Store` from `open` to `close`. Its methods belong to one event loop."""

    def __init__(self, path: str, *, read_only: bool) -> None:
        self.path = path
        self.on_failure: Callable[[Exception], None] = lambda _error: None
        """Called on the loop when a commit fails (a full disk), in addition to failing the requests of the batch."""
        self._read_only = read_only
        self._loop = asyncio.get_running_loop()
        self._requests: SimpleQueue[_Request | None] = SimpleQueue()
        self._watches: set[SqliteWatch] = set()
        self._closed = False
        self._ended = self._loop.create_future()
        self._opened = self._loop.create_future()
        self._thread = threading.Thread(target=self._serve, name="stepflow-sqlite", daemon=True)

    @classmethod
    async def open(cls, path: str | os.PathLike[str], *, read_only: bool = False) -> SqliteStore:
        """Open or create the database `path`; `":memory:"` is a database in memory.

        A read-only store is a snapshot of the database, even while another process owns and changes it.

        Raises:
            StoreUnreadable: `STORE_LOCKED`, `STORE_NOT_A_STORE`, `STORE_VERSION_UNKNOWN`, `STORE_UNREADABLE`.
            NotFound: `STORE_NOT_FOUND`, read-only and no such file.
            DataLoss: `STORE_CORRUPT`.
        """
        text = str(path)
        store = cls(text if text == file.MEMORY else str(Path(text)), read_only=read_only)

        store._thread.start()
        try:
            await asyncio.shield(store._opened)
        except BaseException:
            await store.close()
            raise
        return store

    async def get(self, key: str) -> KeyValue | None:
        return await self._ask(lambda engine: engine.get(key))

    async def range(self, prefix: str, *, after: str = "", limit: int = PAGE_KEYS_MAX, revision: int = 0) -> Page:
        return await self._ask(lambda engine: engine.range(prefix, after, limit, revision))

    async def txn(self, txn: Txn) -> TxnResult:
        return await self._ask(lambda engine: engine.txn(txn))

    async def lease_grant(self, ttl_s: float) -> int:
        return await self._ask(lambda engine: engine.lease_grant(ttl_s, time.monotonic()))

    async def lease_keep_alive(self, lease: int) -> float:
        return await self._ask(lambda engine: engine.lease_keep_alive(lease, time.monotonic()))

    async def lease_revoke(self, lease: int) -> None:
        await self._ask(lambda engine: engine.lease_revoke(lease))

    async def revision(self) -> int:
        return await self._ask(Engine.current_revision)

    async def compact(self, revision: int) -> None:
        await self._ask(lambda engine: engine.compact(revision))

    def watch(self, prefix: str, *, from_revision: int = 0) -> SqliteWatch:
        if self._read_only:
            raise FailedPrecondition(
                "STORE_READ_ONLY", "a database opened for reading only does not change and has no watches"
            )
        watch = SqliteWatch(prefix, self._watches)
        if self._closed:
            watch.fail(self._gone())
            return watch
        request = _Request(lambda engine: (engine.current_revision(), engine.history(prefix, from_revision)), None)
        request.deliver = partial(watch.begin, request, from_revision)
        self._requests.put(request)
        return watch

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._requests.put(None)
        await asyncio.shield(self._ended)
        self._thread.join()

    def _ask(self, work: Callable[[Engine], _T]) -> asyncio.Future[_T]:
        future: asyncio.Future[_T] = self._loop.create_future()
        if self._closed:
            future.set_exception(self._gone())
        else:
            self._requests.put(_Request(work, future))
        return future

    def _deliver(self, batch: list[_Request], records: list[Record]) -> None:
        """Hand out a committed batch: first its records to the watches, then its results."""
        # A watch opened by this batch joins at its own request and picks its share of the records.
        for watch in tuple(self._watches):
            watch.feed(records)

        for request in batch:
            if request.deliver is not None:
                request.deliver(records)
            future = request.future
            if future is None or future.done():  # done: its caller was cancelled
                continue
            if request.error is not None:
                future.set_exception(request.error)
            else:
                future.set_result(request.result)

    def _end(self, cause: Exception | None) -> None:
        """Fail all waiters once the thread has ended, even if it never opened the database."""
        self._closed = True
        for watch in tuple(self._watches):
            watch.fail(self._gone())
        self._fail_requests(cause or self._gone())
        if not self._opened.done():
            self._opened.set_exception(cause or self._gone())
        self._ended.set_result(None)

    def _fail_requests(self, error: Exception) -> None:
        """Fail the requests that the thread has not taken: nothing will answer them."""
        while True:
            try:
                request = self._requests.get_nowait()
            except Empty:
                return
            if request is not None:
                _fail_batch([request], error)

    def _gone(self) -> StoreUnavailable:
        return StoreUnavailable("STORE_CLOSED", f"{self.path} was closed", path=self.path)

    def _serve(self) -> None:
        try:
            db, lock = file.open_file(self.path, read_only=self._read_only)
        except Exception as error:  # of any kind: `open` waits for it
            self._hand_over(self._end, error)
            return

        cause: Exception | None = None
        try:
            self._serve_open(db)
        except Exception as error:
            cause = self._explain(error)
        finally:
            with contextlib.suppress(sqlite3.Error):  # a full disk: the log stays and is replayed at the next opening
                db.close()
            file.unlock(lock)
            self._hand_over(self._end, cause)

    def _serve_open(self, db: sqlite3.Connection) -> None:
        engine = Engine(db, read_only=self._read_only)
        if not self._read_only:
            engine.drop_leased_keys()
            engine.commit()
        self._hand_over(_succeed, self._opened)

        if not self._read_only and self.path != file.MEMORY:
            with contextlib.suppress(sqlite3.Error):  # writers get the error of a full disk
                file.grow_log(db)

        while True:
            batch, last = self._gather(engine)
            try:
                self._execute(engine, batch)
            except Exception as error:  # a defect, which ends this thread
                self._hand_over(_fail_batch, batch, error)
                raise
            if last:
                return

    def _gather(self, engine: Engine) -> tuple[list[_Request], bool]:
        """Wait for a request or the expiry of a lease; return the waiting requests, and True if the store closes."""
        expiry_s = engine.next_expiry_s()
        try:
            timeout_s = None if expiry_s is None else max(0.0, expiry_s - time.monotonic())
            request = self._requests.get(timeout=timeout_s)
        except Empty:
            request = _TIMED_OUT

        if expiry_s is not None and time.monotonic() - expiry_s > STALL_S:
            engine.renew_leases(time.monotonic())

        batch: list[_Request] = []
        while request is not None:
            if request is not _TIMED_OUT:
                batch.append(request)
            if len(batch) >= BATCH_REQUESTS_MAX:
                return batch, False
            try:
                request = self._requests.get_nowait()
            except Empty:
                return batch, False
        return batch, True

    def _execute(self, engine: Engine, batch: list[_Request]) -> None:
        try:
            engine.expire_leases(time.monotonic())
            for request in batch:
                request.run(engine)
            records = engine.commit()
        except Exception as error:
            records = []
            with contextlib.suppress(sqlite3.Error):
                engine.forget()
            engine.renew_leases(time.monotonic())  # else an expired lease would be retried in a busy loop
            explained = self._explain(error)
            for request in batch:
                request.result, request.error = None, explained
            self._hand_over(self.on_failure, explained)

        if batch or records:
            self._hand_over(self._deliver, batch, records)

    def _explain(self, error: Exception) -> Exception:
        return file.explain(error, self.path) if isinstance(error, sqlite3.Error) else error

    def _hand_over(self, callback: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and with it all waiters
            self._loop.call_soon_threadsafe(callback, *args)


def _fail_batch(batch: list[_Request], error: Exception) -> None:
    for request in batch:
        if request.future is not None and not request.future.done():
            request.future.set_exception(error)


def _succeed(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class _Request:
    """Work for the thread, with its outcome for the loop."""

    __slots__ = ("deliver", "error", "future", "result", "work")

    def __init__(self, work: Callable[[Engine], Any], future: asyncio.Future[Any] | None) -> None:
        self.work = work
        self.future = future
        self.result: Any = None
        self.error: Exception | None = None
        self.deliver: Callable[[list[Record]], None] | None = None

    def run(self, engine: Engine) -> None:
        try:
            self.result = self.work(engine)
        except sqlite3.Error:
            raise  # fails the whole batch
        except Exception as error:  # belongs to the caller, not to the thread
            self.error = error


_TIMED_OUT = _Request(Engine.current_revision, None)


class SqliteWatch(WatchQueue):
    """A watch, fed by the store on the event loop."""

    def __init__(self, prefix: str, watches: set[SqliteWatch]) -> None:
        super().__init__()
        self._prefix = prefix
        self._watches = watches
        self._seen = 0  # the last revision that was examined

    def close(self) -> None:
        self._watches.discard(self)
        self.close_queue()

    def begin(self, request: _Request, from_revision: int, records: list[Record]) -> None:
        """Join the feed. `records` are those of the batch that opened the watch."""
        if self._closed:
            return
        if request.error is not None:
            self.fail(request.error)
            return

        revision, past = request.result
        self._watches.add(self)
        self._seen = from_revision - 1 if from_revision else revision
        self.feed(past)
        self.feed(records)

    def feed(self, records: list[Record]) -> None:
        for record in records:
            if record.revision <= self._seen:
                continue
            self._seen = record.revision
            events = tuple([event for event in record.events if event.kv.key.startswith(self._prefix)])
            if events:
                self._batches.append(WatchBatch(record.revision, events))

        try:
            self.check_backlog(self._prefix, self._seen)
        except StoreCompacted as error:
            self.fail(error)
        if self._batches:
            self.wake_owner()

    def fail(self, error: Exception) -> None:
        """Let the owner read the remaining batches, then raise the error."""
        self._error = error
        self._watches.discard(self)
        self.wake_owner()
