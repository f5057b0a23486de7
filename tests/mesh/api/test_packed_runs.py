"""Every reader's answer for a run is the same before and after packing, and after the segment is rewritten."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support.corpus import CORPUS, SIGNALS
from support.packing import CREATED_AT_MS, answers, listings, pack, publish, run_world, store_run, write_segment

from control_plane.control_plane import ControlPlane
from stepflow.store import keys, range_all
from stepflow.store.blobs import BlobStore
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from support.etcd import EtcdServer
    from support.packing import RunWorld

    from stepflow.store import Store


class PackedWorld:
    """A store with ended runs, and a control plane that follows it."""

    def __init__(self, store: Store, blobs: BlobStore) -> None:
        self.store = store
        self.blobs = blobs
        self.control = ControlPlane(store, blobs)

    async def answers(self, run_ids: list[str]) -> dict[str, Any]:
        found: dict[str, Any] = {run_id: await answers(self.control, self.blobs, run_id) for run_id in run_ids}
        return found | await listings(self.control)

    async def another_control_plane(self) -> None:
        """Replace the control plane: nothing is cached."""
        await self.control.close()
        self.control = ControlPlane(self.store, self.blobs)
        await self.control.start(lead=False)


@asynccontextmanager
async def opened(kind: str, etcd: EtcdServer | None, blobs: BlobStore) -> AsyncIterator[PackedWorld]:
    store: Any
    if etcd is None:
        store = await SqliteStore.open(":memory:")
    else:
        store = await EtcdStore.open(EtcdConfig.parse(etcd.endpoint, prefix=f"{uuid4().hex[:16]}/"))
    world = PackedWorld(store, blobs)
    try:
        await world.control.start(lead=False)
        yield world
    finally:
        await world.control.close()
        await store.close()


@pytest.fixture(params=["sqlite", "etcd"])
def packed(request: pytest.FixtureRequest) -> Callable[[Callable[[PackedWorld], Awaitable[None]]], None]:
    """Give a function that runs a scenario over an empty store."""
    etcd = request.getfixturevalue("etcd") if request.param == "etcd" else None

    def go(scenario: Callable[[PackedWorld], Awaitable[None]]) -> None:
        async def main() -> None:
            async with asyncio.timeout(120), opened(request.param, etcd, BlobStore.open("memory://")) as world:
                await scenario(world)

        asyncio.run(main())

    return go


def ended_runs(choices: dict[str, list[int]], cancelled: str = "") -> list[RunWorld]:
    """Return the corpus of the engine's tests, each run with several items and to its end."""
    worlds = []
    for number, (name, tree) in enumerate(CORPUS.items(), 1):
        inputs = [{"n": 1}] if name in SIGNALS else [{"n": 1}, {"n": 2}]
        world = run_world(number, tree, inputs=inputs, signals=list(SIGNALS.get(name, ())))
        if name == cancelled:
            world.cancel()
        world.run(choices.get(name, ()))
        worlds.append(world)
    return worlds


async def check_unchanged(world: PackedWorld, run_ids: list[str]) -> None:
    """Compare all answers before and after the runs are packed, and after they are in other segments."""
    expected = await world.answers(run_ids)

    # 1. Packed into two segments; a control plane that knew the runs, then one that did not.
    half = len(run_ids) // 2
    runs = await pack(world.store, world.blobs, "1-a", run_ids[:half])
    assert await world.answers(run_ids) == expected
    runs |= await pack(world.store, world.blobs, "2-a", run_ids[half:])
    for prefix in (keys.RUNS, keys.STATUS, keys.RESULTS, keys.JOURNAL, keys.BY_AGE):
        assert [item.key async for item in range_all(world.store, prefix)] == []
    assert await world.answers(run_ids) == expected
    await world.another_control_plane()
    assert await world.answers(run_ids) == expected

    # 2. Rewritten: both segments become one.
    await write_segment(world.store, world.blobs, "3-a", dict(reversed(runs.items())))
    assert await world.answers(run_ids) == expected
    await publish(world.store, {"1-a": None, "2-a": None})
    for name in ("1-a", "2-a"):
        await world.blobs.objects.delete(f"segments/{name}")
    assert await world.answers(run_ids) == expected


def test_readers_answer_alike_before_and_after_packing(packed: Any) -> None:
    async def scenario(world: PackedWorld) -> None:
        run_ids = []
        for number, each in enumerate(ended_runs({}, cancelled="sleep")):
            each.tree["name"] = "named" if number % 3 == 0 else "other"
            run_ids.append(
                await store_run(world.store, world.blobs, each, [1, 2] * number, CREATED_AT_MS + number // 2)
            )
        await check_unchanged(world, run_ids)

    packed(scenario)
