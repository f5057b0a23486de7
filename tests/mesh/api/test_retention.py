"""The archive of a mesh over SQLite: ended runs leave the store, then expire; shared blobs go by age."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from support import wait_for_value, wait_until_async
from support.api import api_mesh

from control_plane.admission import RunRequest
from control_plane.archive import keeper as keeper_module
from control_plane.archive.keeper import ArchiveKeeper
from control_plane.archive.led_segments import LedSegments
from control_plane.archive.policy import RetentionPolicy
from control_plane.deletion import delete_run
from control_plane.shared_blobs import sweep_shared_blobs
from control_plane.signals import signal
from control_plane.store_meter import StoreMeter
from stepflow.codec import Json, encode
from stepflow.errors import NotFound
from stepflow.flow import flow_from_tree
from stepflow.mesh.v1 import formats_pb2
from stepflow.store import created_at, keys, put, range_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from support.api import ApiMesh

    from stepflow.store import Compare

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


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the archive look for work, and pack it, without pauses."""
    monkeypatch.setattr(keeper_module, "TICK_S", 0.02)
    monkeypatch.setattr(keeper_module, "PAUSE_S_MIN", 0.0)


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
        return {step.step_id: step for step in await mesh.mesh.control.steps(run_id, with_results=True)}

    outcome = (await wait_for_value(steps, "it waits", lambda found: "wait" in found, 20))["put"].outcome
    assert isinstance(outcome, Json)
    return str(outcome.tree["blob_id"])


async def fence_of(mesh: ApiMesh) -> Compare:
    """Return the fence of the leader of the moment."""
    await wait_until_async(lambda: mesh.mesh.control.leadership() is not None, "a control plane leads")
    fence = mesh.mesh.control.leadership()
    assert fence is not None
    return fence


@asynccontextmanager
async def keeping(mesh: ApiMesh, **policy: Any) -> AsyncIterator[ArchiveKeeper]:
    """Run the archive of the mesh's control plane."""
    control = mesh.mesh.control
    chosen = RetentionPolicy(**({"linger_s": 0.0, "formats_grace_s": 0.0} | policy))
    keeper = ArchiveKeeper(
        mesh.store, mesh.blobs, control.formats, control.due_runs, chosen, control.leadership, StoreMeter(mesh.store)
    )
    keeper.start()
    try:
        yield keeper
    finally:
        await keeper.close()


async def keys_of(mesh: ApiMesh, run_id: str) -> set[str]:
    """Return the first parts of all keys that belong to a run."""
    return {
        item.key.partition("/")[0] for item in [each async for each in range_all(mesh.store, "")] if run_id in item.key
    }


async def packed(mesh: ApiMesh, *run_ids: str) -> None:
    """Wait until the runs have left the store."""

    async def gone() -> bool:
        return not [run_id for run_id in run_ids if await keys_of(mesh, run_id)]

    await wait_for_value(gone, "gone", timeout_s=20)


