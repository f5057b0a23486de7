"""The whole mesh on one machine: etcd and the three services as processes, kept alive until they are told to end.

    <folder>/etcd/        what etcd keeps: flows, runs, journals
    <folder>/blobs/       payloads too large for it
    <folder>/logs/        a log per service, of the last start
    <folder>/lock         held by the process that uses the folder; says which, and where its mesh listens

- One `stepflow dev` per folder. Runs that had not ended when it stopped go on at its next start.
- A service that dies at the start ends the start, with its last words. One that dies later is started again, after a
  pause that grows as long as it keeps dying, and people are told.
- Ending goes in the order in which the parts need each other: executors (which hand their runs over), then hosts and
  control plane, then etcd. Whoever takes too long is killed. Nothing is left.
- Everything listens on loopback only; the control plane on the port that was asked for, the rest on free ones.

Not here: how one process is started and ended (`stepflow.dev.service_process`), signals and what people type (the CLI).
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import json
import os
import shutil
import signal
import socket
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stepflow.dev.etcd_binary import EtcdBinary, find_etcd
from stepflow.dev.service_process import Service
from stepflow.errors import Invalid, Refused, StepflowError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

HOST = "127.0.0.1"

DEFAULT_PORT = 7840

READY_TIMEOUT_S = 30.0
"""For one service, except a host that starts many component servers."""

HOST_READY_TIMEOUT_S = 120.0

RESTART_DELAY_MIN_S = 0.5
RESTART_DELAY_MAX_S = 10.0
CALM_S = 30.0
"""Whoever has lived this long gets the shortest pause again."""

assert CALM_S > RESTART_DELAY_MAX_S

EXECUTOR_GRACE_S = 5.0
HOST_DRAIN_GRACE_S = 0.5
SERVICE_GRACE_S = 5.0
ETCD_GRACE_S = 5.0

assert SERVICE_GRACE_S > HOST_DRAIN_GRACE_S + 2  # the component servers get their time after it

ETCD_FLAGS = (
    "--snapshot-count=5000",
    "--auto-compaction-mode=periodic",
    "--auto-compaction-retention=5m",
    "--quota-backend-bytes=4294967296",
    "--logger=zap",
    "--log-level=warn",
)
"""Compaction is etcd's own; the quota is what the control plane measures its fill against."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DevSettings:
    """What to start, and where. `config` None: the builtin components alone."""

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


