"""The manifests: rendered by kubectl, valid, consistent with the services, and started as processes."""

from __future__ import annotations

import asyncio
import base64
import os
import re
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from importlib import import_module
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, build_opener

import pytest
import yaml
from support import ROOT, free_port, text_of, wait_until
from support.etcd import etcd_binary
from support.health import SERVING, health_of
from support.kubernetes import KUBERNETES_VERSIONS, MANIFESTS, command_of, container_of, faults, of_kind, render

from component_host.__main__ import DRAIN_GRACE_S
from control_plane.__main__ import DEFAULT_PORT
from control_plane.api.server import STOP_GRACE_S
from executor.__main__ import HAND_OVER_GRACE_S
from stepflow.client import Client
from stepflow.rpc.health import LIVENESS, READINESS, STORE_LOST_S_MAX
from stepflow.rpc.tls import Tls, parse_address
from stepflow.store.lease import LEASE_TTL_S

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator
    from pathlib import Path

OVERLAYS = {"base": MANIFESTS / "base", "dev": MANIFESTS / "overlays" / "dev"}

SERVICES = {
    "stepflow-control-plane": "control_plane",
    "stepflow-executor": "executor",
    "stepflow-component-host": "component_host",
}

END_MARGIN_S = 10
"""Time for the shutdown after the drain: closing streams, ending the process groups of servers."""

FIELDS = {"metadata.name": "pod-0", "metadata.namespace": "stepflow", "status.podIP": "10.0.0.7"}

READY_S = 60.0

overlays = pytest.mark.parametrize("overlay", OVERLAYS)


def options_of(overlay: str, deployment: str) -> argparse.Namespace:
    """Return the options of a service as its own parser reads them from the manifest."""
    container = container_of(of_kind(render(OVERLAYS[overlay]), "Deployment")[deployment])
    python, flag, module, *arguments = command_of(container, FIELDS)
    assert (python, flag, module) == ("python", "-m", SERVICES[deployment])
    options: argparse.Namespace = import_module(f"{module}.__main__").parser().parse_args(arguments)
    return options


# -- valid --------------------------------------------------------------------------------------------------------


@overlays
@pytest.mark.parametrize("version", KUBERNETES_VERSIONS)
def test_every_resource_is_valid_and_has_no_unknown_field(overlay: str, version: str) -> None:
    resources = render(OVERLAYS[overlay])
    assert len(resources) >= 12
    assert [fault for resource in resources if (fault := faults(resource, version))] == []


@pytest.mark.parametrize("field", ["terminationGracePeriodSecond", "livenesProbe"])
def test_a_field_with_a_typing_mistake_is_found(field: str) -> None:
    deployment = deepcopy(of_kind(render(OVERLAYS["base"]), "Deployment")["stepflow-executor"])
    pod = deployment["spec"]["template"]["spec"]
    (pod if field.startswith("term") else pod["containers"][0])[field] = 1
    assert f"'{field}' was unexpected" in faults(deployment, KUBERNETES_VERSIONS[-1])


@overlays
def test_everything_that_is_named_exists(overlay: str) -> None:
    resources = render(OVERLAYS[overlay])
    names = {(item["kind"], item["metadata"]["name"]) for item in resources}
    # What people bring; the second ones only if they like.
    brought = {("Secret", "etcd-tls"), ("Secret", "stepflow-tls")} if overlay == "base" else set()
    for workload in workloads(resources):
        pod = workload["spec"]["template"]["spec"]
        claims = {template["metadata"]["name"] for template in workload["spec"].get("volumeClaimTemplates", ())}
        volumes = {volume["name"] for volume in pod["volumes"]} | claims
        assert {mount["name"] for mount in container_of(workload)["volumeMounts"]} == volumes
        for volume in pod["volumes"]:
            for kind, key, name in (
                ("Secret", "secret", "secretName"),
                ("ConfigMap", "configMap", "name"),
                ("PersistentVolumeClaim", "persistentVolumeClaim", "claimName"),
            ):
                if key in volume:
                    assert (kind, volume[key][name]) in names | brought
        assert all(source["secretRef"]["optional"] for source in container_of(workload).get("envFrom", ()))
        labels = workload["spec"]["template"]["metadata"]["labels"]
        (budget,) = (
            item for item in of_kind(resources, "PodDisruptionBudget").values() if selects(item["spec"], labels)
        )
        assert budget["spec"]["maxUnavailable"] == 1
    for service in of_kind(resources, "Service").values():
        (selected,) = (
            item
            for item in workloads(resources)
            if service["spec"]["selector"].items() <= item["spec"]["template"]["metadata"]["labels"].items()
        )
        ports = {port["containerPort"] for port in container_of(selected)["ports"]}
        assert {port["port"] for port in service["spec"]["ports"]} <= ports
        assert service["spec"]["clusterIP"] == "None", "clients balance by themselves: each address counts"


