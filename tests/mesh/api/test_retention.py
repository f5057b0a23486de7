"""Retention over SQLite: ended runs go by size budget, shared blobs by age; only the leader deletes."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_for_value, wait_until_async
from support.api import api_mesh

from control_plane.admission import RunRequest
from control_plane.deletion import delete_run
from control_plane.quota import QuotaGate
from control_plane.retention import Retention, RetentionPolicy
from control_plane.shared_blobs import sweep_shared_blobs
from control_plane.signals import signal
from stepflow.codec import Json, encode
from stepflow.errors import FailedPrecondition, Invalid, Overloaded
from stepflow.flow import flow_from_tree
from stepflow.store import created_at, keys, range_all

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.api import ApiMesh

HOUR_MS = 3600 * 1000
FLOW = flow_from_tree({"output": {"$input": ""}})
SLEEP = flow_from_tree(
    {
        "steps": [{"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 60_000}}],
        "output": {"$step": "a"},
    }
)


PUTS_AND_WAITS = flow_from_tree(
    {
        "steps": [
            {"id": "put", "component": "/builtin/put_blob", "input": {"data": "made", "blob_type": "data"}},
            {
                "id": "wait",
                "component": "/builtin/wait_for_signal",
                "input": {"name": "go", "after": {"$step": "put"}},
            },
        ],
        "output": {"$step": "wait"},
    }
)


@pytest.fixture
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as given:
        yield given


async def ended(mesh: ApiMesh, *inputs: bytes) -> str:
    run_id = await mesh.mesh.control.submit(RunRequest(FLOW, inputs or (b"1",)))
    await mesh.mesh.control.wait(run_id)
    return run_id


async def made_by(mesh: ApiMesh, run_id: str) -> str:
    """Return the id of the blob that the run's first step has put, once it stands in the journal."""

    async def steps() -> dict[str, Any]:
        return {step.step_id: step for step in await mesh.mesh.control.steps(run_id)}

    outcome = (await wait_for_value(steps, "it waits", lambda found: "wait" in found, 20))["put"].outcome
    assert isinstance(outcome, Json)
    return str(outcome.tree["blob_id"])


async def retention(mesh: ApiMesh, **policy: Any) -> tuple[Retention, Any]:
    """Return a retention and the fence of the leader of the moment."""
    await wait_until_async(lambda: mesh.mesh.control.leadership() is not None, "somebody leads")
    leader = await mesh.store.get(keys.leader())
    assert leader is not None
    fence = created_at(keys.leader(), leader.create_revision)
    return Retention(mesh.store, mesh.blobs, RetentionPolicy(**policy), lambda: fence), fence


async def keys_of(mesh: ApiMesh, run_id: str) -> set[str]:
    """Return the first parts of all keys that belong to a run."""
    return {
        item.key.partition("/")[0] for item in [each async for each in range_all(mesh.store, "")] if run_id in item.key
    }


async def end_ms(mesh: ApiMesh, run_id: str) -> int:
    return (await mesh.mesh.control.get_run(run_id)).completed_at_ms or 0


