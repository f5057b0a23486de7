"""The pull bridge against real workers: stepflow-py 0.12.0 and 0.13.0, and servers with this project's SDK.

The host's side of a call is a double (`support.host_side`) except at the end, where a whole mesh runs a flow;
processes, sockets and workers are real. The decisions of a queue are tested without them, in
`tests/unit/component_host/test_pull_queue.py`.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import grpc
import pytest
import uvloop
from support import ROOT, free_port, is_alive, server_venv, text_of, wait_until_async
from support.host_side import FLOW_ID, Call, MemoryBlobs, context, execute, report, started

from component_host.backends import PullEndpoints, make_backend, make_backends
from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.pull.backend import PullConfig, StepflowPullBackend
from component_host.stepflow_bridge.pull.endpoint import PullEndpoint
from stepflow.config import config_from_tree
from stepflow.embedded.mesh import run_flow_once
from stepflow.errors import Code, FailedPrecondition, Failure, Invalid, Unavailable
from stepflow.flow import flow_from_tree
from stepflow.mesh.v1 import host_pb2, journal_pb2
from stepflow.off_loop import INLINE_WORK_BYTES_MAX
from stepflow.pull import ORCHESTRATOR_SERVICE, TASKS_SERVICE
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.pull.values import fill

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

pytestmark = pytest.mark.timeout(400)  # the first test of a version installs its server

VERSIONS = ("0.12.0", "0.13.0")
each_version = pytest.mark.parametrize("version", VERSIONS)
latest = pytest.mark.parametrize("version", VERSIONS[-1:])  # `make matrix` runs the like on all

SERVERS = ROOT / "tests" / "data" / "stepflow_servers"
BEHAVIOURS = ROOT / "tests" / "data" / "servers" / "behaviours.py"


def worker(version: str, *, environ: dict[str, str] | None = None, **config: Any) -> StepflowPullBackend:
    """Make a backend that starts `pull.py` on the stepflow-py of a version."""
    python = server_venv([f"stepflow-py=={version}"], f"stepflow-py-{version}") / "python"
    config = {"queue_name": "kit", "command": str(python), "args": [str(SERVERS / "pull.py")], **config}
    return StepflowPullBackend(context(**(environ or {})), PullConfig(**config))


def own(**config: Any) -> StepflowPullBackend:
    """Make a backend that starts a server with our SDK."""
    config = {
        "queue_name": "own",
        "command": "python",
        "args": [str(BEHAVIOURS)],
        "env": {"PYTHONPATH": str(ROOT)},
        **config,
    }
    return StepflowPullBackend(context("own"), PullConfig(**config))


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
def test_failures_have_their_code_and_text_and_no_traceback(version: str) -> None:
    async def test() -> None:
        async with started(worker(version)) as backend:
            assert await execute(backend, "fail", {"text": "the moon is full"}) == Failure(
                Code.COMPONENT_FAILED, "the moon is full", b'{"exception_type":"ValueError"}'
            )
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


# --- workers that connect by themselves ------------------------------------------------------------------------------


@asynccontextmanager
async def open_endpoint(**config: Any) -> AsyncIterator[tuple[StepflowPullBackend, str]]:
    """Give a backend for workers of the queue `kit` that connect by themselves, and the address for them."""
    endpoint = PullEndpoint("127.0.0.1:0")
    backend = StepflowPullBackend(context(), PullConfig(queue_name="kit", **config), endpoint)
    async with started(backend):
        yield backend, endpoint.address


@asynccontextmanager
async def stranger(address: str, *command: str, **env: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a worker outside of all plugins."""
    names = ("STEPFLOW_TASKS_URL", "STEPFLOW_BLOB_URL")
    environ = {**os.environ, **dict.fromkeys(names, address), "STEPFLOW_QUEUE_NAME": "kit", **env}
    process = await asyncio.create_subprocess_exec(*command, env=environ)
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


