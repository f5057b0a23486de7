"""Runs with large values share the memory of an executor and of a host: what does not fit waits, in order."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from support import wait_for_value, wait_until_async
from support.mesh import Gate, gated_config, processes
from support.parts import World, echo, gated, of, step
from typer.testing import CliRunner

from executor import adoption
from stepflow.cli.app import app
from stepflow.client import Client
from stepflow.codec import encode
from stepflow.flow.values import Stored
from stepflow.mesh.v1 import host_pb2
from stepflow.mesh.v1 import journal_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Coroutine
    from pathlib import Path

    import pytest
    from support.etcd import EtcdServer

    from component_host.backend import HostCall

BIG = 200_000
"""Characters of a large value."""

RUNS = 24


def run(main: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(main, 60))


class Loads:
    """Blobs of an executor that are being loaded, measured in a blob store that is slow enough for all to overlap."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
        self.now = self.most = self.count = 0
        get = world.blobs.get

        async def measured(identity: str, *, scope: str = "shared") -> tuple[bytes, str]:
            self.now += 1
            self.count += 1
            self.most = max(self.most, self.now)
            for _ in range(50):
                await asyncio.sleep(0)
            self.now -= 1
            return await get(identity, scope=scope)

        monkeypatch.setattr(world.blobs, "get", measured)


