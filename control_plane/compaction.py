"""Compaction: the leader discards the history of the store soon after its readers.

etcd keeps every version of a key until a compaction, so a store that is written at 20 MB/s would hold 6 GB of history
at etcd's own interval of 5 minutes.

- The store is compacted every `INTERVAL_S`, and sooner when it has grown by `GROWTH_BYTES`.
- The compaction goes to a revision that was current `KEPT_S` ago or earlier. Watches are read at once, lists go on at
  the current revision (`range_all`), and a watch that is cut off for longer lists again (`follow`): nothing is lost.
- Each revision is read in a transaction that compares leadership. A former leader can only repeat a compaction that
  was due in its own term, which has no effect: compactions never go back.

etcd's own periodic compaction stays as the backstop: for a mesh without a leader, and where etcd has logins and lets
only root compact.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from stepflow.errors import Forbidden, StepflowError
from stepflow.store import Txn
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from stepflow.store import Compare, Store

log = get_logger(__name__)

INTERVAL_S = 5.0

KEPT_S = 10.0
"""History that readers may still ask for."""

GROWTH_BYTES = 64 * 1024**2
"""Growth of the store's bytes in use that brings the next compaction forward."""


class Compaction:
    """Compacts one store. A leader calls `tick` about once a second."""

    def __init__(
        self, store: Store, *, interval_s: float = INTERVAL_S, kept_s: float = KEPT_S, growth_bytes: int = GROWTH_BYTES
    ) -> None:
        self._store = store
        self._interval_s, self._kept_s, self._growth_bytes = interval_s, kept_s, growth_bytes
        self._seen: deque[tuple[float, int]] = deque()
        """Instants with the revision that was current then, oldest first."""
        self._compacted = 0
        self._compacted_at_s = 0.0
        self._bytes_min = 0
        """The smallest number of bytes in use since the last compaction."""
        self._forbidden = False

    def begin_term(self) -> None:
        """Forget what an earlier term saw."""
        self._seen.clear()
        self._compacted = 0
        self._bytes_min = 0

    async def tick(self, fence: Compare, now_s: float, bytes_in_use: int = 0) -> int:
        """Note the current revision, and compact if it is time; return the compacted revision, 0 if none was.

        `now_s`: monotonic. `bytes_in_use`: of the store, 0 if unknown. Raises: StoreUnavailable.
        """
        # 1. Note the revision, as the leader.
        result = await self._store.txn(Txn((fence,), ()))
        if not result.succeeded:
            return 0
        self._seen.append((now_s, result.revision))

        # 2. Find the newest revision that is old enough.
        while len(self._seen) > 1 and self._seen[1][0] <= now_s - self._kept_s:
            self._seen.popleft()
        seen_at_s, target = self._seen[0]
        if seen_at_s > now_s - self._kept_s:
            return 0

        # 3. Compact when due.
        self._bytes_min = min(self._bytes_min, bytes_in_use) or bytes_in_use
        grown = bytes_in_use - self._bytes_min >= self._growth_bytes
        due = grown or now_s - self._compacted_at_s >= self._interval_s
        if not due or target <= self._compacted or self._forbidden:
            return 0
        await self._compact(target)
        self._compacted, self._compacted_at_s, self._bytes_min = target, now_s, bytes_in_use
        return target

    async def _compact(self, revision: int) -> None:
        try:
            await self._store.compact(revision)
        except Forbidden:
            self._forbidden = True
            log.warning(
                "etcd does not let this user compact: history takes room until etcd's own compaction; give the user "
                "the role root, or set --auto-compaction-retention=30s"
            )
        except StepflowError as error:
            log.info("compaction failed", revision=revision, reason=error.reason)


__all__ = ["Compaction"]
