"""The result of an item, streamed as JSON text over reconnects and the death of servers, to the caller or to a file."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from stepflow.client.connection import STREAM_WAIT_S
from stepflow.errors import DeadlineExceeded, Unavailable
from stepflow.mesh.v1 import runs_pb2
from stepflow.whole_file import whole_file

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator

    from stepflow.client.connection import Connection


async def result_chunks(connection: Connection, run_id: str, item: int) -> AsyncGenerator[bytes]:
    """Yield the text in chunks of up to 1 MiB. After a break, the next server goes on where the last one stopped.

    Raises: NotFound, FailedPrecondition, DataLoss; Unavailable, none answers.
    """
    patience = connection.patience()
    offset = 0
    while True:
        request = runs_pb2.GetResultRequest(run_id=run_id, item=item, offset=offset)
        call = connection.next_server().runs.GetResult(request)
        try:
            messages = aiter(call)
            while (message := await _next_message(messages)) is not None:
                patience.renew()
                offset += len(message.chunk)
                if message.chunk:
                    yield message.chunk
            return
        except grpc.aio.AioRpcError as failed:
            error = connection.explain(failed)
            if not isinstance(error, Unavailable):
                raise error from None
            await patience.wait(error, len(connection.targets))
        finally:
            call.cancel()


async def save_chunks(chunks: AsyncGenerator[bytes], path: str | os.PathLike[str]) -> int:
    """Write chunks to a file that appears once it is whole; return its length. Raises: OSError; as the chunks."""
    size = 0
    with whole_file(Path(path)) as file:
        async with aclosing(chunks):
            async for chunk in chunks:
                await asyncio.to_thread(file.write, chunk)
                size += len(chunk)
    return size


async def _next_message(messages: AsyncGenerator[runs_pb2.GetResultResponse]) -> runs_pb2.GetResultResponse | None:
    try:
        async with asyncio.timeout(STREAM_WAIT_S):
            return await anext(messages, None)
    except TimeoutError:
        raise DeadlineExceeded("CALL_TIMEOUT", "the server has not answered in time") from None


__all__ = ["result_chunks", "save_chunks"]
