"""A server with one method that takes large requests, in this process or as a process of its own.

As a process (`python -m support.receiving`) it prints its address and has a budget of 64 MiB for large values.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from stepflow.mesh.v1 import blobs_pb2
from stepflow.rpc.server import RpcServer
from stepflow.value_budget import ValueBudget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

METHOD = "/kit.Kit/Put"


@asynccontextmanager
async def receiving_server(budget: ValueBudget) -> AsyncIterator[str]:
    """Serve `METHOD`, from a PutBlobRequest to no bytes; yield the address."""

    async def put(_request: blobs_pb2.PutBlobRequest, _context: Any) -> bytes:
        return b""

    server = RpcServer(value_budget=budget, large_requests=[METHOD])
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        put, request_deserializer=blobs_pb2.PutBlobRequest.FromString
    )
    server.add_methods("kit.Kit", {"Put": handler})
    address = await server.start("127.0.0.1:0")
    try:
        yield address
    finally:
        await server.stop()


async def main() -> None:
    async with receiving_server(ValueBudget(64 * 1024 * 1024)) as address:
        print(address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main())
