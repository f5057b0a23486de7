"""A mesh of many processes that are killed and restarted at the same addresses.

A *slot* holds one process at a time, behind one stable address: a proxy in front of it. Each slot has one proxy per
etcd member, too. So every connection in the mesh can be cut, delayed or silenced.

The proxies run in the event loop of the test, which must not block while a fleet runs.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from stepflow.store import keys

from . import free_port, is_alive
from .mesh import END_TIMEOUT_S, READY_TIMEOUT_S, children_of, ledger_config
from .proxy import TcpProxy
from .wall_clock import WallClock

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from stepflow.store import Store

    from .etcd import EtcdServer
    from .mesh import Processes, Service

ATTENDED_S = 4.0
"""Time for which a mesh must be complete before it counts as settled. It covers the leader's retries to an executor
that has just failed to answer (`liveness.ANSWER_TIMEOUT_S`, `RETRY_MAX_S`)."""

STARTS_MAX = 10


@dataclass(eq=False)
class Slot:
    """One slot. `busy`: a fault is using it, so other faults leave it alone."""

    module: str
    number: int
    port: int
    front: TcpProxy
    to_etcd: Sequence[TcpProxy]
    clock: WallClock
    args: Sequence[str]
    service: Service | None = None
    busy: bool = False

    @property
    def name(self) -> str:
        return f"{self.module} {self.number}"

    @property
    def running(self) -> Service:
        assert self.service is not None
        return self.service


@dataclass
class Kill:
    """An executor that was killed while no other fault was active."""

    executor_id: str
    at_ms: int


@dataclass
class Fleet:
    """The slots of one mesh; created by `fleet`."""

    mesh: Processes
    members: Sequence[EtcdServer]
    slots: list[Slot] = field(default_factory=list)
    busy_members: set[str] = field(default_factory=set)
    busy_disk: bool = False
    """A fault is about the disk of the blobs."""
    environment: dict[str, str] = field(default_factory=dict)
    """Added to the environment of every process."""
    kills: list[Kill] = field(default_factory=list)
    users_away: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while a test wants no load."""
    expected: set[int] = field(default_factory=set)
    """Pids of the processes that a test has killed or terminated."""

    def of(self, module: str) -> list[Slot]:
        return [slot for slot in self.slots if slot.module == module]

    @property
    def controls(self) -> str:
        """The control plane addresses for a client."""
        return ",".join(slot.front.endpoint for slot in self.of("control_plane"))

    def warnings(self) -> list[str]:
        """Return the warnings and errors that the running processes have logged so far."""
        lines = [
            f"{slot.name}: {line}"
            for slot in self.slots
            if slot.service is not None
            for line in slot.service.log.splitlines()
        ]
        return [line for line in lines if "[warning" in line or "[error" in line]

    async def add(self, module: str, *args: str) -> Slot:
        """Create a slot and start its first process."""
        port = free_port()
        to_etcd = [TcpProxy(member.client_port) for member in self.members]
        for proxy in to_etcd:
            await proxy.listen()
        number = len(self.of(module))
        clock = WallClock(self.mesh.folder, f"{module}-{number}-clock")
        slot = Slot(module, number, port, TcpProxy(port), to_etcd, clock, args)
        self.slots.append(slot)
        await self.start(slot)
        return slot

    async def start(self, slot: Slot) -> None:
        """Start a process in an empty slot, and wait until it is ready.

        One that ends because etcd does not answer just then is started again, as by a supervisor.
        """
        await slot.front.listen()
        for left in reversed(range(STARTS_MAX)):
            service = self._begin(slot)
            try:
                await asyncio.to_thread(service.wait_ready, 2 * READY_TIMEOUT_S)
                return
            except AssertionError:
                if not left or service.process.poll() is None or "(STORE_UNAVAILABLE)" not in service.log:
                    raise
                self.expected.add(service.process.pid)

    def _begin(self, slot: Slot) -> Service:
        slot.service = service = self.mesh.start(
            slot.module,
            *slot.args,
            *("--listen", f"127.0.0.1:{slot.port}", "--advertise", slot.front.endpoint),
            *("--etcd", ",".join(proxy.endpoint for proxy in slot.to_etcd)),
            wait=False,
            env={**self.environment, **slot.clock.env},
        )
        return service

    async def kill(self, slot: Slot) -> None:
        """SIGKILL the process of a slot."""
        service = slot.running
        self.expected.add(service.process.pid)
        slot.service = None
        service.process.kill()
        slot.front.stop_listening()
        await asyncio.to_thread(service.process.wait, END_TIMEOUT_S)

    async def end(self, slot: Slot) -> int:
        """SIGTERM the process of a slot and return its exit code."""
        service = slot.running
        self.expected.add(service.process.pid)
        slot.service = None
        service.ask_to_end()
        code = await asyncio.to_thread(service.process.wait, 2 * END_TIMEOUT_S)
        slot.front.stop_listening()
        return code

    def died(self) -> list[str]:
        """Return one message per process that ended without being killed or terminated by a test."""
        return [
            f"{service.name} ended by itself with {service.process.returncode}"
            for service in self.mesh.services
            if service.process.poll() is not None and service.process.pid not in self.expected
        ]

    async def settled(self, store: Store) -> None:
        """Return once the mesh has been complete for `ATTENDED_S`."""
        since = time.monotonic()
        while time.monotonic() - since < ATTENDED_S:
            if not await self._is_whole(store):
                since = time.monotonic()
            await asyncio.sleep(0.05)

    async def _is_whole(self, store: Store) -> bool:
        if any(slot.service is None for slot in self.slots) or await store.get(keys.leader()) is None:
            return False
        for module, prefix in (("executor", keys.EXECUTOR_SESSIONS), ("component_host", keys.HOST_SESSIONS)):
            if len((await store.range(prefix)).items) != len(self.of(module)):
                return False
        return True

    async def leader(self, store: Store) -> Slot | None:
        """Return the slot of the leading control plane."""
        standing = await store.get(keys.leader())
        if standing is None:
            return None
        name = standing.value.decode()
        return next((slot for slot in self.of("control_plane") if slot.service and slot.service.id == name), None)

    async def end_all(self) -> list[str]:
        """SIGTERM every process, and return one message per exit code that is not 0."""
        codes = await asyncio.gather(*(self.end(slot) for slot in self.slots if slot.service), return_exceptions=True)
        return [f"a process ended with {code!r}" for code in codes if code != 0]

    async def close(self) -> None:
        for slot in self.slots:
            await slot.front.close()
            for proxy in slot.to_etcd:
                await proxy.close()