def test_over_the_budget_the_oldest_runs_go_first(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        ids = [await ended(mesh, b'"%s"' % (b"x" * 1000)) for _ in range(4)]
        swept_by, fence = await retention(mesh, store_bytes_max=2 * 3500)
        swept = await swept_by.sweep(fence, await end_ms(mesh, ids[-1]))
        assert swept.removed == ids[: len(swept.removed)]
        assert 1 <= len(swept.removed) <= 3
        for gone in swept.removed:
            assert await keys_of(mesh, gone) == set()
        assert len((await swept_by.sweep(fence, await end_ms(mesh, ids[-1]))).removed) == 0

    run(work())


def test_shared_blobs_go_when_their_time_is_over_and_nothing_names_them(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        blobs, control = mesh.blobs, mesh.mesh.control
        ids = {name: await blobs.put(name.encode()) for name in ("lost", "asked", "deep", "inbox", "flow")}
        nested = await blobs.put(encode({"see": ids["deep"]}))
        asked = await ended(mesh, encode([ids["asked"], nested]))
        waiting = await control.submit(RunRequest(PUTS_AND_WAITS, (b"1",)))
        moved = await blobs.put(b"named in a large result")
        await blobs.put(encode(["x" * 100_000, moved]), scope=waiting)  # as the engine moves it aside
        made = await made_by(mesh, waiting)
        await signal(mesh.store, blobs, waiting, "later", encode(ids["inbox"]))
        flow = {"name": "keeper", "output": {"$literal": ids["flow"]}}
        await control.store_flow(flow_from_tree(flow))
        copied = await ended(mesh, encode("x" * 300_000))  # lies in the run's own scope
        _, fence = await retention(mesh)
        assert await sweep_shared_blobs(mesh.store, blobs, time.time() - 60, fence) == [], "all of them are young"
        removed = await sweep_shared_blobs(mesh.store, blobs, time.time() + 60, fence)
        assert removed == [ids["lost"]]
        assert (await blobs.get(ids["deep"]))[0] == b"deep"
        assert (await control.items(copied))[0].outcome.tree == "x" * 300_000
        await delete_run(mesh.store, blobs, asked)
        removed = await sweep_shared_blobs(mesh.store, blobs, time.time() + 60, fence)
        assert sorted(removed) == sorted([ids["asked"], ids["deep"], nested])
        stale = created_at(keys.leader(), 1)
        await control.cancel(waiting)
        await control.wait(waiting)
        assert await sweep_shared_blobs(mesh.store, blobs, time.time() + 60, stale) == [], "it does not lead"
        removed = await sweep_shared_blobs(mesh.store, blobs, time.time() + 60, fence)
        assert sorted(removed) == sorted([ids["inbox"], made, moved]), "who has ended needs nothing"

    run(work())


def test_whoever_leads_looks_through_the_shared_blobs(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        identity = await mesh.blobs.put(b"forgotten")
        by_leader, _ = await retention(mesh, blobs_s=0)
        by_leader.start()
        await wait_for_value(mesh.blobs.dates, "it is deleted", lambda dates: identity not in dates, 20)
        await by_leader.close()

    run(work())


def test_journals_go_before_the_rest_of_a_run_does(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        run_id = await ended(mesh)
        at_ms = await end_ms(mesh, run_id)
        swept_by, fence = await retention(mesh)
        assert not (await swept_by.sweep(fence, at_ms + 23 * HOUR_MS)).stripped
        assert (await swept_by.sweep(fence, at_ms + 25 * HOUR_MS)).stripped == [run_id]
        assert await keys_of(mesh, run_id) == {"runs", "by-age", "status", "results"}
        assert (await mesh.mesh.control.items(run_id))[0].status == "completed"
        assert (await swept_by.sweep(fence, at_ms + 169 * HOUR_MS)).removed == [run_id]
        assert await keys_of(mesh, run_id) == set()

    run(work())


def test_runs_that_have_not_ended_stay_whatever_the_budget(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        control = mesh.mesh.control
        run_id = await control.submit(RunRequest(SLEEP, (b"1",)))
        swept_by, fence = await retention(mesh, store_bytes_max=0)
        swept = await swept_by.sweep(fence, 2**50)
        assert (swept.removed, swept.stripped) == ([], [])
        await control.cancel(run_id)
        await control.wait(run_id)
        assert (await swept_by.sweep(fence, 2**50)).removed == [run_id]

    run(work())


def test_batches_and_the_blobs_of_runs_go_too(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        large = await ended(mesh, b'"%s"' % (b"y" * 100_000))
        batch = await ended(mesh, *(b"%d" % number for number in range(130)))
        record = await mesh.store.get(keys.results(large, 0))
        assert record is not None
        swept_by, fence = await retention(mesh, store_bytes_max=0)
        assert set((await swept_by.sweep(fence, 2**50)).removed) == {large, batch}
        assert await keys_of(mesh, batch) == set()
        assert not [path for path in mesh.blobs._backend._blobs if large in path]

    run(work())


def test_a_former_leader_removes_nothing(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        ids = [await ended(mesh), await ended(mesh, b"1", *(b"2" for _ in range(70)))]
        former = created_at(keys.leader(), 1)
        swept_by = Retention(mesh.store, mesh.blobs, RetentionPolicy(store_bytes_max=0), lambda: former)
        with pytest.raises(FailedPrecondition) as refused:
            await swept_by.sweep(former, 2**50)
        assert refused.value.reason == "NOT_LEADING"
        for run_id in ids:
            assert await keys_of(mesh, run_id) == {"runs", "by-age", "status", "results", "journal"}

    run(work())


def test_a_policy_that_makes_no_sense_is_refused() -> None:
    with pytest.raises(Invalid) as refused:
        RetentionPolicy(journals_s=10, runs_s=5)
    assert refused.value.reason == "RETENTION_INVALID"


def test_a_store_near_its_quota_takes_no_new_runs(api: Any) -> None:
    mesh, run = api

    class Nearly:
        """A store that says how large it is, as the one over etcd does."""

        size_in_use_bytes = 71

        async def status(self) -> Nearly:
            return self

    async def work() -> None:
        await QuotaGate(mesh.store).check()  # SQLite has no quota
        await QuotaGate(Nearly(), quota_bytes=200).check()  # type: ignore[arg-type]  # all that the gate looks at
        with pytest.raises(Overloaded) as full:
            await QuotaGate(Nearly(), quota_bytes=100).check()  # type: ignore[arg-type]  # all that the gate looks at
        assert full.value.reason == "STORE_FULL"

    run(work())