def selects(spec: dict[str, Any], labels: dict[str, str]) -> bool:
    return bool(spec["selector"]["matchLabels"].items() <= labels.items())


def workloads(resources: list[dict[str, Any]]) -> list[dict[str, Any]]:
    found = [item for item in resources if item["kind"] in ("Deployment", "StatefulSet")]
    assert len(found) == 4
    return found


@overlays
def test_every_pod_is_restricted(overlay: str) -> None:
    resources = render(OVERLAYS[overlay])
    assert of_kind(resources, "Namespace")["stepflow"]["metadata"]["labels"] == {
        "app.kubernetes.io/part-of": "stepflow-mesh",
        "pod-security.kubernetes.io/enforce": "restricted",
    }
    for workload in workloads(resources):
        pod, container = workload["spec"]["template"]["spec"], container_of(workload)
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"].keys() >= {"cpu", "memory"}
        assert "memory" in container["resources"]["limits"]


# -- true to the services -----------------------------------------------------------------------------------------


@overlays
@pytest.mark.parametrize("deployment", SERVICES)
def test_ports_and_probes_are_those_of_the_service(overlay: str, deployment: str) -> None:
    options = options_of(overlay, deployment)
    module = import_module(f"{SERVICES[deployment]}.__main__")
    container = container_of(of_kind(render(OVERLAYS[overlay]), "Deployment")[deployment])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    port = parse_address(options.listen)[1]
    default = parse_address(module.parser().parse_args(["--etcd=e:1", "--blobs=b"]).listen)[1]
    assert port == default == ports["grpc"] == parse_address(options.advertise)[1]
    assert options.advertise.startswith(FIELDS["status.podIP"])
    assert ports["health"] == parse_address(options.health_listen)[1]
    for probe, name in (("startupProbe", LIVENESS), ("livenessProbe", LIVENESS), ("readinessProbe", READINESS)):
        assert container[probe]["grpc"] == {"port": ports["health"], "service": name}
    if deployment == "stepflow-control-plane":
        (service,) = of_kind(render(OVERLAYS[overlay]), "Service")["stepflow-control-plane"]["spec"]["ports"]
        assert service["port"] == port == DEFAULT_PORT


