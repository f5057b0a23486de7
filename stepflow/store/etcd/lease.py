"""Keep-alives of etcd leases from a thread, independent of a busy event loop. `stepflow.store.lease` has the thread.

The renewer has its own connection over gRPC's blocking interface: the asyncio interface would wake this thread for
every event of the process. Endpoints, TLS and login are the store's.

One thread at a time may renew. `close` is thread-safe and interrupts a waiting call.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from stepflow.errors import NotFound
from stepflow.etcd.v1 import etcd_pb2 as pb
from stepflow.store.etcd.client import (
    AUTHENTICATE,
    LEASE_KEEP_ALIVE,
    channel_options,
    credentials_of,
    metadata_of,
)
from stepflow.store.etcd.errors import explain, is_stale_login
from stepflow.store.protocol import StoreUnavailable

if TYPE_CHECKING:
    from stepflow.store.etcd.config import EtcdConfig


class EtcdLeaseRenewer:
    """Implements `stepflow.store.lease.Renewer`."""

    def __init__(self, config: EtcdConfig, first_endpoint: str) -> None:
        self._config = config
        self._credentials = credentials_of(config)
        self._index = config.endpoints.index(first_endpoint)
        # Here, not in the renewing thread: gRPC imports a part of itself with the first channel of a process.
        self._channel: grpc.Channel | None = self._connect()
        self._token = ""
        self._closed = False

    def renew(self, lease: int) -> float:
        """Restart the lease's time to live and return it in seconds. Blocks for up to two call time-outs.

        Raises: NotFound `LEASE_GONE`; StoreUnavailable, the next call tries the next endpoint; StepflowError.
        """
        try:
            return self._renew(lease)
        except grpc.RpcError as error:
            failed: Any = error
            if is_stale_login(failed) and self._config.user:
                self._token = ""
            explained = explain(failed, self._config.endpoints[self._index])
            if isinstance(explained, StoreUnavailable):
                self._leave()
            raise explained from None
        except (StopIteration, ValueError):  # the stream ended unanswered; the channel was closed
            self._leave()
            raise StoreUnavailable("STORE_UNAVAILABLE", "etcd ended a keep-alive unanswered") from None

    def close(self) -> None:
        """Close the connection. Idempotent."""
        self._closed = True
        if self._channel is not None:
            self._channel.close()

    def _renew(self, lease: int) -> float:
        if self._closed:
            raise StoreUnavailable("STORE_CLOSED", "this connection to etcd was closed")
        channel = self._channel = self._channel or self._connect()
        if self._config.user and not self._token:
            authenticate: Any = channel.unary_unary(
                AUTHENTICATE.path, pb.AuthenticateRequest.SerializeToString, pb.AuthenticateResponse.FromString
            )
            request = pb.AuthenticateRequest(name=self._config.user, password=self._config.password)
            self._token = authenticate(request, timeout=self._config.call_timeout_s, metadata=metadata_of("")).token

        keep_alive: Any = channel.stream_stream(
            LEASE_KEEP_ALIVE.path, pb.LeaseKeepAliveRequest.SerializeToString, pb.LeaseKeepAliveResponse.FromString
        )
        stream = keep_alive(
            iter((pb.LeaseKeepAliveRequest(id=lease),)),
            timeout=self._config.call_timeout_s,
            metadata=metadata_of(self._token),
        )
        try:
            reply = next(stream)
        finally:
            stream.cancel()
        if reply.ttl <= 0:
            raise NotFound("LEASE_GONE", "the lease has ended")
        return float(reply.ttl)

    def _connect(self) -> grpc.Channel:
        endpoint = self._config.endpoints[self._index]
        if self._credentials is None:
            return grpc.insecure_channel(endpoint, channel_options())
        return grpc.secure_channel(endpoint, self._credentials, channel_options())

    def _leave(self) -> None:
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
        self._index = (self._index + 1) % len(self._config.endpoints)


__all__ = ["EtcdLeaseRenewer"]
