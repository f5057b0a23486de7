"""Supervision of servers: limits, the state that the mesh shows, and starts that succeed after retries."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import textwrap
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import ROOT, is_alive, run_cli, wait_until
from support.etcd import EtcdServer, running_etcd
from support.host_side import execute
from support.mesh import Processes, Service, children_of, processes

from component_host.backends import make_backend
from stepflow.client import Client
from stepflow.config import load_config
from stepflow.errors import Failure, Unavailable

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

SERVERS = ROOT / "tests" / "data" / "servers"

MIB = 1024 * 1024
WAIT_S = 30.0


def config_of(folder: Path, plugin: str, server: Path = SERVERS / "greedy.py", command: str = sys.executable) -> Path:
    """Write a configuration with one server at `/own`; `plugin`: more of its keys, as YAML in flow style."""
    text = f"""
        plugins:
          builtin: {{type: builtin}}
          own: {{type: stepflow, command: {command}, args: ["{server}"], env: {{PYTHONPATH: "{ROOT}"}}{plugin}}}
        routes:
          "/builtin": [{{plugin: builtin}}]
          "/own": [{{plugin: own}}]
    """
    path = folder / "stepflow-config.yml"
    path.write_text(textwrap.dedent(text), encoding="utf-8")
    return path


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 90))


# -- limits -------------------------------------------------------------------------------------------------------


def test_a_server_gets_the_limits_that_its_configuration_names(tmp_path: Path) -> None:
    path = config_of(tmp_path, ", limits: {memory: 512MiB, openFiles: 64}")

    async def test() -> None:
        backend = make_backend("own", load_config(path), os.environ)
        await backend.start()
        try:
            assert (await execute(backend, "/take_memory", {"count": MIB})) == MIB
            assert (await execute(backend, "/take_files", {"count": 10})) == 10
            for component, count, error in (("/take_memory", 600 * MIB, "Memory"), ("/take_files", 100, "open files")):
                failure = await execute(backend, component, {"count": count})
                assert isinstance(failure, Failure)
                assert error in failure.message
            said = await execute(backend, "/limits", {})
            assert (said["memory"], said["files"]) == (512 * MIB, 64)
            assert said["pid"] in backend.process_ids(), "the shell that set the limits has become the server"
        finally:
            await backend.close()
        assert not is_alive(said["pid"])

    run(test())


def test_a_limit_above_what_the_host_may_is_refused_with_the_shells_words(tmp_path: Path) -> None:
    path = config_of(tmp_path, ", limits: {openFiles: 2000000000}")

    async def test() -> None:
        backend = make_backend("own", load_config(path), os.environ)
        with pytest.raises(Unavailable, match="ulimit"):
            await backend.start()

    run(test())


# -- what the mesh tells ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), "--unsafe-no-fsync") as server:
        yield server


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def listed(control: Service, *args: str) -> str:
    done = run_cli(["components", "list", "--server", control.address, *args])
    assert done.returncode == 0, done.stderr
    return done.stdout


def plugin_of(control: Service) -> dict[str, Any]:
    """Return what the command line tells of the server `own`."""
    (found,) = json.loads(listed(control, "--plugin", "own", "--json"))["plugins"]
    return dict(found)


def server_of(host: Service, name: str) -> int:
    """Return the process of a host that runs a script."""
    (found,) = (pid for pid in children_of(host.process.pid) if name in command_of(pid))
    return found


def command_of(pid: int) -> str:
    from pathlib import Path

    try:
        return Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8")
    except OSError:
        return ""


def test_a_server_that_was_killed_is_listed_as_ready_again_with_its_last_error(mesh: Processes, tmp_path: Path) -> None:
    control = mesh.start("control_plane")
    host = mesh.host(config_of(tmp_path, ""))
    before = plugin_of(control)
    assert (before["state"], before["restarts"]) == ("ready", 0)
    assert "last_error" not in before
    os.kill(server_of(host, "greedy.py"), signal.SIGKILL)
    after = wait_until(lambda: seen if (seen := plugin_of(control))["restarts"] else None, "it was restarted", WAIT_S)
    assert (after["state"], after["restarts"]) == ("ready", 1)
    assert "SIGKILL" in after["last_error"]
    table = listed(control)
    assert "/take_memory" in table
    assert "was killed by SIGKILL" in table


def test_a_server_that_does_not_come_back_is_listed_as_restarting_with_its_words(
    mesh: Processes, tmp_path: Path
) -> None:
    server = tmp_path / "server.py"
    server.write_text((SERVERS / "greedy.py").read_text(), encoding="utf-8")
    control = mesh.start("control_plane")
    host = mesh.host(config_of(tmp_path, "", server))
    server.write_text("import sys; sys.exit('out of order')", encoding="utf-8")
    os.kill(server_of(host, "server.py"), signal.SIGKILL)

    def out_of_order() -> bool:
        seen = plugin_of(control)
        return seen["state"] == "restarting" and "out of order" in seen["last_error"]

    wait_until(out_of_order, "it is listed as restarting", WAIT_S)
    server.write_text((SERVERS / "greedy.py").read_text(), encoding="utf-8")
    wait_until(lambda: plugin_of(control)["state"] == "ready", "it is ready again", WAIT_S)


def test_a_plugin_that_failed_at_the_start_of_its_host_starts_when_it_can(mesh: Processes, tmp_path: Path) -> None:
    control = mesh.start("control_plane")
    mesh.executor()
    program = tmp_path / "interpreter"
    mesh.host(config_of(tmp_path, "", command=str(program)))
    failed = plugin_of(control)
    assert failed["state"] == "failed"
    assert str(program) in failed["last_error"]
    program.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n', encoding="utf-8")
    program.chmod(0o755)
    wait_until(lambda: plugin_of(control)["state"] == "ready", "it has started after all", WAIT_S)

    async def scenario() -> None:
        step = {"id": "s", "component": "/own/take_memory", "input": {"count": 5}}
        async with Client(control.address) as client:
            run_id = await client.submit({"steps": [step], "output": {"$step": "s"}}, 1)
            assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"

    run(scenario())
