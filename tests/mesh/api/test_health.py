"""Health checks of the real services while etcd is stopped, recovers or has not started, and while they drain."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import free_port, wait_until
from support.authority import Authority
from support.etcd import EtcdServer, running_etcd
from support.health import NOT_SERVING, SERVING, health_of
from support.mesh import Gate, Processes, Service, gated_config, processes

from control_plane.admission import RunRequest
from stepflow.client import Client
from stepflow.codec import encode
from stepflow.flow import flow_from_tree
from stepflow.rpc.health import LIVENESS, READINESS, STORE_LOST_S_MAX
from stepflow.rpc.tls import Tls

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SERVICES = ("control_plane", "executor", "component_host")

KNOWN_S = 2 * STORE_LOST_S_MAX
"""The bound, and as much again for a busy machine."""


@pytest.fixture
def etcd(tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd", "--unsafe-no-fsync") as server:
        yield server


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def start(mesh: Processes, service: str, *args: str, wait: bool = True) -> tuple[Service, str]:
    """Start a service, and return it with the address that its probes ask."""
    address = f"127.0.0.1:{free_port()}"
    return mesh.start(service, "--health-listen", address, *args, wait=wait), address


def wait_for(address: str, service: str, status: str, timeout_s: float = KNOWN_S) -> None:
    wait_until(lambda: health_of(address, service) == status, f"{service} of {address} is {status}", timeout_s)


def test_readiness_follows_the_store_and_liveness_does_not(mesh: Processes, etcd: EtcdServer) -> None:
    started = [start(mesh, service) for service in SERVICES]
    addresses = [probed for service, address in started for probed in (address, service.address)]
    for address in addresses:
        assert [health_of(address, name) for name in (LIVENESS, READINESS, "")] == [SERVING] * 3
    etcd.kill()
    for address in addresses:
        wait_for(address, READINESS, NOT_SERVING)
        assert [health_of(address, name) for name in (LIVENESS, "")] == [SERVING, NOT_SERVING]
    etcd.start()
    for address in addresses:
        wait_for(address, READINESS, SERVING)
        assert health_of(address, LIVENESS) == SERVING
    assert all(service.process.poll() is None for service, _ in started)


def test_an_etcd_that_hangs_for_a_moment_changes_nothing_and_one_that_hangs_on_does(
    mesh: Processes, etcd: EtcdServer
) -> None:
    _, address = start(mesh, "executor")
    etcd.stop()
    wait_for(address, READINESS, NOT_SERVING)
    etcd.go_on()
    wait_for(address, READINESS, SERVING)


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_waits_for_the_store_is_alive_and_not_ready(
    mesh: Processes, etcd: EtcdServer, service: str
) -> None:
    etcd.kill()
    started, address = start(mesh, service, wait=False)
    wait_for(address, LIVENESS, SERVING)
    assert health_of(address, READINESS) == NOT_SERVING
    etcd.start()
    started.wait_ready()
    assert health_of(address, READINESS) == SERVING


def test_a_service_that_drains_is_alive_and_not_ready(mesh: Processes, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    gate.allow(0)
    host, address = start(mesh, "component_host", "--config", str(gated_config(tmp_path)))
    mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control:
            step = {"id": "s", "component": "/gated/work", "input": {"$input": "$"}}
            flow = flow_from_tree({"steps": [step], "output": {"$step": "s"}})
            run_id = await control.submit(RunRequest(flow=flow, inputs=[encode(1)]))
            await gate.wait_for(1)
            host.ask_to_end()
            await asyncio.to_thread(wait_for, address, READINESS, NOT_SERVING)
            assert await asyncio.to_thread(health_of, address, LIVENESS) == SERVING
            gate.allow(1)
            assert (await control.wait(run_id, timeout_s=30)).status == "completed"

    asyncio.run(asyncio.wait_for(scenario(), 90))
    assert host.process.wait(30) == 0


def test_a_hanging_process_does_not_answer_its_liveness_probe(mesh: Processes) -> None:
    executor, address = start(mesh, "executor")
    executor.pause()
    assert health_of(address, LIVENESS, answer_s=0.5) == "DEADLINE_EXCEEDED"
    executor.go_on()
    wait_for(address, LIVENESS, SERVING)


def test_probes_need_no_certificate_and_services_may_bear_one_name(mesh: Processes, tmp_path: Path) -> None:
    """As in a cluster: addresses of pods, which no certificate can know, and one name for all."""
    authority = Authority(tmp_path, "stepflow-mesh")
    cert, key = authority.issue("pod")
    tls = ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(authority.ca), "--tls-name", "stepflow-mesh")
    control, control_health = start(mesh, "control_plane", *tls)
    _, host_health = start(mesh, "component_host", *tls)
    start(mesh, "executor", *tls)
    assert [health_of(address, READINESS) for address in (control_health, host_health)] == [SERVING] * 2
    assert health_of(control.address, READINESS) == "UNAVAILABLE"

    async def scenario() -> None:
        step = {"id": "s", "component": "/builtin/create_messages", "input": {"user_prompt": "hello"}}
        flow = {"steps": [step], "output": {"$step": "s"}}
        async with Client(control.address, tls=Tls(cert, key, authority.ca, "stepflow-mesh")) as client:
            run_id = await client.submit(flow, 1)
            assert (await client.wait(run_id, timeout_s=30)).status == "completed"

    asyncio.run(asyncio.wait_for(scenario(), 60))
