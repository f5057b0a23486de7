"""A lease: granted once, kept alive, and judged by the clock of its holder.

The lease counts as held until *send time of the last acknowledged keep-alive + TTL - margin*. After that the holder
must not dispatch or journal, even if the store has not expired the lease. The clock is CLOCK_BOOTTIME, because a lease
expires during the suspension of a machine, too.

Renewals are made by one of two loops:
- `_RenewingThread._run`, if the store supports it (`RenewsFromThread`, as etcd does): a busy event loop does not lose
  the lease. The thread watches the loop in turn: after half a time to live without a tick it stops renewing, because a
  hung process must not own runs.
- `LeaseKeeper._keep_alive`, a task of the event loop, for other stores.

Neither dies of an exception: an unforeseen one is logged, and the lease renewed again. A loop that ends all the same
counts as the loss of the lease, so that the holder takes another one.

Holders: sessions of executors (`executor.session`), sessions of hosts (`component_host.registration`), and the leader
(`control_plane.leader`).
"""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from stepflow.errors import NotFound, StepflowError
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store.protocol import Store

log = get_logger(__name__)

TICKS_PER_TTL = 20
"""Ticks by which the loop shows its renewing thread that it runs."""

LEASE_TTL_S = 5.0
KEEP_ALIVES_PER_TTL = 3
RETRIES_PER_TTL = 25
"""Retry rate of a failed keep-alive, possibly at another member of the store."""

LEASE_MARGIN_S = 0.5
"""Margin for the default time to live; proportional for others."""

assert LEASE_TTL_S >= 2 * LEASE_TTL_S / KEEP_ALIVES_PER_TTL + LEASE_MARGIN_S  # one lost keep-alive costs nothing


def boot_time_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Renewer(Protocol):
    """Renews leases from one thread, blocking. `close` is thread-safe."""

    def renew(self, lease: int) -> float:
        """Restart the time to live and return it in seconds. Raises: NotFound `LEASE_GONE`; StepflowError, retry."""
        ...

    def close(self) -> None: ...


@runtime_checkable
class RenewsFromThread(Protocol):
    """A store whose leases can be renewed from a thread."""

    def lease_renewer(self) -> Renewer: ...


