"""The way to the control planes: one channel per address, and calls that outlive the death of a server.

- Every call of the API may be repeated, so one that finds no server is made again at the next address, with back-off,
  for as long as the caller has patience. All other errors are raised at once.
- A client stands outside of the mesh: a server on another machine is reached through the environment's proxy.
- Calls go round the addresses, so that many clients spread over the replicas.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from typing import TYPE_CHECKING, Any

import grpc

from stepflow.errors import Deadline, Invalid, StepflowError, Unavailable
from stepflow.mesh.v1 import (
    blobs_pb2_grpc,
    cluster_pb2_grpc,
    components_pb2_grpc,
    flows_pb2_grpc,
    runs_pb2_grpc,
)
from stepflow.proxies import grpc_proxy_for, through
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from stepflow.rpc.tls import Tls

DEFAULT_SERVER = "localhost:7840"

CALL_TIMEOUT_S = 30.0
"""For calls that the server answers at once."""

BACKOFF_MIN_S = 0.05
BACKOFF_MAX_S = 2.0


class Endpoint:
    """One address, with the stubs of all services."""

    def __init__(self, target: str, tls: Tls | None) -> None:
        self.proxy = grpc_proxy_for(target, os.environ)
        self.channel = open_channel(target, tls, proxy=self.proxy)
        self.flows: Any = flows_pb2_grpc.FlowsServiceStub(self.channel)
        self.runs: Any = runs_pb2_grpc.RunsServiceStub(self.channel)
        self.blobs: Any = blobs_pb2_grpc.BlobsServiceStub(self.channel)
        self.components: Any = components_pb2_grpc.ComponentsServiceStub(self.channel)
        self.cluster: Any = cluster_pb2_grpc.ClusterServiceStub(self.channel)


class Patience:
    """Counts the tries of one call, and how long they may go on."""

    def __init__(self, patience_s: float) -> None:
        self.tries = 0
        self._patience_s = patience_s
        self._begun_at = time.monotonic()

    def renew(self) -> None:
        """A server has answered: the time begins anew."""
        self.tries = 0
        self._begun_at = time.monotonic()

    async def wait(self, error: Unavailable, addresses: int) -> None:
        """Wait before the next try; after every address was tried once. Raises: `error`, when patience is over."""
        self.tries += 1
        if time.monotonic() - self._begun_at >= self._patience_s:
            raise error
        rounds = self.tries // addresses
        if self.tries % addresses == 0:
            pause_s = min(BACKOFF_MAX_S, BACKOFF_MIN_S * 2 ** min(rounds, 10))
            await asyncio.sleep(pause_s * random.uniform(0.5, 1.0))  # noqa: S311  # spreads clients, hides nothing


class Connection:
    """See the head of this module. Belongs to the event loop of its first call."""

    def __init__(self, server: str | None, tls: Tls | None, patience_s: float) -> None:
        """`server` holds targets with commas between them; None: `STEPFLOW_SERVER`, else the default."""
        text = server or os.environ.get("STEPFLOW_SERVER") or DEFAULT_SERVER
        self.targets = [target.strip() for target in text.split(",") if target.strip()]
        if not self.targets:
            raise Invalid("SERVER_INVALID", f"{text!r} names no server: give HOST:PORT, with commas between several")
        self._tls = tls
        self._patience_s = patience_s
        self._endpoints: list[Endpoint] = []
        self._next = random.randrange(len(self.targets))  # noqa: S311  # spreads clients, hides nothing

    def patience(self) -> Patience:
        return Patience(self._patience_s)

    def endpoint(self) -> Endpoint:
        """Return the next one in turn."""
        if not self._endpoints:
            self._endpoints = [Endpoint(target, self._tls) for target in self.targets]
        self._next = (self._next + 1) % len(self._endpoints)
        return self._endpoints[self._next]

    async def call(self, method: Callable[[Endpoint], Any], request: Any, *, timeout_s: float = CALL_TIMEOUT_S) -> Any:
        """Make a call, again and again while nobody can answer it.

        `request` may be a function that makes an iterator of messages. Raises: StepflowError; its detail `tries` says
        how often the call was made.
        """
        patience = self.patience()
        while True:
            try:
                message = request() if callable(request) else request
                return await method(self.endpoint())(message, timeout=timeout_s)
            except grpc.aio.AioRpcError as failed:
                error = self.explain(failed)
                if not isinstance(error, Unavailable):
                    error.details["tries"] = patience.tries + 1
                    raise error from None
                await patience.wait(error, len(self.targets))

    def explain(self, failed: grpc.aio.AioRpcError) -> StepflowError:
        """Return the error that a failed call stands for, with the way out where no server was reached."""
        error = error_of(failed)
        if error.reason == "SERVER_UNAVAILABLE":
            where, way = ", ".join(self.targets), self._way()
            details = {"servers": where, **({"way": way.strip()} if way else {})}
            return Unavailable(
                error.reason,
                f"no stepflow server answers at {where}{way} ({failed.details()}); is one running there? "
                "Name another one with --server or STEPFLOW_SERVER",
                **details,
            )
        if error.reason == "CALL_TIMEOUT" and (way := self._way()):
            return Deadline(error.reason, f"{error.message}; the call goes{way}")
        return error

    def _way(self) -> str:
        """Return the proxies on the way to the servers, for an error."""
        return "".join(dict.fromkeys(through(endpoint.proxy) for endpoint in self._endpoints))

    async def close(self) -> None:
        endpoints, self._endpoints = self._endpoints, []
        for endpoint in endpoints:
            await endpoint.channel.close()
