"""A pool of like StepFlow servers, whatever carries the protocol: who gets a call, and when a server starts again.

Promises:
- `execute` makes no task, timer or future.
- A call goes to the server with the most room; when none has any, it waits in a bounded queue, in order.
- A server that ends is started again, after 0.1 s, then 0.2 s, … up to 30 s while it does not stay up. Its calls in
  flight fail as UNREACHABLE; calls not yet sent wait, until three starts have failed in a row.

A result `{"outcome": "skipped", …}`, which 0.4 to 0.7 send when user code raises SkipStep, is passed on as data.

Not here: the conversation with one server (`stepflow_server` on stdio, `stepflow_http`) and the messages
(`stepflow_protocol`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Protocol

from component_host.backend import BackendListing, ServerHealth
from component_host.supervision.restarts import Restartable, supervise
from stepflow.errors import Code, Failure, StepflowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from component_host.backend import BackendContext, ComponentInfo, HostCall

QUEUE_MAX = 10_000
"""Calls that wait for a process with room."""

NO_ROOM = float("-inf")
"""Of a server that is not ready; what ends in it gives no room."""


class Server(Restartable, Protocol):
    """One server, through all its restarts. It calls the pool's `has_room` whenever it can take another execute."""

    lists_all: bool
    """Whether it can have no component that it does not list."""

    @property
    def room(self) -> float:
        """How many executes more it may get now."""
        ...

    @property
    def components(self) -> Sequence[ComponentInfo]: ...

    @property
    def in_flight(self) -> int:
        """How many executes it has, abandoned ones included."""
        ...

    @property
    def process_id(self) -> int:
        """0 where it has no process of ours."""
        ...

    def stderr_tail(self) -> str:
        """Return the last it wrote to stderr; empty where it has no process of ours."""
        ...

    async def start(self) -> None:
        """Make ready. Raises: StepflowError; then nothing is left of it."""
        ...

    async def ended(self) -> None:
        """Wait until it cannot be spoken to any more."""
        ...

    async def stop(self) -> None: ...

    def takes(self, call: HostCall, /) -> bool:
        """Whether a call may be sent now: there is room, or what it is part of is waited for by the newest execute."""
        ...

    def send(self, call: HostCall) -> None:
        """Send an execute, and note in `call.backend_state` the server and what `abandon` takes."""
        ...

    def abandon(self, request_id: int) -> None:
        """Stop an execute if the server can, and forget its call."""
        ...


class StepflowPool:
    """One plugin: a pool of like servers, and the calls that wait for one of them. Implements `backend.Backend`;
    who makes one gives it its `servers` before the start."""

    def __init__(self, context: BackendContext) -> None:
        self.name = context.name
        self.servers: Sequence[Server] = ()
        self._waiting: deque[HostCall] = deque()
        """Calls that no server had room for."""
        self._deeper: deque[HostCall] = deque()
        """Those of them that flows make which executes have asked for: they come first."""
        self.health = ServerHealth(context.listing_changed)
        self._context = context
        self._supervisors: list[asyncio.Task[None]] = []
        self._listing = BackendListing()
        self._down: StepflowError | None = None
        """Why no process can be started; None while there is hope."""
        self._closing = False

    async def start(self) -> None:
        """Start all servers. Raises: Invalid COMMAND_NOT_FOUND; Unavailable SERVER_START_FAILED, SERVER_EXITED,
        SERVER_NOT_RESPONDING, SERVER_REFUSED."""
        self.health = ServerHealth(self._context.listing_changed, len(self.servers))
        starts = await asyncio.gather(*(server.start() for server in self.servers), return_exceptions=True)
        failed = [error for error in starts if error is not None]
        if failed:
            await self.close()
            raise failed[0]
        self._listing = _listing_of(self.servers[0])
        self._supervisors = [
            asyncio.create_task(
                supervise(
                    server,
                    self.health,
                    plugin=self.name,
                    on_up=partial(self._is_up, server),
                    on_hopeless=self._is_hopeless,
                ),
                name=f"supervise {self.name}",
            )
            for server in self.servers
        ]

    def listing(self) -> BackendListing:
        return self._listing

    def execute(self, call: HostCall) -> None:
        # Nobody overtakes the queue: a call made from within the end of another would take its place.
        queue = self._deeper if call.request.depth else self._waiting
        server = None if queue else self._roomiest()
        if server is None and call.request.depth:
            server = next((server for server in self.servers if server.takes(call)), None)
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
        await asyncio.gather(*(server.stop() for server in self.servers))
        self._fail_queue(Failure(Code.UNREACHABLE, f"plugin {self.name!r} was stopped"))

    def process_ids(self) -> list[int]:
        """Return the processes as they were last started."""
        return [server.process_id for server in self.servers]

    def has_room(self, server: Server) -> None:
        """Give waiting calls to a server that has become ready, finished an execute, or waits for a flow."""
        for queue in (self._deeper, self._waiting):
            while queue and server.room > 0:
                call = queue.popleft()
                if not call.settled:
                    server.send(call)
        wanted = next((call for call in self._deeper if not call.settled and server.takes(call)), None)
        if wanted is not None:
            self._deeper.remove(wanted)
            server.send(wanted)

    def _roomiest(self) -> Server | None:
        servers = self.servers
        best = servers[0] if len(servers) == 1 else max(servers, key=_room)
        return best if best.room > 0 else None

    def _is_up(self, server: Server) -> None:
        self._down = None
        self.listing_of(server)
        self.has_room(server)

    def _is_hopeless(self, error: StepflowError) -> None:
        if not any(server.room != NO_ROOM for server in self.servers):
            self._down = error
            self._fail_queue(self._down_failure())

    def listing_of(self, server: Server) -> None:
        """Take over what a server lists now."""
        listing = _listing_of(server)
        if listing != self._listing:
            self._listing = listing
            self._context.listing_changed()

    def _down_failure(self) -> Failure:
        assert self._down is not None
        return Failure(Code.UNREACHABLE, self._down.message)

    def _fail_queue(self, failure: Failure) -> None:
        for queue in (self._deeper, self._waiting):
            while queue:
                queue.popleft().fail(failure)


def _listing_of(server: Server) -> BackendListing:
    return BackendListing(tuple(server.components), complete=server.lists_all)


def _room(server: Server) -> tuple[float, int]:
    return server.room, -server.in_flight
