"""Watches over etcd that survive their connections.

- One gRPC stream per watch, all on one connection. A watch yields whole revisions in order, without repeats or gaps: it
  resumes after the last complete revision, at any member.
- A stream silent for `PROGRESS_S` is asked for its progress, and for a sign of life; a stream silent for `SILENCE_S` is
  abandoned together with its connection. So a half-open connection is detected within seconds.
- Progress alone is no sign of life: etcd owes no progress for a watch that starts in the future, as every watch of an
  idle store does. A second watch under the same id is refused at any revision, and that refusal is the sign of life.
- Reported progress advances the resume point, so that a compaction does not catch an idle watch.
- A watch that would wait for revisions which etcd has lost (it was wiped, or restored) ends with StoreCompacted, too.
- Streams are read even if the owner lags. A watch ends with StoreCompacted when its owner is `WATCH_BACKLOG_MAX`
  revisions behind, or when etcd has compacted missed revisions; the owner then lists again.

Not here: the new list after a compaction, which only the owner can compare with its state.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from typing import TYPE_CHECKING, Any

from grpc import aio

from stepflow.errors import DataLoss, Forbidden, StepflowError
from stepflow.etcd.v1 import etcd_pb2 as pb
from stepflow.store.etcd.client import CHANNEL_GONE, WATCH, EtcdClient, is_cancelled, version_of
from stepflow.store.etcd.errors import explain, needs_login
from stepflow.store.protocol import KeyValue, StoreCompacted, StoreEvent, StoreUnavailable, WatchBatch
from stepflow.store.watch_queue import WatchQueue
from stepflow.telemetry import get_logger
from stepflow.vital import keep_running

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

log = get_logger(__name__)

TICK_S = 0.5
PROGRESS_S = 2.0
SILENCE_S = 5.0
CREATE_S = 2.0
"""Longest wait for the confirmation of a new stream; then another is tried."""

WATCH_ID = 1
"""Id of the only watch of each stream."""

BACKOFF_S_MIN = 0.05
BACKOFF_S_MAX = 1.0

PROGRESS_TOLD_RIGHT = (3, 5, 8)
"""Since this version, reported progress never overtakes an event (etcd issue 15220)."""

assert SILENCE_S >= 2 * PROGRESS_S  # a busy server has PROGRESS_S to answer


class _Broken(Exception):
    """The stream is unusable; the watch goes on with another."""


class EtcdWatch(WatchQueue):
    """A watch that survives its streams. The owner iterates; `Watches` ticks it."""

    def __init__(self, watches: Watches, prefix: bytes, end: bytes, strip: int, from_revision: int) -> None:
        super().__init__()
        self._watches = watches
        self._client = watches.client
        self._prefix, self._end, self._strip = prefix, end, strip
        self._next = from_revision
        self._resumed = False
        self._fragments: list[pb.Event] = []
        self._stream: aio.StreamStreamCall[Any, Any] | None = None
        self._patience: asyncio.Timeout | None = None
        self._heard_s = 0.0
        self._created = False
        self._task = asyncio.get_running_loop().create_task(self._follow(), name="etcd watch")

    def close(self) -> None:
        self.close_queue()
        self.stop()

    @property
    def resumes_at(self) -> int:
        """The first undelivered revision, as far as known."""
        return self._next

    @property
    def ended_early(self) -> bool:
        """True if an error follows the remaining batches."""
        return self._error is not None

    def fail(self, error: StepflowError) -> None:
        """Let the owner read the remaining batches, then raise the error."""
        if self._error is None:
            self._error = error
        self.stop()

    def stop(self) -> None:
        self._task.cancel()
        self._watches.remove(self)
        self.wake_owner()

    async def ended(self) -> None:
        await asyncio.gather(self._task, return_exceptions=True)

    async def tick(self, now_s: float) -> None:
        """Ask a silent stream for its progress and a sign of life, or abandon it if it stays silent."""
        stream, patience = self._stream, self._patience
        if stream is None or patience is None or now_s - self._heard_s < PROGRESS_S:
            return

        if now_s - self._heard_s >= (SILENCE_S if self._created else CREATE_S):
            self._patience = None
            patience.reschedule(0)
            return

        try:
            async with asyncio.timeout(TICK_S):  # the time-out cancels a stream that accepts no write
                await stream.write(pb.WatchRequest(progress_request=pb.WatchProgressRequest()))
                await stream.write(self._create_request())
        except (Exception, asyncio.CancelledError):
            if is_cancelled():
                raise
            # The stream has ended; its reader gets the reason. The clock must go on for the other watches.

    async def _follow(self) -> None:
        failures = 0
        while True:
            started_s, resumed_at = time.monotonic(), self._next
            channel, endpoint = self._client.watch.channel(), self._client.watch.endpoint
            try:
                reason = await self._outlive(channel, endpoint)
            except StepflowError as error:
                self.fail(error)
                return
            except Exception as error:  # a bug: without this, the owner would hang
                asyncio.get_running_loop().call_exception_handler({"message": "a watch failed", "exception": error})
                self.fail(StoreUnavailable("STORE_UNAVAILABLE", f"a watch failed: {error!r}"))
                return

            self._client.watch.leave(channel)
            self._resumed = True
            useful = self._next > resumed_at or time.monotonic() - started_s > BACKOFF_S_MAX
            failures = 1 if useful else failures + 1
            log.debug("watch interrupted", endpoint=endpoint, error=reason, failures=failures)
            if failures > 1:  # the first retry is immediate
                await asyncio.sleep(_backoff_s(failures))

    async def _outlive(self, channel: aio.Channel, endpoint: str) -> str:
        """Read one stream to its end; return the reason if another stream may succeed. Raises: StepflowError."""
        token = self._client.token
        try:
            # Cancelling the stream is not enough: gRPC may hang on a stream that never began.
            async with asyncio.timeout(None) as self._patience:
                await self._read(channel)
        except TimeoutError:
            log.warning("silent watch given up", endpoint=endpoint)
            return "silent"
        except _Broken as broken:
            text = str(broken)
        except aio.AioRpcError as error:
            text = error.details() or ""
            explained = explain(error, endpoint)
            if isinstance(explained, (Forbidden, DataLoss)):
                raise explained from None
        except CHANNEL_GONE:
            if is_cancelled():
                raise
            return "connection given up"

        if needs_login(text):
            with contextlib.suppress(StoreUnavailable):  # the next stream logs in
                await self._client.login(token)
        return text

    async def _read(self, channel: aio.Channel) -> None:
        """Read one stream to its end. Raises: the cause of the end."""
        self._fragments.clear()  # of an incomplete revision, which is sent again
        stream = self._client.stream(channel, WATCH)
        self._heard_s = time.monotonic()
        self._created = False
        self._stream = stream

        try:
            await stream.write(self._create_request())
            while True:
                response = await stream.read()
                if not isinstance(response, pb.WatchResponse):  # grpc's mark of the end
                    raise _Broken("the stream ended")
                self._heard_s = time.monotonic()
                if self._created and response.created:
                    continue  # the refused second watch, see `tick`
                self._created = True
                if response.canceled:
                    raise self._cancelled(response)
                self._take(response)
        finally:
            self._stream = None
            stream.cancel()

    def _create_request(self) -> pb.WatchRequest:
        """Return the request that creates the watch, and is refused while the watch exists."""
        # A resumed watch starts one revision early, and the repeat is left out: before 3.5.18 etcd starts a watch at
        # the compacted revision itself, without the deletions of that revision.
        start = max(1, self._next - 1) if self._resumed else self._next
        create = pb.WatchCreateRequest(
            key=self._prefix, range_end=self._end, start_revision=start, watch_id=WATCH_ID, fragment=True
        )
        return pb.WatchRequest(create_request=create)

    def _take(self, response: pb.WatchResponse) -> None:
        self._client.saw(response.header.revision)
        if response.created and response.header.revision + 1 < self._next:
            self._watches.doubt()  # this member lags, or the history that the watch follows is gone
        if response.events:
            self._fragments.extend(response.events)
            self._deliver(whole=not response.fragment)
        elif not response.created and not self._fragments and self._watches.progress_counts:
            # All events up to this revision have been delivered.
            self._next = max(self._next, response.header.revision + 1)

    def _deliver(self, *, whole: bool) -> None:
        """Deliver the complete revisions: all, or without `whole` all but the last, whose other fragments follow."""
        last = 0 if whole else self._fragments[-1].kv.mod_revision
        revision = 0
        events: list[StoreEvent] = []
        kept: list[pb.Event] = []
        for event in self._fragments:
            changed_at = event.kv.mod_revision
            if changed_at < self._next:  # a repeat after resuming
                continue
            if changed_at == last:
                kept.append(event)
                continue
            if changed_at != revision:
                self._append(revision, events)
                revision, events = changed_at, []
            events.append(self._event(event))
        self._append(revision, events)
        self._fragments = kept

        self.check_backlog(self._prefix.decode(), self._next - 1)
        if self._batches:
            self.wake_owner()

    def _append(self, revision: int, events: list[StoreEvent]) -> None:
        if events:
            self._batches.append(WatchBatch(revision, tuple(events)))
            self._next = revision + 1

    def _event(self, event: pb.Event) -> StoreEvent:
        kv = event.kv
        key = kv.key[self._strip :].decode()
        if event.type == pb.Event.TYPE_DELETE:
            return StoreEvent("delete", KeyValue(key, b"", 0, kv.mod_revision, 0))
        return StoreEvent("put", KeyValue(key, kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease))

    def _cancelled(self, response: pb.WatchResponse) -> Exception:
        """Translate the end of a watch by the server."""
        if response.compact_revision:
            return StoreCompacted(
                "STORE_COMPACTED",
                f"etcd has no history from revision {self._next} on any more",
                compacted=response.compact_revision,
            )
        if "permission denied" in response.cancel_reason:
            return Forbidden("STORE_FORBIDDEN", "etcd does not allow this user to watch the prefix")
        return _Broken(response.cancel_reason or "cancelled by the server")


class Watches:
    """All watches of a store, and the clock that checks the silent ones."""

    def __init__(self, client: EtcdClient, version: str) -> None:
        self.client = client
        self.progress_counts = version_of(version) >= PROGRESS_TOLD_RIGHT
        self.ask_revision: Callable[[], Awaitable[int]] = _unknown
        """Asks etcd for its present revision, and so recognises an etcd that was replaced."""
        self._watches: set[EtcdWatch] = set()
        self._ticker: asyncio.Task[None] | None = None
        self._asking: asyncio.Task[None] | None = None

    def open(self, prefix: bytes, end: bytes, strip: int, from_revision: int) -> EtcdWatch:
        """Watch from `prefix` to `end`, removing the first `strip` bytes of keys.

        With `from_revision` 0 the watch starts after the highest revision of any reply so far: after all answered
        requests, and before all later ones.
        """
        watch = EtcdWatch(self, prefix, end, strip, from_revision or self.client.revision + 1)
        self._watches.add(watch)
        if self._ticker is None:
            self._ticker = asyncio.get_running_loop().create_task(
                keep_running(log, "the clock of the watches", self._tick), name="etcd watches"
            )
        return watch

    def remove(self, watch: EtcdWatch) -> None:
        self._watches.discard(watch)

    def doubt(self) -> None:
        """Ask for the present revision, unless it is being asked."""
        if self._asking is None or self._asking.done():
            self._asking = asyncio.get_running_loop().create_task(self._ask(), name="etcd revision")

    def end_ahead(self, revision: int) -> None:
        """End the watches that wait for revisions after the newest one. Their owners list again."""
        for watch in tuple(self._watches):
            if watch.resumes_at > revision + 1:
                watch.fail(
                    StoreCompacted("STORE_COMPACTED", "etcd was replaced by an older history", compacted=revision)
                )

    async def _ask(self) -> None:
        with contextlib.suppress(StepflowError):  # the stream ends again, or a later request finds out
            await self.ask_revision()

    async def close(self, error: StepflowError) -> None:
        watches = tuple(self._watches)
        for watch in watches:
            watch.fail(error)
        for watch in watches:
            await watch.ended()
        if self._asking is not None:
            self._asking.cancel()
            await asyncio.gather(self._asking, return_exceptions=True)
        if self._ticker is not None:
            self._ticker.cancel()
            await asyncio.gather(self._ticker, return_exceptions=True)

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            for watch in tuple(self._watches):
                await watch.tick(time.monotonic())


async def _unknown() -> int:
    raise StoreUnavailable("STORE_CLOSED", "there is no store to ask")


def _backoff_s(failures: int) -> float:
    """Return the pause before the next try, with jitter, so that the watches of a process do not reconnect together."""
    pause_s: float = min(BACKOFF_S_MIN * 2 ** min(failures, 10), BACKOFF_S_MAX)
    return pause_s * (1 - random.random() / 2)  # noqa: S311  # jitter, not a secret
