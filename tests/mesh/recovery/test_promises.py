"""Safety on both stores: a second owner never writes, a late write is fenced off, a run ends once.

`Cut` wraps the store: it loses the first reply of each selected transaction that commits, and records all transactions,
to deliver them again at the end.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import wait_until_async
from support.etcd import running_etcd
from support.parts import World, echo, gated, of

from control_plane.run_list import RunFilter
from stepflow.errors import Unavailable
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.store import Delete, Get, Put, Range, StoreUnavailable, Txn, TxnResult, keys, range_all
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator

    from support.etcd import EtcdServer

    from stepflow.store import Store

ENDS = {pb.RUN_STATUS_COMPLETED: "completed", pb.RUN_STATUS_CANCELLED: "cancelled"}


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), "--unsafe-no-fsync") as server:
        yield server


@pytest.fixture(params=["sqlite", "etcd"])
def open_store(request: pytest.FixtureRequest) -> Callable[[], Any]:
    """Give what opens an empty store; it is closed at the end of its block."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        store: Any
        if request.param == "sqlite":
            store = await SqliteStore.open(":memory:")
        else:
            endpoint = request.getfixturevalue("etcd").endpoint
            store = await EtcdStore.open(EtcdConfig.parse(endpoint, prefix=f"{uuid4().hex[:12]}/"))
        try:
            yield store
        finally:
            await store.close()

    return opened


def run(main: Coroutine[Any, Any, None]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await main

    asyncio.run(bounded())


# --- lost replies and late duplicates ----------------------------------------------------------------------------


class Cut:
    """A store that loses the reply of each committed transaction that `hits` says."""

    def __init__(self, store: Store, hits: Callable[[Txn], bool]) -> None:
        self._store = store
        self._hits = hits
        self.cut: set[Txn] = set()
        self.seen: list[Txn] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def txn(self, txn: Txn) -> TxnResult:
        result = await self._store.txn(txn)
        self.seen.append(txn)
        if result.succeeded and txn not in self.cut and self._hits(txn):
            self.cut.add(txn)
            raise StoreUnavailable("TEST", "reply lost")
        return result

    async def deliver_again(self) -> list[Txn]:
        """Send all writes once more, in their order, as a network that has kept them; return what was accepted."""
        writes = [txn for txn in self.seen if txn.compares and not all(isinstance(op, (Get, Range)) for op in txn.then)]
        return [txn for txn in writes if (await self._store.txn(txn)).succeeded]


def puts(prefix: str) -> Callable[[Txn], bool]:
    return lambda txn: any(isinstance(op, Put) and op.key.startswith(prefix) for op in txn.then)


def hands_over(txn: Txn) -> bool:
    deletes = any(isinstance(op, Delete) and op.key.startswith(keys.ASSIGNED) for op in txn.then)
    return deletes and puts(keys.ASSIGNED)(txn)


KINDS = {
    "submit": puts(keys.RUNS),
    "journal": puts("journal/"),
    "completion": puts("results/"),
    "hand-over": hands_over,
}
KINDS["all of them"] = lambda txn: any(hits(txn) for name, hits in KINDS.items() if name != "all of them")


async def everything(store: Store, run_id: str) -> dict[str, bytes]:
    """Return all keys that belong to a run."""
    return {item.key: item.value async for item in range_all(store, "") if run_id in item.key}


@pytest.mark.parametrize("kind", KINDS)
def test_a_reply_that_is_lost_after_the_commit_changes_nothing_nor_does_a_duplicate_that_comes_late(
    open_store: Callable[[], Any], kind: str
) -> None:
    async def main() -> None:
        async with open_store() as store:
            cut = Cut(store, KINDS[kind])
            through: Any = cut
            async with World.open(store=through, executors=1) as world:
                run_id = new_run_id()
                async with asyncio.timeout(20):
                    while not await submitted(world, run_id):
                        pass  # as a client does, whose call was answered by UNAVAILABLE
                await wait_until_async(lambda: world.work.in_flight, "the second step is called")
                await world.add_executor()
                assert await world.executors[0].hand_over() == 1
                world.work.release_all()
                assert (await world.ended(run_id)).status == "completed"
                assert await world.results(run_id) == [{"outcome": "success", "result": 7}]
                journal = await world.journal(run_id)
                assert [name for name in "abc" for _ in world.work.executions(name)] == ["a", "b", "c"]
                assert sum(entry.HasField("run_completed") for entry in journal) == 1
                assert sum(entry.HasField("step_completed") for entry in journal) == 3
                assert [run.run_id for run in (await world.control.run_list.page(RunFilter(), 100, ""))[0]] == [run_id]
                assert cut.cut, "no reply was lost"
                before = await everything(store, run_id)
                assert [txn for txn in await cut.deliver_again() if of_run(txn, run_id)] == []
                assert await everything(store, run_id) == before

    async def submitted(world: World, run_id: str) -> bool:
        try:
            return await world.submit(echo("a", 7), gated("b", of("a")), echo("c", of("b")), run_id=run_id) == run_id
        except Unavailable:
            return False

    run(main())


def of_run(txn: Txn, run_id: str) -> bool:
    return any(run_id in getattr(op, "key", "") for op in txn.then)


# --- cancel ------------------------------------------------------------------------------------------------------


def test_completion_and_cancel_race_to_exactly_one_outcome(open_store: Callable[[], Any]) -> None:
    async def main() -> None:
        async with open_store() as store, World.open(store=store, executors=2) as world:
            outcomes = set()
            for turn in range(80):
                run_id = await world.submit(gated("a", turn))
                await wait_until_async(lambda: world.work.in_flight, "the call is there")
                cancel = asyncio.create_task(world.control.cancel(run_id))
                for _ in range(turn % 6):  # the cancel needs about as many round trips to the store
                    await world.store.revision()
                world.work.release()
                await cancel
                view = await world.ended(run_id)
                journal = await world.journal(run_id)
                ends = [entry.run_completed.status for entry in journal if entry.HasField("run_completed")]
                item = (await world.control.items(run_id))[0]
                assert len(ends) == 1
                assert view.status == item.status == ENDS[ends[0]]
                assert view.items_completed + view.items_cancelled == 1
                outcomes.add(view.status)
            assert outcomes == {"completed", "cancelled"}

    run(main())