def test_runs_that_have_ended_leave_the_store_and_answer_as_before(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        control = mesh.mesh.control
        large = await ended(mesh, b'"%s"' % (b"y" * 100_000))
        batch = await ended(mesh, *(b"%d" % number for number in range(130)))
        sleeping = await control.submit(RunRequest(SLEEP, (b"1",)))
        before = [(await control.get_run(each), await control.items(each)) for each in (large, batch)]
        async with keeping(mesh) as keeper:
            later = await ended(mesh)
            waited = await control.wait(later)
            await packed(mesh, large, batch, later)
            assert "journal" in await keys_of(mesh, sleeping), "it has not ended"
            assert [(await control.get_run(each), await control.items(each)) for each in (large, batch)] == before
            assert await control.wait(later) == waited
            counters = keeper.counters
            await wait_until_async(
                lambda: counters.packed_runs == 3 and counters.segment_runs == 3, "the counters tell", 20
            )
            assert counters.lag_s() == 0

            await control.cancel(sleeping)
            await packed(mesh, sleeping)
            assert (await control.get_run(sleeping)).status == "cancelled"

    run(work())


def test_a_run_lingers_after_its_end_and_a_new_leader_packs_what_it_finds(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        run_id = await ended(mesh)
        async with keeping(mesh, linger_s=3600.0) as keeper:
            await wait_until_async(lambda: keeper.counters.waiting_runs == 1, "the counters tell", 20)
            assert await keys_of(mesh, run_id) >= {"runs", "by-age", "status", "results", "journal"}
        async with keeping(mesh):
            await packed(mesh, run_id)

    run(work())


def test_a_store_full_of_runs_from_before_is_packed_after_the_grace(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        ids = [await ended(mesh) for _ in range(5)]
        async with keeping(mesh, formats_grace_s=3600.0) as keeper:
            await wait_until_async(lambda: keeper.counters.waiting_runs == 5, "the counters tell", 20)
            assert not mesh.mesh.control.formats.active
            assert (keeper.counters.packed_runs, keeper.counters.segments) == (0, 0)

        found = await mesh.store.get(keys.formats())
        assert found is not None
        announced = formats_pb2.Formats.FromString(found.value)
        announced.since_ms -= 3_600_000  # an hour later
        await put(mesh.store, keys.formats(), announced.SerializeToString())
        async with keeping(mesh):
            await packed(mesh, *ids)
            assert [(await mesh.mesh.control.get_run(each)).status for each in ids] == ["completed"] * 5

    run(work())


def test_expired_runs_are_gone_with_their_blobs(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        large = await ended(mesh, b'"%s"' % (b"y" * 100_000))
        assert [path for path in mesh.blobs._backend._blobs if large in path]
        async with keeping(mesh, runs_s=0.0, journals_s=0.0) as keeper:
            await wait_until_async(lambda: keeper.counters.expired_runs == 1, "the counters tell", 20)
            with pytest.raises(NotFound):
                await mesh.mesh.control.get_run(large)
            assert not [path for path in mesh.blobs._backend._blobs if large in path or "segments/" in path]

    run(work())


def test_runs_that_have_not_ended_stay_whatever_the_budget(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        control = mesh.mesh.control
        run_id = await control.submit(RunRequest(SLEEP, (b"1",)))
        other = await ended(mesh)
        async with keeping(mesh, store_bytes_max=0, packed_bytes_max=0, runs_s=0.0, journals_s=0.0) as keeper:
            await wait_until_async(lambda: keeper.counters.expired_runs == 1, "the counters tell", 20)
            assert await keys_of(mesh, other) == set()
            assert (await control.get_run(run_id)).status == "running"
            await control.cancel(run_id)
            await wait_until_async(lambda: keeper.counters.expired_runs == 2, "the counters tell", 20)

    run(work())


def test_a_leader_looks_through_the_shared_blobs(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        identity = await mesh.blobs.put(b"forgotten")
        async with keeping(mesh, blobs_s=0.0):

            async def gone() -> bool:
                return identity not in await mesh.blobs.dates()

            await wait_for_value(gone, "gone", timeout_s=20)

    run(work())


def test_shared_blobs_that_packed_runs_name_stay_until_these_expire(api: Any) -> None:
    mesh, run = api

    async def work() -> None:
        blobs, control = mesh.blobs, mesh.mesh.control
        asked, staged, lost = [await blobs.put(name) for name in (b"asked", b"staged", b"lost")]
        ids = [await ended(mesh, encode([asked])), await ended(mesh, encode([staged, "x" * 300_000]))]
        async with keeping(mesh):
            await packed(mesh, *ids)
        fence = await fence_of(mesh)
        segments = LedSegments(mesh.store, blobs, fence)
        await segments.load()
        sweep = partial(sweep_shared_blobs, mesh.store, blobs, time.time() + 60, fence, segments.named_blobs)
        assert await sweep() == [lost]
        for run_id in ids:
            await delete_run(control.run_store, blobs, run_id, control.run_store.is_packed)
        async with keeping(mesh):
            await wait_for_value(partial(_no_segments, mesh), "no segment is left", timeout_s=20)
        await segments.load()
        assert sorted(await sweep()) == sorted([asked, staged])

    run(work())


async def _no_segments(mesh: ApiMesh) -> bool:
    return not (await mesh.store.range(keys.SEGMENTS)).items


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
        fence = await fence_of(mesh)
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
