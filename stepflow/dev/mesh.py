"""A whole mesh on one machine: etcd and the three services as child processes, from `start` to `stop`.

- One mesh per folder (`stepflow.dev.folder`). Runs that have not ended continue at the next start.
- A service that dies during the start fails the start, with the end of its log. A service that dies later is restarted
  after a pause that doubles while it keeps dying; each restart is printed.
- Services stop in the order of their dependencies: executors (which hand their runs over), then hosts and control
  plane, then etcd. A service that exceeds its grace is killed.

Not here: one process (`stepflow.dev.service_process`), command lines of services (`stepflow.dev.services`), signals and
output (`stepflow.cli.commands.dev`).
"""

from __future__ import annotations

import asyncio
import signal
import time
from itertools import chain
from typing import TYPE_CHECKING

from stepflow.dev.etcd_binary import find_etcd
from stepflow.dev.folder import DevFolder
from stepflow.dev.ports import check_port
from stepflow.dev.services import HOST_DRAIN_GRACE_S, DevSettings, etcd_service, mesh_services, ready_timeout_s
from stepflow.errors import StepflowError
from stepflow.retry import doubling

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from stepflow.dev.service_process import Service

RESTART_DELAY_MIN_S = 0.5
RESTART_DELAY_MAX_S = 10.0
STABLE_AFTER_S = 30.0
"""A service that ran this long restarts after the shortest pause again."""

assert STABLE_AFTER_S > RESTART_DELAY_MAX_S

EXECUTOR_GRACE_S = 5.0
SERVICE_GRACE_S = 5.0
ETCD_GRACE_S = 5.0

assert SERVICE_GRACE_S > HOST_DRAIN_GRACE_S + 2  # hosts stop their component servers after the drain

STOP_ORDER = (
    (("executor",), EXECUTOR_GRACE_S),
    (("host", "control_plane"), SERVICE_GRACE_S),
    (("etcd",), ETCD_GRACE_S),
)
"""Kinds of services that stop together, with their grace."""


class DevMesh:
    """The processes of one mesh. `say` gets a line for people when a service dies, restarts or is killed."""

    def __init__(self, settings: DevSettings, say: Callable[[str], None]) -> None:
        self.settings = settings
        self.etcd_version = ""
        self.services: list[Service] = []
        """In the order of their start: etcd, control plane, executors, hosts."""
        self._say = say
        self._folder = DevFolder(settings.folder)
        self._supervisors: list[asyncio.Task[None]] = []
        self._restarting: set[str] = set()
        """Services whose next end is wanted."""

    @property
    def server(self) -> str:
        """The address of the control plane, for `--server`."""
        return f"localhost:{self.settings.port}"

    def addresses(self) -> dict[str, str]:
        """Return the address of each service by its name."""
        return {service.name: service.address for service in self.services}

    async def start(self, *, reset: bool = False) -> None:
        """Start all services; return when all are ready. After an error, `stop` must still be called.

        `reset` first deletes the data of an earlier mesh in the folder.

        Raises:
            FailedPrecondition: `DEV_RUNNING` (another mesh uses the folder), `PORT_TAKEN`, `STORE_UNUSABLE`.
            Unavailable: `SERVICE_START_FAILED`, with the end of the service's log.
            StepflowError: no etcd (`stepflow.dev.etcd_binary`).
        """
        # 1. Own the folder, before anything in it is touched.
        self._folder.own(self.server)
        check_port(self.settings.port)

        # 2. Find etcd, or fetch it.
        binary = await asyncio.to_thread(find_etcd)
        self.etcd_version = binary.version

        # 3. Prepare the folder.
        if reset:
            await asyncio.to_thread(self._folder.clear)
        self._folder.make_subfolders()

        # 4. Start etcd, then the services that need its address.
        etcd = etcd_service(binary, self.settings)
        await self._start((etcd,))
        await self._start(mesh_services(self.settings, etcd.address))

        # 5. Restart services that die from now on.
        self._supervisors = [asyncio.create_task(self._supervise(service)) for service in self.services]

    async def stop(self) -> None:
        """Stop all services in order. Idempotent; also after a `start` that failed."""
        for supervisor in self._supervisors:
            supervisor.cancel()
        await asyncio.gather(*self._supervisors, return_exceptions=True)

        kinds = {service: service.name.partition("-")[0] for service in self.services}
        for members, grace_s in STOP_ORDER:
            stopping = [service for service, kind in kinds.items() if kind in members]
            await asyncio.gather(*(self._stop(service, grace_s) for service in stopping))

        self._folder.release()

    async def restart(self, name: str) -> None:
        """Stop a service, which its supervisor then starts again."""
        for service in self.services:
            if service.name == name:
                self._restarting.add(name)
                await self._stop(service, SERVICE_GRACE_S)

    def kill(self) -> None:
        """Kill all services at once; a following `stop` does not wait."""
        for service in self.services:
            service.signal(signal.SIGKILL)

    async def _start(self, services: Sequence[Service]) -> None:
        """Start services concurrently; return when all are ready. Raises: Unavailable of the first that fails."""
        for service in services:
            self.services.append(service)
            service.start()

        waiting = [asyncio.create_task(service.ready(ready_timeout_s(service))) for service in services]
        try:
            await asyncio.gather(*waiting)
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)

    async def _stop(self, service: Service, grace_s: float) -> None:
        if not await service.stop(grace_s):
            self._say(f"{service.name} did not end within {grace_s:g} s and was killed")

    async def _supervise(self, service: Service) -> None:
        """Restart a service whenever it ends."""
        delays_s = doubling(RESTART_DELAY_MIN_S, RESTART_DELAY_MAX_S)
        while True:
            started_at = time.monotonic()
            await service.exited()
            if time.monotonic() - started_at > STABLE_AFTER_S:
                delays_s = doubling(RESTART_DELAY_MIN_S, RESTART_DELAY_MAX_S)

            for delay_s in chain((0.0,) if service.name in self._restarting else (), delays_s):
                self._restarting.discard(service.name)
                if delay_s:
                    self._say(f"{service.name} {service.exit_text()}; restarting it in {delay_s:g} s ({service.log})")
                    await asyncio.sleep(delay_s)
                try:
                    service.start()
                    await service.ready(ready_timeout_s(service))
                except (StepflowError, OSError) as error:  # OSError: no descriptor, a full disk
                    self._say(error.message if isinstance(error, StepflowError) else f"{service.name}: {error}")
                    await service.stop(SERVICE_GRACE_S)
                else:
                    self._say(f"{service.name} is back at {service.address}")
                    break
