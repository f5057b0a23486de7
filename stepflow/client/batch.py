"""The inputs of a batch: encoded one by one, sent in messages of bounded size, and sent again after a lost connection.

- Memory holds one message, however large the batch is.
- Inputs that can be iterated again are. Those of an iterator are kept in a temporary file while they are sent.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterable
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from stepflow.client.requests import value_text
from stepflow.mesh.v1 import runs_pb2, values_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Iterable

MESSAGE_BYTES = 1024 * 1024
MESSAGE_ITEMS = 1_000

MESSAGE_INTERVAL_S = 10.0
"""A message is sent after this time, however small: servers end a batch that stalls."""

SPOOL_MEMORY_BYTES = 8 * 1024 * 1024
"""Inputs of an iterator are in memory up to this size, then in a file."""


class BatchInputs:
    """The inputs of one batch as JSON texts, readable again from the first. Close it."""

    def __init__(self, inputs: Iterable[Any] | AsyncIterable[Any]) -> None:
        source: Any = aiter(inputs) if isinstance(inputs, AsyncIterable) else iter(inputs)
        self._repeatable = source is not inputs
        self._source: Any = inputs if self._repeatable else source
        self._kept = tempfile.SpooledTemporaryFile(max_size=SPOOL_MEMORY_BYTES)  # noqa: SIM115  # `close` closes it

    def close(self) -> None:
        self._kept.close()

    async def texts(self) -> AsyncGenerator[bytes, None]:
        """Yield the inputs from the first on. Close the generator before the next one. Raises: Invalid."""
        index = 0
        if not self._repeatable:
            self._kept.seek(0)
            for line in self._kept:
                yield line[:-1]
                index += 1

        async for value in _asynchronous(self._source):
            text = value_text(value, f"input {index}")
            if not self._repeatable:
                self._kept.write(text + b"\n")  # behind the last line, which was read above
            yield text
            index += 1

    async def up_to(self, bytes_max: int) -> list[bytes] | None:
        """Return all inputs if they have at most `bytes_max` together, else None."""
        found: list[bytes] = []
        left = bytes_max
        async with aclosing(self.texts()) as texts:
            async for text in texts:
                left -= len(text)
                if left < 0:
                    return None
                found.append(text)
        return found

    async def messages(self, run: runs_pb2.SubmitRunRequest) -> AsyncGenerator[runs_pb2.SubmitBatchRequest, None]:
        """Yield the messages that submit `run` with these inputs."""
        yield runs_pb2.SubmitBatchRequest(run=run)

        message = runs_pb2.SubmitBatchRequest()
        size = count = 0
        sent_at = time.monotonic()
        async with aclosing(self.texts()) as texts:
            async for text in texts:
                message.inputs.inputs.append(values_pb2.Value(json=text))
                size, count = size + len(text), count + 1

                full = size >= MESSAGE_BYTES or len(message.inputs.inputs) == MESSAGE_ITEMS
                if full or time.monotonic() - sent_at >= MESSAGE_INTERVAL_S:
                    yield message
                    message, size, sent_at = runs_pb2.SubmitBatchRequest(), 0, time.monotonic()

        if message.inputs.inputs:
            yield message
        yield runs_pb2.SubmitBatchRequest(end=runs_pb2.BatchEnd(items_total=count))


async def _asynchronous(source: Any) -> AsyncGenerator[Any, None]:
    if isinstance(source, AsyncIterable):
        async for value in source:
            yield value
    else:
        for value in source:
            yield value


__all__ = ["BatchInputs"]
