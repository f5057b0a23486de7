"""The services of a mesh on this machine: command lines and readiness probes.

All of them listen on loopback: the control plane on the configured port, the others on free ones.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.dev.folder import DevFolder
from stepflow.dev.ports import HOST, free_port
from stepflow.dev.service_process import Service
from stepflow.errors import Invalid
from stepflow.telemetry import is_enabled

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.dev.etcd_binary import EtcdBinary

DEFAULT_PORT = 7840

READY_TIMEOUT_S = 30.0

HOST_READY_TIMEOUT_S = 120.0
"""Longer than `READY_TIMEOUT_S`: a host may start many component servers."""

HOST_DRAIN_GRACE_S = 0.5
"""Passed to hosts. Short: executors end before hosts, so no executor is left to collect results."""

ETCD_FLAGS = (
    "--snapshot-count=5000",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=5m",
    "--quota-backend-bytes=4294967296",
    "--logger=zap",
    "--log-level=warn",
)
"""The control plane compacts, and measures the fill against the quota; etcd's own compaction is the backstop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevSettings:
    """What to start, and where. Without a `config`, hosts offer the builtin components only."""

    folder: Path
    config: Path | None = None
    port: int = DEFAULT_PORT
    executors: int = 1
    hosts: int = 1

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise Invalid("PORT_INVALID", f"a port is 1 to 65535, not {self.port}")
        if self.executors < 1 or self.hosts < 1:
            raise Invalid("SERVICES_INVALID", "a mesh has at least one executor and one host")


def etcd_service(binary: EtcdBinary, settings: DevSettings) -> Service:
    """Return an etcd of one member, ready when healthy."""
    client, peer = f"http://{HOST}:{free_port()}", f"http://{HOST}:{free_port()}"
    command = [
        str(binary.path),
        "--name=dev",
        f"--data-dir={settings.folder / 'etcd'}",
        f"--listen-client-urls={client}",
        f"--advertise-client-urls={client}",
        f"--listen-peer-urls={peer}",
        f"--initial-advertise-peer-urls={peer}",
        f"--initial-cluster=dev={peer}",
        *ETCD_FLAGS,
    ]
    address = client.removeprefix("http://")

    async def probe() -> str | None:
        return address if await _is_healthy(address) else None

    # Variables named ETCD_… are settings of etcd, too: those of the environment belong to another etcd.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    return Service("etcd", command, DevFolder(settings.folder).log("etcd"), probe, environ=environ)


def mesh_services(settings: DevSettings, etcd: str) -> list[Service]:
    """Return control plane, executors and hosts that use the etcd at this address."""
    folder = DevFolder(settings.folder)
    level = "debug" if is_enabled("debug") else "info"
    shared = ["--etcd", etcd, "--blobs", str(folder.blobs), "--log-level", level]
    config = [] if settings.config is None else ["--config", str(settings.config)]
    any_port = ("--listen", f"{HOST}:0")

    def service(name: str, module: str, *args: str) -> Service:
        # -P: a folder in the working directory with the name of a service must not be imported instead.
        command = [sys.executable, "-P", "-m", module, *shared, *args]
        return Service(name, command, folder.log(name))

    def executor(name: str) -> Service:
        return service(name, "executor", *any_port, "--name", name)

    def host(name: str) -> Service:
        # --replace-routes: the routes of the present config replace those that an earlier start has stored.
        args = ("--host-id", name, "--replace-routes", "--drain-grace", f"{HOST_DRAIN_GRACE_S:g}")
        return service(name, "component_host", *any_port, *config, *args)

    return [
        # One control plane: no other one must be updated before the present formats are written.
        service(
            "control_plane", "control_plane", "--listen", f"{HOST}:{settings.port}", "--formats-grace", "0", *config
        ),
        *(executor(f"executor-{n + 1}") for n in range(settings.executors)),
        *(host(f"host-{n + 1}") for n in range(settings.hosts)),
    ]


def ready_timeout_s(service: Service) -> float:
    """Return how long a service may take to become ready."""
    return HOST_READY_TIMEOUT_S if service.name.startswith("host-") else READY_TIMEOUT_S


async def _is_healthy(address: str) -> bool:
    """Return True if the etcd at this address reports itself healthy."""
    host, _, port = address.rpartition(":")
    try:
        async with asyncio.timeout(1):
            reader, writer = await asyncio.open_connection(host, int(port))
            try:
                writer.write(f"GET /health HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n".encode())
                return b'"true"' in await reader.read(4096)
            finally:
                writer.close()
                with contextlib.suppress(OSError):
                    await writer.wait_closed()
    except (OSError, TimeoutError):
        return False
