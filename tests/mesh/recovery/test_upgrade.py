"""The update of a mesh whose store is full of runs from before: `docs/how-to/upgrade.md`, held to what it says.

Old processes run the last version without segments, from git. What they have told of a run, every later answer
repeats: from old and new control planes side by side, from the store and from segments.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import wait_for_value
from support.load import BATCH, KINDS, Asked, answers, begin
from support.mesh import Processes, ledger_config, processes
from support.old_code import BEFORE_SEGMENTS, old_checkout
from support.scene import WAIT_S, Scene, run, scene

from stepflow.client import Client
from stepflow.journal import read_record
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Service

CALL_MS = 20
OLD_RUNS = 3 * len(KINDS)
BATCH_ITEMS = 130
"""Three partitions."""

GRACE_S = 8.0
"""Ends while the test still works."""

PACKING = ("--formats-grace", str(GRACE_S), "--linger", "0")


@pytest.fixture(scope="module")
def old_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return old_checkout(tmp_path_factory.mktemp("old"), BEFORE_SEGMENTS)


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


async def load(on: Scene, client: Client, runs: int) -> list[Asked]:
    """Submit runs of all kinds and a batch through one control plane."""
    first = len(on.asked)
    asked = [Asked.new(KINDS[number % len(KINDS)], number) for number in range(first, first + runs)]
    asked.append(Asked.new(BATCH, *range(BATCH_ITEMS)))
    await asyncio.gather(*(begin(client, each, ms=CALL_MS) for each in asked))
    on.asked += asked
    return asked


async def all_answers(client: Client, asked: list[Asked]) -> dict[str, Any]:
    return {each.run_id: await answers(client, each.run_id) for each in asked}


def without_paths(told: dict[str, Any]) -> dict[str, Any]:
    """Return answers as a version without paths of steps gives them."""

    def plain(answer: Any) -> Any:
        return replace(answer, path="") if hasattr(answer, "path") else answer

    return {
        run_id: {
            name: [plain(each) for each in answer] if isinstance(answer, list) else answer
            for name, answer in parts.items()
        }
        for run_id, parts in told.items()
    }


async def version_of(on: Scene, run_id: str) -> int:
    record = await read_record(on.mesh.run_store(on.store), run_id)
    return record.policy.engine_version


async def retire(service: Service) -> None:
    assert await asyncio.to_thread(service.end) == 0, service.log[-2000:]


async def gone_from_the_store(on: Scene, asked: list[Asked]) -> None:
    async def gone() -> bool:
        return not [each for each in asked if await on.store.get(keys.run(each.run_id)) is not None]

    await wait_for_value(gone, "all of them are packed", timeout_s=WAIT_S)


def starter(mesh: Processes, old_tree: Path) -> tuple[Callable[..., Service], Callable[..., Service]]:
    def old(module: str, *args: str) -> Service:
        return mesh.start(module, *args, tree=old_tree)

    return old, mesh.start


def test_runs_from_before_are_packed_after_the_grace_while_the_mesh_works_and_read_alike(
    mesh: Processes, old_tree: Path, tmp_path: Path
) -> None:
    old, new = starter(mesh, old_tree)
    config = ledger_config(tmp_path)
    control, host, executor = old("control_plane"), old("component_host", "--config", str(config)), old("executor")

    async def scenario() -> None:
        # 1. The store fills up.
        async with scene(mesh, control) as on:
            before = await load(on, on.client, OLD_RUNS)
            await on.verify()
            told = await all_answers(on.client, before)

        # 2. The update: control planes within the grace, then executors and hosts.
        next_control = await asyncio.to_thread(new, "control_plane", *PACKING)
        async with scene(mesh, next_control) as now:
            await retire(control)
            meanwhile = await load(now, now.client, len(KINDS))
            assert {await version_of(now, each.run_id) for each in meanwhile} == {1}, "the old executor drives them"
            await asyncio.to_thread(new, "executor")
            await asyncio.to_thread(new, "component_host", "--config", str(config))
            await asyncio.gather(retire(executor), retire(host))

            # 3. The grace ends, and the mesh goes on.
            now.asked += before
            await gone_from_the_store(now, before)
            after = await load(now, now.client, len(KINDS))
            assert {await version_of(now, each.run_id) for each in after} == {2}
            assert without_paths(await all_answers(now.client, before)) == told
            await now.verify()
            told = await all_answers(now.client, before)
            told |= await all_answers(now.client, [*meanwhile, *after])

            # 4. All of it is packed, and read alike.
            await gone_from_the_store(now, now.asked)
            assert await all_answers(now.client, now.asked) == told
            await now.verify()
            listed = {each.run_id async for each in now.client.list_runs()}
            assert listed == {each.run_id for each in now.asked}
            assert {await version_of(now, each.run_id) for each in before} == {1}

    run(scenario())


def test_old_and_new_control_planes_answer_alike_within_the_grace_and_the_update_can_be_taken_back(
    mesh: Processes, old_tree: Path, tmp_path: Path
) -> None:
    old, new = starter(mesh, old_tree)
    config = ledger_config(tmp_path)
    first, _, executor = old("control_plane"), old("component_host", "--config", str(config)), old("executor")

    async def scenario() -> None:
        next_control = await asyncio.to_thread(new, "control_plane", "--linger", "0")
        async with scene(mesh, next_control) as on, Client(first.address) as to_old:
            # 1. The old control plane leads, then the new one; the old executor drives, then both.
            asked = await load(on, to_old, len(KINDS))
            asked += await load(on, on.client, len(KINDS))
            await retire(first)
            announced = partial(on.store.get, keys.formats())
            await wait_for_value(announced, "the new one leads", timeout_s=30)
            second = await asyncio.to_thread(old, "control_plane")
            next_executor = await asyncio.to_thread(new, "executor")

            async with Client(second.address) as to_second:
                asked += await load(on, to_second, len(KINDS))
                asked += await load(on, on.client, len(KINDS))
                journals = await on.verify()
                assert await on.owners(journals) >= {executor.id, next_executor.id}
                told = await all_answers(on.client, asked)
                told = without_paths(told)
                assert await all_answers(to_second, asked) == told
                assert {await version_of(on, each.run_id) for each in asked} == {1}

                # 2. The update is taken back.
                await retire(next_executor)
                await retire(next_control)
                back = Scene(mesh, to_second, on.store, on.asked)
                await load(back, to_second, len(KINDS))
                await back.verify()
                assert await all_answers(to_second, asked) == told

    run(scenario())
