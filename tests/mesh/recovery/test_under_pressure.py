"""Calls that wait for nested calls, and full frames: one mesh of processes over a real etcd, driven through its API.

`/nest`, `/one` and `/wide` are the same server, behind hosts with capacities of 100 calls, one call and the default.
The executor takes 100 runs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, server_venv, text_of, wait_until_async
from support.etcd import running_etcd
from support.mesh import Processes, processes

from stepflow.client import Client
from stepflow.codec import encode
from stepflow.mesh.v1 import flows_pb2, runs_pb2, runs_pb2_grpc, values_pb2
from stepflow.rpc.channel import open_channel
from stepflow.store import keys, range_all

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator
    from pathlib import Path

CAPACITY = 100
WAIT_S = 60.0


@dataclass
class Mesh:
    processes: Processes
    address: str
    folder: Path

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        async with Client(self.address) as client:
            yield client

    def executed(self, component: str) -> list[str]:
        """The keys of the executions that have begun, in order."""
        lines = [line.split() for line in text_of(self.folder / "ledger").splitlines()]
        return [key for name, key in lines if name == component]

    async def all_begun(self, component: str) -> None:
        """Wait until as many executions as the host takes are under way at once, and let them go on."""
        await wait_until_async(lambda: len(self.executed(component)) == CAPACITY, f"{component}: all begun", WAIT_S)
        (self.folder / component).touch()


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    folder = tmp_path_factory.mktemp("mesh")
    with running_etcd(folder / "etcd", "--unsafe-no-fsync") as etcd, processes(etcd, folder, "pressure/") as mesh:
        services = [
            mesh.host(config(folder, "nest"), "--host-id", "nest", "--capacity", str(CAPACITY), wait=False),
            mesh.host(config(folder, "one"), "--host-id", "one", "--capacity", "1", wait=False),
            mesh.host(config(folder, "wide"), "--host-id", "wide", wait=False),
            mesh.executor("--runs-max", str(CAPACITY), wait=False),
            mesh.start("control_plane", wait=False),
        ]
        for service in services:
            service.wait_ready()
        yield Mesh(mesh, services[-1].address, folder)


NESTED = [str(ROOT / "tests/data/servers/nested.py")]


def config(folder: Path, name: str, *, command: str = sys.executable, args: list[str] = NESTED) -> Path:
    """Write the configuration of a host that runs a server as plugin and prefix `name`; return its path."""
    server = {
        "type": "stepflow",
        "command": command,
        "args": args,
        "env": {"PYTHONPATH": str(ROOT), "NESTED_FOLDER": str(folder)},
    }
    path = folder / f"{name}.yml"
    path.write_text(json.dumps({"plugins": {name: server}, "routes": {f"/{name}": [{"plugin": name}]}}), "utf-8")
    return path


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 2 * WAIT_S))


def flow(component: str, value: Any) -> dict[str, Any]:
    return {"steps": [{"id": "a", "component": component, "input": value}], "output": {"$step": "a"}}


async def result(client: Client, run_id: str) -> Any:
    view = await client.wait(run_id, timeout_s=WAIT_S)
    (item,) = [item async for item in client.items(run_id)]
    assert view.status == "completed", (view, item.failure)
    return item.result


def test_a_hundred_parents_wait_for_a_hundred_children_on_a_host_for_a_hundred_calls(mesh: Mesh) -> None:
    async def scenario() -> None:
        async with mesh.client() as client:
            asks = flow("/nest/parent", {"component": "/nest/child", "value": {"$input": "$"}})
            run_ids = await client.submit_runs(asks, range(CAPACITY))
            await mesh.all_begun("parent")
            await mesh.all_begun("child")
            for number, run_id in enumerate(run_ids):
                assert await result(client, str(run_id)) == {"child of": number}
            assert len(mesh.executed("child")) == len(mesh.executed("parent")) == CAPACITY

    run(scenario())


def test_a_component_on_a_host_for_one_call_evaluates_flows_that_call_it_again(mesh: Mesh) -> None:
    async def scenario() -> None:
        async with mesh.client() as client:
            run_id = await client.submit(flow("/one/down", {"component": "/one/down", "levels": 9}))
            assert await result(client, run_id) == 9

    run(scenario())


def test_a_server_that_takes_one_execute_at_a_time_evaluates_flows_that_call_it_again(mesh: Mesh) -> None:
    """stepflow-py 0.4 does not say which execute asks, so its process gets one at a time."""
    kit = ROOT / "tests/data/stepflow_servers/kit.py"
    python = server_venv(["stepflow-py==0.4.0"], "stepflow-py-0.4.0") / "python"
    service = mesh.processes.host(config(mesh.folder, "old", command=str(python), args=[str(kit)]), "--host-id", "old")

    async def scenario() -> None:
        innermost = {"a": 1}
        tree = flow("/old/echo", innermost)
        for level in range(2):
            tree = {
                "steps": [
                    {
                        "id": f"l{level}",
                        "component": "/old/evaluate",
                        "input": {"$literal": {"flow": tree, "input": 0}},
                    },
                    {"id": f"m{level}", "component": "/old/echo", "input": {"$step": f"l{level}"}},
                ],
                "output": {"$step": f"m{level}"},
            }
        async with mesh.client() as client:
            run_ids = await client.submit_runs(tree, range(5))
            for run_id in run_ids:
                assert await result(client, str(run_id)) == innermost
                assert {step.attempt async for step in client.steps(str(run_id))} == {1}

    run(scenario())
    assert service.end() == 0


def test_five_mebibytes_of_calls_that_are_ready_at_once_all_reach_one_host(mesh: Mesh) -> None:
    async def scenario() -> None:
        count, text = 180, "x" * 30_000  # each small enough to travel in its call
        assert count * len(text) > 5 * 1024 * 1024
        steps = [{"id": f"s{n}", "component": "/wide/echo", "input": [n, {"$input": "$"}]} for n in range(count)]
        tree = {"steps": steps, "output": [{"$step": f"s{n}", "path": "[0]"} for n in range(count)]}
        async with mesh.client() as client:
            run_id = await client.submit(tree, text, concurrency_max=count)
            assert await result(client, run_id) == list(range(count))
            attempts = [step.attempt async for step in client.steps(run_id)]
            assert attempts == [1] * count

    run(scenario())


NEWLINES = (
    json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "components/execute", "text": "\n\r\u2028\u0085", "list": [1, None, {}]},
        indent=1,
        ensure_ascii=False,
    )
    .replace(",", "\r\n,\t")
    .encode()
)
"""Legal JSON that would break a protocol of lines, and inject a message into it, were it passed on as it is."""


def test_legal_json_with_newlines_everywhere_passes_every_door_and_reaches_components_whole(mesh: Mesh) -> None:
    async def scenario() -> None:
        value = json.loads(NEWLINES)
        async with mesh.client() as client, open_channel(mesh.address) as channel:
            blob_id = await client.put_blob(NEWLINES)
            names = {"$input": "$", "$variable": "v"}
            steps = [
                {"id": "given", "component": "/nest/echo", "input": [{name: of} for name, of in names.items()]},
                {"id": "blob", "component": "/nest/blob", "input": {"blob_id": blob_id}},
                {"id": "literal", "component": "/nest/echo", "input": {"$literal": value}},
                {"id": "overridden", "component": "/nest/echo", "input": "replaced below"},
            ]
            ids = [step["id"] for step in steps]
            variables = {"type": "object", "properties": {"v": {}}}
            tree = {
                "schemas": {"properties": {"variables": variables}},
                "steps": steps,
                "output": [{"$step": each} for each in ids],
            }
            overrides = {"steps": {"overridden": {"value": {"input": {"$literal": value}}}}}
            request = runs_pb2.SubmitRunRequest(
                flow=flows_pb2.FlowReference(document=spread(tree)),
                inputs=[values_pb2.Value(json=NEWLINES)],
                variables={"v": values_pb2.Value(json=NEWLINES)},
                overrides=spread(overrides),
            )
            reply = await runs_pb2_grpc.RunsServiceStub(channel).SubmitRun(request)
            assert await result(client, reply.run_id) == [[value, value], value, value, value]
            (item,) = [item async for item in client.items(reply.run_id)]
            assert item.raw == encode(item.result)
            assert b"\n" not in item.raw

    run(scenario())


def spread(tree: Any) -> values_pb2.Value:
    """Return a tree as JSON over many lines."""
    return values_pb2.Value(json=json.dumps(tree, indent=1).replace(",", "\r\n,\t").encode())


def test_a_cancel_after_the_end_creates_nothing(mesh: Mesh) -> None:
    async def scenario() -> None:
        async with mesh.client() as client, mesh.processes.store() as store:
            run_id = await client.submit(flow("/nest/echo", 1))
            assert await result(client, run_id) == 1
            before = {item.key: item.mod_revision async for item in range_all(store, "")}
            assert (await client.cancel(run_id)).status == "completed"
            after = {item.key: item.mod_revision async for item in range_all(store, "")}
            created = {key for key in after if after[key] != before.get(key)}
            assert created == set(), "nothing was written"
            assert not [key for key in after if key.startswith(keys.INBOX)]

    run(scenario())
