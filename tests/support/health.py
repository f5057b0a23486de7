"""Health checks of a service, as a probe does them."""

from __future__ import annotations

from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

ANSWER_S = 2.0

SERVING = "SERVING"
NOT_SERVING = "NOT_SERVING"


def health_of(address: str, service: str, answer_s: float = ANSWER_S) -> str:
    """Return the health status of `service`, or the status code of the failed check, such as UNAVAILABLE."""
    with grpc.insecure_channel(address) as channel:
        try:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=answer_s)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code.name
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(reply.status))


__all__ = ["NOT_SERVING", "SERVING", "health_of"]
