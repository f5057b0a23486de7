"""A mesh whose processes have proxy variables in their environment: none of its connections may use a proxy."""

from __future__ import annotations

import json
import sys
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import ROOT, run_cli
from support.dev import dev_mesh
from support.environment_proxy import environ_with, recording_proxy
from support.mesh import processes

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.environment_proxy import RecordingProxy
    from support.etcd import EtcdServer

DEAD = "http://127.0.0.1:9"

CONFIG = f"""
plugins:
  builtin: {{type: builtin}}
  lines: {{type: stepflow, command: "{sys.executable}", args: [server.py], env: {{PYTHONPATH: "{ROOT}"}}}}
  posts:
    {{type: stepflow, transport: http, command: "{sys.executable}", args: [server.py, --http], inheritEnv: true,
      env: {{PYTHONPATH: "{ROOT}"}}}}
  pulls: {{type: grpc, queueName: q, command: "{sys.executable}", args: [server.py], env: {{PYTHONPATH: "{ROOT}"}}}}
routes:
  "/builtin": [{{plugin: builtin}}]
  "/lines": [{{plugin: lines}}]
  "/posts": [{{plugin: posts}}]
  "/pulls": [{{plugin: pulls}}]
"""

SERVER = """
import sys
from stepflow.component import Context, component, serve

@component
async def keep(context: Context, text: str) -> str:
    blob = await context.put_blob({"text": text})
    return (await context.get_blob(blob))["text"] + "!"

serve(http=True if "--http" in sys.argv else None)
"""

FLOW = """
name: all
steps:
  - {id: lines, component: /lines/keep, input: {text: {$input: text}}}
  - {id: posts, component: /posts/keep, input: {text: {$step: lines}}}
  - {id: pulls, component: /pulls/keep, input: {text: {$step: posts}}}
output: {$step: pulls}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("stepflow-config.yml", CONFIG), ("server.py", SERVER), ("flow.yaml", FLOW)):
        (tmp_path / name).write_text(text)
    return tmp_path


@contextmanager
def proxied(kind: str) -> Iterator[tuple[dict[str, str], RecordingProxy | None]]:
    """Give an environment with a proxy of this kind, and the proxy if it records."""
    with recording_proxy() if kind == "recording" else nullcontext() as proxy:
        yield (environ_with(DEAD) if proxy is None else proxy.environ), proxy


@pytest.mark.parametrize("kind", ["dead", "recording"])
def test_services_clients_and_servers_of_a_mesh_use_no_proxy_among_themselves(
    etcd: EtcdServer, folder: Path, kind: str
) -> None:
    with proxied(kind) as (environ, proxy), processes(etcd, folder, f"{uuid4().hex[:12]}/") as mesh:
        mesh.host(folder / "stepflow-config.yml", env=environ)
        mesh.executor(env=environ)
        control = mesh.control_plane(env=environ)
        settings = {**environ, "STEPFLOW_SERVER": control.address}

        done = run_cli(["submit", "--flow", "flow.yaml", "--input-json", '{"text": "a"}'], cwd=folder, env=settings)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"outcome": "success", "result": "a!!!"}
        for command in (["runs", "list"], ["cluster", "status"], ["components", "list"]):
            done = run_cli(command, cwd=folder, env=settings)
            assert done.returncode == 0, done.stderr

        if proxy is not None:
            assert proxy.asked == []


def test_the_mesh_of_one_machine_starts_and_runs_flows_with_a_proxy_in_the_environment(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with recording_proxy() as proxy:
        for name, value in proxy.environ.items():
            monkeypatch.setenv(name, value)
        with dev_mesh(folder, "--config", "stepflow-config.yml") as dev:
            done = dev.cli("submit", "--flow", "flow.yaml", "--input-json", '{"text": "a"}')
            assert done.returncode == 0, done.stderr
        assert proxy.asked == []


def test_a_run_without_a_mesh_uses_no_proxy_to_its_servers(folder: Path) -> None:
    with recording_proxy() as proxy:
        command = ["run", "--flow", "flow.yaml", "--input-json", '{"text": "a"}']
        done = run_cli(command, cwd=folder, env=proxy.environ)
        assert done.returncode == 0, done.stderr
        assert proxy.asked == []


def test_a_command_names_the_proxy_on_the_way_to_a_server_that_it_cannot_reach(tmp_path: Path) -> None:
    with recording_proxy() as proxy:
        done = run_cli(["runs", "list", "--server", "mesh.invalid:7840"], cwd=tmp_path, env=proxy.environ)
        assert done.returncode != 0
        assert f"mesh.invalid:7840 through the proxy {proxy.shown} that `grpc_proxy` names" in done.stderr
        assert set(proxy.asked) == {"mesh.invalid:7840"}
