"""The quota gate: no new runs while etcd is nearly full, so that admitted runs have room to end."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from stepflow.errors import Forbidden, Overloaded, StepflowError
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store import Store

log = get_logger(__name__)

QUOTA_BYTES_DEFAULT = 4 * 1024**3
"""The recommended `--quota-backend-bytes` of etcd."""

QUOTA_SHARE_MAX = 0.7
QUOTA_INTERVAL_S = 5.0


class QuotaGate:
    """Refuses new runs above `QUOTA_SHARE_MAX` of the quota. A store without a quota (SQLite) never refuses."""

    def __init__(self, store: Store, quota_bytes: int = QUOTA_BYTES_DEFAULT) -> None:
        self._status: Callable[[], Any] | None = getattr(store, "status", None)
        self._bytes_max = int(quota_bytes * QUOTA_SHARE_MAX)
        self._bytes = 0
        self._measured_at_s = 0.0
        self._warned = False

    async def check(self) -> None:
        """Raises: Overloaded `STORE_FULL`."""
        if self._status is None:
            return

        now_s = time.monotonic()
        if now_s - self._measured_at_s >= QUOTA_INTERVAL_S:
            self._measured_at_s = now_s  # Before the await: each concurrent submission would measure, too.
            await self._measure(self._status)

        if self._bytes > self._bytes_max:
            raise Overloaded(
                "STORE_FULL",
                f"the store holds {self._bytes:,} bytes, too much for new runs (limit {self._bytes_max:,}): "
                "delete runs, or wait until old ones are removed",
                bytes_max=self._bytes_max,
            )

    async def _measure(self, status: Callable[[], Any]) -> None:
        try:
            self._bytes = (await status()).size_in_use_bytes
        except Forbidden:
            if not self._warned:
                log.warning(
                    "etcd tells its size to root alone and serves no metrics: no run is refused when it gets full; "
                    "only --store-bytes-max keeps room"
                )
            self._warned = True
        except StepflowError as error:  # not raised: if the store fails, the write of the run reports it
            log.info("size of the store not known", reason=error.reason)


__all__ = ["QUOTA_BYTES_DEFAULT", "QuotaGate"]