def kill_servers_of(service: Service) -> None:
    """SIGKILL all descendants of a host."""
    for pid in children_of(service.process.pid):
        with suppress(ProcessLookupError):  # already gone
            os.kill(pid, signal.SIGKILL)


def processes_of(folder: Path) -> list[int]:
    """Return the pids of a mesh's services and component servers, found by the folder they name."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            text = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and is_alive(int(entry.name)) and int(entry.name) != os.getpid():
            found.append(int(entry.name))
    return found


@asynccontextmanager
async def fleet(
    mesh: Processes,
    members: Sequence[EtcdServer],
    *,
    controls: int,
    executors: int,
    hosts: int,
    newer_hosts: int = 0,
    control_args: Sequence[str] = (),
    environment: dict[str, str] | None = None,
) -> AsyncIterator[Fleet]:
    """Start a fleet; all processes are ready when the block begins. `mesh` kills them when it closes.

    `newer_hosts`: further hosts whose server offers one more component, as during a rolling update. `control_args`:
    further options of the control planes.
    """
    made = Fleet(mesh, members, environment=environment or {})
    config = ledger_config(mesh.folder)
    newer = ledger_config(mesh.folder, file_name="newer-config.yml", newer=True)
    wanted = [("control_plane", tuple(control_args))] * controls
    wanted += [("component_host", ("--config", str(config)))] * hosts
    wanted += [("component_host", ("--config", str(newer)))] * newer_hosts
    wanted += [("executor", ())] * executors
    try:
        for module, args in wanted:
            await made.add(module, *args)
        yield made
    finally:
        await made.close()


__all__ = ["Fleet", "Kill", "Slot", "fleet", "kill_servers_of", "processes_of"]
