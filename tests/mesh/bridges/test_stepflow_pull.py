"""The pull bridge against real workers: stepflow-py 0.12.0 and 0.13.0.

The host's side of a call is a double (`support.host_side`) except at the end, where a whole mesh runs a flow;
processes, sockets and workers are real. The decisions of a queue are tested without them, in
`tests/unit/component_host/test_pull_queue.py`.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from support import ROOT, free_port, is_alive, server_venv, text_of, wait_until_async
from support.host_side import FLOW_ID, Call, MemoryBlobs, execute, report, started
from support.pull import SERVERS, VERSIONS, worker

from component_host.backends import PullEndpoints, make_backend, make_backends
from component_host.stepflow_bridge.pull.messages import TRACEBACK_CHARS_MAX
from stepflow.config import config_from_tree
from stepflow.embedded.mesh import run_flow_once
from stepflow.errors import Code, Failure, Unavailable
from stepflow.flow import flow_from_tree

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)  # the first test of a version installs its server

each_version = pytest.mark.parametrize("version", VERSIONS)
latest = pytest.mark.parametrize("version", VERSIONS[-1:])  # `make matrix` runs the like on all


# --- every generation --------------------------------------------------------------------------------------------


@each_version
def test_components_are_listed_and_called_by_the_names_that_the_version_has(version: str) -> None:
    async def test() -> None:
        async with started(worker(version)) as backend:
            listing = backend.listing()
            slash = "/" if version == "0.12.0" else ""
            (add,) = [info for info in listing.components if info.path == "/add"]
            assert (add.component, add.description) == (f"{slash}add", "Add two integers.")
            assert "a" in json.dumps(add.input_schema)
            assert listing.complete is (version == "0.13.0"), "0.12 leaves patterns out"
            assert await execute(backend, add.component, {"a": 2, "b": 3}) == {"sum": 5}
            pattern = ("/core/a/b", {}) if slash else ("core", {"component": "a/b"})
            rest = await execute(backend, pattern[0], {"x": 1}, path_params=pattern[1])
            assert rest == {"rest": "a/b", "input": {"x": 1}}
            unknown = await execute(backend, "/nope", {})
            assert unknown == Failure(Code.COMPONENT_NOT_FOUND, "Component '/nope' not found")

    uvloop.run(test())


@latest
def test_values_pass_and_what_the_wire_cannot_carry_is_refused(version: str) -> None:
    value = {"text": 'é\u2028\n"\\', "whole": 3, "half": 1.5, "none": None, "list": [[], {}, [True]]}

    async def test() -> None:
        async with started(worker(version)) as backend:
            assert await execute(backend, "echo", value) == value
            assert len((await execute(backend, "big", {"size": 6 << 20}))["text"]) == 6 << 20
            for unfit, reason in ((2**60, "2**53"), ("x" * (4 << 20), "put_blob"), (deep(60), "nested")):
                failure = await execute(backend, "echo", unfit)
                assert failure.code is Code.INVALID_INPUT
                assert reason in failure.message
            assert await execute(backend, "add", {"a": 1, "b": 1}) == {"sum": 2}, "the worker was not harmed"

    uvloop.run(test())


def deep(levels: int) -> Any:
    value: Any = 0
    for _ in range(levels):
        value = [value]
    return value


@latest
def test_failures_have_their_code_and_text_and_the_end_of_the_traceback(version: str) -> None:
    async def test() -> None:
        async with started(worker(version)) as backend:
            failure = await execute(backend, "fail", {"text": "the moon is full"})
            assert (failure.code, failure.message) == (Code.COMPONENT_FAILED, "the moon is full")
            data = json.loads(failure.data)
            assert set(data) == {"exception_type", "traceback"}
            assert data["exception_type"] == "ValueError"
            assert data["traceback"].endswith("ValueError: the moon is full")
            assert len(data["traceback"]) <= TRACEBACK_CHARS_MAX
            failure = await execute(backend, "fail_typed", {})
            assert (failure.code, failure.message) == (Code.RESOURCE_UNAVAILABLE, "no such service")

    uvloop.run(test())


@latest
def test_a_component_uses_blobs_and_a_udf_runs_code_from_one(version: str) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        async with started(worker(version)) as backend:
            output = await execute(backend, "blob_roundtrip", {"value": [1, "é"]}, blobs=blobs)
            assert output["value"] == [1, "é"]
            assert blobs.content[output["blob_id"]] == ('[1,"é"]'.encode(), "data")
            output = await execute(backend, "raw_blob", {"bytes": [0, 1, 255]}, blobs=blobs)
            assert output["bytes"] == [0, 1, 255]
            assert blobs.content[output["blob_id"]] == (b"\x00\x01\xff", "binary")
            missing = await execute(backend, "blob_get", {"blob_id": "00" * 32})
            assert missing.code is Code.COMPONENT_FAILED
            assert "there is no blob" in missing.message
            code = {"code": "input['n'] * 2", "input_schema": {"type": "object"}}
            blob_id = await blobs.put(json.dumps(code).encode())
            assert await execute(backend, "udf", {"blob_id": blob_id, "input": {"n": 21}}, blobs=blobs) == 42

    uvloop.run(test())


@each_version
def test_a_component_runs_flows_in_the_name_of_its_own_call(version: str) -> None:
    flow = {"steps": [{"id": "s", "component": "/builtin/noop", "input": 1}], "output": {"$step": "s"}}

    async def test() -> None:
        blobs = MemoryBlobs()
        async with started(worker(version)) as backend:
            calls = [
                Call(
                    "evaluate",
                    {"flow": flow, "input": {"x": number}},
                    blobs=blobs,
                    runs=lambda request, number=number: report(f"r{number}", {"outcome": "success", "result": number}),
                )
                for number in range(5)
            ]
            for call in calls:
                backend.execute(call)
            for number, call in enumerate(calls):
                assert await call.outcome() == number
                (request,) = call.started
                assert json.loads(blobs.content[request.flow.blob][0]) == flow
                assert json.loads(request.inputs.json) == [{"x": number}]
            results = [
                {"outcome": "success", "result": 1},
                {"outcome": "failed", "error": {"code": 1, "message": "late"}},
            ]
            call = {"flow_id": FLOW_ID, "inputs": [1, 2]}
            output = await execute(backend, "submit", call, runs=lambda request: report("b1", *results))
            assert [item["status"] for item in output["results"]] == [
                "EXECUTION_STATUS_COMPLETED",
                "EXECUTION_STATUS_FAILED",
            ]
            assert output["results"][1]["error_message"] == "late"

    uvloop.run(test())


@latest
def test_a_hundred_calls_at_once_and_crashes_with_any_code_are_survived(version: str) -> None:
    async def test() -> None:
        async with started(worker(version)) as backend:
            calls = [Call("add", {"a": number, "b": number}) for number in range(100)]
            for call in calls:
                backend.execute(call)
            assert [await call.outcome() for call in calls] == [{"sum": 2 * number} for number in range(100)]
            before = backend.process_ids()
            for component, code in (("crash", 3), ("exit_with_success", 0)):
                failure = await execute(backend, component, {"last_words": "out of coffee"})
                assert failure.code is Code.UNREACHABLE
                assert f"exited with code {code}" in failure.message
                assert code == 0 or "out of coffee" in json.loads(failure.data)["stderr"]
                assert await execute(backend, "add", {"a": 1, "b": 1}) == {"sum": 2}
            assert backend.process_ids() != before

    uvloop.run(test())


def test_calls_are_spread_over_the_processes_of_a_plugin(tmp_path: Path) -> None:
    async def test() -> None:
        async with started(worker("0.13.0", processes=2, concurrency=1)) as backend:
            calls = [
                Call("wait", {"entered": str(tmp_path / f"{number}"), "release": str(tmp_path / "go"), "value": number})
                for number in range(2)
            ]
            for call in calls:
                backend.execute(call)
            await wait_until_async(lambda: all(text_of(tmp_path / f"{number}") for number in range(2)), "both run")
            assert {int(text_of(tmp_path / f"{number}")) for number in range(2)} == set(backend.process_ids())
            (tmp_path / "go").touch()
            assert [await call.outcome() for call in calls] == [0, 1]

    uvloop.run(test())


def test_a_component_that_blocks_its_worker_is_waited_for_and_the_rest_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        async with started(worker("0.13.0")) as backend:
            files = {"entered": str(tmp_path / "in"), "release": str(tmp_path / "go")}
            blocked = Call("block_until", files)
            backend.execute(blocked)
            pid = int(await wait_until_async(lambda: text_of(tmp_path / "in"), "it runs"))
            behind = Call("add", {"a": 1, "b": 1})
            backend.execute(behind)
            (tmp_path / "go").touch()
            assert await blocked.outcome() == {"pid": pid}
            assert await behind.outcome() == {"sum": 2}

    uvloop.run(test())


def test_a_worker_that_blocks_is_replaced_after_a_cancel(tmp_path: Path) -> None:
    async def test() -> None:
        async with started(worker("0.13.0", request_timeout_s=0.3)) as backend:
            call = Call("block_until", {"entered": str(tmp_path / "in"), "release": str(tmp_path / "never")})
            backend.execute(call)
            pid = int(await wait_until_async(lambda: text_of(tmp_path / "in"), "it runs"))
            backend.cancel(call)
            assert (await call.outcome()).code is Code.CANCELLED
            await wait_until_async(lambda: not is_alive(pid), "the blocked process is ended")
            assert await execute(backend, "add", {"a": 1, "b": 1}) == {"sum": 2}

    uvloop.run(test())


@each_version
def test_what_runs_when_a_plugin_is_stopped_may_complete_and_idle_workers_go_at_once(
    version: str, tmp_path: Path
) -> None:
    async def test() -> None:
        async with started(worker(version)) as backend:
            (idle,) = backend.process_ids()
        assert not is_alive(idle)
        async with started(worker(version)) as backend:
            call = Call("wait", {"entered": str(tmp_path / "in"), "release": str(tmp_path / "go"), "value": 7})
            backend.execute(call)
            pid = int(await wait_until_async(lambda: text_of(tmp_path / "in"), "it runs"))
            closing = asyncio.create_task(backend.close())
            await asyncio.sleep(0)
            (tmp_path / "go").touch()
            assert await call.outcome() == 7
            await closing
            assert not is_alive(pid)

    uvloop.run(test())


def test_a_worker_that_does_not_start_is_explained_with_its_stderr() -> None:
    async def test() -> None:
        backend = worker("0.13.0", args=["-c", "import sys; sys.exit('no such model')"])
        with pytest.raises(Unavailable, match=r"exited with code 1 before it was ready(.|\n)*no such model"):
            await backend.start()
        silent = worker("0.13.0", args=["-c", "import time; time.sleep(60)"], start_timeout_s=0.5)
        with pytest.raises(Unavailable) as caught:
            await silent.start()
        assert caught.value.reason == "SERVER_NOT_RESPONDING"
        assert not is_alive(silent.process_ids()[0])

    uvloop.run(test())


def test_a_proxy_in_the_environment_is_not_on_the_way_to_us() -> None:
    environ = {"http_proxy": "http://127.0.0.1:9", "no_proxy": "example.org"}

    async def test() -> None:
        async with started(worker("0.13.0", environ=environ)) as backend:
            assert await execute(backend, "add", {"a": 1, "b": 1}) == {"sum": 2}

    uvloop.run(test())


# --- in a mesh -------------------------------------------------------------------------------------------------------


@each_version
def test_a_flow_runs_with_a_sub_flow_as_a_child_of_its_own_step(version: str) -> None:
    python = server_venv([f"stepflow-py=={version}"], f"stepflow-py-{version}") / "python"
    child = {
        "schemas": {},
        "steps": [{"id": "s", "component": "/py/add", "input": {"a": {"$input": "x"}, "b": 1}}],
        "output": {"$step": "s", "path": "sum"},
    }
    flow = {
        "schemas": {},
        "steps": [
            {"id": "parent", "component": "/py/evaluate", "input": {"flow": {"$literal": child}, "input": {"x": 41}}}
        ],
        "output": {"$step": "parent"},
    }
    config = config_from_tree(
        {
            "plugins": {
                "py": {
                    "type": "grpc",
                    "queueName": "py",
                    "command": str(python),
                    "args": [str(SERVERS / "pull.py")],
                    "concurrency": 1,  # the parent must lend its only slot to the child
                }
            },
            "routes": {"/py": [{"plugin": "py"}]},
        },
        source="test",
        base_dir=ROOT,
    )
    (result,) = uvloop.run(run_flow_once(flow_from_tree(flow, source="test"), [b"{}"], config=config))
    assert result == {"outcome": "success", "result": 42}


def test_a_plugin_that_is_made_again_shares_the_address_of_the_others() -> None:
    async def main() -> None:
        port = free_port()
        plugin = {"type": "grpc", "listen": f"127.0.0.1:{port}"}
        tree = {
            "plugins": {name: {**plugin, "queueName": name} for name in ("first", "second")},
            "routes": {f"/{name}": [{"plugin": name}] for name in ("first", "second")},
        }
        config = config_from_tree(tree, source="test", base_dir=ROOT)
        endpoints: PullEndpoints = {}
        backends = make_backends(config, {}, endpoints=endpoints)
        await asyncio.gather(*(backend.start() for backend in backends.values()))
        try:
            await backends["second"].close()
            again = make_backend("second", config, {}, endpoints=endpoints)
            await again.start()  # the address is taken by `first`
            await again.close()
        finally:
            await backends["first"].close()

    uvloop.run(main())
