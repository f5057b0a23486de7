"""A live mesh whose etcd is wiped, or restored from an older copy: everything goes on, from what the store has.

Real processes, a real etcd, and `etcdutl snapshot restore`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
from support import text_of, wait_for_value, wait_until_async
from support.etcd import FAST, running_etcd
from support.mesh import Gate, gated_config, processes

from stepflow.client import Client
from stepflow.errors import NotFound, StepflowError
from stepflow.flow import flow_bytes, flow_from_tree
from stepflow.store import put
from stepflow.store.etcd.config import EtcdConfig
from stepflow.store.etcd.store import EtcdStore
from stepflow.store.follow import follow

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Processes

    from stepflow.store import KeyValue, StoreEvent

SCENARIO_TIMEOUT_S = 90.0

BACK_S = 12.0
"""Far more than the mesh needs to go on after etcd answers again, and far less than the full scans that would
otherwise find out."""

FLOW = flow_bytes(
    flow_from_tree(
        {
            "steps": [
                {"id": "a", "component": "/gated/work", "input": {"$input": "$"}},
                {"id": "b", "component": "/gated/work", "input": {"$step": "a"}},
            ],
            "output": {"$step": "b"},
        }
    )
)

PAUSE = flow_bytes(
    flow_from_tree(
        {
            "steps": [
                {"id": "nap", "component": "/builtin/sleep", "input": {"duration_ms": 3_000}},
                {
                    "id": "rest",
                    "component": "/builtin/sleep",
                    "input": {"duration_ms": 600_000, "after": {"$step": "nap"}},
                },
            ],
            "output": {"$step": "rest"},
        }
    )
)


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd", *FAST) as server:
        yield server


def run(scenario: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(scenario, SCENARIO_TIMEOUT_S))


@asynccontextmanager
async def mesh(etcd: EtcdServer, folder: Path) -> AsyncIterator[tuple[Processes, Client, Gate]]:
    """Run a control plane, two executors and a host."""
    with processes(etcd, folder, "replaced/") as mesh:
        plane = mesh.control_plane("--insecure", wait=False)
        for service in (mesh.executor("--insecure", wait=False), mesh.executor("--insecure", wait=False)):
            assert service
        mesh.host(gated_config(folder), "--insecure", wait=False)
        for service in mesh.services:
            await asyncio.to_thread(service.wait_ready)
        async with Client(plane.address) as client:
            yield mesh, client, Gate(folder)


async def back(client: Client, flow: Any, value: Any = 1) -> None:
    """Wait until a new run completes, within `BACK_S`."""

    async def submitted() -> str:
        try:
            return await client.submit(flow, value)
        except StepflowError:
            return ""

    async with asyncio.timeout(BACK_S):
        run_id = await wait_for_value(submitted, "a run is submitted", timeout_s=BACK_S)
        run = await client.wait(run_id)
        assert run.status == "completed", [item async for item in client.items(run_id)]


async def steps_are(client: Client, run_id: str, statuses: list[str]) -> None:
    async def found() -> list[str]:
        return [step.status async for step in client.steps(run_id)]

    await wait_for_value(found, "the steps are so", lambda now: now == statuses, BACK_S)


def test_a_wiped_etcd_loses_its_runs_and_the_mesh_serves_new_ones(etcd: EtcdServer, tmp_path: Path) -> None:
    async def scenario() -> None:
        async with mesh(etcd, tmp_path) as (_, client, gate):
            flow_id = (await client.store_flow(FLOW)).flow_id
            await back(client, flow_id)
            gate.allow(2)
            lost = await client.submit(flow_id, "lost")
            await gate.wait_for(3)
            waiting = asyncio.create_task(client.wait(lost))

            await asyncio.to_thread(etcd.wipe)
            gate.allow(float("inf"))
            # By id: the control plane must not trust that the store still has the flow.
            await back(client, flow_id)
            with pytest.raises(NotFound) as gone:
                async with asyncio.timeout(BACK_S):
                    await waiting
            assert gone.value.reason == "RUN_NOT_FOUND"
            assert [found.run_id async for found in client.list_runs() if found.run_id == lost] == []

    run(scenario())


@pytest.mark.parametrize("options", [(), ("--bump-revision=1000000", "--mark-compacted")], ids=["plain", "bumped"])
def test_an_etcd_restored_from_an_older_copy_goes_on_from_there(
    etcd: EtcdServer, tmp_path: Path, options: tuple[str, ...]
) -> None:
    async def scenario() -> None:
        async with mesh(etcd, tmp_path) as (services, client, gate):
            await back(client, FLOW)
            gate.allow(2)

            # 1. Copied while one run calls a step, another one sleeps, and a third one has ended.
            calling, napping = await client.submit(FLOW, "calling"), await client.submit(PAUSE)
            await gate.wait_for(3)
            copy = tmp_path / "copy.db"
            await asyncio.to_thread(etcd.snapshot, copy)

            # 2. The runs go on, and a new one comes.
            gate.allow(float("inf"))
            assert (await client.wait(calling)).status == "completed"
            await steps_are(client, napping, ["completed", "running"])
            lost = await client.submit(FLOW, "lost")
            await client.wait(lost)

            # 3. The copy is restored.
            await asyncio.to_thread(etcd.restore, copy, *options)
            await back(client, FLOW)
            async with asyncio.timeout(BACK_S):
                assert (await client.wait(calling)).status == "completed"
            # Nobody goes on with what the store has forgotten: the first step sleeps again.
            await steps_are(client, napping, ["completed", "running"])
            with pytest.raises(NotFound):
                await client.wait(lost)
            assert (await client.get(napping)).status == "running"
            for service in services.services:
                assert "defect" not in text_of(service.folder / f"{service.name}.log")

    run(scenario())


@pytest.mark.parametrize("how", ["wiped", "restored"])
def test_a_follower_lists_again_at_once_and_sees_later_changes(etcd: EtcdServer, tmp_path: Path, how: str) -> None:
    async def scenario() -> None:
        store = await EtcdStore.open(EtcdConfig.parse(etcd.endpoint))
        copy = tmp_path / "copy.db"
        await put(store, "k/0", b"")
        await asyncio.to_thread(etcd.snapshot, copy)
        for number in range(1, 50):
            await put(store, f"k/{number}", b"")
        seen: set[str] = set()

        def listed(items: list[KeyValue]) -> None:
            seen.clear()
            seen.update(item.key for item in items)

        def changed(events: Sequence[StoreEvent]) -> None:
            seen.update(event.kv.key for event in events)

        following = asyncio.create_task(follow(store, "k/", listed=listed, changed=changed))
        await wait_until_async(lambda: len(seen) == 50, "all are listed")
        if how == "wiped":
            await asyncio.to_thread(etcd.wipe)
        else:
            await asyncio.to_thread(etcd.restore, copy)
        old = set() if how == "wiped" else {"k/0"}
        await wait_until_async(lambda: seen == old, "what is gone is gone", BACK_S)
        await put(store, "k/new", b"")
        await wait_until_async(lambda: seen == {*old, "k/new"}, "what is new is seen", BACK_S)
        following.cancel()
        await store.close()

    run(scenario())


def test_a_member_that_lags_behind_is_not_taken_for_a_restored_one(etcd: EtcdServer) -> None:
    async def scenario() -> None:
        store = await EtcdStore.open(EtcdConfig.parse(etcd.endpoint))
        ended: list[int] = []
        store._client.on_replaced = ended.append
        await put(store, "k", b"1")
        newest = store._client.revision
        store._client.saw(newest - 1)  # a reply of a lagging member: not linearizable
        assert store._client.revision == newest
        asked_at = store._client.revision
        await put(store, "k", b"2")
        store._client.answered(asked_at, newest)  # a reply that was overtaken by a later one
        assert store._client.revision > newest
        assert not ended
        await store.close()

    run(scenario())
