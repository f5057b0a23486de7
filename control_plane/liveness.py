"""Noticing the death of an executor in milliseconds, instead of waiting until its lease runs out.

The leader holds a stream to every executor. When one breaks and the executor's address refuses connections, or is
answered under another id, the process is gone: its session is deleted, and its runs are taken over at once.

- Safe by the fence: an executor that lives after all finds its session gone, and none of its writes counts.
- The deletion compares that we lead, and that the session is the one we attended.
- Nothing is deleted while fewer than half of the other executors answer: then it is more likely we who are cut off.
  They are dialled for that, there and then: of streams that break together, one is noticed first.
- Silence says nothing: an executor that hangs, or cannot be reached, keeps its session until the lease runs out.

Does not move runs; `Leader` does, when it sees the session gone.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from stepflow.errors import StepflowError
from stepflow.mesh.v1 import executor_pb2, state_pb2
from stepflow.rpc.probe import accepts, refuses
from stepflow.store import Compare, Delete, Txn, created_at, keys
from stepflow.store.follow import follow
from stepflow.telemetry import get_logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from stepflow.rpc.tls import Tls
    from stepflow.store import KeyValue, Store, StoreEvent

log = get_logger(__name__)

ATTEND = "/stepflow.mesh.v1.ExecutorService/Attend"

ANSWER_TIMEOUT_S = 2.0
"""From dialling to the executor's id."""

RETRY_S_MIN = 0.02
RETRY_S_MAX = 1.0
"""Between two tries to reach an executor, doubling."""


class Liveness:
    """Attends to all executors from `start` to `close`; may be started again, in another term."""

    def __init__(self, store: Store, replica_id: str, *, tls: Tls | None = None) -> None:
        self.replica_id = replica_id
        self.tls = tls
        self._store = store
        self._fence: Compare | None = None
        self._attendants: dict[str, _Attendant] = {}
        self._follower: asyncio.Task[None] | None = None

    def start(self, fence: Compare) -> None:
        """Begin a term; `fence` holds as long as we lead."""
        self._fence = fence
        following = follow(self._store, keys.EXECUTOR_SESSIONS, listed=self._listed, changed=self._changed)
        self._follower = asyncio.create_task(following, name="follow executors")

    async def close(self) -> None:
        """End the term. Safe to repeat."""
        tasks = [attendant.task for attendant in self._attendants.values()]
        self._attendants.clear()
        if self._follower is not None:
            tasks.append(self._follower)
            self._follower = None
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def answering(self, executor_id: str) -> bool:
        """Whether the executor's stream stands."""
        attendant = self._attendants.get(executor_id)
        return attendant is not None and attendant.answers

    # --- who is there -------------------------------------------------------------------------------------------------

    def _listed(self, items: list[KeyValue]) -> None:
        found = {keys.tail(keys.EXECUTOR_SESSIONS, item.key) for item in items}
        for executor_id in self._attendants.keys() - found:
            self._drop(executor_id)
        for item in items:
            self._add(item)

    def _changed(self, events: Sequence[StoreEvent]) -> None:
        for event in events:
            if event.kind == "put":
                self._add(event.kv)
            else:
                self._drop(keys.tail(keys.EXECUTOR_SESSIONS, event.kv.key))

    def _add(self, item: KeyValue) -> None:
        executor_id = keys.tail(keys.EXECUTOR_SESSIONS, item.key)
        address = state_pb2.ExecutorSession.FromString(item.value).address
        if address and executor_id not in self._attendants:  # the ids of executors are never used again
            self._attendants[executor_id] = _Attendant(self, executor_id, address, item.create_revision)

    def _drop(self, executor_id: str) -> None:
        attendant = self._attendants.pop(executor_id, None)
        if attendant is not None:
            attendant.task.cancel()

    # --- the end of one -----------------------------------------------------------------------------------------------

    async def dismiss(self, gone: _Attendant, why: str) -> None:
        """Delete the session of an executor that is gone, unless we may be the ones who are cut off."""
        others = [attendant for attendant in self._attendants.values() if attendant is not gone]
        answering = [attendant.address for attendant in others if attendant.answers]
        if 2 * len(answering) < len(others) or not await _enough_accept(answering, (len(others) + 1) // 2):
            log.warning("executor seems gone, but so do others", executor_id=gone.executor_id, others=len(others))
            return
        if self._fence is None:
            return
        session = keys.session_executor(gone.executor_id)
        txn = Txn((self._fence, created_at(session, gone.created)), (Delete(session),))
        try:
            result = await self._store.txn(txn)
        except StepflowError as error:
            log.warning("session not deleted", executor_id=gone.executor_id, reason=error.reason)
            return
        if result.succeeded:
            log.warning("executor is gone", executor_id=gone.executor_id, why=why)


async def _enough_accept(addresses: list[str], wanted: int) -> bool:
    """Dial all addresses at once, and say whether so many of them accept, as soon as that is known."""
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
    """The stream to one executor."""

    def __init__(self, liveness: Liveness, executor_id: str, address: str, created: int) -> None:
        self.executor_id = executor_id
        self.created = created
        self.answers = False
        self._liveness = liveness
        self.address = address
        self.task = asyncio.create_task(self._run(), name=f"attend {executor_id}")

    async def _run(self) -> None:
        pause_s = RETRY_S_MIN
        while True:
            answered = False
            try:
                why = await self._attend()
                answered = self.answers
            except Exception:  # a defect: without this nobody would look after the executor any more
                log.exception("attendance failed by a defect", executor_id=self.executor_id)
                why = ""
            self.answers = False
            if not why and await refuses(self.address):
                why = "its address refuses connections"
            if why:
                await self._liveness.dismiss(self, why)
            pause_s = RETRY_S_MIN if answered else min(2 * pause_s, RETRY_S_MAX)
            await asyncio.sleep(pause_s)

    async def _attend(self) -> str:
        """Hold a stream until it ends; return why the executor is gone, empty when that is not known."""
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
            await stream.read()
            return ""
        except (grpc.aio.AioRpcError, TimeoutError):
            return ""
        finally:
            await channel.close()


__all__ = ["Liveness"]