def test_runs_with_large_values_load_as_many_at_once_as_there_is_memory_for(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with World.open(value_bytes_max=5 * BIG) as world:
            for host, _ in world.hosts:
                host.value_budget.bytes_max = 2 * BIG
            loads = Loads(monkeypatch, world)
            steps = (step("a", "/kit/big", BIG), echo("b", {"x": of("a")}), echo("c", [of("b"), 1]))
            run_ids = [await world.submit(*steps) for _ in range(RUNS)]
            for run_id in run_ids:
                assert (await world.ended(run_id)).status == "completed"
            assert loads.most <= 2 + 2  # each needs the memory of two values in the executor, and of one in the host
            (executor,) = world.executors
            await wait_until_async(lambda: not executor.values.bytes_used, "the executor has given all memory back")
            await wait_until_async(lambda: not world.hosts[0][0].value_budget.bytes_used, "and so has the host")

    run(main())


def test_large_outputs_are_stored_in_turn_and_small_calls_of_the_same_server_pass_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with World.open() as world:
            (host, _), *_ = world.hosts
            host.output_turns.bytes_max = 5 * BIG
            put, open_gate, storing = world.blobs.put, asyncio.Event(), 0

            async def gated_put(content: bytes, *, scope: str = "shared", blob_type: str = "data") -> str:
                nonlocal storing
                if len(content) > BIG:
                    storing += 1
                    await open_gate.wait()
                    storing -= 1
                return await put(content, scope=scope, blob_type=blob_type)

            monkeypatch.setattr(world.blobs, "put", gated_put)
            large = [await world.submit(step("a", "/kit/big", 2 * BIG)) for _ in range(8)]
            await wait_until_async(lambda: storing == 2 and host.output_turns.waiting == 6, "six wait for two")
            assert (await world.ended(await world.submit(echo("b", 1)))).status == "completed"
            await world.control.cancel(large.pop())
            assert storing == 2

            open_gate.set()
            for run_id in large:
                assert (await world.ended(run_id)).status == "completed"
            await wait_until_async(
                lambda: not host.output_turns.bytes_used and not host.value_budget.bytes_used, "all is given back"
            )

    run(main())


def test_a_batch_loads_a_bounded_part_of_its_large_values_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("stepflow.run.values.WANTED_BYTES_MAX", 3 * BIG)

    async def main() -> None:
        async with World.open(value_bytes_max=5 * BIG) as world:
            for host, _ in world.hosts:
                host.value_budget.bytes_max = 1  # one call at a time
            loads = Loads(monkeypatch, world)
            a, b = (step(name, "/kit/big", {"$input": f"$.{name}"}) for name in "ab")
            inputs = [{"a": BIG + n, "b": BIG - 1 - n} for n in range(8)]
            run_id = await world.submit(a, b, gated("g"), echo("c", [of("a"), of("b"), of("g")]), inputs=inputs)
            await wait_until_async(lambda: len(world.work.in_flight) == 8, "all items wait for one step")
            world.work.release_all()
            assert (await world.ended(run_id)).items_completed == 8
            assert loads.most <= 2 * 3 + 1  # a round may begin while the last blobs of another come; 16 without a bound

    run(main())


def test_large_outcomes_of_a_batch_do_not_stay_in_memory_until_its_end() -> None:
    async def main() -> None:
        async with World.open() as world:
            steps = (gated("a", {"$input": "$"}), step("b", "/kit/big", of("a")))
            run_id = await world.submit(*steps, inputs=[BIG + n for n in range(8)])
            await wait_until_async(lambda: len(world.work.in_flight) == 8, "all wait for one step")
            world.work.release(7)
            (executor,) = world.executors
            (driver,) = executor.ownership.drivers.values()
            root = driver.state.root
            await wait_until_async(lambda: root.items_done == 7, "seven items have ended")

            def stored() -> int:
                return sum(isinstance(item.outcome, Stored) and not item.outcome.loaded for item in root.items)

            await wait_until_async(lambda: stored() == 7, "their outcomes are in the blob store")
            await wait_until_async(lambda: not executor.values.bytes_used, "nothing large is in memory")
            world.work.release_all()
            await world.ended(run_id)
            results = [result["result"] for result in await world.results(run_id)]
            assert [len(result) for result in results] == [BIG + n for n in range(8)]

    run(main())


def test_large_inputs_are_in_memory_only_while_they_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adoption, "INPUT_BYTES_MAX", BIG // 2)

    async def main() -> None:
        async with World.open() as world:
            loads = Loads(monkeypatch, world)
            steps = (gated("a", 1), echo("b", of("a")), echo("c", [of("b"), {"$input": "$"}]))
            run_id = await world.submit(*steps, inputs=["x" * BIG, "y" * BIG])
            await wait_until_async(lambda: len(world.work.in_flight) == 2, "both wait")
            (executor,) = world.executors
            (driver,) = executor.ownership.drivers.values()
            assert all(isinstance(value, Stored) and not value.loaded for value in driver.state.root.inputs)
            assert executor.values.bytes_used == 0
            before = loads.count
            world.work.release_all()
            assert (await world.ended(run_id)).items_completed == 2
            assert loads.count - before == 2 * 2  # the input, in the executor and in the host

    run(main())


def test_a_run_that_ends_or_moves_while_it_waits_for_memory_takes_none() -> None:
    async def main() -> None:
        async with World.open(value_bytes_max=BIG) as world:
            (executor,) = world.executors
            await executor.values.take(BIG)  # as another run would
            steps = (step("a", "/kit/big", BIG), echo("b", of("a")))
            cancelled, moved = [await world.submit(*steps) for _ in range(2)]
            await wait_until_async(lambda: executor.values.waiting == 2, "both wait")
            await world.control.cancel(cancelled)
            assert (await world.ended(cancelled)).status == "cancelled"
            await world.add_executor(value_bytes_max=4 * BIG)
            await executor.hand_over()
            assert (await world.ended(moved)).status == "completed"
            executor.values.release(BIG)
            await wait_until_async(lambda: not executor.values.waiting, "nobody waits")
            assert executor.values.bytes_used == 0

    run(main())


def test_a_component_that_waits_for_a_flow_does_not_keep_the_memory_that_the_flow_needs() -> None:
    async def main() -> None:
        async with World.open() as world:
            (host, _), *_ = world.hosts
            host.value_budget.bytes_max = BIG

            async def ask(call: HostCall) -> Any:
                flow = {"steps": [echo("inner", {"$input": "$"})], "output": of("inner")}
                inputs = pb.Payload(json=encode(["y" * BIG]))
                report = await call.start_run(
                    host_pb2.StartRun(flow=pb.Payload(json=encode(flow)), inputs=inputs, wait=True)
                )
                return len(report.items)

            world.work.asks = ask
            run_id = await world.submit(step("a", "/kit/big", BIG), step("b", "/kit/ask", of("a")))
            assert (await world.ended(run_id)).status == "completed"
            await wait_until_async(lambda: not host.value_budget.bytes_used, "all memory is given back")

    run(main())


def test_a_mesh_shows_what_waits_for_memory(etcd: EtcdServer, tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    gate.allow(0)
    work = {"id": "s0", "component": "/gated/work", "input": {"$input": "$"}}
    flow = {"steps": [work], "output": {"$step": "s0"}}

    async def main(server: str) -> None:
        async with Client(server) as client:
            run_ids = [await client.submit(flow, "x" * 9_000_000) for _ in range(3)]

            async def waiting() -> list[int]:
                return [host.value_waiting for host in (await client.cluster()).hosts]

            await wait_for_value(waiting, "one waits", lambda now: now == [1], 30)
            (host,) = (await client.cluster()).hosts
            assert host.value_bytes_max == 20 * 2**20
            shown = await asyncio.to_thread(CliRunner().invoke, app, ["cluster", "status", "--server", server])
            assert "1 call waiting for memory; large values have 20 MiB" in shown.output
            gate.allow(99)
            for run_id in run_ids:
                assert (await client.wait(run_id, timeout_s=60)).status == "completed"
            await wait_for_value(waiting, "none waits", lambda now: now == [0], 30)

    with processes(etcd, tmp_path, f"{uuid4().hex[:12]}/") as mesh:
        mesh.host(gated_config(tmp_path), "--value-memory", "20")
        mesh.executor("--value-memory", "64")
        control = mesh.start("control_plane")
        run(main(control.address))
