"""Calls to etcd over gRPC: choice of the member, deadlines, login.

- Every unary call has a deadline (`EtcdConfig.call_timeout_s`). Only idempotent calls are repeated here, once per
  endpoint. A transaction is sent once; its caller decides about resending.
- An *etcd channel* is one connection for one purpose. Transactions, leases and watches each have one, so that a large
  range does not delay a keep-alive. After a failure its connection is abandoned and the next endpoint is tried, so
  neither gRPC's back-off nor a half-open connection delays the next call.
- Members without a leader answer at once instead of waiting for one (`hasleader`), and the channel moves on.
- A stale token is renewed and the call repeated: etcd refuses the token before it executes the call.

Source of the protocol: etcd v3.5, `rpc.proto`. Not here: what the calls mean (`stepflow.store.etcd.store`), watches
(`stepflow.store.etcd.watch`), the meaning of errors (`stepflow.store.etcd.errors`).
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

# grpc's handlers for fork() cost a thread and make a forked child hang; no process here forks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # as in stepflow.rpc: failures become errors

import grpc
from grpc import aio

from stepflow.errors import FailedPrecondition, Unauthenticated
from stepflow.etcd.v1 import etcd_pb2 as pb
from stepflow.proxies import DIRECT
from stepflow.store.etcd.errors import explain, is_stale_login
from stepflow.store.protocol import StoreUnavailable
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from google.protobuf.message import Message

    from stepflow.store.etcd.config import EtcdConfig

log = get_logger(__name__)

CONNECT_TIMEOUT_MS = 1_000

PING_INTERVAL_MS = 5_500
"""Interval of HTTP/2 pings. etcd cuts connections that ping more often than every 5 s."""

PING_TIMEOUT_MS = 2_000

CHANNEL_GONE = (asyncio.CancelledError, asyncio.InvalidStateError, aio.UsageError, aio.InternalError)
"""Exceptions of a call whose channel was closed during the call; check `is_cancelled`, too."""

Request = TypeVar("Request", bound="Message")
Response = TypeVar("Response", bound="Message")


@dataclass(frozen=True, slots=True)
class Method(Generic[Request, Response]):
    """A method of etcd's API. `repeat`: idempotent."""

    path: str
    request: type[Request]
    response: type[Response]
    repeat: bool = False


RANGE = Method("/etcdserverpb.KV/Range", pb.RangeRequest, pb.RangeResponse, repeat=True)
TXN = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse)
TXN_READING = Method("/etcdserverpb.KV/Txn", pb.TxnRequest, pb.TxnResponse, repeat=True)
COMPACT = Method("/etcdserverpb.KV/Compact", pb.CompactionRequest, pb.CompactionResponse, repeat=True)
# A second lease, granted because a reply was lost, expires by itself.
LEASE_GRANT = Method("/etcdserverpb.Lease/LeaseGrant", pb.LeaseGrantRequest, pb.LeaseGrantResponse, repeat=True)
LEASE_REVOKE = Method("/etcdserverpb.Lease/LeaseRevoke", pb.LeaseRevokeRequest, pb.LeaseRevokeResponse)
LEASE_KEEP_ALIVE = Method(
    "/etcdserverpb.Lease/LeaseKeepAlive", pb.LeaseKeepAliveRequest, pb.LeaseKeepAliveResponse, repeat=True
)
WATCH = Method("/etcdserverpb.Watch/Watch", pb.WatchRequest, pb.WatchResponse)
STATUS = Method("/etcdserverpb.Maintenance/Status", pb.StatusRequest, pb.StatusResponse, repeat=True)
AUTHENTICATE = Method("/etcdserverpb.Auth/Authenticate", pb.AuthenticateRequest, pb.AuthenticateResponse, repeat=True)


class EtcdChannel:
    """One connection, to one endpoint at a time. Calls in flight may finish on an abandoned connection."""

    def __init__(self, config: EtcdConfig, credentials: grpc.ChannelCredentials | None) -> None:
        self._endpoints = config.endpoints
        self._credentials = credentials
        self._linger_s = config.call_timeout_s
        self._index = 0
        self._channel: aio.Channel | None = None
        self._retired: set[asyncio.Task[None]] = set()

    @property
    def endpoint(self) -> str:
        return self._endpoints[self._index]

    def prefer(self, index: int) -> None:
        """Start with another endpoint. Only before the first use."""
        self._index = index

    def channel(self) -> aio.Channel:
        if self._channel is None:
            self._channel = _connect(self.endpoint, self._credentials)
        return self._channel

    def leave(self, channel: aio.Channel) -> None:
        """Abandon a failed connection and move to the next endpoint. No effect if `channel` is not the current one."""
        if channel is not self._channel:
            return
        self._channel = None
        self._index = (self._index + 1) % len(self._endpoints)
        task = asyncio.get_running_loop().create_task(self._retire(channel), name="etcd connection ends")
        self._retired.add(task)
        task.add_done_callback(self._retired.discard)

    async def close(self) -> None:
        for task in self._retired:
            task.cancel()
        await asyncio.gather(*self._retired, return_exceptions=True)
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()

    async def _retire(self, channel: aio.Channel) -> None:
        try:
            await asyncio.sleep(self._linger_s)
        finally:
            await channel.close()


