"""The services as processes over a real etcd: a run from end to end, and the loss of each service."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import grpc
import pytest
from support import text_of, wait_until_async
from support.authority import Authority
from support.mesh import Gate, Processes, gated_config, processes

from control_plane.admission import RunRequest
from stepflow.client import Client
from stepflow.codec import encode
from stepflow.flow import flow_from_tree
from stepflow.journal import journal_entries
from stepflow.rpc.channel import open_channel
from stepflow.rpc.tls import Tls
from stepflow.store import keys
from stepflow.store.lease import LEASE_TTL_S

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator
    from pathlib import Path

    from support.etcd import EtcdServer

WAIT_S = 30.0


@pytest.fixture
def mesh(etcd: EtcdServer, tmp_path: Path) -> Iterator[Processes]:
    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        yield mesh


@pytest.fixture
def gate(tmp_path: Path) -> Gate:
    return Gate(tmp_path)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 90))


def chain(count: int) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"id": "s0", "component": "/gated/work", "input": {"$input": "$"}}]
    steps += [{"id": f"s{n}", "component": "/gated/work", "input": {"$step": f"s{n - 1}"}} for n in range(1, count)]
    return {"name": "chain", "steps": steps, "output": {"$step": steps[-1]["id"]}}


def request(tree: dict[str, Any], value: Any = 1) -> RunRequest:
    return RunRequest(flow=flow_from_tree(tree), inputs=[encode(value)])


def test_a_run_goes_through_executor_and_host_processes(mesh: Processes, tmp_path: Path) -> None:
    mesh.host(gated_config(tmp_path))
    mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control:
            run_id = await control.submit(request(chain(3)))
            view = await control.wait(run_id, timeout_s=WAIT_S)
            assert view.status == "completed"
            (item,) = await control.items(run_id)
            assert item.outcome.tree == {"of": {"of": {"of": 1}}}

    run(scenario())


def test_a_client_of_the_control_plane_runs_a_flow_and_sees_its_steps_live(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    gate.allow(0)
    mesh.host(gated_config(tmp_path))
    executor = mesh.executor()
    control = mesh.start("control_plane")

    async def scenario() -> None:
        async with Client(control.address) as client:
            run_id = await client.submit(chain(2), 1)
            seen: list[tuple[str, str]] = []

            async def watch() -> None:
                async for event in client.watch(run_id):
                    seen.append((event.kind, event.step_id))  # noqa: PERF401  # the test looks at it meanwhile

            watching = asyncio.create_task(watch())
            await wait_until_async(lambda: "run followed" in executor.log, "the run is followed where it is driven")
            gate.allow(1)
            await wait_until_async(lambda: ("step_started", "s1") in seen, "the start of s1 is seen live")
            gate.allow(2)
            await watching
            assert seen[-1][0] == "run_ended"
            assert seen.count(("step_completed", "s0")) == seen.count(("step_completed", "s1")) == 1
            assert (await client.get(run_id)).status == "completed"

    run(scenario())


def test_all_services_talk_over_tls_and_ask_each_other_for_certificates(mesh: Processes, tmp_path: Path) -> None:
    authority = Authority(tmp_path)

    def tls(name: str) -> tuple[str, ...]:
        cert, key = authority.issue(name)
        return ("--tls-cert", str(cert), "--tls-key", str(key), "--tls-ca", str(authority.ca))

    host = mesh.host(gated_config(tmp_path), *tls("host"))
    executor = mesh.executor(*tls("executor"))
    control = mesh.start("control_plane", *tls("control"))

    async def scenario() -> None:
        cert, key = authority.issue("client")
        async with Client(control.address, tls=Tls(cert, key, authority.ca)) as client:
            run_id = await client.submit(chain(2), 1)
            assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"
        for service in (host, executor):
            channel = open_channel(service.address, Tls(ca=authority.ca))
            attend: Any = channel.stream_stream("/stepflow.mesh.v1.ExecutorService/Attend")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await attend().read()
            assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
            await channel.close()

    run(scenario())


def test_a_call_in_flight_when_its_executor_is_killed_is_joined_and_not_made_again(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    gate.allow(0)
    mesh.host(gated_config(tmp_path))
    first = mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control:
            run_id = await control.submit(request(chain(2)))
            await gate.wait_for(1)
            mesh.executor()
            first.kill()
            gate.allow(9)
            view = await control.wait(run_id, timeout_s=WAIT_S)
            assert view.status == "completed"
            assert gate.ledger == [(f"{run_id}/0/s0", 1), (f"{run_id}/0/s1", 1)]

    run(scenario())


def test_the_session_of_a_killed_executor_is_gone_long_before_its_lease_runs_out(
    mesh: Processes, tmp_path: Path
) -> None:
    victim = mesh.executor()
    mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control, mesh.store() as store:
            liveness = control._leader._liveness
            await wait_until_async(lambda: liveness.answering(victim.id), "the leader attends to the executor")
            victim.kill()
            session = keys.session_executor(victim.id)
            watch = store.watch(session)
            async with asyncio.timeout(LEASE_TTL_S / 2):
                if await store.get(session) is not None:
                    assert (await anext(aiter(watch))).events[0].kind == "delete"
            watch.close()

    run(scenario())


def test_an_executor_that_is_asked_to_end_hands_its_runs_over_without_losing_an_attempt(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    gate.allow(0)
    mesh.host(gated_config(tmp_path))
    first = mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control:
            run_ids = [await control.submit(request(chain(2), n)) for n in range(5)]
            await gate.wait_for(5)
            mesh.executor()
            assert await asyncio.to_thread(first.end) == 0
            gate.allow(99)
            for run_id in run_ids:
                view = await control.wait(run_id, timeout_s=WAIT_S)
                assert view.status == "completed"
            assert len(gate.ledger) == 10
            assert {attempt for _, attempt in gate.ledger} == {1}
            async with mesh.store() as store:
                adoptions = [
                    entry.adopted async for entry in journal_entries(store, run_ids[0], 0) if entry.HasField("adopted")
                ]
            assert [adopted.handed_over for adopted in adoptions] == [False, True]

    run(scenario())


def test_an_executor_is_drained_through_the_api_and_gets_no_more_runs(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    gate.allow(0)
    mesh.host(gated_config(tmp_path))
    first = mesh.executor()
    control = mesh.start("control_plane")

    async def scenario() -> None:
        async with Client(control.address) as client, mesh.store() as store:
            before = await client.submit(chain(2), 1)
            await gate.wait_for(1)
            second = await asyncio.to_thread(mesh.executor)
            await client.drain(executor_id=first.id)
            after = await client.submit(chain(1), 2)
            gate.allow(9)
            for run_id in (before, after):
                assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            owners = [
                entry.adopted.executor_id
                async for entry in journal_entries(store, after, 0)
                if entry.HasField("adopted")
            ]
            assert owners == [second.id]
            assert {attempt for _, attempt in gate.ledger} == {1}

    run(scenario())


def test_runs_that_nobody_can_take_over_wait_for_the_first_executor_that_comes(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    gate.allow(0)
    mesh.host(gated_config(tmp_path))
    first = mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control:
            run_id = await control.submit(request(chain(2)))
            await gate.wait_for(1)
            assert await asyncio.to_thread(first.end) == 0
            gate.allow(9)
            await asyncio.to_thread(mesh.executor)
            assert (await control.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            assert gate.ledger == [(f"{run_id}/0/s0", 1), (f"{run_id}/0/s1", 1)]

    run(scenario())


def test_the_calls_of_a_killed_host_are_made_again_on_another_one_with_the_next_attempt(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    gate.allow(0)
    config = gated_config(tmp_path)
    first = mesh.host(config)
    mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control:
            run_id = await control.submit(request(chain(1)))
            await gate.wait_for(1)
            await asyncio.to_thread(mesh.host, config)
            first.kill()
            gate.allow(9)
            assert (await control.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            assert gate.ledger == [(f"{run_id}/0/s0", 1), (f"{run_id}/0/s0", 2)]

    run(scenario())


def test_a_host_that_is_asked_to_end_finishes_its_calls_first(mesh: Processes, gate: Gate, tmp_path: Path) -> None:
    gate.allow(0)
    config = gated_config(tmp_path)
    first = mesh.host(config)
    mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control:
            run_id = await control.submit(request(chain(2)))
            await gate.wait_for(1)
            await asyncio.to_thread(mesh.host, config)
            first.ask_to_end()
            await wait_until_async(lambda: "draining" in first.log, "the host drains")
            gate.allow(9)
            assert (await control.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            assert await asyncio.to_thread(first.process.wait, WAIT_S) == 0
            assert gate.ledger == [(f"{run_id}/0/s0", 1), (f"{run_id}/0/s1", 1)]

    run(scenario())


def test_a_host_with_other_rules_is_refused_while_the_first_one_lives(mesh: Processes, tmp_path: Path) -> None:
    first = mesh.host(gated_config(tmp_path), "--host-id", "north")
    other = tmp_path / "other.yml"
    other.write_text("plugins: {b: {type: builtin}}\nroutes: {/gated: [{plugin: b}]}\n", encoding="utf-8")
    second = mesh.host(other, "--host-id", "south", wait=False)
    assert second.process.wait(WAIT_S) == 1
    assert "ROUTES_CLAIMED" in second.log
    assert first.id in second.log
    assert "south-" in second.log
    assert "Traceback" not in second.log
    mesh.host(other, "--host-id", "south", "--replace-routes")


def test_a_call_for_a_plugin_without_a_live_host_waits_for_one(mesh: Processes, gate: Gate, tmp_path: Path) -> None:
    config = gated_config(tmp_path)
    mesh.host(config).end()
    mesh.executor()

    async def scenario() -> None:
        async with mesh.control() as control:
            run_id = await control.submit(request(chain(1)))
            await asyncio.to_thread(mesh.host, config)
            assert (await control.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            assert gate.ledger == [(f"{run_id}/0/s0", 1)]

    run(scenario())


def test_every_service_refuses_to_listen_beyond_this_machine_without_tls(mesh: Processes, tmp_path: Path) -> None:
    refused = [
        mesh.start(module, "--listen", "0.0.0.0:0", *more, wait=False)
        for module, *more in (
            ("control_plane",),
            ("executor",),
            ("component_host", "--config", str(gated_config(tmp_path))),
        )
    ]
    for service in refused:
        assert service.process.wait(WAIT_S) == 1
        assert "TLS_REQUIRED" in service.log
        assert "Traceback" not in service.log
    mesh.executor("--listen", "0.0.0.0:0", "--insecure")


def test_every_service_tells_its_health_and_its_calls(mesh: Processes, tmp_path: Path) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

    async def ask(address: str, name: str) -> tuple[int, set[str], bool]:
        async with open_channel(address) as channel:
            health: Any = health_pb2_grpc.HealthStub(channel)
            serving = (await health.Check(health_pb2.HealthCheckRequest(service=name))).status
            asked = [
                reflection_pb2.ServerReflectionRequest(list_services=""),
                reflection_pb2.ServerReflectionRequest(file_containing_symbol=name),
            ]
            reflection: Any = reflection_pb2_grpc.ServerReflectionStub(channel)
            listed, described = [reply async for reply in reflection.ServerReflectionInfo(iter(asked))]
            names = {service.name for service in listed.list_services_response.service}
            return serving, names, bool(described.file_descriptor_response.file_descriptor_proto)

    for service, name in (
        (mesh.start("control_plane"), "stepflow.mesh.v1.RunsService"),
        (mesh.executor(), "stepflow.mesh.v1.ExecutorService"),
        (mesh.host(gated_config(tmp_path)), "stepflow.mesh.v1.ComponentHostService"),
    ):
        serving, names, described = asyncio.run(ask(service.address, name))
        assert serving == health_pb2.HealthCheckResponse.SERVING
        assert {name, "grpc.health.v1.Health"} <= names
        assert described


def test_fifty_clients_at_two_control_planes_make_one_run_of_one_id(
    mesh: Processes, gate: Gate, tmp_path: Path
) -> None:
    planes = [mesh.start("control_plane") for _ in range(2)]
    mesh.executor()
    mesh.host(gated_config(tmp_path))
    run_id = str(uuid4())

    async def submit(number: int) -> str:
        async with Client(planes[number % 2].address) as client:
            return await client.submit(chain(2), 5, run_id=run_id)

    async def scenario() -> None:
        assert set(await asyncio.gather(*map(submit, range(50)))) == {run_id}
        async with Client(planes[0].address) as client:
            assert (await client.wait(run_id, timeout_s=WAIT_S)).status == "completed"
            assert [run.run_id async for run in client.list_runs()] == [run_id]
        assert gate.ledger == [(f"{run_id}/0/s0", 1), (f"{run_id}/0/s1", 1)]

    run(scenario())


def test_a_cancel_ends_a_run_and_the_call_in_its_server(mesh: Processes, gate: Gate, tmp_path: Path) -> None:
    control_plane = mesh.start("control_plane")
    mesh.executor()
    mesh.host(gated_config(tmp_path))
    gate.allow(0)

    async def scenario() -> None:
        async with Client(control_plane.address) as client:
            run_id = await client.submit(chain(2))
            await gate.wait_for(1)
            await client.cancel(run_id)
            ended = await client.wait(run_id, timeout_s=WAIT_S)
            assert (ended.status, ended.items_cancelled) == ("cancelled", 1)
            cancelled = tmp_path / "cancelled"
            await wait_until_async(lambda: text_of(cancelled) == f"{run_id}/0/s0\n", "the component has seen it")
            gate.allow(9)
            other = await client.submit(chain(1))
            assert (await client.wait(other, timeout_s=WAIT_S)).status == "completed"
            assert gate.ledger == [(f"{run_id}/0/s0", 1), (f"{other}/0/s0", 1)], "a step began after the cancel"

    run(scenario())
