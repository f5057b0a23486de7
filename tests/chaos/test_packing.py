"""Packing of ended runs with real processes: the leader is killed at it, and the blob store is down for a while."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from chaos.faults import disk_of_the_blobs, draft_appears, link
from chaos.leftovers import keys_of_runs, leftovers, packed_runs
from support import wait_for_value
from support.etcd import running_etcd
from support.load import answers, chain
from support.mesh import ledger_config, processes
from support.scene import WAIT_S, run, scene

from stepflow.client import Client
from stepflow.errors import Unavailable
from stepflow.store import keys

if TYPE_CHECKING:
    from pathlib import Path


def test_a_leader_killed_while_it_packs_and_a_blob_store_that_is_down_lose_nothing_and_leave_nothing(
    tmp_path: Path,
) -> None:
    disk_of_the_blobs(tmp_path)
    blobs = tmp_path / "blobs"

    async def scenario() -> None:
        controls = [mesh.control_plane("--linger", "0.2"), mesh.control_plane("--linger", "0.2")]
        mesh.host(ledger_config(tmp_path))
        mesh.executor()
        async with scene(mesh, *controls) as on:

            async def left() -> list[str]:
                return await keys_of_runs(on.store)

            # 1. The leader dies between the first byte of a segment and the last deletion in the store.
            await on.load(40, ms=5)
            assert await asyncio.to_thread(draft_appears, blobs / "segments")
            leading = await on.store.get(keys.leader())
            assert leading is not None
            leader = next(control for control in controls if control.id == leading.value.decode())
            leader.kill()
            await on.load(20, ms=5)
            await on.verify()
            await wait_for_value(left, "all runs are packed", lambda found: not found, WAIT_S)

            # 2. While the blob store is down, packed runs are unavailable and others end.
            told = {asked.run_id: await answers(on.client, asked.run_id) for asked in on.asked}
            other = await asyncio.to_thread(mesh.control_plane, "--no-lead")  # it has read nothing yet
            link(tmp_path, blobs, blobs.name)
            async with Client(other.address, patience_s=1) as client:
                with pytest.raises(Unavailable):
                    await client.get(on.asked[0].run_id)
            await on.load(10, ms=5, kinds=(chain(),))
            link(tmp_path, blobs, "blobs.disk")

            # 3. Everything reads as before, and nothing else is left.
            await on.verify()
            assert told == {run_id: await answers(on.client, run_id) for run_id in told}
            await wait_for_value(left, "all runs are packed", lambda found: not found, WAIT_S)
            mesh.close()
            assert (await packed_runs(on.store))[0] == len(on.asked)
            assert await leftovers(on.store, mesh.blobs(), blobs, {asked.run_id for asked in on.asked}) == []

    with (
        running_etcd(tmp_path / "etcd", "--unsafe-no-fsync") as etcd,
        processes(etcd, tmp_path, "packing/") as mesh,
    ):
        run(scenario())
