"""Two hosts side by side whose plugin of one name differs, as processes over a real etcd."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import ROOT, run_cli
from support.mesh import Processes, processes

from stepflow.client import Client
from stepflow.errors import Invalid

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.etcd import EtcdServer

WAIT_S = 30.0


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def config(folder: Path, name: str, *components: str) -> Path:
    """Write a server whose components return its name, and a configuration with it as `tools`."""
    lines = ["from stepflow.component import component, serve"]
    lines += [f"@component\ndef {each}() -> str:\n    return {name!r}" for each in components]
    (folder / f"{name}.py").write_text("\n\n".join([*lines, "serve()"]) + "\n", encoding="utf-8")

    path = folder / f"{name}.yml"
    text = f"""
        plugins:
          tools:
            type: stepflow
            command: {sys.executable}
            args: ["{folder / name}.py"]
            env: {{PYTHONPATH: "{ROOT}"}}
        routes:
          "/tools": [{{plugin: tools}}]
    """
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def flow(*components: str) -> dict[str, Any]:
    steps = [{"id": each, "component": f"/tools/{each}", "input": {}} for each in components]
    return {"steps": steps, "output": [{"$step": each} for each in components]}


@pytest.mark.parametrize("first", ["old", "new"])
def test_each_call_goes_to_the_host_that_offers_its_component(mesh: Processes, tmp_path: Path, first: str) -> None:
    configs = {"old": config(tmp_path, "old", "same", "removed"), "new": config(tmp_path, "new", "same", "added")}
    for name in (first, *(configs.keys() - {first})):
        mesh.host(configs[name])
    mesh.executor()
    control = mesh.start("control_plane")

    async def scenario() -> None:
        async with Client(control.address) as client:
            for _ in range(4):
                run_id = await client.submit(flow("same", "removed", "added"), {})
                assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"
                (item,) = [item async for item in client.items(run_id)]
                assert item.result[1:] == ["old", "new"]
            (warning,) = (await client.cluster()).warnings
            assert warning.startswith("plugin 'tools' is a different server on each of ")

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_component_that_comes_with_the_next_host_is_waited_for(mesh: Processes, tmp_path: Path) -> None:
    old = mesh.host(config(tmp_path, "old", "same"))
    mesh.host(config(tmp_path, "old", "same"))
    mesh.executor()
    control = mesh.start("control_plane")

    async def scenario() -> None:
        async with Client(control.address) as client:
            with pytest.raises(Invalid, match="`/tools/added`, which does not exist"):
                await client.submit(flow("added"), {})
            missing = await client.submit(flow("added"), {}, check=False)
            assert (await client.wait(missing, timeout_s=WAIT_S)).status == "failed"

            assert await asyncio.to_thread(old.end) == 0
            waiting = await client.submit(flow("same", "added"), {})
            await asyncio.to_thread(mesh.host, config(tmp_path, "new", "same", "added"))
            assert (await client.wait(waiting, timeout_s=WAIT_S)).status == "completed"

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_another_server_under_the_name_of_another_pool_gets_no_calls_and_is_shown(
    mesh: Processes, tmp_path: Path
) -> None:
    mesh.host(config(tmp_path, "red", "colour"), "--pool", "red")
    mesh.host(config(tmp_path, "blue", "colour"), "--pool", "blue", "--host-id", "sky")
    mesh.executor()
    control = mesh.start("control_plane")

    async def scenario() -> None:
        async with Client(control.address) as client:
            run_id = await client.submit_batch(flow("colour"), [{}] * 20)
            assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            assert {item.result[0] async for item in client.items(run_id)} == {"red"}
            states = {host.pool: host.plugins[0].state for host in (await client.cluster()).hosts}
            assert states == {"red": "ready", "blue": "conflict"}

    asyncio.run(asyncio.wait_for(scenario(), 60))
    status = run_cli(["cluster", "status", "--server", control.address])
    assert "tools (conflict)" in status.stdout
    assert "pool red owns the plugin name 'tools' with another server" in status.stderr