def test_calls_wait_for_a_worker_that_connects_by_itself() -> None:
    async def test() -> None:
        python = server_venv(["stepflow-py==0.13.0"], "stepflow-py-0.13.0") / "python"
        async with open_endpoint() as (backend, address):
            assert not backend.listing().complete, "until a worker has told, every path is sent to it"
            call = Call("/add", {"a": 1, "b": 2})
            backend.execute(call)
            async with stranger(address, str(python), str(SERVERS / "pull.py")):
                assert await call.outcome() == {"sum": 3}
                assert backend.listing().complete

    uvloop.run(test())


class Hand:
    """A worker that is the test itself."""

    def __init__(self, address: str, name: str = "hand") -> None:
        self.name = name
        self.channel = grpc.aio.insecure_channel(address)
        self.stream: Any = None

    async def __aenter__(self) -> Hand:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.channel.close()

    def pull(self, queue: str = "kit") -> None:
        method = self.channel.unary_stream(
            f"/{TASKS_SERVICE}/PullTasks",
            request_serializer=pb.PullTasksRequest.SerializeToString,
            response_deserializer=pb.TaskAssignment.FromString,
        )
        self.stream = method(pb.PullTasksRequest(queue_name=queue, worker_id=self.name))

    async def take(self) -> pb.TaskAssignment:
        async with asyncio.timeout(10):
            task: pb.TaskAssignment = await self.stream.read()
        return task

    async def join(self, queue: str = "kit") -> None:
        """Connect, and tell one component."""
        self.pull(queue)
        question = await self.take()
        listing = pb.ListComponentsResult(components=[pb.ComponentInfo(component_id="add", path="/add")])
        await self.say("CompleteTask", pb.CompleteTaskRequest(task_id=question.task_id, list_components=listing))

    async def say(self, method: str, request: Any, reply: Any = pb.CompleteTaskResponse) -> Any:
        call = self.channel.unary_unary(
            f"/{ORCHESTRATOR_SERVICE}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=reply.FromString,
        )
        return await call(request, timeout=10)

    async def claim(self, task: pb.TaskAssignment, name: str = "") -> pb.TaskHeartbeatResponse:
        request = pb.TaskHeartbeatRequest(task_id=task.task_id, worker_id=name or self.name)
        reply: pb.TaskHeartbeatResponse = await self.say("TaskHeartbeat", request, pb.TaskHeartbeatResponse)
        return reply

    async def complete(self, task: pb.TaskAssignment, output: Any) -> None:
        request = pb.CompleteTaskRequest(task_id=task.task_id)
        fill(request.response.output, output, "it")
        await self.say("CompleteTask", request)


def test_a_task_has_one_worker_and_a_late_completion_is_taken_with_thanks() -> None:
    async def test() -> None:
        async with open_endpoint() as (backend, address), Hand(address) as hand:
            await hand.join()
            call = Call("add", 1)
            backend.execute(call)
            task = await hand.take()
            assert not (await hand.claim(task)).should_abort
            other = await hand.claim(task, "another")
            assert (other.should_abort, other.status) == (True, pb.TASK_STATUS_ALREADY_CLAIMED)
            await hand.complete(task, 5)
            assert await call.outcome() == 5
            await hand.complete(task, 6)
            assert (await hand.claim(task)).should_abort

    uvloop.run(test())


def test_an_unclaimed_task_is_sent_again_when_its_stream_breaks() -> None:
    async def test() -> None:
        async with open_endpoint() as (backend, address), Hand(address, "one") as one, Hand(address, "two") as two:
            await one.join()
            call = Call("add", 1)
            backend.execute(call)
            first = await one.take()
            one.stream.cancel()
            await two.join()
            again = await two.take()
            assert (await one.claim(first)).should_abort
            assert not (await two.claim(again)).should_abort
            await two.complete(again, 1)
            assert await call.outcome() == 1

    uvloop.run(test())


