"""Health checks: liveness (the process runs) and readiness (it accepts work).

- `liveness` is SERVING as long as the event loop answers and all vital tasks run, even without the store: a restart
  does not help a process that waits for etcd.
- `readiness`, like the empty name and the name of each service, is SERVING from the end of the start until the drain,
  while the store is reachable and the service can work (it has a session, say).
- Either counts as lost after `STORE_FAILURES_MAX` failed checks in a row (the death of a member costs one or two), and
  as back after `STORE_ANSWERS_MIN` good ones in a row. A change is detected within `STORE_LOST_S_MAX`.

Reports only; leases decide what a process may do.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import TYPE_CHECKING, Any

from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from stepflow.errors import StepflowError
from stepflow.store import keys
from stepflow.telemetry import get_logger
from stepflow.vital import Vitals, keep_running

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.store import Store

log = get_logger(__name__)

LIVENESS = "liveness"
READINESS = "readiness"

STORE_CHECK_S = 1.0
STORE_ANSWER_S = 2.0
"""Two call deadlines of the store's client: the second try goes to another member."""

STORE_FAILURES_MAX = 3
STORE_ANSWERS_MIN = 2
STORE_LOST_S_MAX = STORE_FAILURES_MAX * (STORE_CHECK_S + STORE_ANSWER_S)

SERVICE_NAME: str = health.SERVICE_NAME


class ProcessHealth:
    """The health of one process, shared by all its servers. Not ready until `begin`."""

    def __init__(self) -> None:
        self._servicer: Any = health.aio.HealthServicer()
        self._names = ["", READINESS]
        self._begun = self._draining = False
        self._unable = False
        """The store is lost, or the service cannot work."""
        self._ended: list[str] = []
        """Vital tasks that have ended although the service goes on."""
        self._told: bool | None = None
        self._told_alive = True
        self._watching: asyncio.Task[None] | None = None

    def add_to(self, server: Any, names: list[str]) -> None:
        """Serve health at a gRPC server, for the named services, too."""
        health_pb2_grpc.add_HealthServicer_to_server(self._servicer, server)
        self._names += names
        self._told = None

    async def open(self) -> None:
        """Start answering: alive, and ready after `begin`. Idempotent."""
        await self._servicer.set(LIVENESS, health_pb2.HealthCheckResponse.SERVING)
        await self._tell()

    async def begin(
        self,
        store: Store | None = None,
        *,
        draining: Callable[[], bool] = lambda: False,
        vitals: Callable[[], Vitals] = Vitals,
    ) -> None:
        """Become ready. With a `store`, check it and the service from now on.

        `draining` returns True once this process is drained, `vitals` the state of the service.
        """
        self._begun = True
        await self._tell()
        if store is not None:
            watch = partial(self._watch, store, draining, vitals)
            self._watching = asyncio.create_task(keep_running(log, "the health check", watch), name="health")

    async def drain(self) -> None:
        """Become unready, but stay alive. Idempotent."""
        self._draining = True
        await self._tell()

    async def close(self) -> None:
        """Stop checking the store. Idempotent."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.gather(self._watching, return_exceptions=True)

    async def _watch(self, store: Store, draining: Callable[[], bool], vitals: Callable[[], Vitals]) -> None:
        failures = answers = 0
        while True:
            await asyncio.sleep(STORE_CHECK_S)

            # 1. Check.
            self._draining = self._draining or draining()
            problem, ended = vitals()
            why = problem if await _answers(store) else "the store does not answer"
            failures, answers = (failures + 1, 0) if why else (0, answers + 1)
            missing = [task for task in ended if task not in self._ended]
            self._ended += missing

            # 2. Conclude.
            if missing:
                log.error("not alive: tasks have ended that the service needs", tasks=missing)
            if self._unable and answers >= STORE_ANSWERS_MIN:
                self._unable = False
                log.info("ready again")
            elif not self._unable and failures >= STORE_FAILURES_MAX:
                self._unable = True
                log.warning("not ready", why=why)
            await self._tell()

    async def _tell(self) -> None:
        answer = health_pb2.HealthCheckResponse
        if self._ended and self._told_alive:
            self._told_alive = False
            await self._servicer.set(LIVENESS, answer.NOT_SERVING)

        ready = self._begun and not self._draining and not self._unable and not self._ended
        if ready == self._told:
            return
        self._told = ready
        for name in self._names:
            # `self._told`, not `ready`: during an earlier `await` here a drain may have made this process unready.
            await self._servicer.set(name, answer.SERVING if self._told else answer.NOT_SERVING)


async def _answers(store: Store) -> bool:
    """Return True if the store can be read, which etcd permits only with a majority of its members."""
    try:
        async with asyncio.timeout(STORE_ANSWER_S):
            await store.get(keys.LEADER)
    except (StepflowError, TimeoutError):
        return False
    return True


__all__ = ["LIVENESS", "READINESS", "STORE_LOST_S_MAX", "ProcessHealth"]
