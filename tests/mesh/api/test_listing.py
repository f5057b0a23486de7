"""Lists of runs over both stores: a page costs the same however many runs there are, and no run is missing."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest

from control_plane.archive.due_runs import DueRuns
from control_plane.control_plane import ControlPlane
from control_plane.run_index import LABELS_LISTED_BYTES_MAX, complete_index, entry
from control_plane.run_list import RANGE_RUNS, RUNS_READ_MAX, STATUSES_READ_MAX, RunFilter
from stepflow.codec import encode
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Delete, KeyValue, Page, Put, Txn, created_at, keys, put, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.etcd import EtcdServer

    from stepflow.store import Op, Store, TxnResult

RUNS_PER_TXN = 30
ALL = RunFilter()


class Counted:
    """A store that counts the keys which it returns."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.keys_read = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def get(self, key: str) -> KeyValue | None:
        self.keys_read += 1
        return await self._store.get(key)

    async def range(self, prefix: str, **options: Any) -> Page:
        page = await self._store.range(prefix, **options)
        self.keys_read += len(page.items)
        return page

    async def txn(self, txn: Txn) -> TxnResult:
        result = await self._store.txn(txn)
        self.keys_read += sum(len(part.items) if isinstance(part, Page) else 1 for part in result.responses)
        return result


