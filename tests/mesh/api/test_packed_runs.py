"""Every reader's answer for a run is the same before and after packing, and after the segment is rewritten."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.archive import opened
from support.corpus import CORPUS, SIGNALS
from support.packing import CREATED_AT_MS, run_world, store_run

from control_plane.archive import packer, reader, step_index
from control_plane.archive.rewriting import rewrite
from control_plane.control_plane import ControlPlane
from stepflow.run.state import ENGINE_VERSION

if TYPE_CHECKING:
    from support.archive import PackingWorld
    from support.etcd import EtcdServer
    from support.packing import RunWorld

RUNS_PER_SEGMENT = 5


def ended_run(
    number: int, name: str, choices: list[int], *, cancelled_after: int = -1, engine_version: int = ENGINE_VERSION
) -> RunWorld:
    """Return a run of the corpus at its end. `choices`: see `World.run`; `cancelled_after`: that many of them."""
    inputs = [{"n": 1}] if name in SIGNALS else [{"n": 1}, {"n": 2}]
    signals = list(SIGNALS.get(name, ()))
    world = run_world(number, dict(CORPUS[name]), inputs=inputs, signals=signals, engine_version=engine_version)
    world.tree["name"] = "named" if number % 3 == 0 else "other"
    for choice in choices[:cancelled_after] if cancelled_after >= 0 else ():
        if world.state.status is None:
            world.step(choice)
    if cancelled_after >= 0 and world.state.status is None:
        world.cancel()
    world.run(choices)
    return world


async def check_unchanged(world: PackingWorld) -> None:
    """Compare all answers before and after the runs are packed, and after they are in another segment."""
    expected = await world.answers()

    # 1. Packed, for a control plane that knew the runs before, and for one that did not.
    term = await world.leaders.term()
    await term.all()
    assert await world.kept() == set()
    assert await world.answers() == expected
    known, world.control = world.control, ControlPlane(world.store, world.blobs)
    assert await world.answers() == expected
    await world.control.close()
    world.control = known

    # 2. Rewritten into one segment.
    before = set(term.segments.manifests)
    await rewrite(world.blobs, term.segments, sorted(before), strip=False)
    assert len(world.leaders.objects()) == 1
    assert world.leaders.objects().isdisjoint(before)
    assert await world.answers() == expected


@pytest.mark.parametrize("kind", ["sqlite", "etcd"])
@pytest.mark.parametrize("indexed_entries", [0, step_index.INDEXED_ENTRIES])
def test_readers_answer_alike_before_and_after_packing(
    kind: str, indexed_entries: int, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    etcd: EtcdServer | None = request.getfixturevalue("etcd") if kind == "etcd" else None
    monkeypatch.setattr(packer, "SEGMENT_RUNS_MAX", RUNS_PER_SEGMENT)
    monkeypatch.setattr(step_index, "INDEXED_ENTRIES", indexed_entries)

    async def scenario() -> None:
        async with asyncio.timeout(110), opened(etcd) as world:
            for number, name in enumerate(CORPUS):
                run = ended_run(number + 1, name, [], cancelled_after=1 if name == "sleep" else -1)
                at_ms = CREATED_AT_MS + number // 2
                world.run_ids.append(await store_run(world.store, world.blobs, run, [1, 2] * number, at_ms))
            await check_unchanged(world)

    asyncio.run(scenario())


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_any_order_of_events_reads_alike_before_and_after_packing(data: st.DataObject) -> None:
    """In any order of answers and crashes, cancelled at any time, flushed in any groups, in small and large bodies.

    The segments have a list of the steps of each run.
    """
    runs = []
    for number in range(1, data.draw(st.integers(1, 2)) + 1):
        name = data.draw(st.sampled_from(sorted(CORPUS)))
        choices = data.draw(st.lists(st.integers(-1, 7), max_size=20))
        version = data.draw(st.integers(1, ENGINE_VERSION))
        run = ended_run(number, name, choices, cancelled_after=data.draw(st.integers(-5, 5)), engine_version=version)
        flushes = data.draw(st.lists(st.integers(1, 5), max_size=10))
        runs.append((run, flushes, CREATED_AT_MS + data.draw(st.integers(0, 5))))
    small_body_bytes: Any = data.draw(st.sampled_from([0, 500, reader.SMALL_BODY_BYTES]))
    room_bytes: Any = data.draw(st.sampled_from([0, 2_000, step_index.ROOM_BYTES]))

    async def scenario() -> None:
        async with asyncio.timeout(60), opened(None) as world:
            for run, flushes, created_at_ms in runs:
                world.run_ids.append(await store_run(world.store, world.blobs, run, flushes, created_at_ms))
            await check_unchanged(world)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader, "SMALL_BODY_BYTES", small_body_bytes)
        patch.setattr(step_index, "INDEXED_ENTRIES", 0)
        patch.setattr(step_index, "CHUNK_ROWS", 3)
        patch.setattr(step_index, "_room", lambda _: room_bytes)
        asyncio.run(scenario())