def test_an_output_that_no_decoder_reads_fails_its_call() -> None:
    async def test() -> None:
        async with open_endpoint() as (backend, address), Hand(address) as hand:
            await hand.join()
            call = Call("add", 1)
            backend.execute(call)
            task = await hand.take()
            await hand.claim(task)
            value = b"\x19" + b"\x00" * 8  # a number
            for _ in range(200):
                for tag in (b"\x0a", b"\x32"):  # in a list, which is a value
                    value = tag + _length(value) + value
            output = b"\x0a" + _length(value) + value
            text = b"\x0a" + _length(task.task_id.encode()) + task.task_id.encode() + b"\x12" + _length(output) + output
            send = hand.channel.unary_unary(f"/{ORCHESTRATOR_SERVICE}/CompleteTask")
            await send(text, timeout=10)
            failure = await call.outcome()
            assert failure.code is Code.COMPONENT_FAILED
            assert "nested" in failure.message

    def _length(data: bytes) -> bytes:
        size, text = len(data), b""
        while size >= 128:
            text += bytes([size & 127 | 128])
            size >>= 7
        return text + bytes([size])

    uvloop.run(test())


@pytest.mark.parametrize(
    ("rest", "code"),
    [
        (b"", Code.WORKER_ERROR),
        (pb.CompleteTaskRequest(list_components=pb.ListComponentsResult()).SerializeToString(), Code.WORKER_ERROR),
        (b"\x1a\x04\x12\x02\xff\xfe", Code.COMPONENT_FAILED),
        (b"\x12\x7f\x0a", Code.COMPONENT_FAILED),
    ],
    ids=["nothing", "a list of components", "an error that is no UTF-8", "half a message"],
)
def test_a_completion_without_a_readable_outcome_ends_its_call(rest: bytes, code: Code) -> None:
    async def test() -> None:
        async with open_endpoint() as (backend, address), Hand(address) as hand:
            await hand.join()
            call = Call("add", 1)
            backend.execute(call)
            task = await hand.take()
            await hand.claim(task)
            send = hand.channel.unary_unary(f"/{ORCHESTRATOR_SERVICE}/CompleteTask")
            await send(pb.CompleteTaskHead(task_id=task.task_id).SerializeToString() + rest, timeout=10)
            failure = await call.outcome()
            assert failure.code is code
            assert backend.listing().components, "the list of components stays"

    uvloop.run(test())


def test_a_large_output_reaches_its_call_when_its_request_ends_while_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading, go_on = threading.Event(), threading.Event()
    read = messages.output_of

    def read_when_told(response: pb.ComponentExecuteResponse) -> bytes:
        reading.set()
        assert go_on.wait(10)
        return read(response)

    monkeypatch.setattr(messages, "output_of", read_when_told)

    async def test() -> None:
        async with open_endpoint() as (backend, address):
            async with Hand(address) as hand:
                await hand.join()
                call = Call("add", 1)
                backend.execute(call)
                task = await hand.take()
                await hand.claim(task)
                completing = asyncio.create_task(hand.complete(task, "x" * INLINE_WORK_BYTES_MAX))
                await wait_until_async(reading.is_set, "the output is read")
                completing.cancel()
            await wait_until_async(lambda: not backend._queue.workers, "the worker has gone")
            go_on.set()
            assert await call.outcome(10) == "x" * INLINE_WORK_BYTES_MAX

    uvloop.run(test())


def test_an_output_on_which_the_host_itself_fails_fails_its_call(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: pb.ComponentExecuteResponse) -> bytes:
        raise MemoryError

    monkeypatch.setattr(messages, "output_of", fail)

    async def test() -> None:
        async with open_endpoint() as (backend, address), Hand(address) as hand:
            await hand.join()
            for output in (1, "x" * INLINE_WORK_BYTES_MAX):
                call = Call("add", 1)
                backend.execute(call)
                task = await hand.take()
                await hand.claim(task)
                with pytest.raises(grpc.aio.AioRpcError):
                    await hand.complete(task, output)
                assert (await call.outcome(10)).code is Code.UNREACHABLE

    uvloop.run(test())


class Endless(Call):
    """A call whose flows never end."""

    async def get_run(self, run_id: str, *, wait: bool) -> host_pb2.RunReport:
        if wait:
            await asyncio.Event().wait()
        return self.reports[run_id]


