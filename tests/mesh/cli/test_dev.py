"""`stepflow dev`: a whole mesh as processes, from start to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
from typing import TYPE_CHECKING

import pytest
from support import is_alive, run_cli, wait_until
from support.dev import Dev, dev_mesh

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SLEEPS = """
name: sleeps
steps:
  - {id: nap, component: /builtin/sleep, input: {duration_ms: 3000}}
output: {$step: nap}
"""
SERVER = """
from stepflow.component import component, serve

@component
def echo(text: str) -> str:
    return text

serve()
"""
CONFIG = """
plugins:
  builtin: {type: builtin}
  own: {type: stepflow, transport: stdio, command: python, args: [%s]}
routes:
  /own: [{plugin: own}]
  /builtin: [{plugin: builtin}]
"""


@pytest.fixture
def dev(tmp_path: Path) -> Iterator[Dev]:
    """Give one that is not started."""
    dev = Dev(tmp_path)
    yield dev
    dev.end()


def gone(dev: Dev) -> bool:
    return not dev.processes()


def test_it_starts_runs_flows_and_leaves_nothing_after_ctrl_c(dev: Dev) -> None:
    server = dev.folder / "server.py"
    server.write_text(SERVER)
    (dev.folder / "stepflow-config.yml").write_text(CONFIG % server)
    (dev.folder / "flow.yaml").write_text(
        "name: f\nsteps:\n  - {id: a, component: /own/echo, input: {text: {$input: t}}}\noutput: {$step: a}\n"
    )
    dev.start("--executors", "2", "--hosts", "2")
    assert set(dev.ready["services"]) == {"etcd", "control_plane", "executor-1", "executor-2", "host-1", "host-2"}
    assert dev.ready["server"] == dev.server
    assert f"the mesh is ready at {dev.server}" in dev.said
    assert len(dev.processes()) >= 8  # and the two component servers
    assert stat.S_IMODE((dev.folder / ".stepflow").stat().st_mode) == 0o700, "it holds what users' flows handle"
    assert stat.S_IMODE((dev.folder / ".stepflow" / "dev").stat().st_mode) == 0o700
    assert (dev.folder / ".stepflow" / ".gitignore").read_text() == "*\n"
    done = dev.cli("submit", "--flow", "flow.yaml", "--input-json", '{"t": "hi"}')
    assert (done.returncode, done.stdout) == (0, '{"outcome":"success","result":"hi"}\n')

    # In its folder, commands find the mesh by themselves, and the folder's runs again when it has stopped.
    unnamed = {name: text for name, text in dev.environ().items() if name != "STEPFLOW_SERVER"}
    shown = json.loads(run_cli(["runs", "show", "last", "--json"], cwd=dev.folder, env=unnamed).stdout)
    assert (shown["status"], shown["labels"]["flow"]) == ("completed", "flow.yaml")
    again = run_cli(["submit", "flow.yaml", "--input", '{"t": "a"}', "-q"], cwd=dev.folder, env=unnamed)
    assert again.stdout == '{"outcome":"success","result":"a"}\n'

    assert dev.stop(signal.SIGINT) == 0
    assert "no runs in .stepflow" in run_cli(["runs", "list"], cwd=dev.folder, env=unnamed).stderr
    assert dev.processes() == {}
    assert "the mesh has stopped" in dev.said
    assert "was killed" not in dev.said
    assert dev.said.count("restarting it") == 0
    with socket.create_server(("127.0.0.1", dev.port)):  # the port is free again
        pass


def test_a_run_goes_on_at_the_next_start_and_reset_forgets_it(dev: Dev) -> None:
    (dev.folder / "flow.yaml").write_text(SLEEPS)
    dev.start()
    run_id = dev.cli("submit", "--flow", "flow.yaml", "--input-json", "1", "--no-wait").stdout.strip()
    assert dev.process is not None
    dev.process.send_signal(signal.SIGHUP)
    assert dev.stop(signal.SIGTERM) == 0, "one request seen twice is one orderly stop"
    dev.start()
    done = dev.cli("runs", "watch", run_id)
    assert (done.returncode, done.stdout) == (0, '{"outcome":"success","result":{"duration_ms":3000}}\n')
    dev.stop()
    dev.start("--reset")
    assert dev.json("runs", "list") == {"runs": []}


def test_a_taken_port_is_named_with_a_way_out_and_nothing_is_started(dev: Dev) -> None:
    with socket.create_server(("127.0.0.1", dev.port)):
        done = dev.cli("dev", "--port", str(dev.port))
    assert done.returncode == 1
    assert "error[PORT_TAKEN]" in done.stderr
    assert str(dev.port) in done.stderr
    assert "stepflow dev --port " in done.stderr
    assert "Traceback" not in done.stderr
    assert dev.processes() == {}


def test_a_service_that_dies_at_the_start_ends_it_with_its_last_words(
    dev: Dev, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = dev.folder / "broken-etcd"
    broken.write_text(
        '#!/bin/sh\n[ "$1" = --version ] && echo "etcd Version: 3.5.30" && exit 0\n'
        f'sleep 1000 "{dev.folder}" &\necho "the disk is made of cheese" >&2\nexit 3\n'
    )
    broken.chmod(0o700)
    environ = {**dev.environ(), "ETCD_BIN": str(broken)}
    monkeypatch.setattr(Dev, "environ", lambda _: environ)
    done = dev.cli("dev", "--port", str(dev.port))
    assert done.returncode == 1
    assert "error[SERVICE_START_FAILED]: etcd ended with code 3" in done.stderr
    assert "the disk is made of cheese" in done.stderr
    assert "etcd.log" in done.stderr
    assert dev.processes() == {}, "what it had started is gone, too"


def test_a_broken_config_is_told_before_anything_starts(dev: Dev) -> None:
    (dev.folder / "stepflow-config.yml").write_text("plugins: {x: {type: nonsense}}\n")
    done = dev.cli("dev", "--port", str(dev.port))
    assert done.returncode == 1
    assert "stepflow-config.yml" in done.stderr
    assert not (dev.folder / ".stepflow").exists()


def test_ctrl_c_while_it_starts_leaves_nothing(dev: Dev) -> None:
    dev.launch()
    wait_until(lambda: dev.pid_of("control_plane"), "the services are starting", 30)
    assert dev.stop() == 0
    assert dev.processes() == {}


def test_services_that_are_killed_come_back_and_a_second_mesh_is_refused(tmp_path: Path) -> None:
    (tmp_path / "flow.yaml").write_text(SLEEPS.replace("3000", "1"))
    with dev_mesh(tmp_path) as dev:
        second = dev.cli("dev", "--port", str(dev.port + 1 if dev.port < 65535 else 1024))
        assert second.returncode == 1
        assert "error[DEV_RUNNING]" in second.stderr
        assert dev.server in second.stderr
        for name in ("executor-1", "host-1", "control_plane", "etcd"):
            killed = dev.pid_of(name)
            os.kill(killed, signal.SIGKILL)
            dev.wait_for(f"{name} was killed by SIGKILL; restarting it")
            dev.wait_for(f"{name} is back at", 30)
            assert dev.pid_of(name) not in (0, killed)
        done = dev.cli("submit", "--flow", "flow.yaml", "--input-json", "1", "--quiet")
        assert done.returncode == 0, done.stderr
        assert dev.stop() == 0
        assert dev.processes() == {}


def test_nothing_outlives_a_killed_supervisor(dev: Dev) -> None:
    server = dev.folder / "server.py"
    server.write_text(SERVER)
    (dev.folder / "stepflow-config.yml").write_text(CONFIG % server)
    dev.start()
    pids = [service["pid"] for service in dev.ready["services"].values()]
    assert all(map(is_alive, pids))
    assert dev.stop(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: gone(dev), "all of it is gone", 15)
    dev.start()  # and the folder can be used again
    assert dev.stop() == 0


def test_a_plugin_that_does_not_start_is_told(tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text("raise SystemExit('no licence for cheese')\n")
    (tmp_path / "stepflow-config.yml").write_text(CONFIG % (tmp_path / "server.py"))
    with dev_mesh(tmp_path) as dev:
        dev.wait_for("plugin own failed to start")
        assert "no licence for cheese" in dev.said
        assert dev.stop(signal.SIGTERM) == 0
        assert dev.processes() == {}
