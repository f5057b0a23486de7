"""A lease: granted once, kept alive, and judged by its holder's own clock.

The lease counts as valid until *send time of the last acknowledged keep-alive + TTL - margin*; past that the holder
must dispatch and journal nothing, whatever the store may still say. CLOCK_BOOTTIME, because a suspended machine's
lease runs out too.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from stepflow.errors import NotFound, StepflowError
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store import Store

log = get_logger(__name__)

LEASE_TTL_S = 5.0
KEEP_ALIVES_PER_TTL = 3
LEASE_MARGIN_S = 0.5
"""Of the default time to live; of another one as much in proportion."""

assert LEASE_TTL_S >= 2 * LEASE_TTL_S / KEEP_ALIVES_PER_TTL + LEASE_MARGIN_S  # one lost keep-alive costs nothing


def boot_time_s() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class LeaseKeeper:
    """Keeps one lease alive until it is lost or `stop` is called. `on_lost` is called once, when the store says so."""

    def __init__(
        self,
        store: Store,
        on_lost: Callable[[], None],
        *,
        ttl_s: float = LEASE_TTL_S,
        clock: Callable[[], float] = boot_time_s,
    ) -> None:
        """Grant nothing yet. `clock` counts seconds, also those in which the machine sleeps."""
        self._store = store
        self._on_lost = on_lost
        self._ttl_s = ttl_s
        self._interval_s = ttl_s / KEEP_ALIVES_PER_TTL
        self._good_s = ttl_s * (1 - LEASE_MARGIN_S / LEASE_TTL_S)
        self._clock = clock
        self._valid_until_s = 0.0
        self._task: asyncio.Task[None] | None = None
        self.lease = 0

    async def start(self) -> int:
        """Grant the lease and return its id. Raises: StepflowError."""
        sent = self._clock()
        self.lease = await self._store.lease_grant(self._ttl_s)
        self._valid_until_s = sent + self._good_s
        self._task = asyncio.create_task(self._keep_alive(), name="lease keep-alive")
        return self.lease

    def valid(self) -> bool:
        return self._clock() < self._valid_until_s

    async def stop(self, *, revoke: bool) -> None:
        """Let the lease run out, or end it now. Safe to repeat."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self._valid_until_s = 0.0
        if revoke and self.lease:
            try:
                await self._store.lease_revoke(self.lease)
            except StepflowError as error:
                log.debug("lease not revoked", reason=error.reason)
            self.lease = 0

    async def _keep_alive(self) -> None:
        while True:
            await asyncio.sleep(self._interval_s)
            sent = self._clock()
            try:
                async with asyncio.timeout(self._interval_s):  # a store that does not answer must not stop the next one
                    await self._store.lease_keep_alive(self.lease)
            except NotFound:
                log.warning("lease lost", lease=self.lease)
                self._valid_until_s = 0.0
                self._on_lost()
                return
            except TimeoutError:
                log.warning("keep-alive not answered in time", lease=self.lease)
            except StepflowError as error:
                log.warning("keep-alive failed", reason=error.reason)
            else:
                self._valid_until_s = sent + self._good_s
