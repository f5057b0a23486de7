"""Control planes as processes over a real etcd: clients fail over, live events from an executor, draining."""

from __future__ import annotations

import asyncio
import signal
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from support import is_alive, wait_for_value, wait_until, wait_until_async
from support.mesh import Gate, children_of, gated_config, processes

from stepflow.client import BlockingClient, Client
from stepflow.errors import NotFound, Overloaded, Unavailable
from stepflow.store import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.etcd import EtcdServer
    from support.mesh import Processes

CHAIN = {
    "name": "chain",
    "steps": [
        {
            "id": f"s{n}",
            "component": "/gated/work",
            "input": {"n": n} | ({"after": {"$step": f"s{n - 1}"}} if n else {}),
        }
        for n in range(4)
    ],
    "output": {"$step": "s3", "path": "of.n"},
}


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


def test_a_client_goes_on_at_another_control_plane_when_the_leading_one_is_killed(
    mesh: Processes, tmp_path: Path
) -> None:
    planes = [mesh.start("control_plane") for _ in range(2)]
    mesh.executor()
    mesh.host(gated_config(tmp_path))
    gate = Gate(tmp_path)
    gate.allow(1)

    async def talk() -> tuple[list[str], str]:
        seen = []
        async with Client(",".join(control_plane.address for control_plane in planes), patience_s=30) as client:
            run_id = await client.submit(CHAIN)
            leader_id = (await client.cluster()).leader_id
            async for event in client.watch(run_id):
                seen.append(f"{event.kind} {event.step_id}".strip())
                if event.kind == "step_completed":
                    gate.allow(int(event.step_id[1:]) + 2)
                    for control_plane in planes:
                        if control_plane.id == leader_id and control_plane.process.poll() is None:
                            control_plane.kill()
            return seen, (await client.wait(run_id)).status

    seen, status = asyncio.run(talk())
    assert status == "completed"
    assert [each for each in seen if "started" not in each] == [
        "run_adopted",
        *(f"step_completed s{n}" for n in range(4)),
        "item_completed",
        "run_ended",
    ]
    assert [each for each in seen if "started" in each], "live events come from the executor"


def test_a_control_plane_ends_in_good_order_although_clients_wait(mesh: Processes, tmp_path: Path) -> None:
    control_plane = mesh.start("control_plane")
    mesh.executor()
    mesh.host(gated_config(tmp_path))
    gate = Gate(tmp_path)
    gate.allow(0)
    with BlockingClient(control_plane.address, patience_s=0) as client:
        run_id = client.submit(CHAIN)
        watch = client.watch(run_id)
        next(watch)
        assert control_plane.end() == 0
        with pytest.raises(Unavailable):
            list(watch)
    again = mesh.start("control_plane")
    gate.allow(10)
    with BlockingClient(again.address) as client:
        assert client.wait(run_id, timeout_s=30).status == "completed"


def test_a_signal_seen_twice_stops_a_service_in_good_order(mesh: Processes, tmp_path: Path) -> None:
    """`timeout` signals the process, and then its group. Two of one number may reach the process as one."""
    services = [mesh.executor(), mesh.host(gated_config(tmp_path)), mesh.control_plane()]
    for service in services:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            service.process.send_signal(number)
    assert [service.process.wait(30) for service in services] == [0, 0, 0]


def test_a_drained_executor_hands_its_runs_over(mesh: Processes, tmp_path: Path) -> None:
    control_plane = mesh.start("control_plane")
    first = mesh.executor()
    mesh.host(gated_config(tmp_path))
    gate = Gate(tmp_path)
    gate.allow(0)

    def runs(client: BlockingClient) -> dict[str, int]:
        return {executor.executor_id: executor.runs for executor in client.cluster().executors}

    with BlockingClient(control_plane.address) as client:
        run_id = client.submit(CHAIN)
        wait_until(lambda: runs(client).get(first.id) == 1, "the run is placed")
        second = mesh.executor()
        wait_until(lambda: second.id in runs(client), "the second executor is there")
        client.drain(executor_id=first.id)
        wait_until(lambda: runs(client).get(second.id) == 1, "the run has moved")
        gate.allow(10)
        assert client.wait(run_id, timeout_s=30).status == "completed"
        adopted: list[Any] = [event for event in client.watch(run_id) if event.kind == "run_adopted"]
        assert [event.executor_id for event in adopted] == [first.id, second.id]
        with pytest.raises(NotFound):
            client.drain(executor_id="nobody")