class EtcdClient:
    """Sends requests. `revision` is the highest revision of any reply so far, hence committed and visible to all."""

    def __init__(self, config: EtcdConfig) -> None:
        self.config = config
        credentials = credentials_of(config)
        self.kv = EtcdChannel(config, credentials)
        self.lease = EtcdChannel(config, credentials)
        self.watch = EtcdChannel(config, credentials)
        self.revision = 0
        self.on_replaced: Callable[[int], None] = lambda _revision: None
        """Called with the present revision of an etcd that was wiped, or restored from an older copy."""
        self.closed = False
        self._token = ""
        self._metadata = metadata_of("")
        self._login: asyncio.Task[None] | None = None
        self._calls = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        return self._metadata

    @property
    def token(self) -> str:
        return self._token

    async def call(
        self, link: EtcdChannel, method: Method[Request, Response], request: Request, *, timeout_s: float | None = None
    ) -> Response:
        """Send a unary request and return its reply. Raises: StepflowError, see `explain`."""

        def send(channel: aio.Channel, timeout_s: float) -> Awaitable[Response]:
            stub = channel.unary_unary(method.path, method.request.SerializeToString, method.response.FromString)
            return stub(request, timeout=timeout_s, metadata=self._metadata)

        return await self._send(link, method, send, timeout_s or self.config.call_timeout_s)

    async def exchange(self, link: EtcdChannel, method: Method[Request, Response], request: Request) -> Response:
        """Send one request on a stream of its own and return the first reply. Raises: as `call`."""

        async def send(channel: aio.Channel, timeout_s: float) -> Response:
            stream = self.stream(channel, method, timeout_s=timeout_s)
            try:
                await stream.write(request)
                reply = await stream.read()
                if not isinstance(reply, method.response):  # grpc's mark of the end
                    raise StoreUnavailable("STORE_UNAVAILABLE", f"etcd at {link.endpoint} ended a stream unanswered")
                return reply
            finally:
                stream.cancel()

        return await self._send(link, method, send, self.config.call_timeout_s)

    def stream(
        self, channel: aio.Channel, method: Method[Request, Response], *, timeout_s: float | None = None
    ) -> aio.StreamStreamCall[Any, Any]:
        stub = channel.stream_stream(method.path, method.request.SerializeToString, method.response.FromString)
        return stub(timeout=timeout_s, metadata=self._metadata)

    async def login(self, refused_token: str) -> None:
        """Replace a refused token, unless it has been replaced already.

        Raises: Unauthenticated `STORE_LOGIN_REFUSED`, StoreUnavailable.
        """
        config = self.config
        if not config.user:
            raise Unauthenticated(
                "STORE_LOGIN_REFUSED", f"etcd at {self.kv.endpoint} asks for a login: give user and password"
            )
        if self._token != refused_token:
            return
        if self._login is None:
            # One login for all waiters: in sequence, each would wait for the time-outs of the others.
            self._login = asyncio.get_running_loop().create_task(self._authenticate(), name="etcd login")
            self._login.add_done_callback(self._logged_in)
        await asyncio.shield(self._login)

    async def _authenticate(self) -> None:
        self._metadata = metadata_of("")  # a login must not carry the refused token
        request = pb.AuthenticateRequest(name=self.config.user, password=self.config.password)
        reply = await self.call(self.kv, AUTHENTICATE, request)
        self._token = reply.token
        self._metadata = metadata_of(reply.token)

    def _logged_in(self, login: asyncio.Task[None]) -> None:
        self._login = None
        if not login.cancelled():
            login.exception()  # mark as retrieved: all waiters may have gone

    def saw(self, revision: int) -> None:
        self.revision = max(self.revision, revision)

    def answered(self, asked_at: int, revision: int) -> None:
        """Note the revision of a linearizable reply; `asked_at`: `self.revision` when the request was sent.

        No history has the revisions seen before if this one is lower: etcd was wiped, or restored from an older copy.
        Replies that are not linearizable prove nothing, because a member may lag behind.
        """
        if revision >= asked_at:
            self.saw(revision)
        elif revision < self.revision:
            log.warning("etcd has forgotten its newest revisions: wiped, or restored", seen=self.revision, now=revision)
            self.revision = revision
            self.on_replaced(revision)

    async def close(self) -> None:
        """Wait for the calls in flight, bounded by their deadlines, and close all connections."""
        self.closed = True
        await self._idle.wait()
        for link in (self.kv, self.lease, self.watch):
            await link.close()

    def gone(self) -> StoreUnavailable:
        return StoreUnavailable("STORE_CLOSED", "this connection to etcd was closed")

    async def _send(
        self,
        link: EtcdChannel,
        method: Method[Any, Response],
        send: Callable[[aio.Channel, float], Awaitable[Response]],
        timeout_s: float,
    ) -> Response:
        tries = max(2, len(self.config.endpoints)) if method.repeat else 1
        may_login = method is not AUTHENTICATE
        self._calls += 1
        self._idle.clear()
        try:
            while True:
                if self.closed:
                    raise self.gone()
                channel, token = link.channel(), self._token
                try:
                    # gRPC keeps the deadline. The second one is a backstop: gRPC forgets it when writing to a stream
                    # whose channel was closed before the stream began.
                    async with asyncio.timeout(2 * timeout_s):
                        return await send(channel, timeout_s)
                except aio.AioRpcError as error:
                    if may_login and is_stale_login(error):
                        may_login = False
                        await self.login(token)
                        continue
                    explained = explain(error, link.endpoint)
                except (TimeoutError, *CHANNEL_GONE):
                    if is_cancelled():
                        raise
                    explained = StoreUnavailable("STORE_UNAVAILABLE", f"the connection to {link.endpoint} was given up")
                if not isinstance(explained, StoreUnavailable):
                    raise explained

                link.leave(channel)
                tries -= 1
                if tries <= 0:
                    raise explained
        finally:
            self._calls -= 1
            if not self._calls:
                self._idle.set()