@overlays
@pytest.mark.parametrize("deployment", SERVICES)
def test_grace_periods_leave_time_for_the_drain(overlay: str, deployment: str) -> None:
    options = options_of(overlay, deployment)
    workload = of_kind(render(OVERLAYS[overlay]), "Deployment")[deployment]
    drain_s = {
        "stepflow-control-plane": lambda: STOP_GRACE_S,
        "stepflow-executor": lambda: HAND_OVER_GRACE_S,
        "stepflow-component-host": lambda: options.drain_grace,
    }[deployment]()
    container = container_of(workload)
    pre_stop_s = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    grace_s = workload["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    assert grace_s >= pre_stop_s + drain_s + END_MARGIN_S
    if deployment == "stepflow-component-host":
        assert options.drain_grace >= DRAIN_GRACE_S


@overlays
@pytest.mark.parametrize("deployment", SERVICES)
def test_probes_do_not_act_before_the_mesh_itself_has(overlay: str, deployment: str) -> None:
    container = container_of(of_kind(render(OVERLAYS[overlay]), "Deployment")[deployment])
    liveness, readiness = container["livenessProbe"], container["readinessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > LEASE_TTL_S, "a lease is lost before a restart"
    assert readiness["failureThreshold"] == 1, "the service has waited already"
    assert readiness["periodSeconds"] < STORE_LOST_S_MAX


@overlays
def test_the_quota_of_the_control_plane_is_that_of_etcd(overlay: str) -> None:
    options = options_of(overlay, "stepflow-control-plane")
    etcd = command_of(container_of(of_kind(render(OVERLAYS[overlay]), "StatefulSet")["etcd"]), FIELDS)
    assert f"--quota-backend-bytes={options.etcd_quota_bytes}" in etcd
    for flag in ("--auto-compaction-mode=periodic", "--auto-compaction-retention=5m", "--snapshot-count=5000"):
        assert flag in etcd


@overlays
@pytest.mark.parametrize("deployment", SERVICES)
def test_every_endpoint_of_etcd_is_a_member(overlay: str, deployment: str) -> None:
    etcd = of_kind(render(OVERLAYS[overlay]), "StatefulSet")["etcd"]
    scheme = "https" if overlay == "base" else "http"
    names = [f"{scheme}://etcd-{n}.{etcd['spec']['serviceName']}.stepflow.svc" for n in range(etcd["spec"]["replicas"])]
    assert options_of(overlay, deployment).etcd == ",".join(f"{name}:2379" for name in names)
    members = ",".join(f"etcd-{n}={name}:2380" for n, name in enumerate(names))
    assert f"--initial-cluster={members}" in command_of(container_of(etcd), FIELDS)


@pytest.mark.parametrize("deployment", SERVICES)
def test_the_base_is_secured_and_dev_says_that_it_is_not(deployment: str) -> None:
    base, dev = options_of("base", deployment), options_of("dev", deployment)
    assert (base.insecure, dev.insecure) == (False, True)
    assert None not in (base.tls_cert, base.tls_key, base.tls_ca, base.etcd_ca, base.etcd_cert, base.etcd_key)


# -- started ------------------------------------------------------------------------------------------------------


class Cluster:
    """The containers of an overlay as processes on this machine; names, ports and folders are changed to be ours."""

    def __init__(self, overlay: str, folder: Path) -> None:
        self.folder = folder
        self.resources = render(OVERLAYS[overlay])
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.members = of_kind(self.resources, "StatefulSet")["etcd"]["spec"]["replicas"]
        self.ports = {
            f"etcd-{n}.etcd.stepflow.svc:{port}": free_port() for n in range(self.members) for port in (2379, 2380)
        }
        self.health: dict[str, str] = {}
        self.metrics: list[str] = []
        (config,) = of_kind(self.resources, "ConfigMap").values()
        (folder / "config").mkdir()
        for name, text in config["data"].items():
            (folder / "config" / name).write_text(text, encoding="utf-8")

    def start(self) -> None:
        etcd = container_of(of_kind(self.resources, "StatefulSet")["etcd"])
        for number in range(self.members):
            name = f"etcd-{number}"
            place = f"{name}.etcd.stepflow.svc"
            self.metrics.append(f"127.0.0.1:{free_port()}")
            swaps = {
                "0.0.0.0:2379": f"127.0.0.1:{self.ports[f'{place}:2379']}",
                "0.0.0.0:2380": f"127.0.0.1:{self.ports[f'{place}:2380']}",
                "0.0.0.0:2381": self.metrics[-1],
                "/etc/etcd/tls": str(self.folder / "etcd-tls"),
                "/var/lib/etcd": str(self.folder / name),
            }
            self._launch(name, etcd, swaps)
        for deployment, workload in of_kind(self.resources, "Deployment").items():
            container = container_of(workload)
            port = container["ports"][0]["containerPort"]
            mine, self.health[deployment] = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
            swaps = {
                "0.0.0.0:7850": self.health[deployment],
                f"0.0.0.0:{port}": mine,
                f"127.0.0.1:{port}": mine,
                "/etc/stepflow/tls": str(self.folder / "stepflow-tls"),
                "/etc/stepflow/config": str(self.folder / "config"),
                "/var/lib/stepflow/blobs": str(self.folder / "blobs"),
            }
            self._launch(deployment, container, swaps)
            if deployment == "stepflow-control-plane":
                self.address = mine

    def _launch(self, name: str, container: dict[str, Any], swaps: dict[str, str]) -> None:
        fields = {"metadata.name": name, "metadata.namespace": "stepflow", "status.podIP": "127.0.0.1"}
        here = {**swaps, **{place: f"127.0.0.1:{port}" for place, port in self.ports.items()}}
        pattern = re.compile("|".join(map(re.escape, sorted(here, key=len, reverse=True))))
        program, *arguments = (
            pattern.sub(lambda found: here[found[0]], text) for text in command_of(container, fields)
        )
        program = {"etcd": str(etcd_binary().path), "python": sys.executable}[program]
        with self.log(name).open("wb") as log:
            self.processes[name] = subprocess.Popen(
                [program, *arguments],
                cwd=self.folder,
                env={"PATH": os.environ["PATH"], "HOME": str(self.folder), "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def wait_ready(self) -> None:
        def ready() -> bool:
            for name, process in self.processes.items():
                assert process.poll() is None, f"{name} ended:\n{text_of(self.log(name))[-2000:]}"
            etcd = all(answers(address, path) for address in self.metrics for path in ("livez", "readyz"))
            return etcd and all(health_of(address, READINESS) == SERVING for address in self.health.values())

        wait_until(ready, "every pod is ready by its probes", READY_S)

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()


def answers(address: str, path: str) -> bool:
    try:
        with build_opener(ProxyHandler({})).open(f"http://{address}/{path}", timeout=2) as reply:
            return bool(reply.status == 200)
    except (OSError, HTTPError):
        return False


@contextmanager
def cluster(overlay: str, folder: Path) -> Iterator[Cluster]:
    with ExitStack() as stack:
        made = Cluster(overlay, folder)
        stack.callback(made.close)
        yield made


def run_a_flow(address: str, tls: Tls | None) -> None:
    step = {"id": "s", "component": "/builtin/create_messages", "input": {"user_prompt": "hello"}}

    async def scenario() -> None:
        async with Client(address, tls=tls) as client:
            run_id = await client.submit({"steps": [step], "output": {"$step": "s"}}, 1)
            assert (await client.wait(run_id, timeout_s=READY_S)).status == "completed"

    asyncio.run(asyncio.wait_for(scenario(), READY_S))


def test_what_the_dev_overlay_starts_runs_a_flow(tmp_path: Path) -> None:
    with cluster("dev", tmp_path) as made:
        made.start()
        made.wait_ready()
        run_a_flow(made.address, None)


def test_what_the_base_starts_runs_a_flow_with_certificates_of_the_script(tmp_path: Path) -> None:
    """Three members of etcd; TLS on every connection, each side with a certificate, names checked."""
    keys = tmp_path / "keys"
    issue_certificates(keys, tmp_path)
    with cluster("base", tmp_path) as made:
        made.start()
        made.wait_ready()
        run_a_flow(made.address, Tls(keys / "client.crt", keys / "client.key", keys / "ca.crt"))


def issue_certificates(keys: Path, secrets: Path) -> None:
    """Run the script, and unpack its Secrets as the kubelet mounts them."""
    made = subprocess.run(
        [str(MANIFESTS / "certificates.sh"), "stepflow", str(keys)], capture_output=True, text=True, check=True
    )
    assert made.stderr == ""
    for secret in yaml.safe_load_all(made.stdout):
        assert faults(secret, KUBERNETES_VERSIONS[-1]) == ""
        assert secret["metadata"]["namespace"] == "stepflow"
        folder = secrets / secret["metadata"]["name"]
        folder.mkdir()
        for name, content in secret["data"].items():
            (folder / name).write_bytes(base64.b64decode(content))
    assert keys.stat().st_mode & 0o077 == 0
    assert (keys / "ca.key").stat().st_mode & 0o077 == 0
