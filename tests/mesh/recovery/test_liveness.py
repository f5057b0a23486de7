"""The leader's liveness checks: an executor that is gone loses its session at once, a silent one keeps it.

Executors' servers are real, on loopback; the sessions are in a SQLite store, on a lease that outlives the test.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

from support import wait_for_value, wait_until_async
from support.parts import LONG_S

from control_plane.liveness import Liveness
from executor.executor import Executor
from executor.service import ExecutorService
from stepflow.mesh.v1 import state_pb2
from stepflow.rpc.server import RpcServer
from stepflow.store import created_at, delete, keys, put, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

    from stepflow.store import Store, Txn, TxnResult

QUIET_S = 0.5
"""How long nothing must happen: many tries of an attendant."""


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


class World:
    def __init__(self, store: Store) -> None:
        self.store = store
        self.executors: list[Executor] = []
        self.servers: list[RpcServer] = []
        self.held: list[socket.socket] = []
        self.liveness = Liveness(store, "replica")

    async def add_executor(self, store: Any = None) -> Executor:
        """`store`: the one that it gets to see, if not the one of all."""
        store = store or self.store
        executor = Executor(store, BlobStore.open("memory://"), rules={}, builtins={}, lease_ttl_s=LONG_S)
        server = RpcServer()
        ExecutorService(executor).add_to(server)
        executor.address = await server.start("127.0.0.1:0")
        await executor.start()
        self.executors.append(executor)
        self.servers.append(server)
        return executor

    async def add_session(self, executor_id: str, address: str) -> None:
        """Leave a session behind, as an executor does that was killed."""
        session = state_pb2.ExecutorSession(address=address, runs_max=1)
        await put(self.store, keys.session_executor(executor_id), session.SerializeToString())

    def refusing(self) -> str:
        """Return an address that refuses connections, on a port that stays bound."""
        held = socket.socket()
        held.bind(("127.0.0.1", 0))
        self.held.append(held)
        return f"127.0.0.1:{held.getsockname()[1]}"

    async def lead(self) -> None:
        revision = await put(self.store, keys.leader(), b"replica")
        self.liveness.start(created_at(keys.leader(), revision))

    async def sessions(self) -> set[str]:
        prefix = keys.EXECUTOR_SESSIONS
        return {keys.tail(prefix, item.key) async for item in range_all(self.store, prefix)}

    async def wait_for(self, *executor_ids: str) -> None:
        """Return when exactly these sessions stand."""
        await wait_for_value(self.sessions, "these stand", lambda found: found == set(executor_ids))

    async def attended(self) -> None:
        for executor in self.executors:
            await wait_until_async(partial(self.liveness.answering, executor.id), "it is attended")


@asynccontextmanager
async def world(executors: int) -> AsyncIterator[World]:
    store = await SqliteStore.open(":memory:")
    made = World(store)
    try:
        for _ in range(executors):
            await made.add_executor()
        yield made
    finally:
        await made.liveness.close()
        for executor in made.executors:
            await executor.close()
        for server in made.servers:
            await server.stop()
        for held in made.held:
            held.close()
        await store.close()


def test_the_session_of_an_executor_whose_address_refuses_connections_is_deleted() -> None:
    async def scenario() -> None:
        async with world(2) as mesh:
            await mesh.lead()
            await mesh.attended()
            await mesh.add_session("dead", mesh.refusing())
            await mesh.wait_for(*(executor.id for executor in mesh.executors))

    run(scenario())


def test_the_session_of_an_executor_whose_address_is_answered_under_another_id_is_deleted() -> None:
    async def scenario() -> None:
        async with world(1) as mesh:
            await mesh.lead()
            await mesh.attended()
            await mesh.add_session("former", mesh.executors[0].address)
            await mesh.wait_for(mesh.executors[0].id)

    run(scenario())


def test_an_executor_that_is_silent_keeps_its_session() -> None:
    async def scenario() -> None:
        async with world(1) as mesh:
            address = mesh.refusing()
            mesh.held[-1].listen()  # the kernel accepts connections, but no server answers
            await mesh.add_session("silent", address)
            await mesh.lead()
            await mesh.attended()
            await asyncio.sleep(QUIET_S)
            assert "silent" in await mesh.sessions()

    run(scenario())


def test_nothing_is_deleted_while_fewer_than_half_of_the_others_answer() -> None:
    async def scenario() -> None:
        async with world(1) as mesh:
            for number in range(3):
                await mesh.add_session(f"dead-{number}", mesh.refusing())
            await mesh.lead()
            await mesh.attended()
            await asyncio.sleep(QUIET_S)
            assert len(await mesh.sessions()) == 4
            await mesh.add_executor()
            await mesh.attended()  # two of the four others of each dead one are enough
            await mesh.wait_for(*(executor.id for executor in mesh.executors))

    run(scenario())


def test_who_does_not_lead_any_more_deletes_nothing() -> None:
    async def scenario() -> None:
        async with world(1) as mesh:
            await mesh.lead()
            await mesh.attended()
            await delete(mesh.store, keys.leader())
            await put(mesh.store, keys.leader(), b"another replica")
            await mesh.add_session("dead", mesh.refusing())
            await asyncio.sleep(QUIET_S)
            assert "dead" in await mesh.sessions()

    run(scenario())


def test_an_executor_that_comes_back_under_the_same_address_is_not_mistaken_for_its_former_self() -> None:
    async def scenario() -> None:
        async with world(1) as mesh:
            await mesh.lead()
            await mesh.attended()
            former = mesh.executors[0].id
            session = await mesh.store.get(keys.session_executor(former))
            assert session is not None
            await mesh.store.lease_revoke(session.lease)  # it registers again
            await wait_until_async(lambda: mesh.executors[0].id != former, "it has another id")
            await mesh.wait_for(mesh.executors[0].id)
            await mesh.attended()

    run(scenario())


class LateReplies:
    """A store whose first reply to a transaction comes only when it may."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.may_reply = asyncio.Event()

    async def txn(self, txn: Txn) -> TxnResult:
        result = await self._store.txn(txn)
        await self.may_reply.wait()
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)


def test_an_executor_that_hears_late_of_its_registration_is_not_taken_for_gone() -> None:
    async def scenario() -> None:
        async with world(0) as mesh:
            await mesh.lead()
            slow = LateReplies(mesh.store)
            starting = asyncio.create_task(mesh.add_executor(slow))
            (executor_id,) = await wait_for_value(mesh.sessions, "its session is in the store")
            await wait_until_async(
                lambda: mesh.liveness.answering(executor_id), "the leader has asked, and was answered"
            )
            slow.may_reply.set()
            assert (await starting).id == executor_id
            await asyncio.sleep(QUIET_S)
            assert await mesh.sessions() == {executor_id}

    run(scenario())
