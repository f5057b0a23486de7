"""Kills and network cuts at the worst moments: real processes over a real etcd, one scenario per test.

Executions are read from the component server's ledger, not from the journal.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError
from uuid import uuid4

import pytest
from support import ROOT, free_port, wait_for_value, wait_until_async
from support.etcd import FAST, running_etcd
from support.mesh import Gate, Processes, gated_config, processes
from support.proxy import TcpProxy

from control_plane.admission import RunRequest
from stepflow.client import Client
from stepflow.codec import encode
from stepflow.errors import StepflowError
from stepflow.flow import flow_from_tree
from stepflow.journal import journal_entries
from stepflow.run.state import ADOPTIONS_IN_A_ROW_MAX
from stepflow.store import StoreUnavailable, keys, put, range_all

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Service

    from stepflow.mesh.v1 import journal_pb2 as pb
    from stepflow.store import Store

WAIT_S = 60.0

RUNS = 5
"""As many executions as the gated server begins at once on any machine."""


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    gate = Gate(tmp_path)
    gate.allow(0)
    return gate


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 2 * WAIT_S))


def chain(count: int, name: str = "chain") -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"id": "s0", "component": "/gated/work", "input": {"$input": "$"}}]
    steps += [{"id": f"s{n}", "component": "/gated/work", "input": {"$step": f"s{n - 1}"}} for n in range(1, count)]
    return {"name": name, "steps": steps, "output": {"$step": steps[-1]["id"]}}


async def completed(client: Client, run_id: str) -> None:
    assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"


async def adopted(store: Store, run_id: str) -> list[pb.Adopted]:
    entries = [entry async for entry in journal_entries(store, run_id, 0)]
    return [entry.adopted for entry in entries if entry.HasField("adopted")]


async def owned_by(store: Store, executor: Service, count: int) -> None:
    """Wait until that many runs are assigned to an executor."""

    async def found() -> int:
        return len([item async for item in range_all(store, keys.assigned_to(executor.id))])

    await wait_for_value(found, f"{executor.id} owns {count}", lambda now: now == count, WAIT_S)


def test_runs_that_move_to_an_executor_which_dies_before_it_takes_them_up_move_on(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    mesh.host(gated_config(tmp_path))
    first = mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control, mesh.store() as store:
            run_ids = [
                await control.submit(RunRequest(flow=flow_from_tree(chain(2)), inputs=[encode(n)])) for n in range(RUNS)
            ]
            await gate.wait_for(RUNS)
            second = await asyncio.to_thread(mesh.executor)
            answering = control._leader._liveness.answering
            await wait_until_async(lambda: answering(second.id), "the leader attends to the second", WAIT_S)
            second.pause()  # its session stands, and it takes nothing up
            first.kill()
            await owned_by(store, second, RUNS)
            third = await asyncio.to_thread(mesh.executor)
            second.kill()
            gate.allow(99)
            for run_id in run_ids:
                assert (await control.wait(run_id, timeout_s=WAIT_S)).status == "completed"
                owners = [each.executor_id for each in await adopted(store, run_id)]
                assert owners == [first.id, third.id]
            assert sorted(gate.ledger) == sorted((f"{run_id}/0/s{n}", 1) for run_id in run_ids for n in range(2))

    run(scenario())


def test_a_leader_that_is_cut_off_from_all_executors_disturbs_no_run(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    mesh.host(gated_config(tmp_path))

    async def scenario() -> None:
        async with AsyncExitStack() as stack:
            proxies, executors = [], []
            for _ in range(3):
                port = free_port()
                proxies.append(await stack.enter_async_context(TcpProxy(port)))
                listen = ("--listen", f"127.0.0.1:{port}", "--advertise", proxies[-1].endpoint)
                executors.append(await asyncio.to_thread(mesh.executor, *listen))
            control = await asyncio.to_thread(mesh.start, "control_plane")
            client = await stack.enter_async_context(Client(control.address))
            store = await stack.enter_async_context(mesh.store())
            run_ids = await client.submit_runs(chain(3), range(RUNS))
            await gate.wait_for(RUNS)
            await wait_until_async(lambda: all(proxy.open_connections for proxy in proxies), "the leader attends")
            for proxy in proxies:
                proxy.vanish()
            await wait_until_async(
                lambda: control.log.count("seems gone, but so do others") >= 2 * len(proxies),
                "the leader has looked again and again",
                WAIT_S,
            )
            gate.allow(99)
            late = await client.submit(chain(1), 1)
            for run_id in [*map(str, run_ids), late]:
                await completed(client, run_id)
                assert len(await adopted(store, run_id)) == 1
            sessions = {item.key async for item in range_all(store, keys.EXECUTOR_SESSIONS)}
            assert sessions == {keys.session_executor(executor.id) for executor in executors}
            assert {attempt for _, attempt in gate.ledger} == {1}

    run(scenario())


def test_a_run_that_kills_its_executors_meets_five_of_them_and_no_more(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    poison = {"PYTHONPATH": f"{ROOT / 'tests/data/poison'}:{ROOT}"}
    mesh.host(gated_config(tmp_path))
    control = mesh.start("control_plane")
    executors = [mesh.executor(env=poison)]

    async def scenario() -> None:
        async with Client(control.address) as client:
            innocent = await client.submit_runs(chain(2), range(RUNS))
            await gate.wait_for(RUNS)
            bad = await client.submit(chain(1, "poison"), 1)
            died = 0
            while not (await client.wait(bad, timeout_s=0.05)).ended:
                if executors[-1].process.poll() is not None:
                    died += 1
                    assert died <= ADOPTIONS_IN_A_ROW_MAX, "the fleet dies of one run"
                    executors.append(await asyncio.to_thread(mesh.executor, env=poison))
            assert died == ADOPTIONS_IN_A_ROW_MAX
            assert (await client.get(bad)).status == "recovery_failed"
            gate.allow(99)
            for run_id in innocent:
                await completed(client, str(run_id))
            assert {attempt for _, attempt in gate.ledger} == {1}
            assert len(gate.ledger) == 2 * RUNS

    run(scenario())


def test_a_run_that_kills_the_executors_that_read_its_journal_meets_five_of_them_and_no_more(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    poison = {"PYTHONPATH": f"{ROOT / 'tests/data/poison'}:{ROOT}"}
    mesh.host(gated_config(tmp_path))
    control = mesh.start("control_plane")
    executors = [mesh.executor(env=poison)]

    async def scenario() -> None:
        async with Client(control.address) as client, mesh.store() as store:
            innocent = await client.submit_runs(chain(2), range(RUNS))
            bad = await client.submit(chain(1, "unreadable"), 1)
            await gate.wait_for(RUNS + 1)
            executors[0].kill()  # the first owner had nothing to read
            executors.append(await asyncio.to_thread(mesh.executor, env=poison))
            died = 0
            while not (await client.wait(bad, timeout_s=0.05)).ended:
                if executors[-1].process.poll() is not None:
                    died += 1
                    assert died <= ADOPTIONS_IN_A_ROW_MAX, "the fleet dies of one run"
                    executors.append(await asyncio.to_thread(mesh.executor, env=poison))
            assert died == ADOPTIONS_IN_A_ROW_MAX
            assert (await client.get(bad)).status == "recovery_failed"
            gate.allow(99)
            for run_id in innocent:
                await completed(client, str(run_id))
            assert {attempt for _, attempt in gate.ledger} == {1}
            assert [item.key async for item in range_all(store, keys.ADOPTING)] == []

    run(scenario())


QUOTA_BYTES = 32 * 1024 * 1024
FILLER_BYTES = 300_000


def test_a_full_etcd_takes_no_new_runs_and_lets_running_ones_end_and_goes_on_when_there_is_room(
    gate: Gate, tmp_path: Path
) -> None:
    flags = (*FAST, "--unsafe-no-fsync", f"--quota-backend-bytes={QUOTA_BYTES}")
    with running_etcd(tmp_path / "etcd", *flags) as etcd, processes(etcd, tmp_path, "full/") as mesh:
        mesh.host(gated_config(tmp_path))
        executor = mesh.executor()
        control = mesh.start("control_plane", "--etcd-quota-bytes", str(QUOTA_BYTES))

        async def fill(client: Client, share: float) -> None:
            """Write until etcd is that full, or takes no more."""
            for number in range(QUOTA_BYTES // FILLER_BYTES + 10):
                if int((await asyncio.to_thread(etcd.ask, "maintenance/status"))["dbSizeInUse"]) >= share * QUOTA_BYTES:
                    break
                try:
                    await asyncio.to_thread(etcd.put, f"filler/{number}", "x" * FILLER_BYTES)
                except HTTPError:  # no space
                    break
            await until(client, "STORE_FULL")

        async def until(client: Client, wanted: str) -> None:
            """Submit runs until that is answered: the reason of a refusal, or nothing."""
            answer = None
            async with asyncio.timeout(WAIT_S):
                while answer != wanted:
                    outcome = (await client.submit_runs(chain(1), [0]))[0]
                    answer = outcome.reason if isinstance(outcome, StepflowError) else ""
                    await asyncio.sleep(0.2)

        async def scenario() -> None:
            async with Client(control.address, patience_s=0, busy_patience_s=0) as client, mesh.store() as store:
                early = await client.submit_runs(chain(1), range(2))
                await gate.wait_for(2)
                late = await client.submit_runs(chain(2), range(3))
                await gate.wait_for(5)
                await fill(client, 0.75)
                gate.allow(2)
                for run_id in early:
                    await completed(client, str(run_id))
                await fill(client, 2)
                with pytest.raises(StoreUnavailable):
                    await put(store, "filler/more", b"x")
                gate.allow(10_000)
                await wait_until_async(lambda: "STORE_FULL" in executor.log, "the executor cannot write", WAIT_S)
                await asyncio.to_thread(etcd.delete, "filler/")
                await asyncio.to_thread(etcd.compact, await store.revision())
                await asyncio.to_thread(etcd.make_room)
                for run_id in late:
                    await completed(client, str(run_id))
                await until(client, "")
                assert max(Counter(key for key, _ in gate.ledger).values()) == 1
                assert {attempt for _, attempt in gate.ledger} == {1}

        run(scenario())
