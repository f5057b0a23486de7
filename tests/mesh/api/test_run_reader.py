"""Runs read in windows and one by one are the same, and other runs between them do no harm."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from support.archive import ArchiveLeaders

from control_plane.archive import builder, run_reader
from control_plane.archive.due_runs import DueRun
from control_plane.archive.run_reader import RunReader
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import Put, Txn, keys, range_all
from stepflow.store.blobs.memory import MemoryBackend
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from control_plane.archive.run_keys import RunKeys
    from stepflow.store import Store

FAR_MS = 2**50


def run_id_of(number: int) -> str:
    return str(UUID(int=0x018F << 112 | 7 << 76 | 2 << 62 | number))


async def put_run(
    store: Store, number: int, *, partitions: int = 1, journal_keys: int = 2, ended: bool = True
) -> DueRun:
    """Put a run with an inbox for every third number, and return it as due."""
    run_id = run_id_of(number)
    record = state_pb2.RunRecord(items_per_partition=1, items_total=partitions, created_at_ms=number + 1)
    writes = [Put(keys.run(run_id), record.SerializeToString()), Put(keys.by_age(run_id, number + 1), b"")]
    for partition in range(partitions):
        status = state_pb2.PartitionStatus(
            status=pb.RUN_STATUS_COMPLETED if ended else pb.RUN_STATUS_RUNNING,
            created_at_ms=number + 1,
            completed_at_ms=number + 2 if ended else 0,
        )
        writes += [
            Put(keys.status(run_id, partition), status.SerializeToString()),
            Put(keys.results(run_id, partition), b""),
        ]
        writes += [Put(keys.journal(run_id, partition, seq), b"entry %d" % seq) for seq in range(journal_keys)]
    if not number % 3:
        writes.append(Put(keys.inbox(run_id, "m"), b""))
    for start in range(0, len(writes), 100):
        await store.txn(Txn((), tuple(writes[start : start + 100])))
    return DueRun(run_id, number + 1, number + 2, listed=False)


def shape(read: RunKeys) -> Any:
    names = [item.key for item in read.items]
    assert names == read.names
    return read.ended, read.deleted, read.whole, read.partitions, read.by_age, read.record, read.items


async def check_both_ways(store: Store, due: list[DueRun], monkeypatch: pytest.MonkeyPatch) -> int:
    """Compare the two ways of reading; return the number of runs that windows had."""
    in_windows: list[str] = []
    reader = RunReader(store)
    read_window = reader._read_window

    async def counted(runs: Any) -> list[RunKeys]:
        found = await read_window(runs)
        in_windows.extend(read.run.run_id for read in found)
        return found

    monkeypatch.setattr(reader, "_read_window", counted)
    found = {read.run.run_id: shape(read) for read in await reader.read(due)}
    singly = RunReader(store)
    singly._without_windows = 1
    assert {read.run.run_id: shape(read) for read in await singly.read(due)} == found
    assert found.keys() == {run.run_id for run in due}
    for run in due:
        stored = [item for kind in (*run_reader.KINDS, keys.run) async for item in range_all(store, kind(run.run_id))]
        if found[run.run_id][0]:
            assert sorted(item.key for item in found[run.run_id][-1]) == sorted(item.key for item in stored)
    return len(in_windows)


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
def test_windows_and_single_reads_give_the_same(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd = request.getfixturevalue("etcd") if kind == "etcd" else None

    async def work() -> None:
        store: Any
        if etcd is None:
            store = await SqliteStore.open(":memory:")
        else:
            store = await EtcdStore.open(EtcdConfig.parse(etcd.endpoint, prefix=f"{uuid4().hex[:16]}/"))
        # Neighbours; runs between them that are not due, or run; one deleted; batches; a long journal; one gone.
        due = [await put_run(store, number, ended=number != 4) for number in range(10)]
        for number in range(10, 20):
            await put_run(store, number)
        due += [await put_run(store, 20, partitions=3), await put_run(store, 21, journal_keys=120)]
        due += [await put_run(store, number) for number in range(22, 40)]
        due.append(DueRun(run_id_of(41), 42, 43, listed=False))
        await store.txn(Txn((), (Put(keys.deleted(run_id_of(2)), b""),)))
        assert await check_both_ways(store, due, monkeypatch) > 10
        assert await check_both_ways(store, due[:1], monkeypatch) == 1
        monkeypatch.setattr(run_reader, "KEYS_PER_RUN", 1)
        await check_both_ways(store, due, monkeypatch)
        await store.close()

    asyncio.run(asyncio.wait_for(work(), 60))


def test_a_run_that_makes_packing_fail_stays_and_the_others_are_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    bad = run_id_of(17)
    add_run = builder.SegmentBuilder.add_run

    def failing(self: Any, run_id: str, *arguments: Any, **options: Any) -> bytes:
        if run_id == bad:
            raise ValueError("a defect")
        return add_run(self, run_id, *arguments, **options)

    monkeypatch.setattr(builder.SegmentBuilder, "add_run", failing)

    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        for number in range(40):
            await put_run(store, number)
        term = await ArchiveLeaders(store, MemoryBackend()).term()
        await term.begin()
        await term.work(0)
        assert [item.key async for item in range_all(store, keys.RUNS)] == [keys.run(bad)]
        assert term.counters.packed_runs == 39
        await term.due_runs.list_all(store)
        await term.work(0)
        assert await store.get(keys.run(bad)) is not None
        await store.close()

    asyncio.run(asyncio.wait_for(work(), 60))