def test_who_waits_for_a_flow_gets_its_status_when_the_time_is_over() -> None:
    async def test() -> None:
        async with open_endpoint() as (backend, address), Hand(address) as hand:
            await hand.join()
            running = report("r1", {"outcome": "success", "result": 1})
            running.status = journal_pb2.RUN_STATUS_RUNNING
            running.items[0].CopyFrom(host_pb2.ReportItem(status=journal_pb2.RUN_STATUS_RUNNING))
            call = Endless("add", 1, runs=lambda request: running)
            backend.execute(call)
            task = await hand.take()
            await hand.claim(task)
            token = task.context.root_run_id
            asked = pb.CreateRunRequest(flow_id=FLOW_ID, wait=True, timeout_secs=1)
            asked.input.add().number_value = 1
            submit = pb.OrchestratorSubmitRunRequest(run_request=asked, root_run_id=token, subflow_key="mine")
            status = await hand.say("SubmitRun", submit, pb.OrchestratorRunStatus)
            assert (status.run_id, status.status) == ("r1", pb.EXECUTION_STATUS_RUNNING)
            assert (call.started[0].key, call.started[0].inputs.json) == ("mine", b"[1]")
            get = pb.OrchestratorGetRunRequest(run_id="r1", wait=True, timeout_secs=1, root_run_id=token)
            assert (await hand.say("GetRun", get, pb.OrchestratorRunStatus)).items.running == 1
            await hand.complete(task, 1)
            assert await call.outcome() == 1

    uvloop.run(test())


def test_a_callback_without_a_token_is_refused_where_two_plugins_have_calls() -> None:
    async def test() -> None:
        endpoint = PullEndpoint("127.0.0.1:0")
        a, b = (StepflowPullBackend(context(name), PullConfig(queue_name=name), endpoint) for name in "ab")
        async with started(a), started(b), Hand(endpoint.address, "a") as first, Hand(endpoint.address, "b") as second:
            await first.join("a")
            await second.join("b")
            calls = [Call("add", 1, runs=lambda request: report("r")) for _ in "ab"]
            a.execute(calls[0])
            b.execute(calls[1])
            task, _ = await first.take(), await second.take()
            submit = pb.OrchestratorSubmitRunRequest(run_request=pb.CreateRunRequest(flow_id=FLOW_ID))
            submit.run_request.input.add().number_value = 1
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await second.say("SubmitRun", submit, pb.OrchestratorRunStatus)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
            await first.complete(task, 1)
            await second.say("SubmitRun", submit, pb.OrchestratorRunStatus)
            assert [len(call.started) for call in calls] == [0, 1], "there is only one that can have asked"

    uvloop.run(test())


def test_a_queue_that_nobody_has_and_callbacks_of_ended_calls_are_refused() -> None:
    async def test() -> None:
        async with open_endpoint() as (_, address), Hand(address) as hand:
            hand.pull("other")
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await hand.stream.read()
            assert caught.value.code() is grpc.StatusCode.NOT_FOUND
            assert "kit" in (caught.value.details() or "")
            request = pb.OrchestratorSubmitRunRequest(root_run_id="gone", run_request=pb.CreateRunRequest(flow_id="f"))
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await hand.say("SubmitRun", request, pb.OrchestratorRunStatus)
            assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION

    uvloop.run(test())


def test_plugins_share_an_address_but_no_queue_and_others_are_kept_out() -> None:
    async def test() -> None:
        endpoint = PullEndpoint("127.0.0.1:0")
        a, b, c = (
            StepflowPullBackend(context(name), PullConfig(queue_name=name), endpoint) for name in ("a", "b", "a")
        )
        async with started(a), started(b):
            with pytest.raises(FailedPrecondition) as caught:
                await c.start()
            assert caught.value.reason == "QUEUE_TAKEN"
            async with Hand(endpoint.address) as hand:
                hand.pull("a")
                assert (await hand.take()).HasField("list_components"), "the first one's queue is still served"
        for listen, reason in (("0.0.0.0:0", "ADVERTISE_MISSING"), ("nowhere", "ADDRESS_INVALID")):
            with pytest.raises(Invalid) as refused:
                await StepflowPullBackend(context(), PullConfig(queue_name="q"), PullEndpoint(listen)).start()
            assert refused.value.reason == reason
        with pytest.raises(Invalid) as refused:
            await StepflowPullBackend(
                context(), PullConfig(queue_name="q"), PullEndpoint("0.0.0.0:0", advertise="here:1")
            ).start()
        assert refused.value.reason == "TLS_REQUIRED"

    uvloop.run(test())


