"""Bridge to StepFlow servers on stdio: stepflow-py 0.2.1 to 0.7.0, and servers built with our SDK.

Promises:
- `execute` makes no task, timer or future. Requests that gather within a turn of the event loop leave in one write;
  replies are read in large chunks, decoded once, and an output passes through as text.
- A call goes to the process with the most room; when none has any, it waits in a bounded queue, in order. Only a call
  that an execute itself waits for, by way of a flow, overtakes it.
- A process that ends is started again, after 0.1 s, then 0.2 s, … up to 30 s while it does not stay up. Its calls in
  flight fail as UNREACHABLE; calls not yet sent wait, until `START_FAILURES_MAX` starts have failed in a row.

A result `{"outcome": "skipped", …}`, which 0.4 to 0.7 send when user code raises SkipStep, is passed on as data.

Not here: the conversation with one process (`stepflow_server`) and the messages (`stepflow_protocol`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

from component_host.backend import Listing
from component_host.stepflow_server import NO_ROOM, StdioServer, StdioServerConfig
from stepflow.errors import Code, Failure, StepflowError
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from component_host.backend import BackendContext, HostCall

__all__ = ["StdioServerConfig", "StepflowStdioBackend"]

log = get_logger("component_host.stepflow")

QUEUE_MAX = 10_000
"""Calls that wait for a process with room."""

BACKOFF_S_MIN = 0.1
BACKOFF_S_MAX = 30.0
HEALTHY_S = 10.0
"""A process that ran this long starts with the smallest delay again."""

START_FAILURES_MAX = 3


class StepflowStdioBackend:
    """One plugin: a pool of like processes, and the calls that wait for one of them. Implements `backend.Backend`."""

    def __init__(self, context: BackendContext, config: StdioServerConfig) -> None:
        self.name = context.name
        self._waiting: deque[HostCall] = deque()
        """Calls that no process had room for."""
        self._deeper: deque[HostCall] = deque()
        """Those of them that flows make which executes have asked for: they come first."""
        self._context = context
        self._config = config
        self._servers = [StdioServer(context, config, self._has_room) for _ in range(max(1, config.processes))]
        self._supervisors: list[asyncio.Task[None]] = []
        self._listing = Listing()
        self._down: StepflowError | None = None
        """Why no process can be started; None while there is hope."""
        self._closing = False

    async def start(self) -> None:
        """Start all processes. Raises: Invalid COMMAND_NOT_FOUND; Unavailable SERVER_START_FAILED, SERVER_EXITED,
        SERVER_NOT_RESPONDING, SERVER_REFUSED."""
        starts = await asyncio.gather(*(server.start() for server in self._servers), return_exceptions=True)
        failed = [error for error in starts if error is not None]
        if failed:
            await self.close()
            raise failed[0]
        self._listing = Listing(tuple(self._servers[0].components))
        self._supervisors = [
            asyncio.create_task(self._supervise(server), name=f"supervise {self.name}") for server in self._servers
        ]

    def listing(self) -> Listing:
        return self._listing

    def execute(self, call: HostCall) -> None:
        # Nobody overtakes the queue: a call made from within the end of another would take its place.
        queue = self._deeper if call.request.depth else self._waiting
        server = None if queue else self._roomiest()
        if server is None and call.request.depth:
            server = next((server for server in self._servers if server.takes(call)), None)
        if server is not None:
            server.send(call)
        elif self._closing:
            call.fail(Failure(Code.UNREACHABLE, f"plugin {self.name!r} is being stopped"))
        elif self._down is not None:
            call.fail(self._down_failure())
        elif len(queue) >= QUEUE_MAX:
            call.fail(
                Failure(Code.RESOURCE_UNAVAILABLE, f"{QUEUE_MAX} calls are waiting for plugin {self.name!r} already")
            )
        else:
            queue.append(call)

    def cancel(self, call: HostCall) -> None:
        sent = call.backend_state
        if sent is not None:
            server, request_id = sent
            server.abandon(request_id)
        call.fail(Failure(Code.CANCELLED, "cancelled"))  # one in the queue is skipped because it is settled

    async def close(self) -> None:
        self._closing = True
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)
        await asyncio.gather(*(server.stop() for server in self._servers))
        self._fail_queue(Failure(Code.UNREACHABLE, f"plugin {self.name!r} was stopped"))

    def process_ids(self) -> list[int]:
        """Return the processes as they were last started."""
        return [server.process_id for server in self._servers]

    def _has_room(self, server: StdioServer) -> None:
        """Give waiting calls to a process that has become ready, finished an execute, or waits for a flow."""
        for queue in (self._deeper, self._waiting):
            while queue and server.room > 0:
                call = queue.popleft()
                if not call.settled:
                    server.send(call)
        wanted = next((call for call in self._deeper if not call.settled and server.takes(call)), None)
        if wanted is not None:
            self._deeper.remove(wanted)
            server.send(wanted)

    def _roomiest(self) -> StdioServer | None:
        servers = self._servers
        best = servers[0] if len(servers) == 1 else max(servers, key=_room)
        return best if best.room > 0 else None

    async def _supervise(self, server: StdioServer) -> None:
        """Start a process again whenever it has ended."""
        loop = asyncio.get_running_loop()
        delay_s = BACKOFF_S_MIN
        failures = 0
        while True:
            up_since = loop.time()
            await server.ended()
            if loop.time() - up_since >= HEALTHY_S:
                delay_s = BACKOFF_S_MIN
            if not server.end_was_wanted:
                log.warning("server ended; starting it again", plugin=self.name, how=server.how_it_ended)
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, BACKOFF_S_MAX)
            while (error := await self._start_again(server)) is not None:
                failures += 1
                log.warning("server did not start", plugin=self.name, reason=error.reason, error=error.message)
                if failures >= START_FAILURES_MAX and not any(other.room != NO_ROOM for other in self._servers):
                    self._down = error
                    self._fail_queue(self._down_failure())
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, BACKOFF_S_MAX)
            failures = 0
            self._down = None
            self._has_room(server)

    async def _start_again(self, server: StdioServer) -> StepflowError | None:
        try:
            await server.start()
        except StepflowError as error:
            return error
        if server.components != list(self._listing.components):
            self._listing = Listing(tuple(server.components))
            self._context.listing_changed()
        return None

    def _down_failure(self) -> Failure:
        assert self._down is not None
        return Failure(Code.UNREACHABLE, self._down.message)

    def _fail_queue(self, failure: Failure) -> None:
        for queue in (self._deeper, self._waiting):
            while queue:
                queue.popleft().fail(failure)


def _room(server: StdioServer) -> tuple[float, int]:
    return server.room, -server.in_flight
