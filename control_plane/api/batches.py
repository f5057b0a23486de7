"""The messages of a SubmitBatch call: the request, its inputs in order, and the end.

A call without an `end` is refused: a server cannot tell a client that has finished from a connection that broke.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from control_plane.inputs import PART_BYTES, PART_ITEMS
from stepflow.errors import DeadlineExceeded, Invalid

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from control_plane.api.values import Values
    from stepflow.mesh.v1 import runs_pb2

BATCHES_AT_ONCE = 8
"""Batches received at the same time; further ones wait. Each holds one partition of inputs, at most 16 MiB."""

MESSAGE_WAIT_S = 300.0
"""Longest wait for the next message: a client that stalls keeps others waiting."""


class BatchReader:
    """Reads the messages of one call: first `run`, then `parts` to the end."""

    def __init__(self, requests: AsyncIterator[runs_pb2.SubmitBatchRequest], values: Values) -> None:
        self._requests = aiter(requests)
        self._values = values

    async def run(self) -> runs_pb2.SubmitRunRequest:
        """Return the request. Raises: Invalid `STREAM_INVALID`, DeadlineExceeded `INPUTS_STALLED`."""
        message = await self._next()
        if message.WhichOneof("kind") != "run":
            raise Invalid("STREAM_INVALID", "the first message of a batch is `run`")
        if message.run.inputs:
            raise Invalid("STREAM_INVALID", "`run` of a batch has no inputs: send them in `inputs`, after it")
        return message.run

    async def parts(self) -> AsyncIterator[list[bytes]]:
        """Yield the inputs in order, as compact JSON texts.

        Raises: Invalid (`STREAM_INVALID`, or an input), NotFound (a blob), DeadlineExceeded `INPUTS_STALLED`.
        """
        texts: list[bytes] = []
        size = count = 0
        while (message := await self._next()).WhichOneof("kind") == "inputs":
            for value in message.inputs.inputs:
                text = await self._values.read(value, f"input {count}")
                texts.append(text)
                size, count = size + len(text), count + 1
                if size >= PART_BYTES or len(texts) == PART_ITEMS:
                    yield texts
                    texts, size = [], 0

        if message.WhichOneof("kind") != "end":
            raise Invalid("STREAM_INVALID", "a batch is `run`, then `inputs`, then `end`")
        if message.end.items_total != count:
            raise Invalid(
                "STREAM_INVALID", f"`end` of the batch counts {message.end.items_total:,} inputs, and {count:,} arrived"
            )
        if texts:
            yield texts

    async def _next(self) -> runs_pb2.SubmitBatchRequest:
        try:
            async with asyncio.timeout(MESSAGE_WAIT_S):
                return await anext(self._requests)
        except TimeoutError:
            raise DeadlineExceeded(
                "INPUTS_STALLED", f"no message of the batch for {MESSAGE_WAIT_S:g} s; submit it again"
            ) from None
        except StopAsyncIteration:
            raise Invalid("STREAM_INVALID", "the batch ended without `end`; nothing was submitted") from None


__all__ = ["BATCHES_AT_ONCE", "BatchReader"]
