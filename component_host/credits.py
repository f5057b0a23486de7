"""Credits: how many calls each executor may have sent, so that what the host cannot run waits where it can be moved.

- The capacity is that of calls in flight, over all streams. Credits given and not used count as taken.
- A stream gets credits ahead of need, up to its share, so that a busy one rarely waits for them; what idle streams
  hold is at most half of the capacity, where that is not smaller than the streams are many.
- A stream without a call in flight always has one credit, whatever the capacity: an idle stream must not starve
  another one by holding the last credit.

Counts only. Deeper calls, and calls that are joined again, may come without credit; then more calls are in flight than
the capacity says, and nobody gets new credits until they are fewer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CAPACITY_DEFAULT = 1_000
"""More than the default windows of a hundred runs ask for; component servers queue what they cannot run."""


class Account:
    """One stream's credits, as totals since it was opened."""

    __slots__ = ("granted", "in_flight", "received")

    def __init__(self, in_flight: Callable[[], int]) -> None:
        self.granted = 0
        self.received = 0
        """Calls that came, also those without credit."""
        self.in_flight = in_flight
        """Counts the stream's own calls that have not ended."""

    @property
    def unused(self) -> int:
        return max(0, self.granted - self.received)


class Credits:
    """See the head of this module."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._accounts: list[Account] = []

    def open(self, in_flight: Callable[[], int]) -> Account:
        account = Account(in_flight)
        self._accounts.append(account)
        return account

    def close(self, account: Account) -> None:
        """Its unused credits are free again; calls that go on are still counted by whoever calls `share`."""
        self._accounts.remove(account)

    def share(self, busy: int) -> list[Account]:
        """Hand out what is free while `busy` calls are in flight; return the accounts that got more."""
        ahead = max(1, self.capacity // (2 * len(self._accounts) or 1))
        free = self.capacity - busy - sum(account.unused for account in self._accounts)
        changed = []
        for account in self._accounts:
            if account.unused > ahead // 2:
                continue  # half a share is enough to go on; telling every single credit would be a frame a call
            more = min(ahead - account.unused, free)
            if more <= 0 and not account.unused and not account.in_flight():
                more = 1
            if more > 0:
                free -= more
                account.granted = account.received + account.unused + more
                changed.append(account)
        return changed


__all__ = ["CAPACITY_DEFAULT", "Account", "Credits"]
