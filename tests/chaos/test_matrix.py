"""The failure matrix with real processes, one test per row: a part is killed, paused or cut off, and no run is lost.

Every test compares the results of the runs, their journals in etcd, and the ledger of the component servers. Outages
are longer than a lease TTL; the campaign (`make chaos`) has the long ones.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from support import is_alive, wait_for_value, wait_until_async
from support.etcd import FAST, EtcdCluster, running_cluster, running_etcd
from support.fleet import kill_servers_of
from support.mesh import Processes, children_of, ledger_config, ledger_of, processes
from support.scene import OUTAGE_S, WAIT_S, Scene, adoptions_of, run, scene

from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from support.etcd import EtcdServer


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EtcdServer]:
    with running_etcd(tmp_path_factory.mktemp("etcd"), "--unsafe-no-fsync") as server:
        yield server


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def test_200_runs_of_two_executors_end_right_when_one_is_killed(mesh: Processes, tmp_path: Path) -> None:
    control = mesh.control_plane()
    mesh.host(ledger_config(tmp_path))
    first, _ = mesh.executor(), mesh.executor()

    async def scenario() -> None:
        async with scene(mesh, control) as on:
            await on.load(200, ms=300)
            await on.executions(250)
            lost = await on.owned_by(first)
            assert len(lost) > 50, "the runs are spread"
            first.kill()
            journals = await on.verify()
            moved = {journal.run_id for journal in journals if len(journal.adoptions[0]) > 1}
            assert moved <= lost
            assert len(moved) > 50
            executed = Counter(key for key, _ in ledger_of(tmp_path).begun if not key.endswith("/flaky"))
            assert max(executed.values()) == 1, "the host lives: what was in flight is joined"

    run(scenario())


def test_an_executor_that_was_stopped_beyond_its_lease_writes_nothing_late_and_comes_back_as_another(
    mesh: Processes, tmp_path: Path
) -> None:
    control = mesh.control_plane()
    mesh.host(ledger_config(tmp_path))
    zombie, _ = mesh.executor(), mesh.executor()

    async def scenario() -> None:
        async with scene(mesh, control) as on:
            await on.load(40, ms=200)
            await on.executions(50)
            lost = await on.owned_by(zombie)
            assert lost
            zombie.pause()
            await on.session_is_gone(zombie.id)
            await on.load(10, ms=20)
            zombie.go_on()
            journals = await on.verify()
            await wait_until_async(lambda: "registering again" in zombie.log, "the zombie finds out")
            for journal in journals:
                owners = [adoption.executor_id for adoption in journal.adoptions[0]]
                assert zombie.id not in owners[1:]
            executors = {executor.executor_id for executor in (await on.client.cluster()).executors}
            assert zombie.id not in executors
            assert len(executors) == 2, "it is there again, under another id"
            await on.load(10, ms=1)
            await on.verify()

    run(scenario())


def test_a_rolling_restart_of_three_executors_loses_no_attempt_and_waits_for_no_lease(
    mesh: Processes, tmp_path: Path
) -> None:
    control = mesh.control_plane()
    mesh.host(ledger_config(tmp_path))
    old = [mesh.executor() for _ in range(3)]

    async def scenario() -> None:
        async with scene(mesh, control) as on:
            for number, executor in enumerate(old):
                await asyncio.to_thread(mesh.executor)
                await on.load(20, ms=300)
                await on.executions(60 * number + 30)
                assert await asyncio.to_thread(executor.end) == 0
                assert await on.store.get(keys.session_executor(executor.id)) is None, "no lease is waited for"
            journals = await on.verify()
            # Not the attempts' numbers: an adoption counts for a step that was ready and had not been sent yet.
            executed = Counter(key for key, _ in ledger_of(tmp_path).begun if not key.endswith("/flaky"))
            assert set(executed.values()) == {1}, "whatever began gave the result that counts"
            later = [handed_over for journal in journals for handed_over in adoptions_of(journal)[1:]]
            assert later, "runs were under way"
            assert all(later), "and every one of them was handed over"

    run(scenario())


@pytest.mark.parametrize("whole", [True, False], ids=["host", "component_server"])
def test_the_calls_of_a_killed_host_or_component_server_are_made_again_and_no_others(
    whole: bool, mesh: Processes, tmp_path: Path
) -> None:
    control = mesh.control_plane()
    victim, _ = mesh.host(ledger_config(tmp_path)), mesh.host(ledger_config(tmp_path))
    mesh.executor()

    async def scenario() -> None:
        async with scene(mesh, control) as on:
            await on.load(40, ms=300)
            await on.executions(60)
            servers = children_of(victim.process.pid)
            if whole:
                victim.kill()
            else:
                kill_servers_of(victim)
            journals = await on.verify()
            lost = [outcome for journal in journals for outcome in journal.failed if not outcome.key.endswith("/flaky")]
            assert lost, "calls were in flight there"
            assert {outcome.host for outcome in lost} == {victim.id}
            await wait_until_async(lambda: not any(map(is_alive, servers)), "no server outlives its host")
            assert (victim.process.poll() is None) is not whole

    run(scenario())


def test_when_the_leading_control_plane_is_killed_runs_go_on_and_another_one_leads(
    mesh: Processes, tmp_path: Path
) -> None:
    controls = [mesh.control_plane() for _ in range(2)]
    mesh.host(ledger_config(tmp_path))
    first, _ = mesh.executor(), mesh.executor()

    async def scenario() -> None:
        async with scene(mesh, *controls) as on:
            await on.load(30, ms=300)
            await on.executions(40)
            leader = await on.store.get(keys.leader())
            assert leader is not None
            next(control for control in controls if control.id == leader.value.decode()).kill()
            first.kill()  # its runs can only be moved by the next leader
            journals = await on.verify()
            standing = await on.store.get(keys.leader())
            assert standing is not None
            assert standing.value != leader.value
            assert any(len(journal.adoptions[0]) > 1 for journal in journals)

    run(scenario())


def test_runs_go_on_and_no_session_ends_while_all_control_planes_are_down(mesh: Processes, tmp_path: Path) -> None:
    controls = [mesh.control_plane() for _ in range(2)]
    mesh.host(ledger_config(tmp_path))
    executors = [mesh.executor() for _ in range(2)]

    async def scenario() -> None:
        async with scene(mesh, *controls) as on:
            await on.load(30, ms=300)
            await on.executions(40)
            for control in controls:
                control.kill()
            await _end_by_themselves(on)
            await asyncio.sleep(OUTAGE_S)
            for executor in executors:
                assert await on.store.get(keys.session_executor(executor.id)) is not None
        async with scene(mesh, await asyncio.to_thread(mesh.control_plane)) as after:
            after.asked = on.asked
            await after.load(5, ms=1)
            journals = await after.verify()
            assert all(len(journal.adoptions[0]) == 1 for journal in journals)

    run(scenario())


async def _end_by_themselves(on: Scene) -> None:
    """Return once no run is assigned; reads the store, since there is no control plane to ask."""
    assigned = partial(on.store.range, keys.ASSIGNED)
    await wait_for_value(assigned, "no run is assigned", lambda page: not page.items, WAIT_S)


def test_a_killed_member_of_etcd_delays_runs_and_changes_nothing_else(tmp_path: Path) -> None:
    with (
        running_cluster(tmp_path / "etcd", *FAST, "--unsafe-no-fsync") as members,
        processes(EtcdCluster(members), tmp_path, "own/") as mesh,
    ):
        control = mesh.control_plane()
        mesh.host(ledger_config(tmp_path))
        executors = [mesh.executor() for _ in range(2)]

        async def scenario() -> None:
            async with scene(mesh, control) as on:
                for number, member in enumerate(members):
                    await on.load(20, ms=100)
                    await on.executions(40 * number + 20)
                    await asyncio.to_thread(member.kill)
                    await on.executions(40 * number + 60)
                    await asyncio.to_thread(member.start)
                journals = await on.verify()
                assert await on.owners(journals) <= {executor.id for executor in executors}

        run(scenario())


@pytest.mark.parametrize("outage_s", [0.5, OUTAGE_S])
def test_nothing_is_lost_or_repeated_when_etcd_was_down(outage_s: float, tmp_path: Path) -> None:
    with running_etcd(tmp_path / "etcd", "--unsafe-no-fsync") as etcd, processes(etcd, tmp_path, "own/") as mesh:
        control = mesh.control_plane()
        mesh.host(ledger_config(tmp_path))
        for _ in range(2):
            mesh.executor()

        async def scenario() -> None:
            async with scene(mesh, control) as on:
                await on.load(30, ms=200)
                await on.executions(40)
                await asyncio.to_thread(etcd.kill)
                await asyncio.sleep(outage_s)
                await asyncio.to_thread(etcd.start)
                await on.verify()

        run(scenario())


def test_while_the_blob_store_is_down_steps_that_need_it_wait_and_others_go_on(mesh: Processes, tmp_path: Path) -> None:
    control = mesh.control_plane()
    mesh.host(ledger_config(tmp_path))
    mesh.executor()
    widen = {"id": "w", "component": "/ledger/widen", "input": {"value": 1, "size": 100_000}}
    large = {"name": "large", "steps": [widen], "output": {"$step": "w", "path": "value"}}
    add = {"id": "a", "component": "/ledger/add", "input": {"value": 1}}
    plain = {"name": "plain", "steps": [add], "output": {"$step": "a"}}
    blobs, away = tmp_path / "blobs", tmp_path / "away"

    async def scenario() -> None:
        async with scene(mesh, control) as on:
            blobs.mkdir(exist_ok=True)
            blobs.rename(away)
            blobs.write_text("no folder", encoding="utf-8")
            waiting = await on.client.submit(large, None)
            ledger = ledger_of(tmp_path)
            begun = (f"{waiting}/0/w", 1)
            await wait_until_async(lambda: begun in ledger.begun, "the step has begun", WAIT_S)
            assert (await on.client.wait(await on.client.submit(plain, None))).status == "completed"
            assert (await on.client.get(waiting)).status == "running"
            blobs.unlink()
            away.rename(blobs)
            assert (await on.client.wait(waiting)).status == "completed"
            (item,) = [item async for item in on.client.items(waiting)]
            assert item.result == 2
            assert [key for key, _ in ledger.begun if key == begun[0]] == [begun[0]], "what is paid for is not repeated"

    run(scenario())