def is_cancelled() -> bool:
    """Return True if this task is being cancelled; otherwise a CancelledError means a closed connection."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


def channel_options() -> list[tuple[str, Any]]:
    """Return the gRPC options of every connection to etcd."""
    return [
        ("grpc.use_local_subchannel_pool", 1),  # else channels to one endpoint would share a connection
        ("grpc.keepalive_time_ms", PING_INTERVAL_MS),
        ("grpc.keepalive_timeout_ms", PING_TIMEOUT_MS),
        ("grpc.http2.ping_timeout_ms", PING_TIMEOUT_MS),  # without it gRPC waits for a minute, see stepflow.rpc.options
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.max_receive_message_length", -1),
        ("grpc.max_send_message_length", -1),
        ("grpc.min_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),  # also the time-out of connecting
        ("grpc.max_reconnect_backoff_ms", CONNECT_TIMEOUT_MS),
        ("grpc.enable_retries", 0),  # callers decide about resending
        DIRECT,
        ("grpc.service_config_disable_resolution", 1),
    ]


def _connect(endpoint: str, credentials: grpc.ChannelCredentials | None) -> aio.Channel:
    options = channel_options()
    if credentials is None:
        return aio.insecure_channel(endpoint, options)
    return aio.secure_channel(endpoint, credentials, options)


def credentials_of(config: EtcdConfig) -> grpc.ChannelCredentials | None:
    """Return the TLS credentials of a configuration; None without TLS. Raises: Invalid `ETCD_CONFIG_INVALID`."""
    if not config.tls:
        return None
    ca, cert, key = config.read_files()
    return grpc.ssl_channel_credentials(ca, key, cert)


def metadata_of(token: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of every call; `token` is empty without a login."""
    leader = ("hasleader", "true")
    return (leader, ("token", token)) if token else (leader,)


def version_of(text: str) -> tuple[int, int, int]:
    """Return etcd's version as numbers; unreadable parts count as 0."""
    numbers = [int(part) if part.isdigit() else 0 for part in text.partition("-")[0].split(".")]
    return tuple((*numbers, 0, 0, 0)[:3])  # type: ignore[return-value]  # three of them, as the line says


def check_version(text: str, endpoint: str) -> None:
    """Warn about an old etcd; refuse one that can lose data. Raises: FailedPrecondition `ETCD_VERSION_REFUSED`."""
    version = version_of(text)
    if (3, 5, 0) <= version <= (3, 5, 2):
        raise FailedPrecondition(
            "ETCD_VERSION_REFUSED",
            f"etcd at {endpoint} is {text}; 3.5.0 to 3.5.2 can lose data: update to 3.5.17 or later",
        )
    if version < (3, 5, 17):
        log.warning("old etcd, 3.5.17 or later is recommended", endpoint=endpoint, version=text)
