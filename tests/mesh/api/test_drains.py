"""Drains and their end, and what the mesh says while no run can begin."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import run_cli, wait_for_value, wait_until
from support.dev import Dev, running
from support.mesh import Gate, Processes, gated_config, processes

from stepflow.client import Client
from stepflow.errors import FailedPrecondition, NotFound

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Iterator
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Service

WAIT_S = 30.0

FLOW = {"steps": [{"id": "a", "component": "/gated/work", "input": {"$input": "$"}}], "output": {"$step": "a"}}


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def cli(control: Service, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return run_cli([*args, "--server", control.address], cwd=folder)


def test_a_run_whose_only_executor_drains_is_queued_with_the_reason_until_the_drain_ends(
    mesh: Processes, tmp_path: Path
) -> None:
    mesh.host(gated_config(tmp_path))
    executor = mesh.executor()
    control = mesh.start("control_plane")
    reason = f"every executor drains ({executor.id}); `stepflow cluster undrain {executor.id}` ends a drain"

    async def scenario() -> None:
        async with Client(control.address) as client:
            assert (await client.cluster()).obstacles == []
            await client.drain(executor_id=executor.id)
            assert (await client.cluster()).obstacles == [reason]

            run_id = await client.submit(FLOW, 1)
            queued = await wait_for_value(
                lambda: client.get(run_id), "it is queued", lambda run: run.status == "queued"
            )
            assert queued.queued_reason == reason
            assert [run.run_id async for run in client.list_runs(statuses=["queued"])] == [run_id]
            assert [run.run_id async for run in client.list_runs(statuses=["running"])] == []
            assert (await client.wait(run_id, timeout_s=0.1)).status == "queued"

            await client.undrain(executor_id=executor.id)
            ended = await client.wait(run_id, timeout_s=WAIT_S)
            assert (ended.status, ended.queued_reason) == ("completed", "")
            assert (await client.cluster()).obstacles == []

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_the_commands_say_that_no_run_can_begin_and_what_ends_it(mesh: Processes, tmp_path: Path) -> None:
    mesh.host(gated_config(tmp_path))
    executor = mesh.executor()
    control = mesh.start("control_plane")
    (tmp_path / "flow.yaml").write_text(
        "steps: [{id: a, component: /gated/work, input: 1}]\noutput: {$step: a}\n", encoding="utf-8"
    )

    assert cli(control, tmp_path, "cluster", "drain", "executor").returncode == 0
    status = cli(control, tmp_path, "cluster", "status")
    assert status.returncode == 1
    assert "runs cannot make progress: every executor drains" in status.stderr

    submit = ("submit", "--flow", "flow.yaml", "--input-json", "1", "--server", control.address)
    with running(Dev(tmp_path), *submit) as submitting:
        wait_until(lambda: "the run is queued (every executor drains" in submitting.said, "it says why", 20)
        assert cli(control, tmp_path, "cluster", "undrain", executor.id).returncode == 0
        assert submitting.wait() == 0
    assert cli(control, tmp_path, "cluster", "status").returncode == 0


def test_a_drained_host_gets_calls_again_after_its_drain_has_ended(mesh: Processes, tmp_path: Path) -> None:
    host = mesh.host(gated_config(tmp_path))
    mesh.executor()
    control = mesh.start("control_plane")

    async def scenario() -> None:
        async with Client(control.address) as client:
            await client.drain(host_id=host.id)
            (obstacle,) = (await wait_for_value(client.cluster, "it is told", lambda seen: seen.obstacles)).obstacles
            assert obstacle.startswith(f"every component host drains ({host.id})")

            run_id = await client.submit(FLOW, 1)
            await client.undrain(host_id=host.id)
            await client.undrain(host_id=host.id)
            assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            with pytest.raises(NotFound, match="there is no host"):
                await client.undrain(host_id="nothing")

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_an_undrain_ends_a_drain_that_still_waits(mesh: Processes, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    gate.allow(0)
    host = mesh.host(gated_config(tmp_path))
    mesh.executor()
    control = mesh.start("control_plane")

    async def scenario() -> None:
        async with Client(control.address) as client:
            run_id = await client.submit(FLOW, 1)
            await gate.wait_for(1)
            draining = asyncio.create_task(client.drain(host_id=host.id))
            await wait_for_value(client.cluster, "it drains", lambda seen: seen.hosts[0].draining)
            await client.undrain(host_id=host.id)
            with pytest.raises(FailedPrecondition) as caught:
                await draining
            assert caught.value.reason == "DRAIN_ENDED"
            gate.allow(9)
            assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"

    asyncio.run(asyncio.wait_for(scenario(), 60))