class Runs:
    """Ended runs, as a control plane and an executor leave them in a store."""

    def __init__(self, store: Store) -> None:
        self.store = Counted(store)
        self.control = ControlPlane(self.store, BlobStore.open("memory://"))
        self.list = self.control.run_list.page
        self._now_ms = 1_700_000_000_000

    async def add(
        self,
        count: int,
        *,
        flow_name: str = "",
        status: pb.RunStatus = pb.RUN_STATUS_COMPLETED,
        indexed: bool = True,
        partitions: int = 1,
        labels: bytes = b"",
    ) -> list[str]:
        """Add runs of increasing age and return their ids."""
        ids: list[str] = []
        while len(ids) < count:
            writes: list[Op] = []
            for _ in range(min(RUNS_PER_TXN // partitions or 1, count - len(ids))):
                self._now_ms += 1
                run_id = new_run_id()
                record = state_pb2.RunRecord(
                    flow_name=flow_name,
                    items_total=partitions,
                    items_per_partition=1,
                    created_at_ms=self._now_ms,
                    labels_json=labels,
                )
                record.inputs.add(json=b"1")
                writes.append(Put(keys.run(run_id), record.SerializeToString()))
                writes += [entry(run_id, record)] if indexed else []
                ended = state_pb2.PartitionStatus(
                    status=status, items_total=1, created_at_ms=self._now_ms, completed_at_ms=self._now_ms
                ).SerializeToString()
                writes += [Put(keys.status(run_id, partition), ended) for partition in range(min(partitions, 100))]
                for partition in range(100, partitions):
                    await put(self.store, keys.status(run_id, partition), ended)
                ids.append(run_id)
            await self.store.txn(Txn((), tuple(writes)))
        return ids

    async def lead(self) -> None:
        """Complete the index, as a leader does when its term begins."""
        await self.store.txn(Txn((), (Delete(keys.leader()),)))
        fence = created_at(keys.leader(), await put(self.store, keys.leader(), b"test"))
        created = await DueRuns().list_all(self.store)
        async for item in range_all(self.store, keys.PENDING):
            created.setdefault(keys.tail(keys.PENDING, item.key), 0)
        await complete_index(self.store, fence, created)

    async def pages(self, wanted: RunFilter = ALL, size: int = 50) -> list[list[str]]:
        """Return the ids on each page."""
        found: list[list[str]] = []
        token = ""
        while True:
            views, token = await self.list(wanted, size, token)
            found.append([view.run_id for view in views])
            if not token:
                return found


@pytest.fixture(params=["sqlite", "etcd"])
def runs(request: pytest.FixtureRequest) -> Callable[[Callable[[Runs], Awaitable[None]]], None]:
    """Give a function that runs a scenario over an empty store."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Store]:
        store: Any
        if request.param == "sqlite":
            store = await SqliteStore.open(":memory:")
        else:
            etcd: EtcdServer = request.getfixturevalue("etcd")
            store = await EtcdStore.open(EtcdConfig.parse(etcd.endpoint, prefix=f"/{uuid4().hex[:20]}/"))
        try:
            yield store
        finally:
            await store.close()

    if request.param == "etcd":
        request.getfixturevalue("etcd")  # a fixture cannot be made inside the loop

    def go(scenario: Callable[[Runs], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(60), opened() as store:
                await scenario(Runs(store))

        asyncio.run(main())

    return go


def test_a_page_reads_as_much_of_a_large_store_as_of_a_small_one(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        costs = []
        await world.list(ALL, 1, "")  # the first page of a process reads the manifests of segments
        for more in (100, 1_400):
            await world.add(more)
            await world.lead()
            before = world.store.keys_read
            views, token = await world.list(ALL, 50, "")
            assert len(views) == 50
            assert token
            costs.append(world.store.keys_read - before)
        assert costs == [101, 101]  # an entry and a status a run, and an entry that shows that there is more

    runs(scenario)


def test_pages_hold_every_run_once_and_the_newest_first(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(120)
        without_index = await world.pages()
        await world.lead()
        assert [len(page) for page in await world.pages()] == [50, 50, 20]
        assert await world.pages() == without_index
        assert [each for page in await world.pages(size=60) for each in page] == ids[::-1]
        since = RunFilter(created_since_ms=world._now_ms - 9)
        assert await world.pages(since) == [ids[-1:-11:-1]]

    runs(scenario)


def test_the_leader_completes_the_index_with_runs_of_earlier_versions(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        labels = encode({"note": "x" * LABELS_LISTED_BYTES_MAX})
        ids = await world.add(40, indexed=False)
        ids += await world.add(10)
        ids += await world.add(1, labels=labels)
        waiting = new_run_id()
        record = state_pb2.RunRecord(items_total=1, items_per_partition=1, created_at_ms=1)
        for key, value in ((keys.run(waiting), record.SerializeToString()), (keys.pending(waiting), b"")):
            await put(world.store, key, value)
        expected = [[*ids[::-1], waiting]]
        assert await world.pages(size=100) == expected

        # 1. The first leader: all of them.
        await world.lead()
        assert await world.store.get(keys.BY_AGE_COMPLETE) is not None
        assert len([item async for item in range_all(world.store, keys.BY_AGE)]) == len(ids) + 1
        assert await world.pages(size=100) == expected
        assert (await world.list(ALL, 1, ""))[0][0].labels == {"note": "x" * LABELS_LISTED_BYTES_MAX}

        # 2. The next leader: what a replica of an earlier version has admitted and deleted.
        (late,) = await world.add(1, indexed=False)
        gone = ids.pop(0)
        await world.store.txn(Txn((), tuple(map(Delete, (keys.run(gone), keys.status(gone, 0))))))
        await world.lead()
        assert await world.pages(size=100) == [[late, *ids[::-1], waiting]]
        assert len([item async for item in range_all(world.store, keys.BY_AGE)]) == len(ids) + 2

    runs(scenario)


def test_a_filter_reads_a_bounded_number_of_runs_for_a_page(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        labels = encode({"team": "red", "size": 2})
        (failed,) = await world.add(1, status=pb.RUN_STATUS_FAILED, flow_name="rare", labels=labels)
        await world.add(RUNS_READ_MAX + 50)
        await world.lead()
        by_status, by_name = RunFilter(statuses=frozenset(("failed",))), RunFilter(flow_name="rare")
        by_label = RunFilter(labels={"team": "red", "size": "2"})
        await world.list(ALL, 1, "")  # the first page of a process reads the manifests of segments
        for wanted, per_run in ((by_status, 2), (by_name, 1), (by_label, 1)):
            before = world.store.keys_read
            views, token = await world.list(wanted, 50, "")
            assert not views
            assert token
            assert world.store.keys_read - before <= per_run * RUNS_READ_MAX + RUNS_READ_MAX // RANGE_RUNS
            assert await world.pages(wanted) == [[], [failed]]
        assert await world.pages(RunFilter(labels={"team": "red", "size": "3"})) == [[], []]

    runs(scenario)


def test_a_page_of_large_batches_ends_early(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        monstrous = 3
        await world.add(monstrous, partitions=STATUSES_READ_MAX // 2)
        await world.lead()
        pages = await world.pages()
        assert sum(map(len, pages)) == monstrous
        assert len(pages) > 1

    runs(scenario)


def test_a_damaged_record_hides_no_other_run(runs: Any) -> None:
    async def scenario(world: Runs) -> None:
        ids = await world.add(3, indexed=False)
        await put(world.store, keys.run(ids[1]), b"\xff")
        assert await world.pages() == [[ids[2], ids[0]]]
        await world.lead()
        assert await world.pages() == [[ids[2], ids[0]]]

    runs(scenario)