# --- servers with our SDK --------------------------------------------------------------------------------------------


def test_our_own_servers_pull_too() -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        async with started(own()) as backend:
            assert backend.listing().complete
            assert await execute(backend, "add", {"a": 1, "b": 2}) == 3
            facts = await execute(backend, "facts", {}, timeout_ms=60_000, item=0, attempt=2)
            assert (facts["attempt"], facts["item"], facts["timeout_ms"]) == (2, 0, 60_000)
            assert facts["idempotency_key"].endswith("/0/s1")
            failure = await execute(backend, "fail", {"kind": "input"})
            assert (failure.code, failure.message) == (Code.INVALID_INPUT, "the input is odd")
            failure = await execute(backend, "fail", {"kind": "component"})
            assert json.loads(failure.data)["details"] == {"part": 7}
            for component in ("blob_async", "blob_sync"):
                assert (await execute(backend, component, {"value": [1, 2]}, blobs=blobs))[1] == [1, 2]
            assert (await execute(backend, "missing_blob", {}))["code"] == -32011
            failed = {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "late"}}
            flow = {"flow": {"steps": []}, "value": 3}
            assert (await execute(backend, "flow_async", flow, runs=lambda request: report("r", failed))) == {
                "failed": "TIMEOUT",
                "data": None,
            }
            good = {"outcome": "success", "result": 42}
            call = Call("flows", {"flow": FLOW_ID, "inputs": [1, 2]}, runs=lambda request: report("r", good, failed))
            backend.execute(call)
            assert await call.outcome() == [42, "TIMEOUT: late"]
            assert call.started[0].max_concurrency == 2
            calls = [Call("add_async", {"a": number, "b": 0}) for number in range(100)]
            for call in calls:
                backend.execute(call)
            assert [await call.outcome() for call in calls] == list(range(100))

    uvloop.run(test())


def test_a_worker_that_is_started_has_more_places_than_it_gets_calls() -> None:
    async def test() -> None:
        async with started(own(concurrency=1_200)) as backend:
            calls = [Call("wait_forever", {}) for _ in range(1_100)]
            for call in calls:
                backend.execute(call)
            assert await execute(backend, "add_async", {"a": 1, "b": 1}) == 2

    uvloop.run(test())


