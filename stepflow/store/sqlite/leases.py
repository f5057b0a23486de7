"""The leases of an embedded store. In memory only: they end with the process.

`Lease.keys` may hold too many keys (a key that was put again without the lease). The lease in the key itself decides.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from stepflow.errors import Invalid, NotFound


@dataclass(slots=True)
class Lease:
    """`expires_at_s` is on the clock of the caller who passes `now_s`."""

    ttl_s: float
    expires_at_s: float
    keys: set[str] = field(default_factory=set)


class Leases:
    """Live leases, and the leases that the current batch has ended."""

    def __init__(self) -> None:
        self._live: dict[int, Lease] = {}
        self._ended: dict[int, Lease] = {}
        self._last_id = 0

    def grant(self, ttl_s: float, now_s: float) -> int:
        if not 0 < ttl_s < 1e9:
            raise Invalid("LEASE_TTL_INVALID", f"a lease of {ttl_s} s: it must last longer than 0", ttl_s=ttl_s)
        self._last_id += 1
        self._live[self._last_id] = Lease(ttl_s, now_s + ttl_s)
        return self._last_id

    def find(self, lease_id: int) -> Lease:
        """Return a live lease. Raises: NotFound `LEASE_GONE`."""
        lease = self._live.get(lease_id)
        if lease is None:
            raise NotFound("LEASE_GONE", f"lease {lease_id} has ended", lease=lease_id)
        return lease

    def end(self, lease_id: int) -> Lease:
        """End a lease as part of the batch. Raises: NotFound `LEASE_GONE`."""
        lease = self.find(lease_id)
        self._ended[lease_id] = self._live.pop(lease_id)
        return lease

    def commit(self) -> None:
        self._ended.clear()

    def forget(self) -> None:
        """Undo the batch: its ended leases live again."""
        self._live.update(self._ended)
        self._ended.clear()

    def expired(self, now_s: float) -> list[int]:
        return [lease_id for lease_id, lease in self._live.items() if lease.expires_at_s <= now_s]

    def renew_all(self, now_s: float) -> None:
        for lease in self._live.values():
            lease.expires_at_s = now_s + lease.ttl_s

    def next_expiry_s(self) -> float | None:
        """Return when the next lease expires; None without leases."""
        return min((lease.expires_at_s for lease in self._live.values()), default=None)