class LeaseKeeper:
    """Keeps one lease alive until `stop`, or until the store reports it expired and `on_lost` is called, once."""

    def __init__(
        self,
        store: Store,
        on_lost: Callable[[], None],
        *,
        ttl_s: float = LEASE_TTL_S,
        clock: Callable[[], float] = boot_time_s,
    ) -> None:
        """Prepare; `start` grants the lease. `clock` counts seconds, suspension included."""
        self._store = store
        self._on_lost = on_lost
        self._ttl_s = ttl_s
        self._interval_s = ttl_s / KEEP_ALIVES_PER_TTL
        self._retry_s = ttl_s / RETRIES_PER_TTL
        self._good_s = ttl_s * (1 - LEASE_MARGIN_S / LEASE_TTL_S)
        self._clock = clock

        self._valid_until_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self._thread: _RenewingThread | None = None
        self.lease = 0

    async def start(self) -> int:
        """Grant the lease and return its id. Raises: StepflowError."""
        sent = self._clock()
        self.lease = await self._store.lease_grant(self._ttl_s)
        self._valid_until_s = sent + self._good_s
        if isinstance(self._store, RenewsFromThread):
            self._thread = _RenewingThread(self, self._store.lease_renewer())
            self._thread.begin()
        else:
            self._task = asyncio.create_task(self._keep_alive(), name="lease keep-alive")
        return self.lease

    def valid(self) -> bool:
        return self._clock() < self._valid_until_s

    async def stop(self, *, revoke: bool) -> None:
        """Stop renewing, and with `revoke` end the lease now. Idempotent."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._thread is not None:
            thread, self._thread = self._thread, None
            await thread.end()

        self._valid_until_s = 0.0
        if revoke and self.lease:
            try:
                await self._store.lease_revoke(self.lease)
            except StepflowError as error:
                log.debug("lease not revoked", reason=error.reason)
            self.lease = 0

    async def _keep_alive(self) -> None:
        try:
            await self._renew_until_gone()
        except BaseException as error:
            if not isinstance(error, asyncio.CancelledError):
                self._ended()
            raise

    async def _renew_until_gone(self) -> None:
        well = True
        while True:
            await asyncio.sleep(self._interval_s if well else self._retry_s)
            was_well, well = well, False
            sent = self._clock()

            try:
                async with asyncio.timeout(self._interval_s):  # a silent store must not delay the next keep-alive
                    await self._store.lease_keep_alive(self.lease)
            except NotFound:
                self._ended()
                return
            except (TimeoutError, StepflowError) as error:
                if was_well:
                    log.warning("keep-alive failed", reason=getattr(error, "reason", "not answered in time"))
            except Exception as error:
                if was_well:
                    log_defect(log, "keep-alive failed by a defect", error)
            else:
                self._valid_until_s = sent + self._good_s
                well = True

    def _ended(self) -> None:
        log.warning("lease lost", lease=self.lease)
        self._valid_until_s = 0.0
        self._on_lost()


class _RenewingThread:
    """The thread of one keeper, and the ticks of the loop under watch."""

    def __init__(self, keeper: LeaseKeeper, renewer: Renewer) -> None:
        self._keeper = keeper
        self._renewer = renewer
        self._loop = asyncio.get_running_loop()
        self._ticked_at_s = keeper._clock()
        self._tick_handle: asyncio.TimerHandle | None = None
        self._stopping = threading.Event()
        self._ended = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="lease keep-alive", daemon=True)

    def begin(self) -> None:
        """Start the thread. Raises: RuntimeError, the system has no thread left."""
        self._thread.start()
        self._tick()

    async def end(self) -> None:
        """Interrupt the thread and wait for its end. Needs no other thread: there may be none left."""
        if self._tick_handle is not None:
            self._tick_handle.cancel()
        self._stopping.set()
        self._renewer.close()
        if self._thread.ident is not None:
            await self._ended.wait()
            self._thread.join()

    def _tick(self) -> None:
        self._ticked_at_s = self._keeper._clock()
        self._tick_handle = self._loop.call_later(self._keeper._ttl_s / TICKS_PER_TTL, self._tick)

    def _run(self) -> None:
        try:
            self._renew_until_gone()
        except BaseException as error:  # also those that end a thread silently, such as SystemExit
            log_defect(log, "lease keep-alive ended by a defect", error)
        finally:
            try:
                self._loop.call_soon_threadsafe(self._handle_end)
            except RuntimeError:  # the loop was closed without `stop`
                return

    def _handle_end(self) -> None:
        self._ended.set()
        if not self._stopping.is_set():
            self._keeper._ended()

    def _renew_until_gone(self) -> None:
        keeper = self._keeper
        well = True
        while not self._stopping.wait(keeper._interval_s if well else keeper._retry_s):
            was_well, well = well, False
            sent = keeper._clock()

            if sent - self._ticked_at_s > keeper._ttl_s / 2:
                if was_well:
                    log.warning("event loop hangs, lease not renewed", lease=keeper.lease)
                continue

            try:
                self._renewer.renew(keeper.lease)
            except NotFound:
                return
            except StepflowError as error:
                if was_well and not self._stopping.is_set():
                    log.warning("keep-alive failed", reason=error.reason)
            except Exception as error:  # no descriptor, no memory, a failed import: it may work again in a moment
                if was_well and not self._stopping.is_set():
                    log_defect(log, "keep-alive failed by a defect", error)
            else:
                keeper._valid_until_s = sent + keeper._good_s
                well = True


__all__ = ["LEASE_TTL_S", "LeaseKeeper", "Renewer", "RenewsFromThread", "boot_time_s"]
