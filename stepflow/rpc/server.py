"""gRPC servers: TLS, health, reflection, and the end of a failed call.

- A `StepflowError` ends a call with its family's status, encoded by `errors`.
- A request that is no message of its type ends its call with INVALID_ARGUMENT, see `requests`.
- Any other exception becomes INTERNAL and a log record; its text stays in the server, for it may quote a payload.

A server listens beyond loopback only with TLS or an explicit `insecure`.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc

from stepflow.errors import FailedPrecondition, Invalid, Overloaded, StepflowError
from stepflow.rpc import call_memory, health
from stepflow.rpc.errors import status_of
from stepflow.rpc.health import ProcessHealth
from stepflow.rpc.options import BUDGETED_SERVER_OPTIONS, CLIENT_PINGS, LINK_PINGS, MESSAGE_BYTES_MAX, SERVER_OPTIONS
from stepflow.rpc.receiving import Receiving
from stepflow.rpc.requests import MalformedRequest, decode_request
from stepflow.rpc.tls import is_loopback, parse_address
from stepflow.telemetry import ThrottledLog, get_logger

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection

    from google.protobuf.descriptor import ServiceDescriptor

    from stepflow.rpc.tls import Tls
    from stepflow.value_budget import ValueBudget

log = get_logger(__name__)
_throttled = ThrottledLog(log)
"""For what any client can cause at will."""


class RpcServer:
    """A gRPC server: `add` services, `start`, finally `stop`."""

    def __init__(
        self,
        *,
        tls: Tls | None = None,
        insecure: bool = False,
        link: bool = False,
        message_bytes_max: int = MESSAGE_BYTES_MAX,
        health: ProcessHealth | None = None,
        value_budget: ValueBudget | None = None,
        large_requests: Collection[str] = (),
    ) -> None:
        """Create a server that does not listen yet.

        Args:
            insecure: listen beyond loopback without TLS.
            link: the clients are other services, which ping often.
            message_bytes_max: largest message received.
            health: the health of the process; without it the server is ready as soon as it listens.
            value_budget: memory for the large values of all calls, see `call_memory`.
            large_requests: the unary methods whose requests may be large, `/package.Service/Method`; with a budget they
                are received in turn, see `receiving`.
        """
        self.address = ""
        """Listening address with the actual port; empty before `start`."""

        self._tls = tls
        self._insecure = insecure
        pings = LINK_PINGS if link else CLIENT_PINGS
        ahead = () if value_budget is None else BUDGETED_SERVER_OPTIONS
        options = (*SERVER_OPTIONS, *ahead, *pings, ("grpc.max_receive_message_length", message_bytes_max))
        interceptor = _Errors(value_budget, large_requests)
        self._server: grpc.aio.Server = grpc.aio.server(interceptors=(interceptor,), options=options)

        self._names: list[str] = []
        self._own_health = health is None
        self._health = health or ProcessHealth()

    def add(self, service: ServiceDescriptor, register: Callable[[Any, Any], None], servicer: object) -> None:
        """Serve a service; `register` is the generated `add_…Servicer_to_server`."""
        register(servicer, self._server)
        self._names.append(service.full_name)

    def add_methods(self, service: str, methods: dict[str, grpc.RpcMethodHandler[Any, Any]]) -> None:
        """Serve methods of a service without a descriptor here."""
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, methods),))

    async def start(self, listen: str) -> str:
        """Listen at HOST:PORT (port 0: any free port) and return the address with its port.

        Raises:
            Invalid: `ADDRESS_INVALID`, `TLS_INVALID`, `TLS_REQUIRED` (not a loopback address, and no TLS).
            FailedPrecondition: `LISTEN_FAILED`, the port is taken, or the address belongs to another machine.
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
            raise FailedPrecondition(
                "LISTEN_FAILED", f"cannot listen at {listen}: the port is taken, or the address is not this machine's"
            )

        await self._server.start()
        await self._health.open()
        if self._own_health:
            await self._health.begin()
        self.address = f"{host}:{port}"
        return self.address

    def _add_health_and_reflection(self) -> None:
        from grpc_reflection.v1alpha import reflection

        self._health.add_to(self._server, self._names)
        reflection.enable_server_reflection((*self._names, health.SERVICE_NAME, reflection.SERVICE_NAME), self._server)

    async def stop(self, grace_s: float = 0.0) -> None:
        """Refuse new calls, let calls in flight finish for `grace_s`, then cancel them. Idempotent."""
        await self._health.drain()
        await self._server.stop(grace_s)


