"""The retirement of servers that keep running abandoned calls: capacity that would never come back.

A component cannot always be stopped. Its execute, abandoned by a timeout or a cancel, keeps a thread or a slot until
the server answers, and a server full of them does no work. When `ABANDONED_MAX` of one server's executes (or half of
its slots, if that is less) are older than `ABANDONED_S`, the server is *retired*: it gets no more calls. Once the calls
in flight there have ended, or after `LIVE_S`, its process is ended and started again. One server of a pool retires at a
time, and the others take the load.

A process elsewhere cannot be ended from here: the host drops such executes there, and their slots are free again.
"""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Protocol

from stepflow.telemetry import get_logger
from stepflow.vital import guarded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from component_host.backend import ServerHealth

ABANDONED_MAX = 32
"""Executes of one server that may stay abandoned."""

ABANDONED_S = 10.0
"""Abandoned executes that end sooner do no lasting harm."""

LIVE_S = 30.0
"""Time for the calls in flight in a retired server."""

TICK_S = 1.0

log = get_logger("component_host.stepflow")


class AbandonedExecutes:
    """Executes without a call that the server has not answered, by id."""

    def __init__(self) -> None:
        self._since: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._since)

    def note_abandoned(self, request_id: int) -> None:
        self._since[request_id] = time.monotonic()

    def note_answered(self, request_id: int) -> None:
        self._since.pop(request_id, None)

    def clear(self) -> None:
        self._since.clear()

    def abandoned_before(self, instant: float) -> list[int]:
        """Return the executes abandoned before an instant of the monotonic clock."""
        return [request_id for request_id, since in self._since.items() if since < instant]


def abandoned_max(concurrency: float) -> int:
    """Return how many executes may stay abandoned in a server with so many slots."""
    return math.ceil(min(concurrency, 2 * ABANDONED_MAX) / 2)


class RetirableServer(Protocol):
    """A server, as seen by the retirement."""

    @property
    def process_id(self) -> int:
        """0 for a remote server."""
        ...

    @property
    def concurrency(self) -> float: ...

    @property
    def abandoned(self) -> AbandonedExecutes: ...

    @property
    def executing(self) -> bool:
        """True while the server executes a call that is still wanted; queued calls do not count."""
        ...

    def retire(self) -> None:
        """Accept no more calls until the next start."""
        ...

    def end_process(self) -> None:
        """Kill the process; its end is a wanted one."""
        ...

    def drop_executes(self, request_ids: Sequence[int]) -> None:
        """Free the slots of abandoned executes of a remote server."""
        ...


class Retirement:
    """Watches the servers of one pool while any has abandoned executes."""

    def __init__(
        self,
        plugin: str,
        servers: Callable[[], Sequence[RetirableServer]],
        health: Callable[[], ServerHealth],
    ) -> None:
        self._plugin = plugin
        self._servers = servers
        self._health = health
        self._timer: asyncio.TimerHandle | None = None
        self._retired: tuple[RetirableServer, int, float] | None = None
        """The retired server, its process, and since when."""

    def watch(self) -> None:
        """Look after the servers from now on: an execute was abandoned. Idempotent."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(TICK_S, self._tick)

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _tick(self) -> None:
        self._timer = None
        guarded(log, "the watch of abandoned calls", self._check, plugin=self._plugin)
        if self._retired is not None or any(len(server.abandoned) for server in self._servers()):
            self.watch()

    def _check(self) -> None:
        now = time.monotonic()
        if self._retired is not None:
            self._end_retired(*self._retired, now)

        for server in self._servers():
            stuck = server.abandoned.abandoned_before(now - ABANDONED_S)
            if stuck and len(stuck) >= abandoned_max(server.concurrency):
                self._relieve(server, stuck, now)

    def _end_retired(self, server: RetirableServer, process_id: int, since: float, now: float) -> None:
        """End the retired process, once it has no live calls or no more time."""
        if server.process_id != process_id:  # it has ended by itself
            self._retired = None
        elif not server.executing or now - since >= LIVE_S:
            self._retired = None
            server.end_process()

    def _relieve(self, server: RetirableServer, stuck: Sequence[int], now: float) -> None:
        """Retire a server, or free its slots if it is a remote one."""
        if not server.process_id:
            log.warning("remote server keeps running abandoned calls", plugin=self._plugin, abandoned=len(stuck))
            server.drop_executes(stuck)
            return
        if self._retired is not None:
            return

        text = f"it kept running {len(stuck)} calls that had timed out or were cancelled"
        log.warning("server is busy with abandoned calls; starting it again", plugin=self._plugin, abandoned=len(stuck))
        self._health().lost(server, text)
        server.retire()
        self._retired = (server, server.process_id, now)
        self._end_retired(*self._retired, now)


__all__ = ["ABANDONED_MAX", "AbandonedExecutes", "Retirement"]
