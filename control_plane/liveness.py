"""Liveness: notices a dead executor within milliseconds, long before the lease expires.

The leader holds a stream to every executor. If the stream breaks and the executor's address refuses connections, or
answers under another id, the process is gone: the session is deleted, and `Leader` takes the runs over at once.

- Safe by the fence: an executor that is alive after all finds the session gone, and no write of the executor succeeds.
- The deletion compares leadership and the session attended here.
- No session is deleted while fewer than half of the other executors accept connections: a network partition on our
  side is the likelier cause then. The others are dialled at that moment, because streams that break together are
  noticed one after the other.
- Silence proves nothing: an executor that hangs, or cannot be reached, keeps the session until the lease expires.

Does not move runs.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from stepflow.errors import StepflowError
from stepflow.mesh.v1 import executor_pb2, state_pb2
from stepflow.retry import doubling
from stepflow.rpc.probe import accepts, refuses
from stepflow.store import Compare, Delete, Txn, created_at, keys
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger, log_defect

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.rpc.tls import Tls
    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)

ATTEND = "/stepflow.mesh.v1.ExecutorService/Attend"

ANSWER_TIMEOUT_S = 2.0
"""From the dial to the executor's id."""

RETRY_MIN_S = 0.02
RETRY_MAX_S = 1.0
"""Pauses between two attempts to reach an executor double from the one to the other."""


class Liveness:
    """Attends to all executors from `start` to `close`. Each term of a leader is one such span."""

    def __init__(self, store: Store, replica_id: str, *, tls: Tls | None = None) -> None:
        self.replica_id = replica_id
        self.tls = tls
        self._store = store
        self._fence: Compare | None = None
        self._attendants: dict[str, _Attendant] = {}
        self._follower: asyncio.Task[None] | None = None

    def start(self, fence: Compare) -> None:
        """Begin a term. `fence`: this replica leads."""
        self._fence = fence
        following = follow(self._store, keys.EXECUTOR_SESSIONS, listed=self._on_listed, changed=self._on_changed)
        self._follower = asyncio.create_task(following, name="follow executors")

    async def close(self) -> None:
        """End the term. Idempotent."""
        tasks = [attendant.task for attendant in self._attendants.values()]
        self._attendants.clear()
        if self._follower is not None:
            tasks.append(self._follower)
            self._follower = None

        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def answering(self, executor_id: str) -> bool:
        """Return True if the executor's stream is established."""
        attendant = self._attendants.get(executor_id)
        return attendant is not None and attendant.answers

    def _on_listed(self, items: list[KeyValue]) -> None:
        found = {keys.tail(keys.EXECUTOR_SESSIONS, item.key) for item in items}
        for executor_id in self._attendants.keys() - found:
            self._drop_executor(executor_id)
        for item in items:
            self._attend_executor(item)

    def _on_changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                self._attend_executor(event.kv)
            else:
                self._drop_executor(keys.tail(keys.EXECUTOR_SESSIONS, event.kv.key))

    def _attend_executor(self, item: KeyValue) -> None:
        executor_id = keys.tail(keys.EXECUTOR_SESSIONS, item.key)
        try:
            address = state_pb2.ExecutorSession.FromString(item.value).address
        except DecodeError:  # of a later version, say: its lease alone tells of its end
            return
        if address and executor_id not in self._attendants:  # ids of executors are never reused
            self._attendants[executor_id] = _Attendant(self, executor_id, address, item.create_revision)

    def _drop_executor(self, executor_id: str) -> None:
        attendant = self._attendants.pop(executor_id, None)
        if attendant is not None:
            attendant.task.cancel()

    async def delete_session(self, gone: _Attendant, why: str) -> None:
        """Delete the session of a dead executor, unless this replica may be cut off."""
        # 1. Ask the others: at least half of them must accept connections now.
        others = [attendant for attendant in self._attendants.values() if attendant is not gone]
        answering = [attendant.address for attendant in others if attendant.answers]
        if 2 * len(answering) < len(others) or not await _enough_accept(answering, (len(others) + 1) // 2):
            log.warning("executor seems gone, but so do others", executor_id=gone.executor_id, others=len(others))
            return

        # 2. Delete, fenced by leadership and by the session attended here.
        if self._fence is None:
            return
        session = keys.session_executor(gone.executor_id)
        try:
            result = await self._store.txn(Txn((self._fence, created_at(session, gone.created)), (Delete(session),)))
        except StepflowError as error:
            log.warning("session not deleted", executor_id=gone.executor_id, reason=error.reason)
            return

        # 3. The leader sees the deletion in its watch, and takes the runs over.
        if result.succeeded:
            log.warning("executor is gone", executor_id=gone.executor_id, why=why)


async def _enough_accept(addresses: list[str], wanted: int) -> bool:
    """Dial all addresses at once; return True as soon as `wanted` of them accept."""
    dials = {asyncio.create_task(accepts(address), name=f"dial {address}") for address in addresses}
    accepted = 0
    try:
        while dials and accepted < wanted:
            done, dials = await asyncio.wait(dials, return_when=asyncio.FIRST_COMPLETED)
            accepted += sum(dial.result() for dial in done)
    finally:
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
    return accepted >= wanted


class _Attendant:
    """The stream to an executor."""

    def __init__(self, liveness: Liveness, executor_id: str, address: str, created: int) -> None:
        self.executor_id = executor_id
        self.address = address
        self.created = created
        """Create revision of the session."""
        self.answers = False
        self._liveness = liveness
        self.task = asyncio.create_task(self._run(), name=f"attend {executor_id}")

    async def _run(self) -> None:
        pauses_s = doubling(RETRY_MIN_S, RETRY_MAX_S)
        while True:
            # 1. Hold the stream until it ends.
            answered = False
            try:
                why = await self._attend()
                answered = self.answers
            except Exception as error:  # Logged, not raised: the executor would stay unattended until the next term.
                log_defect(log, "attendance failed by a defect", error, executor_id=self.executor_id)
                why = ""
            self.answers = False

            # 2. Find out whether the process is gone.
            try:
                if not why and await refuses(self.address):
                    why = "its address refuses connections"
                if why:
                    await self._liveness.delete_session(self, why)
            except Exception as error:
                log_defect(log, "session not deleted by a defect", error, executor_id=self.executor_id)

            # 3. Reconnect; the executor may be alive, or the deletion have failed.
            if answered:
                pauses_s = doubling(RETRY_MIN_S, RETRY_MAX_S)
            await asyncio.sleep(next(pauses_s))

    async def _attend(self) -> str:
        """Hold a stream to its end; return the proof that the executor is gone, empty without proof."""
        import grpc

        from stepflow.rpc.channel import open_link

        channel = open_link(self.address, self._liveness.tls)
        try:
            attend: Any = channel.stream_stream(
                ATTEND,
                request_serializer=executor_pb2.AttendRequest.SerializeToString,
                response_deserializer=executor_pb2.AttendResponse.FromString,
            )
            stream = attend()

            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                await stream.write(executor_pb2.AttendRequest(replica_id=self._liveness.replica_id))
                answer = await stream.read()
            if answer is grpc.aio.EOF:
                return ""
            if answer.executor_id != self.executor_id:
                return f"its address is that of executor {answer.executor_id!r} now"

            self.answers = True
            await stream.read()  # returns when the stream ends
            return ""
        except (grpc.aio.AioRpcError, TimeoutError):
            return ""
        finally:
            await channel.close()


__all__ = ["Liveness"]