class _Errors(grpc.aio.ServerInterceptor):
    """Refuses malformed requests, counts large ones, and translates exceptions of all services into statuses."""

    def __init__(self, value_budget: ValueBudget | None, large_requests: Collection[str]) -> None:
        self._value_budget = value_budget
        self._receiving = None if value_budget is None else Receiving(value_budget)
        self._large_requests = frozenset(large_requests)

    async def intercept_service(
        self, continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]], handler_call_details: Any
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return handler

        method: str = handler_call_details.method
        decode = partial(decode_request, method, handler.request_deserializer)
        if self._value_budget is not None and self._receiving is not None and method in self._large_requests:
            return grpc.stream_unary_rpc_method_handler(
                _guard_large(method, handler.unary_unary, decode, self._value_budget, self._receiving),
                response_serializer=handler.response_serializer,
            )

        kind = "_".join(
            "stream" if many else "unary" for many in (handler.request_streaming, handler.response_streaming)
        )
        guard = _guard_stream if handler.response_streaming else _guard_unary
        make = getattr(grpc, f"{kind}_rpc_method_handler")
        return make(
            # gRPC decodes a single request before the behaviour runs, and what fails there is no status but a defect.
            guard(method, getattr(handler, kind), None if handler.request_streaming else decode, self._value_budget),
            request_deserializer=decode if handler.request_streaming else None,
            response_serializer=handler.response_serializer,
        )


def _guard_unary(
    method: str,
    behaviour: Callable[[Any, Any], Awaitable[Any]],
    decode: Callable[[bytes], Any] | None,
    budget: ValueBudget | None,
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def guarded(request: Any, context: Any) -> Any:
        try:
            if budget is not None:
                call_memory.begin_call(budget, context)
                if decode:
                    await call_memory.hold(len(request))  # before it is decoded: its values have copies from then on
            return await behaviour(decode(request) if decode else request, context)
        except Exception as error:
            await _abort(method, context, error)

    return guarded


def _guard_large(
    method: str,
    behaviour: Callable[[Any, Any], Awaitable[Any]],
    decode: Callable[[bytes], Any],
    budget: ValueBudget,
    receiving: Receiving,
) -> Callable[[Any, Any], Awaitable[Any]]:
    async def guarded(_requests: Any, context: Any) -> Any:
        try:
            call_memory.begin_call(budget, context)
            async with receiving.request(context) as message:
                await call_memory.hold(len(message))
                request = decode(message)
            del message
            return await behaviour(request, context)
        except Exception as error:
            await _abort(method, context, error)

    return guarded


def _guard_stream(
    method: str,
    behaviour: Callable[[Any, Any], Any],
    decode: Callable[[bytes], Any] | None,
    budget: ValueBudget | None,
) -> Callable[[Any, Any], Any]:
    if not inspect.isasyncgenfunction(behaviour):
        return _guard_unary(method, behaviour, decode, budget)  # replies through the context

    async def guarded(request: Any, context: Any) -> AsyncIterator[Any]:
        try:
            if budget is not None:
                call_memory.begin_call(budget, context)
            async for reply in behaviour(decode(request) if decode else request, context):
                yield reply
        except Exception as error:
            await _abort(method, context, error)

    return guarded


async def _abort(method: str, context: Any, error: Exception) -> None:
    if isinstance(error, grpc.aio.AbortError):
        raise error
    if isinstance(error, MemoryError):
        error = Overloaded("OUT_OF_MEMORY", f"{method} needs more memory than this service has; ask for less at once")
    if isinstance(error, NotImplementedError):  # a method of a generated base class
        _throttled.warning("call of a method that is not served", method, method=method, peer=context.peer())
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, f"{method} is not served here")
    if not isinstance(error, StepflowError):
        log.exception("call failed by a defect", method=method)
        await context.abort(grpc.StatusCode.INTERNAL, f"a defect in {method}; the server's log has more")
    assert isinstance(error, StepflowError)

    if isinstance(error, MalformedRequest):
        _throttled.warning("malformed request refused", method, method=method, peer=context.peer(), error=error.message)
    status = status_of(error)
    code = grpc.StatusCode[error.status]
    metadata = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, status.message, trailing_metadata=metadata)


__all__ = ["RpcServer"]
