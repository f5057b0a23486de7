"""The memory for requests that may be large while they are received, in a server with a budget for large values.

The size of a request is known only once it is in memory. So a request is read once there is room for the largest one;
it then counts with its real size until its call holds memory of the budget (`call_memory`). What is not read yet stays
with the client: gRPC receives `options.RECEIVED_AHEAD_BYTES` of it.

gRPC reads the request of a unary call before the call is seen here. On the wire such a request is a stream of one
message, and a stream is read on demand.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc

from stepflow.rpc.options import MESSAGE_BYTES_MAX
from stepflow.rpc.requests import MalformedRequest
from stepflow.value_budget import ValueBudget

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

RECEIVED_AT_ONCE_MIN = 2
"""Requests that are received at a time, however small the budget is."""

RECEIVED_S_MAX = 5.0
"""Longest time that a client may take to send a request before the room is lent to others."""


class Receiving:
    """The room for requests of one server: half as much as its budget for large values."""

    def __init__(self, budget: ValueBudget) -> None:
        self._room = ValueBudget(max(RECEIVED_AT_ONCE_MIN * MESSAGE_BYTES_MAX, budget.bytes_max // 2))

    @asynccontextmanager
    async def request(self, context: Any) -> AsyncIterator[bytes]:
        """Read the request of a call; it counts within the block. Raises: MalformedRequest, it is missing."""
        await self._room.take(MESSAGE_BYTES_MAX)
        counted = MESSAGE_BYTES_MAX

        def recount(size: int) -> None:
            nonlocal counted
            self._room.release(counted - size)
            counted = size

        lending = asyncio.get_running_loop().call_later(RECEIVED_S_MAX, recount, 0)
        try:
            message = await context.read()
            lending.cancel()
            if message is grpc.aio.EOF:
                raise MalformedRequest("REQUEST_MALFORMED", "the call has no request; check the client's version")
            recount(len(message))
            yield message
        finally:
            lending.cancel()
            recount(0)


__all__ = ["Receiving"]
