"""gRPC as the mesh uses it: servers with health, reflection and TLS; channels; errors on the wire and back.

- A `StepflowError` crosses the wire as its family's status with a `google.rpc.ErrorInfo` (domain `stepflow.mesh`) that
  has its reason, and is raised on the other side as the same family with the same reason. Nobody reads the text.
- A defect (any other exception) becomes INTERNAL and a log record; its text stays here, for it may quote a payload.
- A server listens beyond this machine only with TLS, or when it was told that insecure is meant.
- Messages of up to `MESSAGE_BYTES_MAX`: a payload of the largest size with everything around it.

Does not know any service. Import it late in what must start fast: grpc takes its time.
"""

from __future__ import annotations

import inspect
import ipaddress
import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")  # read when grpc is imported; costs calls, and nobody forks here
os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong becomes an error; C's own log is for gRPC's authors

import grpc
from google.rpc import error_details_pb2, status_pb2  # type: ignore[import-untyped]  # it has no types

from stepflow.codec import PAYLOAD_BYTES_MAX
from stepflow.errors import (
    Conflict,
    DataLoss,
    Deadline,
    Exists,
    Forbidden,
    Invalid,
    NotFound,
    Overloaded,
    Refused,
    StepflowError,
    Unauthenticated,
    Unavailable,
)
from stepflow.proxies import DIRECT, grpc_options
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from google.protobuf.descriptor import ServiceDescriptor

    from stepflow.health import Health
    from stepflow.proxies import Proxy

log = get_logger(__name__)

DOMAIN = "stepflow.mesh"

MESSAGE_BYTES_MAX = 2 * PAYLOAD_BYTES_MAX

KEEPALIVE_MS = 20_000
"""How often a silent connection is asked whether the other side still lives."""

KEEPALIVE_TIMEOUT_MS = 5_000

LINK_PING_MS = 2_000
LINK_PING_TIMEOUT_MS = 2_000
"""The same between services, from both sides. Together less than the time after which an executor takes a host for
lost: what the network kept back from a host until then must meet a connection that the host has given up."""

PING_INTERVAL_MIN_MS = 1_000
"""A server cuts clients that ask more often."""

PENDING_CALLS_MAX = 20_000
"""Calls of one moment: thousands of clients that come back together must all be heard."""

RECONNECT_BACKOFF_MIN_MS = 100
RECONNECT_BACKOFF_MAX_MS = 2_000

ERROR_TEXT_BYTES_MAX = 2_000
ERROR_DETAIL_CHARS_MAX = 1_000
ERROR_DETAILS_MAX = 12
"""An error travels in the trailing metadata, of which clients take 8 KiB; base64 makes it a third larger."""

assert PING_INTERVAL_MIN_MS < LINK_PING_MS < KEEPALIVE_MS

_FAMILIES: dict[str, type[StepflowError]] = {
    family.status: family
    for family in (
        Invalid, NotFound, Exists, Refused, Conflict, Overloaded, Unavailable, Deadline, DataLoss, Unauthenticated,
        Forbidden,
    )
}  # fmt: skip


def ping_options(interval_ms: int, timeout_ms: int) -> tuple[tuple[str, int], ...]:
    """Return what makes gRPC ask a silent connection for a sign of life, and give it up without one."""
    return (
        ("grpc.keepalive_time_ms", interval_ms),
        ("grpc.keepalive_timeout_ms", timeout_ms),
        ("grpc.http2.ping_timeout_ms", timeout_ms),  # without it gRPC waits for a minute, whatever the line above says
    )


