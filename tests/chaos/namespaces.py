"""Processes in separate network namespaces, whose routes are removed: `make chaos-net`, as root on Linux.

Unlike a TCP proxy, this drops packets, also SYN and FIN, so the kernels on both sides retransmit. A blackhole route
needs no firewall.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import wait_for_value, wait_until_async
from support.etcd import running_etcd
from support.mesh import ledger_config, processes
from support.scene import OUTAGE_S, Scene, adoptions_of, run, scene

from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Processes, Service


class Namespace:
    """A network namespace, joined to this one by a pair of virtual devices."""

    def __init__(self, number: int) -> None:
        self.name = f"chaos-{uuid4().hex[:8]}"
        self._device = f"c{uuid4().hex[:8]}"
        self.near, self.far = f"10.213.{number}.1", f"10.213.{number}.2"

    def make(self) -> None:
        _ip("netns", "add", self.name)
        _ip("link", "add", self._device, "type", "veth", "peer", "name", "far", "netns", self.name)
        _ip("addr", "add", f"{self.near}/30", "dev", self._device)
        _ip("link", "set", self._device, "up")
        self._inside("addr", "add", f"{self.far}/30", "dev", "far")
        self._inside("link", "set", "far", "up")
        self._inside("link", "set", "lo", "up")
        self._inside("route", "add", "default", "via", self.near)

    def remove(self) -> None:
        _ip("netns", "del", self.name)

    @property
    def within(self) -> list[str]:
        return ["ip", "netns", "exec", self.name]

    @property
    def listening(self) -> list[str]:
        return ["--listen", f"{self.far}:0", "--insecure"]

    def vanish(self) -> None:
        """Lose every packet that leaves, to whomever; what comes in is not answered."""
        self._inside("route", "add", "blackhole", "0.0.0.0/1")
        self._inside("route", "add", "blackhole", f"{self.near}/32")

    def return_(self) -> None:
        self._inside("route", "del", "blackhole", f"{self.near}/32")
        self._inside("route", "del", "blackhole", "0.0.0.0/1")

    def _inside(self, *words: str) -> None:
        _ip("-n", self.name, *words)


def _ip(*words: str) -> None:
    done = subprocess.run(["ip", *words], capture_output=True, text=True, check=False, timeout=10)  # noqa: S607  # root's
    assert done.returncode == 0, f"ip {' '.join(words)}: {done.stderr}"


@contextmanager
def namespaces(count: int) -> Iterator[list[Namespace]]:
    assert os.geteuid() == 0, "network namespaces are root's"
    made: list[Namespace] = []
    try:
        for number in range(count):
            namespace = Namespace(number)
            namespace.make()
            made.append(namespace)
        yield made
    finally:
        for namespace in made:
            namespace.remove()


@pytest.fixture
def far() -> Iterator[list[Namespace]]:
    with namespaces(2) as made:
        yield made


@pytest.fixture
def etcd(far: list[Namespace], tmp_path: Path) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path / "etcd", "--unsafe-no-fsync", host=far[0].near) as server:
        yield server


@pytest.fixture
def mesh(etcd: EtcdServer, far: list[Namespace], tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def near(far: list[Namespace]) -> list[str]:
    return ["--listen", f"{far[0].near}:0", "--insecure"]


def in_namespace(mesh: Processes, module: str, place: Namespace, *args: str) -> Service:
    return mesh.start(module, *place.listening, *args, within=place.within)


def test_an_executor_whose_packets_vanish_loses_its_runs_and_writes_nothing_late(
    mesh: Processes, far: list[Namespace], tmp_path: Path
) -> None:
    control = mesh.control_plane(*near(far))
    mesh.host(ledger_config(tmp_path), *near(far))
    cut_off = in_namespace(mesh, "executor", far[0])
    mesh.executor(*near(far))

    async def scenario() -> None:
        async with scene(mesh, control) as on:
            await on.load(60, ms=200)
            await on.executions(80)
            lost = await on.owned_by(cut_off)
            assert lost
            far[0].vanish()
            await on.session_is_gone(cut_off.id)
            await on.verify()
            far[0].return_()
            await wait_until_async(lambda: "registering again" in cut_off.log, "it finds out", 60)
            await on.load(20, ms=20)
            journals = await on.verify()
            moved = [journal for journal in journals if len(journal.adoptions[0]) > 1]
            assert moved
            assert {cut_off.id} == {journal.adoptions[0][0].executor_id for journal in moved}

    run(scenario())


def test_a_host_whose_packets_vanish_begins_nothing_that_was_sent_before(
    mesh: Processes, far: list[Namespace], tmp_path: Path
) -> None:
    control = mesh.control_plane(*near(far))
    config = str(ledger_config(tmp_path))
    cut_off = in_namespace(mesh, "component_host", far[1], "--config", config)
    mesh.host(ledger_config(tmp_path), *near(far))
    mesh.executor(*near(far))

    async def scenario() -> None:
        async with scene(mesh, control) as on:
            await on.load(60, ms=200)
            await on.executions(80)
            far[1].vanish()
            await on.load(20, ms=20)
            await on.verify()
            await _session_of_host_is_gone(on, cut_off.id)
            far[1].return_()
            await wait_until_async(lambda: "registering again" in cut_off.log, "it finds out", 60)
            await on.load(20, ms=20)
            journals = await on.verify()
            assert any(outcome.host == cut_off.id for journal in journals for outcome in journal.failed)

    run(scenario())


async def _session_of_host_is_gone(on: Scene, host_id: str) -> None:
    session = partial(on.store.get, keys.session_host(host_id))
    await wait_for_value(session, "its session is gone", lambda found: found is None, 60)


def test_a_control_plane_whose_packets_vanish_disturbs_no_run(
    mesh: Processes, far: list[Namespace], tmp_path: Path
) -> None:
    cut_off = in_namespace(mesh, "control_plane", far[0])
    mesh.host(ledger_config(tmp_path), *near(far))
    executors = [mesh.executor(*near(far)) for _ in range(2)]

    async def scenario() -> None:
        async with scene(mesh, cut_off) as on:
            await on.load(30, ms=200)
            await on.executions(40)
        other = await asyncio.to_thread(mesh.control_plane, *near(far))
        far[0].vanish()
        async with scene(mesh, other) as after:
            after.asked = on.asked
            await asyncio.sleep(OUTAGE_S)
            await after.load(20, ms=20)
            journals = await after.verify()
            assert all(adoptions_of(journal) == [False] for journal in journals)
            for executor in executors:
                assert await after.store.get(keys.session_executor(executor.id)) is not None
            far[0].return_()
            await after.load(5, ms=1)
            await after.verify()

    run(scenario())