def test_a_drained_host_finishes_its_calls_and_the_next_ones_go_elsewhere(mesh: Processes, tmp_path: Path) -> None:
    control_plane = mesh.start("control_plane")
    mesh.executor()
    config = gated_config(tmp_path)
    first = mesh.host(config, "--host-id", "first")
    gate = Gate(tmp_path)
    gate.allow(0)
    with BlockingClient(control_plane.address) as client:
        run_id = client.submit(CHAIN)
        wait_until(lambda: len(gate.ledger) == 1, "the first host has a call")
        mesh.host(config, "--host-id", "second")
        with ThreadPoolExecutor(1) as pool:
            drained = pool.submit(client_of(control_plane.address, lambda other: other.drain(host_id=first.id)))
            wait_until(lambda: {h.host_id: h.draining for h in client.cluster().hosts}[first.id], "it is shown")
            assert not drained.done(), "drained with a call in flight"
            gate.allow(10)
            drained.result(timeout=30)
        assert client.wait(run_id, timeout_s=30).status == "completed"
        assert gate.ledger == [(f"{run_id}/0/s{n}", 1) for n in range(4)], "each once, and none again"
        client.drain(host_id=first.id)  # nothing is left to do
        assert client.wait(client.submit(CHAIN), timeout_s=30).status == "completed"
        assert first.process.poll() is None
        with pytest.raises(NotFound):
            client.drain(host_id="nobody")


def client_of(server: str, work: Callable[[BlockingClient], None]) -> Callable[[], None]:
    """Return the work with a client of its own, for another thread."""

    def done() -> None:
        with BlockingClient(server) as client:
            work(client)

    return done


def test_a_nearly_full_etcd_takes_no_new_runs(mesh: Processes) -> None:
    control_plane = mesh.start("control_plane", "--etcd-quota-bytes", "1000")
    with BlockingClient(control_plane.address, busy_patience_s=0) as client, pytest.raises(Overloaded) as full:
        client.submit(CHAIN)
    assert full.value.reason == "STORE_FULL"
    assert int(str(full.value.details["retry_after_ms"])) > 0


def test_a_control_plane_that_must_not_lead_serves_all_the_same(mesh: Processes) -> None:
    control_plane = mesh.start("control_plane", "--no-lead")
    with BlockingClient(control_plane.address) as client:
        run_id = client.submit(CHAIN)
        assert client.wait(run_id, timeout_s=0.1).status == "queued"
        assert (client.cluster().leader_id, client.cluster().runs_pending) == ("", 1)
        assert client.cancel(run_id).status == "cancelled"
        assert [item.status for item in client.items(run_id)] == ["cancelled"]
        assert [event.kind for event in client.watch(run_id)] == ["run_ended"]


def test_bad_options_are_told_in_one_line(mesh: Processes) -> None:
    service = mesh.start("control_plane", "--keep-journals", "100", "--keep-runs", "1", wait=False)
    assert service.process.wait(30) == 1
    assert service.log.count("\n") == 1
    assert "RETENTION_INVALID" in service.log


ECHO = {"flow": {"$literal": {"output": {"result": {"$input": "$"}}}}, "initial_input": {"$input": "$"}}
ITEM = {"steps": [{"id": "e", "component": "/builtin/iterate", "input": ECHO}], "output": {"$step": "e"}}
EACH = {
    "name": "each",
    "steps": [
        {
            "id": "m",
            "component": "/builtin/map",
            "input": {"workflow": {"$literal": ITEM}, "items": {"$input": "$"}},
        }
    ],
    "output": {"$step": "m"},
}


def test_the_steps_of_a_long_run_are_listed_alike_by_the_replaying_process_and_from_a_segment(
    mesh: Processes, tmp_path: Path
) -> None:
    lingering = mesh.control_plane("--linger", "3600")
    mesh.executor()
    mesh.host(gated_config(tmp_path))

    async def scenario() -> None:
        # 1. Replayed, because the run lingers in etcd.
        async with Client(lingering.address, patience_s=30) as client:
            run_id = await client.submit(EACH, list(range(400)))
            await client.wait(run_id)
            steps = [step async for step in client.steps(run_id, include_results=True)]
            assert len(steps) == 1 + 400
        (replaying,) = children_of(lingering.process.pid)

        # 2. The process ends with its control plane.
        lingering.process.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(lingering.process.wait, 30) == 0
        await wait_until_async(lambda: not is_alive(replaying), "its process has ended")

        # 3. Packed.
        packing = mesh.control_plane("--linger", "0")
        async with mesh.store() as store:

            async def is_packed() -> bool:
                return await store.get(keys.run(run_id)) is None

            await wait_for_value(is_packed, "the run is packed", timeout_s=60)
        async with Client(packing.address, patience_s=30) as client:
            assert [step async for step in client.steps(run_id, include_results=True)] == steps

    asyncio.run(scenario())
