"""Credits: the number of calls allowed to each executor. Excess calls wait in executors, free to move.

- The capacity bounds the calls in flight over all streams. Credits granted and unused count as taken.
- A stream gets credits ahead of need, up to a share of the capacity, so that a busy stream rarely waits. Idle streams
  hold at most half of the capacity, provided the capacity is at least twice the number of streams.
- A stream without a call in flight always has one credit, even beyond the capacity: otherwise an idle stream with the
  last credit would starve the others.

Counts only. Calls of sub-runs and joined calls need no credit; while they exceed the capacity, no credits are granted.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

CAPACITY_DEFAULT = 1_000
"""More than the default windows of a hundred runs; component servers queue excess calls."""


class Account:
    """Credits of a stream, as totals since the opening."""

    __slots__ = ("granted", "in_flight", "received")

    def __init__(self, in_flight: Callable[[], int]) -> None:
        self.granted = 0
        self.received = 0
        """Calls received, including calls without credit."""
        self.in_flight = in_flight
        """Returns the number of the stream's own calls without a result."""

    @property
    def unused(self) -> int:
        return max(0, self.granted - self.received)


class Credits:
    """The credits of one host."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._accounts: list[Account] = []

    def open_account(self, in_flight: Callable[[], int]) -> Account:
        account = Account(in_flight)
        self._accounts.append(account)
        return account

    def close_account(self, account: Account) -> None:
        """Free the unused credits of a stream. Calls in flight still count in `share(busy)`."""
        self._accounts.remove(account)

    def share(self, busy: int) -> list[Account]:
        """Grant the free credits while `busy` calls are in flight; return the accounts with new credits."""
        ahead = max(1, self.capacity // (2 * len(self._accounts) or 1))
        free = self.capacity - busy - sum(account.unused for account in self._accounts)
        changed = []

        for account in self._accounts:
            if account.unused > ahead // 2:
                continue  # half a share suffices: granting single credits would cost one frame per call

            more = min(ahead - account.unused, free)
            if more <= 0 and not account.unused and not account.in_flight():
                more = 1

            if more > 0:
                free -= more
                account.granted = account.received + account.unused + more
                changed.append(account)

        return changed


__all__ = ["CAPACITY_DEFAULT", "Account", "Credits"]