def test_a_large_input_that_cannot_be_encoded_fails_its_call_and_so_does_one_when_the_plugin_stops(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(_: Call) -> bytes:
        raise MemoryError

    async def test() -> None:
        backend = StepflowPullBackend(context(), PullConfig(queue_name="kit"), PullEndpoint("127.0.0.1:0"))
        async with started(backend):
            with monkeypatch.context() as patched:
                patched.setattr(messages, "encode_input", fail)
                assert (await execute(backend, "add", "x" * INLINE_WORK_BYTES_MAX)).code is Code.UNREACHABLE
            call = Call("add", "x" * INLINE_WORK_BYTES_MAX)
            backend.execute(call)  # not begun with when the plugin stops
        failure = await call.outcome()
        assert (failure.code, failure.message) == (Code.UNREACHABLE, "plugin 'kit' was stopped")

    uvloop.run(test())


def test_our_own_servers_report_progress_and_stop_what_is_cancelled(tmp_path: Path) -> None:
    async def test() -> None:
        backend = own(args=[str(SERVERS / "own.py")])
        async with started(backend):
            call = Call("stalls", {"entered": str(tmp_path / "in")})
            backend.execute(call)
            await wait_until_async((tmp_path / "in").exists, "it runs")
            backend.cancel(call)
            await wait_until_async((tmp_path / "in.cancelled").exists, "the component saw the cancel")
            assert text_of(tmp_path / "in.cancelled") == str(backend.process_ids()[0])
        async with started(own()) as backend:
            call = Call("wait_forever", {})
            backend.execute(call)
            await wait_until_async(lambda: call.progressed, "progress came with a heartbeat")
            assert call.progressed == [(0.0, 0.0, "waiting")]
            backend.cancel(call)

    uvloop.run(test())


def test_our_own_worker_finishes_what_runs_when_it_is_told_to_stop(tmp_path: Path) -> None:
    async def test() -> None:
        async with (
            open_endpoint() as (backend, address),
            stranger(address, sys.executable, str(BEHAVIOURS), STEPFLOW_TRANSPORT="grpc", PYTHONPATH=str(ROOT)) as one,
        ):
            call, gate = Call("wait_for_gate", {"name": "g"}), Call("open_gate", {"name": "g"})
            backend.execute(call)
            later = Call("add", {"a": 1, "b": 1})
            backend.execute(gate)
            assert await gate.outcome() == "g"
            one.send_signal(signal.SIGTERM)
            assert await call.outcome() == "g"
            assert await one.wait() == 0
            backend.execute(later)
            async with stranger(
                address, sys.executable, str(BEHAVIOURS), STEPFLOW_TRANSPORT="grpc", PYTHONPATH=str(ROOT)
            ):
                assert await later.outcome() == 2

    uvloop.run(test())


class SlowEndpoint(PullEndpoint):
    """An endpoint that takes a claim and answers it when it is told to."""

    def __init__(self, listen: str) -> None:
        super().__init__(listen)
        self.claimed = asyncio.Event()
        self.may_answer = asyncio.Event()

    async def heartbeat(self, request: pb.TaskHeartbeatRequest) -> pb.TaskHeartbeatResponse:
        reply = await super().heartbeat(request)
        self.claimed.set()
        await self.may_answer.wait()
        return reply


def test_our_own_worker_begins_nothing_that_it_was_claiming_when_it_was_told_to_stop() -> None:
    async def test() -> None:
        endpoint = SlowEndpoint("127.0.0.1:0")
        backend = StepflowPullBackend(context(), PullConfig(queue_name="kit"), endpoint)
        command = (sys.executable, str(BEHAVIOURS))
        async with (
            started(backend),
            stranger(endpoint.address, *command, STEPFLOW_TRANSPORT="grpc", PYTHONPATH=str(ROOT)) as one,
        ):
            call = Call("add", {"a": 1, "b": 1})
            backend.execute(call)
            async with asyncio.timeout(30):
                await endpoint.claimed.wait()
            one.send_signal(signal.SIGTERM)
            (worker,) = backend._queue.workers
            await wait_until_async(lambda: worker.outbox is None, "the worker pulls no more")
            endpoint.may_answer.set()
            failure = await call.outcome()
            assert failure.code is Code.UNREACHABLE
            assert "stopped" in failure.message
            assert await one.wait() == 0

    uvloop.run(test())


@pytest.mark.parametrize("version", ["0.12.0", "0.13.0", "own"])
def test_a_worker_comes_back_to_a_host_that_was_away(version: str) -> None:
    if version == "own":
        command = (sys.executable, str(BEHAVIOURS))
    else:
        python = server_venv([f"stepflow-py=={version}"], f"stepflow-py-{version}") / "python"
        command = (str(python), str(SERVERS / "pull.py"))

    async def test() -> None:
        address = f"127.0.0.1:{free_port()}"
        async with stranger(address, *command, STEPFLOW_TRANSPORT="grpc", PYTHONPATH=str(ROOT)):
            for _ in range(2):
                backend = StepflowPullBackend(context(), PullConfig(queue_name="kit"), PullEndpoint(address))
                async with started(backend):
                    assert await execute(backend, "add", {"a": 1, "b": 1}) in (2, {"sum": 2})

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
