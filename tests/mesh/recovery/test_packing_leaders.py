"""Leaders are killed while they pack; meanwhile every run that has ended is read as before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from support.mesh import processes

from stepflow.client import Client
from stepflow.errors import NotFound
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Processes, Service

    from stepflow.store import Store

FLOW = {"name": "echo", "output": {"$input": ""}}

AT_ONCE = ("--linger", "0.1", "--formats-grace", "0")

KILLS = 2


async def leader_of(store: Store, planes: list[Service]) -> Service:
    """Return the control plane that leads."""
    while True:
        found = await store.get(keys.leader())
        for plane in planes:
            if found is not None and found.value == plane.id.encode() and plane.process.poll() is None:
                return plane
        await asyncio.sleep(0.05)


async def count(store: Store, prefix: str) -> int:
    return len([1 async for _ in range_all(store, prefix)])


class Load:
    """Submits runs, and reads ended ones."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.ended: dict[str, int] = {}
        """By run: its input."""

    async def submit_until(self, task: asyncio.Task[None]) -> None:
        while not task.done():
            await asyncio.gather(*(self._one(number) for number in range(4)))

    async def _one(self, number: int) -> None:
        run_id = await self._client.submit(FLOW, number)
        assert (await self._client.wait(run_id, timeout_s=60)).status == "completed"
        self.ended[run_id] = number

    async def read_until_cancelled(self) -> None:
        while True:
            for run_id, number in list(self.ended.items())[::7]:
                await self.check(run_id, number)
            await asyncio.sleep(0.01)

    async def check(self, run_id: str, number: int) -> None:
        assert (await self._client.get(run_id)).status == "completed"
        assert [item.result async for item in self._client.items(run_id)] == [number]


async def kill_leaders(mesh: Processes, store: Store, planes: list[Service]) -> None:
    """Kill the leader, several times, each time after it has packed something; replace it."""
    for _ in range(KILLS):
        before = await store.get(keys.segments_head())
        async with asyncio.timeout(60):
            while await store.get(keys.segments_head()) == before:  # noqa: ASYNC110  # the store is the event's source
                await asyncio.sleep(0.01)
        (await leader_of(store, planes)).kill()
        planes.append(await asyncio.to_thread(mesh.control_plane, *AT_ONCE))


def test_no_run_is_lost_or_unreadable_while_leaders_are_killed_as_they_pack(etcd: EtcdServer, tmp_path: Path) -> None:
    async def work(mesh: Processes) -> None:
        planes = [mesh.control_plane(*AT_ONCE, "--listen", "127.0.0.1:0") for _ in range(2)]
        stays = mesh.control_plane("--no-lead")
        mesh.executor()
        async with mesh.store() as store, Client(stays.address, patience_s=30) as client:
            load = Load(client)
            reading = asyncio.create_task(load.read_until_cancelled())
            killing = asyncio.create_task(kill_leaders(mesh, store, planes))
            await load.submit_until(killing)
            await killing

            # All of them leave etcd, and are there once.
            async with asyncio.timeout(60):
                while await count(store, keys.STATUS):
                    assert not reading.done(), reading.exception()
                    await asyncio.sleep(0.05)
            reading.cancel()
            for prefix in (keys.RUNS, keys.RESULTS, keys.JOURNAL, keys.BY_AGE):
                assert await count(store, prefix) == 0
            assert sorted([run.run_id async for run in client.list_runs()]) == sorted(load.ended)
            for run_id, number in list(load.ended.items())[::5]:
                await load.check(run_id, number)

            # A deletion is seen by all replicas at once.
            gone = next(iter(load.ended))
            await client.delete(gone)
            for address in (stays.address, planes[-1].address):
                async with Client(address) as other:
                    with pytest.raises(NotFound):
                        await other.get(gone)

    with processes(etcd, tmp_path, "packing/") as mesh:
        asyncio.run(work(mesh))