_PINGS = ping_options(KEEPALIVE_MS, KEEPALIVE_TIMEOUT_MS)
_LINK_PINGS = ping_options(LINK_PING_MS, LINK_PING_TIMEOUT_MS)
_OPTIONS = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_SERVER_OPTIONS = (
    *_OPTIONS,
    ("grpc.http2.min_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", PING_INTERVAL_MIN_MS),
    # By default a server drops calls, as CANCELLED, once a thousand have arrived that it has not yet looked at.
    ("grpc.server.max_pending_requests", PENDING_CALLS_MAX // 2),
    ("grpc.server.max_pending_requests_hard_limit", PENDING_CALLS_MAX),
    ("grpc.so_reuseport", 0),  # two servers on one port would share its clients silently
)
_CHANNEL_OPTIONS = (
    *_OPTIONS,
    ("grpc.initial_reconnect_backoff_ms", RECONNECT_BACKOFF_MIN_MS),
    ("grpc.min_reconnect_backoff_ms", RECONNECT_BACKOFF_MIN_MS),
    ("grpc.max_reconnect_backoff_ms", RECONNECT_BACKOFF_MAX_MS),
    ("grpc.enable_retries", 0),  # whoever calls knows what may be repeated
    ("grpc.service_config", '{"loadBalancingConfig":[{"round_robin":{}}]}'),
)


# --- TLS ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tls:
    """Files in PEM. A server needs `cert` and `key`; with `ca` it takes only clients with a certificate of that CA.

    A client trusts `ca` (None: the system's authorities) and shows `cert` if it has one. `name`: what the certificates
    of servers must be for, wherever they are; None: for the address that the client knows.
    """

    cert: Path | None = None
    key: Path | None = None
    ca: Path | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if (self.cert is None) != (self.key is None):
            raise Invalid("TLS_INVALID", "a certificate and its key go together: give both files, or none")

    def for_server(self) -> grpc.ServerCredentials:
        """Raises: Invalid `TLS_INVALID`, a file that is missing or cannot be read."""
        if self.cert is None or self.key is None:
            raise Invalid("TLS_INVALID", "a server needs a certificate and its key")
        ca = None if self.ca is None else _read(self.ca)
        return grpc.ssl_server_credentials(
            [(_read(self.key), _read(self.cert))], ca, require_client_auth=ca is not None
        )

    def for_client(self) -> grpc.ChannelCredentials:
        """Raises: Invalid `TLS_INVALID`, a file that is missing or cannot be read."""
        return grpc.ssl_channel_credentials(
            None if self.ca is None else _read(self.ca),
            None if self.key is None else _read(self.key),
            None if self.cert is None else _read(self.cert),
        )


def _read(path: Path) -> bytes:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Invalid("TLS_INVALID", f"cannot read {path}: {error.strerror}") from None
    if b"-----BEGIN" not in content:
        raise Invalid("TLS_INVALID", f"{path} is not a PEM file")
    return content


def is_loopback(address: str) -> bool:
    """Say whether HOST:PORT can be reached from this machine only."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def parse_address(address: str) -> tuple[str, int]:
    """Split HOST:PORT. Raises: Invalid `ADDRESS_INVALID`."""
    host, separator, port = address.rpartition(":")
    if not separator or not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise Invalid("ADDRESS_INVALID", f"{address[:200]!r} is not HOST:PORT")
    return host, int(port)


# --- servers -----------------------------------------------------------------------------------------------------


class Server:
    """A gRPC server. `add` services, `start`, and `stop` in the end."""

    def __init__(
        self,
        *,
        tls: Tls | None = None,
        insecure: bool = False,
        link: bool = False,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        health: Health | None = None,
    ) -> None:
        """`insecure`: listen anywhere although there is no TLS. `link`: it is other services that connect.
        `message_bytes_max`: what is received at most. `health`: of the process; without it the server is ready as soon
        as it listens.
        """
        from stepflow.health import Health

        self.address = ""
        """Where it listens, with the real port."""
        self._tls = tls
        self._insecure = insecure
        pings = _LINK_PINGS if link else _PINGS
        options = (*_SERVER_OPTIONS, *pings, ("grpc.max_receive_message_length", message_bytes_max))
        self._server: grpc.aio.Server = grpc.aio.server(interceptors=(_Errors(),), options=options)
        self._names: list[str] = []
        self._own_health = health is None
        self._health = health or Health()

    def add(self, service: ServiceDescriptor, register: Callable[[Any, Any], None], servicer: object) -> None:
        """Serve a service; `register` is the generated `add_…Servicer_to_server`."""
        register(servicer, self._server)
        self._names.append(service.full_name)

    def add_methods(self, service: str, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Serve methods under the name of a service that has no description here."""
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))

    async def start(self, listen: str) -> str:
        """Listen at HOST:PORT (port 0: any that is free) and return the address with its port.

        Raises:
            Invalid: `ADDRESS_INVALID`, `TLS_INVALID`, `TLS_REQUIRED` (not a loopback address, and no TLS).
            Refused: `LISTEN_FAILED`, the port is taken or the address is not ours.
        """
        host, _ = parse_address(listen)
        if self._tls is None and not self._insecure and not is_loopback(listen):
            raise Invalid(
                "TLS_REQUIRED",
                f"{listen} can be reached from other machines: give --tls-cert and --tls-key, or say --insecure",
            )
        self._add_health_and_reflection()
        try:
            if self._tls is None:
                port = self._server.add_insecure_port(listen)
            else:
                port = self._server.add_secure_port(listen, self._tls.for_server())
        except RuntimeError:
            port = 0
        if not port:
            raise Refused("LISTEN_FAILED", f"cannot listen at {listen}: the port is taken, or the address is not ours")
        await self._server.start()
        await self._health.open()
        if self._own_health:
            await self._health.begin()
        self.address = f"{host}:{port}"
        return self.address

    def _add_health_and_reflection(self) -> None:
        from grpc_reflection.v1alpha import reflection

        from stepflow import health

        self._health.add_to(self._server, self._names)
        reflection.enable_server_reflection((*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Refuse new calls, give those in flight the grace, then cut them. Safe to repeat."""
        await self._health.drain()
        await self._server.stop(grace_s)


class _Errors(grpc.aio.ServerInterceptor):
    """Turns what our services raise into statuses."""

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        method: str = handler_call_details.method
        if handler is None or not method.startswith("/stepflow."):
            return handler
        kind = "_".join(
            "stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming)
        )
        guard = _guard_stream if handler.response_streaming else _guard_unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            guard(method, getattr(handler, kind)),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )


def _guard_unary(method: str, behaviour: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, Any], Awaitable[Any]]:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            return await behaviour(request, context)
        except Exception as error:
            await _abort(method, context, error)

    return guarded


def _guard_stream(method: str, behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    if not inspect.isasyncgenfunction(behaviour):
        return _guard_unary(method, behaviour)  # it writes to the context

    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            async for reply in behaviour(request, context):
                yield reply
        except Exception as error:
            await _abort(method, context, error)

    return guarded


async def _abort(method: str, context: Any, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if not isinstance(error, StepflowError):
        log.exception("call failed by a defect", method=method)
        await context.abort(grpc.StatusCode.INTERNAL, f"a defect in {method}; the server's log has more")
    assert isinstance(error, StepflowError)
    status = status_of(error)
    code = grpc.StatusCode[error.status]
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, status.message, trailing_metadata=metadata)


# --- errors ------------------------------------------------------------------------------------------------------


def status_of(error: StepflowError) -> status_pb2.Status:
    """Return the status that stands for an error, details included as far as they fit."""
    info = error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN)
    for name, value in list(error.details.items())[:ERROR_DETAILS_MAX]:
        text = value if isinstance(value, str) else json.dumps(value, default=str)
        if len(text) <= ERROR_DETAIL_CHARS_MAX:
            info.metadata[name] = text
    while info.ByteSize() > 2 * ERROR_DETAIL_CHARS_MAX and info.metadata:
        del info.metadata[max(info.metadata, key=lambda name: len(info.metadata[name]))]
    status = status_pb2.Status(code=grpc.StatusCode[error.status].value[0], message=_cut(error.message))
    status.details.add().Pack(info)
    return status


def _cut(text: str) -> str:
    """Cut a text so that it fits. It travels twice, once with three characters for each byte that is not ASCII."""
    bytes_max = ERROR_TEXT_BYTES_MAX if text.isascii() else ERROR_TEXT_BYTES_MAX // 2
    return text.encode(errors="replace")[:bytes_max].decode(errors="ignore")


def family(status: str) -> type[StepflowError]:
    """Return the family of a status's name; Refused for one that has none."""
    return _FAMILIES.get(status, Refused)


def error_of(failed: grpc.aio.AioRpcError) -> StepflowError:
    """Return the error that a failed call stands for."""
    code: grpc.StatusCode = failed.code()
    text = failed.details() or code.name
    info = _error_info(failed)
    if info is not None and code.name in _FAMILIES:
        return _FAMILIES[code.name](info.reason, text, **info.metadata)
    match code:
        case grpc.StatusCode.UNAVAILABLE | grpc.StatusCode.CANCELLED:
            return Unavailable("SERVER_UNAVAILABLE", f"the server cannot be reached: {text}")
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return Deadline("CALL_TIMEOUT", "the server has not answered in time")
        case grpc.StatusCode.UNIMPLEMENTED:
            return Refused(
                "CALL_UNKNOWN", "the server does not know this call: is it a stepflow server of this version?"
            )
        case grpc.StatusCode.INTERNAL | grpc.StatusCode.UNKNOWN:
            return Refused("SERVER_DEFECT", text)
        case _ if code.name in _FAMILIES:
            return _FAMILIES[code.name](f"CALL_{code.name}", text)
        case _:
            return Refused(f"CALL_{code.name}", text)


def _error_info(failed: grpc.aio.AioRpcError) -> error_details_pb2.ErrorInfo | None:
    metadata: Any = failed.trailing_metadata() or ()
    for key, value in metadata:
        if key == "grpc-status-details-bin":
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info) and info.domain == DOMAIN:
                    return info
    return None


# --- channels ----------------------------------------------------------------------------------------------------


def open_channel(
    target: str,
    tls: Tls | None = None,
    *,
    proxy: Proxy | None = None,
    options: Sequence[tuple[str, Any]] = (),
) -> grpc.aio.Channel:
    """Open a channel to HOST:PORT, or to any target that gRPC knows (`dns:///name:port` spreads over its addresses).

    It connects when the first call is made, and again by itself. The environment's proxy is not used; a client outside
    of the mesh gives the one of `stepflow.proxies`. Raises: Invalid `TLS_INVALID`.
    """
    return _open(target, tls, [*_CHANNEL_OPTIONS, *_PINGS, *grpc_options(proxy), *options])


def open_link(target: str, tls: Tls | None = None) -> grpc.aio.Channel:
    """Open a channel to another service whose silence must be noticed soon. Raises: Invalid `TLS_INVALID`.

    It has a connection of its own: a shared one would make it inherit the back-off of a channel that has just failed.
    """
    return _open(target, tls, [*_CHANNEL_OPTIONS, *_LINK_PINGS, DIRECT, ("grpc.use_local_subchannel_pool", 1)])


def _open(target: str, tls: Tls | None, options: Sequence[tuple[str, Any]]) -> grpc.aio.Channel:
    if tls is None:
        return grpc.aio.insecure_channel(target, options=options)
    if tls.name is not None:
        options = (*options, ("grpc.ssl_target_name_override", tls.name))
    return grpc.aio.secure_channel(target, tls.for_client(), options=options)


__all__ = [
    "DOMAIN",
    "MESSAGE_BYTES_MAX",
    "Server",
    "Tls",
    "error_of",
    "family",
    "is_loopback",
    "open_channel",
    "open_link",
    "parse_address",
    "status_of",
]
