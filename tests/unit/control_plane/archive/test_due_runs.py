"""The runs that a leader packs next, from events and lists of statuses."""

from __future__ import annotations

import asyncio
import time

from control_plane.archive.due_runs import DueRun, DueRuns
from stepflow.mesh.v1 import journal_pb2 as pb
from stepflow.mesh.v1 import state_pb2
from stepflow.store import KeyValue, StoreEvent, keys, put
from stepflow.store.sqlite.store import SqliteStore

FAR = 2**50


def status(run_id: str, partition: int, ended_at_ms: int, revision: int = 1) -> StoreEvent:
    """Return the event of a partition that runs (0), or has ended."""
    value = state_pb2.PartitionStatus(
        status=pb.RUN_STATUS_COMPLETED if ended_at_ms else pb.RUN_STATUS_RUNNING,
        created_at_ms=1,
        completed_at_ms=ended_at_ms,
    ).SerializeToString()
    return StoreEvent("put", KeyValue(keys.status(run_id, partition), value, 1, revision, 1))


def gone(run_id: str) -> StoreEvent:
    return StoreEvent("delete", KeyValue(keys.status(run_id, 0), b"", 0, 9, 0))


def taken(runs: DueRuns, before_ms: int = FAR, limit: int = 100, span_ms: int = FAR) -> list[str]:
    return [run.run_id for run in runs.take(before_ms, limit, span_ms)]


def collecting(*events: StoreEvent) -> DueRuns:
    runs = DueRuns()
    runs.begin()
    runs.on_events(events)
    return runs


def test_runs_are_taken_in_the_order_of_their_ends_when_they_are_due() -> None:
    runs = collecting(status("b", 0, 20), status("a", 0, 30), status("c", 0, 10), status("d", 0, 0))
    assert runs.oldest_ms() == 10
    assert taken(runs, before_ms=20) == ["c", "b"]
    assert taken(runs) == ["a"]
    assert runs.oldest_ms() is None


def test_a_run_whose_executor_has_a_clock_ahead_is_due_as_one_that_ended_now() -> None:
    runs = DueRuns(lambda: 100)
    runs.begin()
    runs.on_events([status("a", 0, 3_600_100), status("b", 0, 90)])
    assert taken(runs, before_ms=99) == ["b"]
    assert taken(runs, before_ms=100) == ["a"]


def test_a_batch_is_taken_once_none_of_its_partitions_runs() -> None:
    runs = collecting(status("a", 0, 0), status("a", 1, 0), status("a", 0, 10))
    assert taken(runs) == []
    runs.on_events([status("a", 2, 0), status("a", 1, 30)])
    assert taken(runs) == []
    runs.on_events([status("a", 2, 20)])
    assert taken(runs, before_ms=25) == ["a"], "as of the last status; the reader finds the other ends"


def test_a_run_that_was_deleted_is_not_taken() -> None:
    runs = collecting(status("a", 0, 10), status("b", 0, 20), gone("a"))
    assert runs.oldest_ms() == 20
    assert taken(runs) == ["b"]


def test_the_runs_of_one_segment_ended_within_a_span() -> None:
    runs = collecting(*(status(name, 0, at) for name, at in (("a", 10), ("b", 15), ("c", 21), ("d", 22))))
    assert taken(runs, span_ms=10) == ["a", "b"]
    assert taken(runs, span_ms=10, limit=1) == ["c"]


def test_runs_put_back_are_taken_again_and_known_as_doubtful_from_a_list() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        for name, at in (("a", 10), ("b", 20), ("c", 0)):
            item = status(name, 0, at).kv
            await put(store, item.key, item.value)
        await put(store, keys.status("damaged", 0), b"\xff")
        runs = collecting(status("b", 0, 20))
        created = await runs.list_all(store)
        assert {run_id: at_ms for run_id, (at_ms, _) in created.items()} == {"a": 1, "b": 1, "c": 1}
        found = runs.take(FAR, 100, FAR)
        assert [(run.run_id, run.listed) for run in found] == [("a", True), ("b", True)]
        runs.put_back(found)
        assert taken(runs) == ["a", "b"]
        await store.close()

    asyncio.run(work())


def test_a_late_watch_does_not_hide_that_a_former_leader_may_have_packed_a_run() -> None:
    async def work() -> None:
        store = await SqliteStore.open(":memory:")
        await put(store, keys.status("a", 0), status("a", 0, 10).kv.value)
        found = await store.get(keys.status("a", 0))
        assert found is not None
        revision = found.mod_revision
        late = [status("a", 0, 0, revision - 1), status("a", 0, 10, revision)]

        # Before the list, after it, and while the run is being packed.
        for moment in range(3):
            runs = collecting(*(late if moment == 0 else ()))
            await runs.list_all(store)
            if moment == 1:
                runs.on_events(late)
            doubtful = runs.take(FAR, 100, FAR)
            assert [(run.run_id, run.listed) for run in doubtful] == [("a", True)]
            if moment == 2:
                runs.on_events(late)
                runs.put_back(doubtful)
                assert [run.listed for run in runs.take(FAR, 100, FAR)] == [True]

        # A run that ends in this leader's own term cannot have been packed before.
        runs.on_events([status("b", 0, 10, revision + 1)])
        assert [run.listed for run in runs.take(FAR, 100, FAR)] == [False]
        runs.on_events([status("b", 0, 10, revision + 1)])
        runs.put_back([DueRun("b", 1, 10, listed=True)])
        assert [run.listed for run in runs.take(FAR, 100, FAR)] == [True], "put back after a failure"
        await store.close()

    asyncio.run(work())


def test_a_clock_that_is_ahead_of_this_one_does_not_keep_a_run() -> None:
    now_ms = time.time_ns() // 1_000_000
    runs = collecting(status("a", 0, now_ms + 3_600_000), status("b", 0, 10))
    assert taken(runs, before_ms=now_ms + 60_000) == ["b", "a"]


def test_a_replica_that_does_not_lead_collects_nothing() -> None:
    runs = DueRuns()
    runs.on_events([status("a", 0, 10)])
    assert len(runs) == 0
    runs.begin()
    runs.on_events([status("a", 0, 10)])
    runs.end()
    assert len(runs) == 0
    assert runs.stale
