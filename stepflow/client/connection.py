"""Connections to the control planes: one channel per address, and calls that survive the death of a server.

- Every call of the API is idempotent: a call that reaches no server is retried at the next address, with back-off,
  until the caller's patience ends. All other errors are raised at once.
- A streamed request is sent again from its first message after a break.
- A client stands outside the mesh: a server on another machine is reached through the environment's proxy.
- Calls rotate over the addresses, from a random start, so clients spread over the replicas.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from stepflow.errors import DeadlineExceeded, Invalid, StepflowError, Unavailable
from stepflow.mesh.v1 import (
    blobs_pb2_grpc,
    cluster_pb2_grpc,
    components_pb2_grpc,
    flows_pb2_grpc,
    runs_pb2_grpc,
)
from stepflow.proxies import grpc_proxy_for, through
from stepflow.retry import doubling
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine

    from stepflow.rpc.tls import Tls

_T = TypeVar("_T")

DEFAULT_SERVER = "localhost:7840"

CALL_TIMEOUT_S = 30.0
"""Time limit of a call that the server answers at once."""

STREAM_WAIT_S = 300.0
"""Time limit of one message of a streamed request, and of the answer after the last one."""

BROKEN_PATIENCE_S = 30.0
"""Patience after a streamed request has broken: a server was there, so another one or its successor comes."""

BREAKS_MAX = 20
"""How often a streamed request is begun again after it got further than before."""

PAUSE_MIN_S = 0.1
PAUSE_MAX_S = 2.0


class ServerConnection:
    """The channel to one address, with the stubs of all services."""

    def __init__(self, target: str, tls: Tls | None) -> None:
        self.proxy = grpc_proxy_for(target, os.environ)
        self.channel = open_channel(target, tls, proxy=self.proxy)
        self.flows: Any = flows_pb2_grpc.FlowsServiceStub(self.channel)
        self.runs: Any = runs_pb2_grpc.RunsServiceStub(self.channel)
        self.blobs: Any = blobs_pb2_grpc.BlobsServiceStub(self.channel)
        self.components: Any = components_pb2_grpc.ComponentsServiceStub(self.channel)
        self.cluster: Any = cluster_pb2_grpc.ClusterServiceStub(self.channel)


class Patience:
    """Counts the failed attempts of one call, and ends the retries after `patience_s`."""

    def __init__(self, patience_s: float) -> None:
        self.tries = 0
        self._patience_s = patience_s
        self._begun_at = time.monotonic()
        self._pauses_s = doubling(PAUSE_MIN_S, PAUSE_MAX_S)

    def renew(self, patience_s: float = 0.0) -> None:
        """Reset count, pauses and time: a server has answered. `patience_s`: extend the patience to this time."""
        self._begun_at = time.monotonic()
        self._patience_s = max(self._patience_s, patience_s)
        if self.tries:
            self.tries = 0
            self._pauses_s = doubling(PAUSE_MIN_S, PAUSE_MAX_S)

    async def wait(self, error: Unavailable, addresses: int) -> None:
        """Count a failed attempt; pause once all addresses have failed. Raises: `error`, after `patience_s`."""
        self.tries += 1
        if time.monotonic() - self._begun_at >= self._patience_s:
            raise error

        if self.tries % addresses == 0:
            pause_s = next(self._pauses_s)
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # spreads clients, hides nothing


class Connection:
    """Calls to any of several servers. Belongs to the event loop of the first call."""

    def __init__(self, server: str | None, tls: Tls | None, patience_s: float) -> None:
        """`server` holds targets separated by commas; None: `STEPFLOW_SERVER`, else the default.

        Raises: Invalid SERVER_INVALID.
        """
        text = server or os.environ.get("STEPFLOW_SERVER") or DEFAULT_SERVER
        self.targets = [target.strip() for target in text.split(",") if target.strip()]
        if not self.targets:
            raise Invalid("SERVER_INVALID", f"{text!r} names no server: give HOST:PORT, with commas between several")

        self._tls = tls
        self._patience_s = patience_s
        self._servers: list[ServerConnection] = []
        self._next = random.randrange(len(self.targets))  # noqa: S311  # spreads clients, hides nothing

    def patience(self) -> Patience:
        return Patience(self._patience_s)

    def next_server(self) -> ServerConnection:
        """Return the next server in rotation."""
        if not self._servers:
            self._servers = [ServerConnection(target, self._tls) for target in self.targets]

        self._next = (self._next + 1) % len(self._servers)
        return self._servers[self._next]

    async def call(
        self, method: Callable[[ServerConnection], Any], request: Any, *, timeout_s: float = CALL_TIMEOUT_S
    ) -> Any:
        """Call `method`, a stub of the given server, and retry while no server is reachable.

        `request` may be a function that returns an iterator of messages.

        Raises:
            StepflowError: `details["tries"]` counts the calls made.
        """
        patience = self.patience()
        while True:
            try:
                message = request() if callable(request) else request
                return await method(self.next_server())(message, timeout=timeout_s)
            except grpc.aio.AioRpcError as failed:
                error = self.explain(failed)
                if not isinstance(error, Unavailable):
                    error.details["tries"] = patience.tries + 1
                    raise error from None
                await patience.wait(error, len(self.targets))

    async def send(self, method: Callable[[ServerConnection], Any], messages: Callable[[], AsyncGenerator[Any]]) -> Any:
        """Call `method`, which receives a stream, with `messages()`; begin again after each break of the connection.

        Raises: StepflowError; the errors of `messages`.
        """
        patience = self.patience()
        furthest = breaks = 0
        while True:
            sent = _Sent()
            try:
                return await _send(method(self.next_server())(), messages(), sent)
            except grpc.aio.AioRpcError as failed:
                error = self.explain(failed)
                if not isinstance(error, Unavailable):
                    raise error from None

                if sent.messages > furthest and breaks < BREAKS_MAX:
                    furthest, breaks = sent.messages, breaks + 1
                    patience.renew(BROKEN_PATIENCE_S)
                await patience.wait(error, len(self.targets))

    def explain(self, failed: grpc.aio.AioRpcError) -> StepflowError:
        """Convert a failed call into an error; an unreachable server gets the next step for the user."""
        error = error_of(failed)
        way = self._way()
        if error.reason == "CALL_TIMEOUT" and way:
            return DeadlineExceeded(error.reason, f"{error.message}; the call goes{way}")
        if error.reason != "SERVER_UNAVAILABLE":
            return error

        where = ", ".join(self.targets)
        details = {"servers": where, **({"way": way.strip()} if way else {})}
        return Unavailable(
            error.reason,
            f"no stepflow server answers at {where}{way} ({failed.details()}); is one running there? "
            "Name another one with --server or STEPFLOW_SERVER",
            **details,
        )

    def _way(self) -> str:
        """Return the proxies in use, for an error text."""
        return "".join(dict.fromkeys(through(server.proxy) for server in self._servers))

    async def close(self) -> None:
        servers, self._servers = self._servers, []
        for server in servers:
            await server.channel.close()


@dataclass(slots=True)
class _Sent:
    """Counts the messages that one call has sent."""

    messages: int = 0


async def _send(call: Any, messages: AsyncGenerator[Any], sent: _Sent) -> Any:
    """Write all messages to a call and return its answer. Raises: AioRpcError, StepflowError, those of `messages`."""
    first = _FirstStatus(call)
    try:
        async with aclosing(messages):
            async for message in messages:
                try:
                    await _in_time(call.write(message))
                except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    break  # the call has ended; its status says why
                sent.messages += 1
            else:
                await call.done_writing()
        return await _in_time(call)
    except grpc.aio.AioRpcError as failed:
        raise first.error or failed from None
    finally:
        call.cancel()  # no effect on a call that has ended


class _FirstStatus:
    """Keeps the status with which a server ends a call: gRPC replaces it by INTERNAL if a write fails after it."""

    def __init__(self, call: Any) -> None:
        self.error: grpc.aio.AioRpcError | None = None
        call.add_done_callback(self._note)

    def _note(self, call: Any) -> None:
        code = _at_once(call.code())
        if code not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL):
            metadata = _at_once(call.initial_metadata()), _at_once(call.trailing_metadata())
            self.error = grpc.aio.AioRpcError(code, *metadata, details=_at_once(call.details()))


def _at_once(work: Coroutine[Any, Any, _T]) -> _T:
    """Return the result of a coroutine that has nothing to wait for: the call has ended."""
    try:
        work.send(None)
    except StopIteration as done:
        result: _T = done.value
        return result
    raise AssertionError("a call that has ended waits")


async def _in_time(work: Awaitable[_T]) -> _T:
    try:
        async with asyncio.timeout(STREAM_WAIT_S):
            return await work
    except TimeoutError:
        raise DeadlineExceeded("CALL_TIMEOUT", "the server has not answered in time") from None
