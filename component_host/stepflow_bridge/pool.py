"""A pool of equal StepFlow servers, for any transport: the choice of a server for each call, and restarts.

Promises:
- `execute` makes no task, timer or future.
- A call goes to the server with the most room; without room, calls wait in a bounded FIFO queue, and no time of their
  timeouts passes.
- A server that ends is started again, after 0.1 s, then 0.2 s, … up to 30 s. Its calls in flight fail as UNREACHABLE;
  calls not sent yet wait, until three starts in a row have failed.
- A server that keeps running abandoned calls gets no further ones, and is started again (`retirement`).

A result `{"outcome": "skipped", …}`, sent by 0.4 to 0.7 when user code raises SkipStep, is passed on as data.

Not here: the conversation with one server (`stdio.server`, `http.server`) and the messages (`protocol`).
"""

from __future__ import annotations

import asyncio
from collections import deque
from functools import partial
from typing import TYPE_CHECKING, Protocol

from component_host.backend import BackendListing, ServerHealth
from component_host.stepflow_bridge.retirement import RetirableServer, Retirement
from component_host.supervision.restarts import Restartable, supervise
from stepflow.errors import Code, Failure, StepflowError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from component_host.backend import BackendContext, ComponentInfo, HostCall

QUEUE_MAX = 10_000
"""Calls waiting for a server with room."""

NO_ROOM = float("-inf")
"""Room of a server that is not ready: ended executes do not raise it."""


class StepflowServer(Restartable, RetirableServer, Protocol):
    """One server, through all its restarts. It calls `StepflowPool.fill_server` whenever it has room again."""

    lists_all: bool
    """False if the server may have components missing from its list."""

    @property
    def room(self) -> float:
        """Number of further executes the server may get now."""
        ...

    @property
    def components(self) -> Sequence[ComponentInfo]: ...

    @property
    def in_flight(self) -> int:
        """Number of executes, abandoned ones included."""
        ...

    def stderr_tail(self) -> str:
        """Return the last lines of stderr; empty for a remote server."""
        ...

    async def start(self) -> None:
        """Make ready. Raises: StepflowError; then no process is left."""
        ...

    async def ended(self) -> None:
        """Wait until the server is gone."""
        ...

    async def stop(self) -> None: ...

    def takes_call(self, call: HostCall, /) -> bool:
        """Return True if a call may be sent now: there is room, or the newest execute waits for the call's flow."""
        ...

    def send_execute(self, call: HostCall) -> None:
        """Send an execute; set `call.backend_state` to the server and the argument of `abandon_execute`."""
        ...

    def abandon_execute(self, request_id: int) -> None:
        """Stop an execute if the server can, and forget its call."""
        ...


class StepflowPool:
    """One plugin: equal servers, and the calls that wait for room. Implements `backend.Backend`.

    A subclass sets `servers` before `start`.
    """

    def __init__(self, context: BackendContext) -> None:
        self.name = context.name
        self.servers: Sequence[StepflowServer] = ()
        self.health = ServerHealth(context.listing_changed)

        self._waiting: deque[HostCall] = deque()
        """Calls of other runs without room yet."""
        self._deeper: deque[HostCall] = deque()
        """Calls of sub-runs without room yet; first in turn, because an execute waits for them."""

        self._context = context
        self._retirement = Retirement(context.name, lambda: self.servers, lambda: self.health)
        self._supervisors: list[asyncio.Task[None]] = []
        self._listing = BackendListing()
        self._down: StepflowError | None = None
        """The error of the last start while restarts keep failing; None while restarts may succeed."""
        self._closing = False

    async def start(self) -> None:
        """Start all servers.

        Raises: Invalid COMMAND_NOT_FOUND; Unavailable SERVER_START_FAILED, SERVER_EXITED, SERVER_NOT_RESPONDING,
            SERVER_REFUSED.
        """
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
                    on_up=partial(self._handle_up, server),
                    on_hopeless=self._handle_hopeless,
                ),
                name=f"supervise {self.name}",
            )
            for server in self.servers
        ]

    def listing(self) -> BackendListing:
        return self._listing

    def execute(self, call: HostCall) -> None:
        # Even with room, behind the queue: a call made inside the end of another call would overtake the waiting ones.
        queue = self._deeper if call.request.depth else self._waiting
        server = None if queue else self._roomiest()
        if server is None and call.request.depth:
            server = next((server for server in self.servers if server.takes_call(call)), None)

        if server is not None:
            server.send_execute(call)
        elif self._closing:
            call.fail(Failure(Code.UNREACHABLE, f"plugin {self.name!r} is being stopped"))
        elif self._down is not None:
            call.fail(self._down_failure())
        elif len(queue) >= QUEUE_MAX:
            call.fail(
                Failure(Code.RESOURCE_UNAVAILABLE, f"{QUEUE_MAX} calls are waiting for plugin {self.name!r} already")
            )
        else:
            call.note_queued()
            queue.append(call)

    def cancel(self, call: HostCall) -> None:
        sent = call.backend_state
        if sent is not None:
            server, request_id = sent
            server.abandon_execute(request_id)
            self._retirement.watch()
        call.fail(Failure(Code.CANCELLED, "cancelled"))  # in the queue it is skipped, being settled

    async def close(self) -> None:
        self._closing = True
        self._retirement.close()

        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)

        await asyncio.gather(*(server.stop() for server in self.servers))
        self._fail_queue(Failure(Code.UNREACHABLE, f"plugin {self.name!r} was stopped"))

    def process_ids(self) -> list[int]:
        """Return the ids of the present or last processes."""
        return [server.process_id for server in self.servers]

    def fill_server(self, server: StepflowServer) -> None:
        """Send waiting calls to a server with new room: after its start, the end of an execute, or a lent slot."""
        for queue in (self._deeper, self._waiting):
            while queue and server.room > 0:
                call = queue.popleft()
                if not call.settled:
                    call.note_begun()
                    server.send_execute(call)

        # An execute without room to spare may wait for the flow of a waiting call.
        wanted = next((call for call in self._deeper if not call.settled and server.takes_call(call)), None)
        if wanted is not None:
            self._deeper.remove(wanted)
            wanted.note_begun()
            server.send_execute(wanted)

    def _roomiest(self) -> StepflowServer | None:
        servers = self.servers
        best = servers[0] if len(servers) == 1 else max(servers, key=_room)
        return best if best.room > 0 else None

    def _handle_up(self, server: StepflowServer) -> None:
        self._down = None
        self.update_listing(server)
        self.fill_server(server)

    def _handle_hopeless(self, error: StepflowError) -> None:
        if not any(server.room != NO_ROOM for server in self.servers):
            self._down = error
            self._fail_queue(self._down_failure())

    def update_listing(self, server: StepflowServer) -> None:
        """Publish the listing of a server if it differs."""
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


def _listing_of(server: StepflowServer) -> BackendListing:
    return BackendListing(tuple(server.components), complete=server.lists_all)


def _room(server: StepflowServer) -> tuple[float, int]:
    return server.room, -server.in_flight
