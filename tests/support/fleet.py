"""A mesh of many processes that are killed, and started again in the same places.

A *slot* is a place for one process. Whoever is in it is reached by others at one address, a proxy in front of it, and
reaches each member of etcd by a proxy of its own: so every connection in the mesh can be cut, delayed or silenced. The
proxies live in the event loop of the test, which must therefore not be blocked while a fleet stands.
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

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from stepflow.store import Store

    from .etcd import EtcdServer
    from .mesh import Processes, Service

ATTENDED_S = 4.0
"""How long a mesh must have been whole before it counts as settled. By then its leader attends to all executors, also
to one that did not answer a moment ago (`liveness.ANSWER_TIMEOUT_S`, `RETRY_MAX_S`)."""


@dataclass(eq=False)
class Slot:
    """One place. `busy`: a fault is about it, so no other one may be."""

    module: str
    number: int
    port: int
    front: TcpProxy
    to_etcd: Sequence[TcpProxy]
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
    """An executor that was killed while nothing else was wrong."""

    executor_id: str
    at_ms: int


@dataclass
class Fleet:
    """Made by `fleet`."""

    mesh: Processes
    members: Sequence[EtcdServer]
    slots: list[Slot] = field(default_factory=list)
    busy_members: set[str] = field(default_factory=set)
    kills: list[Kill] = field(default_factory=list)
    expected: set[int] = field(default_factory=set)
    """Processes whose end was asked for."""

    def of(self, module: str) -> list[Slot]:
        return [slot for slot in self.slots if slot.module == module]

    @property
    def controls(self) -> str:
        """The addresses for a client."""
        return ",".join(slot.front.endpoint for slot in self.of("control_plane"))

    async def add(self, module: str, *args: str) -> Slot:
        """Make a slot and start its first process."""
        port = free_port()
        to_etcd = [TcpProxy(member.client_port) for member in self.members]
        for proxy in to_etcd:
            await proxy.listen()
        slot = Slot(module, len(self.of(module)), port, TcpProxy(port), to_etcd, args)
        self.slots.append(slot)
        await self.start(slot)
        return slot

    async def start(self, slot: Slot) -> None:
        """Put a new process into an empty slot, and wait until it is ready."""
        await slot.front.listen()
        slot.service = service = self.mesh.start(
            slot.module,
            *slot.args,
            *("--listen", f"127.0.0.1:{slot.port}", "--advertise", slot.front.endpoint),
            *("--etcd", ",".join(proxy.endpoint for proxy in slot.to_etcd)),
            wait=False,
        )
        await asyncio.to_thread(service.wait_ready, 2 * READY_TIMEOUT_S)

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
        """Return what has ended although nobody asked it to."""
        return [
            f"{service.name} ended by itself with {service.process.returncode}"
            for service in self.mesh.services
            if service.process.poll() is not None and service.process.pid not in self.expected
        ]

    async def settled(self, store: Store) -> None:
        """Return once the mesh is whole, and has been for a while."""
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
        """Return the slot of the control plane that leads."""
        standing = await store.get(keys.leader())
        if standing is None:
            return None
        name = standing.value.decode()
        return next((slot for slot in self.of("control_plane") if slot.service and slot.service.id == name), None)

    async def end_all(self) -> list[str]:
        """End every process in good order, and return what went wrong with that."""
        codes = await asyncio.gather(*(self.end(slot) for slot in self.slots if slot.service), return_exceptions=True)
        return [f"a process ended with {code!r}" for code in codes if code != 0]

    async def close(self) -> None:
        for slot in self.slots:
            await slot.front.close()
            for proxy in slot.to_etcd:
                await proxy.close()


def kill_servers_of(service: Service) -> None:
    """SIGKILL everything that a host has started."""
    for pid in children_of(service.process.pid):
        with suppress(ProcessLookupError):  # it ends just now
            os.kill(pid, signal.SIGKILL)


def processes_of(folder: Path) -> list[int]:
    """Return all processes that work for a mesh in a folder: services, and the component servers of its hosts."""
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
    mesh: Processes, members: Sequence[EtcdServer], *, controls: int, executors: int, hosts: int
) -> AsyncIterator[Fleet]:
    """Give a fleet whose processes are ready; they are killed with those of `mesh`."""
    made = Fleet(mesh, members)
    config = ledger_config(mesh.folder)
    wanted = [("control_plane", ())] * controls + [("component_host", ("--config", str(config)))] * hosts
    wanted += [("executor", ())] * executors
    try:
        for module, args in wanted:
            await made.add(module, *args)
        yield made
    finally:
        await made.close()


__all__ = ["Fleet", "Kill", "Slot", "fleet", "kill_servers_of", "processes_of"]