class DevMesh:
    """The processes of one mesh, from `start` to `stop`. `say` gets a line for people when something happens."""

    def __init__(self, settings: DevSettings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.etcd_version = ""
        self.services: list[Service] = []
        """In the order of their start: etcd, control plane, executors, hosts."""
        self._say = say
        self._lock: int | None = None
        self._keepers: list[asyncio.Task[None]] = []
        self._stopping = False

    @property
    def server(self) -> str:
        """What clients are given as `--server`."""
        return f"localhost:{self.settings.port}"

    def addresses(self) -> dict[str, str]:
        """Return where each service listens, by its name."""
        return {service.name: service.address for service in self.services}

    async def start(self, *, reset: bool = False) -> None:
        """Start everything; return when all of it is ready. After an error, `stop` must still be called.

        `reset` throws away first what an earlier mesh has left in the folder.

        Raises:
            Refused: `DEV_RUNNING` (another one uses the folder), `PORT_TAKEN`, `STORE_UNUSABLE`.
            Unavailable: `SERVICE_START_FAILED`, with the last words of the service.
            StepflowError: no etcd (`stepflow.dev.etcd_binary`).
        """
        self._own_folder()
        check_port(self.settings.port)
        binary = await asyncio.to_thread(find_etcd)
        self.etcd_version = binary.version
        if reset:
            for name in ("etcd", "blobs", "logs"):
                await asyncio.to_thread(shutil.rmtree, self.settings.folder / name, ignore_errors=True)
        self._make_folders()
        etcd = etcd_service(binary, self.settings)
        await self._start((etcd,))
        await self._start(mesh_services(self.settings, etcd.address))
        self._keepers = [asyncio.create_task(self._keep(service)) for service in self.services]

    async def stop(self) -> None:
        """End everything, in order; safe to repeat, and whatever `start` has reached."""
        self._stopping = True
        for keeper in self._keepers:
            keeper.cancel()
        await asyncio.gather(*self._keepers, return_exceptions=True)
        kinds = {service: service.name.partition("-")[0] for service in self.services}
        for members, grace_s in (
            (("executor",), EXECUTOR_GRACE_S),
            (("host", "control_plane"), SERVICE_GRACE_S),
            (("etcd",), ETCD_GRACE_S),
        ):
            ending = [service for service, kind in kinds.items() if kind in members]
            await asyncio.gather(*(self._stop(service, grace_s) for service in ending))
        if self._lock is not None:
            os.close(self._lock)  # the file stays: removing it would let two others lock two files of one name
            self._lock = None

    def kill(self) -> None:
        """Kill everything at once; `stop` then has nothing to wait for."""
        for service in self.services:
            service.signal(signal.SIGKILL)

    async def _start(self, services: Sequence[Service]) -> None:
        """Start several services side by side; return when all are ready, or the first one is not going to be."""
        for service in services:
            self.services.append(service)
            service.start()
        waiting = [asyncio.create_task(service.ready(_ready_timeout_s(service))) for service in services]
        try:
            await asyncio.gather(*waiting)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _stop(self, service: Service, grace_s: float) -> None:
        if not await service.stop(grace_s):
            self._say(f"{service.name} did not end within {grace_s:g} s and was killed")

    async def _keep(self, service: Service) -> None:
        """Start a service again whenever it ends."""
        delay_s = RESTART_DELAY_MIN_S
        while True:
            begun_at = time.monotonic()
            await service.exited()
            if time.monotonic() - begun_at > CALM_S:
                delay_s = RESTART_DELAY_MIN_S
            while True:
                self._say(f"{service.name} {service.exit_text()}; starting it again in {delay_s:g} s ({service.log})")
                await asyncio.sleep(delay_s)
                delay_s = min(2 * delay_s, RESTART_DELAY_MAX_S)
                try:
                    service.start()
                    await service.ready(_ready_timeout_s(service))
                except StepflowError as error:
                    self._say(error.message)
                    await service.stop(SERVICE_GRACE_S)
                else:
                    self._say(f"{service.name} is back at {service.address}")
                    break

    # --- the folder

    def _own_folder(self) -> None:
        folder = self.settings.folder
        try:
            make_private(folder)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise _unusable(folder, error) from None
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            owner = os.read(lock, 4096)
            os.close(lock)
            raise _running(folder, owner) from None
        os.ftruncate(lock, 0)
        os.write(lock, json.dumps({"pid": os.getpid(), "server": self.server}).encode())
        self._lock = lock

    def _make_folders(self) -> None:
        folder = self.settings.folder
        try:
            for name in ("etcd", "blobs", "logs"):
                (folder / name).mkdir(mode=0o700, exist_ok=True)
            for log in (folder / "logs").glob("*.log"):
                log.unlink()
        except OSError as error:
            raise _unusable(folder, error) from None


def check_port(port: int) -> None:
    """Raises: Refused `PORT_TAKEN`, which says what to do."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # what is only closing does not count
        try:
            probe.bind((HOST, port))
        except OSError as error:
            if error.errno == errno.EACCES:
                raise Refused(
                    "PORT_FORBIDDEN", f"port {port} is not for ordinary users; choose one above 1023"
                ) from None
            raise Refused(
                "PORT_TAKEN",
                f"another program listens on port {port}. If it is a mesh, use it: stepflow cluster status --server "
                f"localhost:{port}. Else choose another port: stepflow dev --port {free_port()}",
                port=port,
            ) from None


def free_port() -> int:
    """Return a port of loopback that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def make_private(folder: Path) -> None:
    """Make a folder that only its owner can enter, and keep it out of people's commits. Raises: OSError."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)
    if missing:
        (missing[-1] / ".gitignore").write_text("*\n", encoding="ascii")


def _unusable(folder: Path, error: OSError) -> Refused:
    return Refused(
        "STORE_UNUSABLE",
        f"the mesh cannot be kept in {folder}: {error.strerror}; name another folder with --data",
        path=str(folder),
    )


def _running(folder: Path, owner: bytes) -> Refused:
    where = ""
    with contextlib.suppress(ValueError, KeyError, TypeError):  # it has only just taken the lock
        known = json.loads(owner)
        where = f" (process {known['pid']}, at {known['server']})"
    return Refused(
        "DEV_RUNNING",
        f"a mesh runs in {folder} already{where}: use it, or stop it, or start another one with --data and --port",
        path=str(folder),
    )


# --- what is started ---------------------------------------------------------------------------------------------


def etcd_service(binary: EtcdBinary, settings: DevSettings) -> Service:
    """Return an etcd of one member, ready when it answers."""
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

    # etcd takes settings from variables of its own name as well; those are meant for somebody else's.
    environ = {name: value for name, value in os.environ.items() if not name.startswith("ETCD_")}
    return Service("etcd", command, settings.folder / "logs" / "etcd.log", probe, environ=environ)


def mesh_services(settings: DevSettings, etcd: str) -> list[Service]:
    """Return control plane, executors and hosts over this etcd."""
    shared = ["--etcd", etcd, "--blobs", str(settings.folder / "blobs")]
    config = [] if settings.config is None else ["--config", str(settings.config)]

    def service(name: str, module: str, *args: str) -> Service:
        # -P: a folder of the user's that is called like one of our modules must not stand in for it.
        command = [sys.executable, "-P", "-m", module, *shared, *args]
        return Service(name, command, settings.folder / "logs" / f"{name}.log")

    anywhere = ("--listen", f"{HOST}:0")

    def executor(name: str) -> Service:
        return service(name, "executor", *anywhere, "--name", name)

    def host(name: str) -> Service:
        # The rules of a mesh on one machine are those of its config, whatever it was started with before. When it
        # ends, its executors are gone already: nobody is there to take results.
        args = ("--host-id", name, "--replace-routes", "--drain-grace", f"{HOST_DRAIN_GRACE_S:g}")
        return service(name, "component_host", *anywhere, *config, *args)

    return [
        service("control_plane", "control_plane", "--listen", f"{HOST}:{settings.port}", *config),
        *(executor(f"executor-{n + 1}") for n in range(settings.executors)),
        *(host(f"host-{n + 1}") for n in range(settings.hosts)),
    ]


def _ready_timeout_s(service: Service) -> float:
    return HOST_READY_TIMEOUT_S if service.name.startswith("host-") else READY_TIMEOUT_S


async def _is_healthy(address: str) -> bool:
    """Ask an etcd whether it serves."""
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
