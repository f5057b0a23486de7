"""gRPC channels: to the mesh's API, and between services."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc

from stepflow.proxies import DIRECT, grpc_options
from stepflow.rpc.options import CHANNEL_OPTIONS, CLIENT_PINGS, LINK_PINGS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.proxies import Proxy
    from stepflow.rpc.tls import Tls


def open_channel(
    target: str,
    tls: Tls | None = None,
    *,
    proxy: Proxy | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.aio.Channel:
    """Open a channel to HOST:PORT, or to any target that gRPC knows (`dns:///name:port` balances over its addresses).

    The channel connects at the first call and reconnects automatically. It ignores the proxy of the environment: a
    client outside the mesh passes the proxy named by `stepflow.proxies`. Raises: Invalid `TLS_INVALID`.
    """
    return _open(target, tls, [*CHANNEL_OPTIONS, *CLIENT_PINGS, *grpc_options(proxy), *options])


def open_link(target: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """Open a channel to a service and detect its silence within seconds. Raises: Invalid `TLS_INVALID`.

    It has its own connection; a shared one would inherit the back-off of a channel that has just failed.
    """
    return _open(target, tls, [*CHANNEL_OPTIONS, *LINK_PINGS, DIRECT, ("grpc.use_local_subchannel_pool", 1)])


def _open(target: str, tls: Tls | None, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    if tls.name is not None:
        options = (*options, ("grpc.ssl_target_name_override", tls.name))
    return grpc.aio.secure_channel(target, tls.for_client(), options=options)


__all__ = ["open_channel", "open_link"]
