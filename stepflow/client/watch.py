"""`RunWatch`: the events of a run, over reconnects and the death of servers."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc

from stepflow.client.conversion import event_of
from stepflow.errors import Unavailable
from stepflow.mesh.v1 import runs_pb2, values_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from stepflow.client.connection import Connection
    from stepflow.client.model import ClientEvent


class RunWatch:
    """A run's events. `positions` is the progress so far (partition → seq), to pass to `Client.watch` later.

    Durable events arrive exactly once, also over a broken connection; `step_started`, `step_progress` and `step_logged`
    may be lost, and after a broken connection log lines may come again.
    A program that stops in the middle of an iteration and continues from `positions` sees the latest events again.
    """

    def __init__(
        self,
        connection: Connection,
        run_id: str,
        positions: dict[int, int],
        *,
        include_results: bool,
        include_logs: bool = False,
        until_now: bool = False,
    ) -> None:
        self.positions = positions
        self._connection = connection
        self._run_id = run_id
        self._include_results = include_results
        self._include_logs = include_logs
        self._until_now = until_now
        self._iterator: AsyncGenerator[ClientEvent, None] | None = None

    def __aiter__(self) -> RunWatch:
        return self

    async def __anext__(self) -> ClientEvent:
        """Return the next event. Raises: NotFound, FailedPrecondition (`HISTORY_GONE`), Unavailable (none answers)."""
        if self._iterator is None:
            self._iterator = self._events()
        return await self._iterator.__anext__()

    async def aclose(self) -> None:
        """Stop watching. Idempotent."""
        if self._iterator is not None:
            await self._iterator.aclose()

    async def _events(self) -> AsyncGenerator[ClientEvent, None]:
        patience = self._connection.patience()
        while True:
            call = self._connection.next_server().runs.WatchRun(self._request())
            try:
                async for message in call:
                    patience.renew()

                    for event in message.events:
                        known = event_of(self._run_id, event)
                        if known is not None:
                            yield known
                        if event.HasField("run_ended"):
                            return

                    # After the events: a position noted earlier would skip events that the caller has not seen.
                    if message.HasField("position"):
                        self.positions[message.position.partition] = message.position.seq
                if self._until_now:
                    return

            except grpc.aio.AioRpcError as failed:
                error = self._connection.explain(failed)
                if not isinstance(error, Unavailable):
                    raise error from None
                await patience.wait(error, len(self._connection.targets))
            finally:
                call.cancel()

    def _request(self) -> runs_pb2.WatchRunRequest:
        positions = [runs_pb2.Position(partition=p, seq=seq) for p, seq in self.positions.items()]
        return runs_pb2.WatchRunRequest(
            run_id=self._run_id,
            positions=positions,
            include_results=self._include_results,
            value_form=values_pb2.VALUE_FORM_JSON,
            include_logs=self._include_logs,
            until_now=self._until_now,
        )
