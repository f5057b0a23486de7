"""The endpoint for pull workers that connect by themselves: tasks, completions, callbacks and queues."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import grpc
import pytest
import uvloop
from support import server_venv, wait_until_async
from support.host_side import FLOW_ID, Call, context, report, started
from support.pull import SERVERS, open_endpoint, stranger

from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.pull.backend import PullConfig, StepflowPullBackend
from component_host.stepflow_bridge.pull.endpoint import PullEndpoint
from stepflow.errors import Code, FailedPrecondition, Invalid
from stepflow.mesh.v1 import host_pb2, journal_pb2
from stepflow.off_loop import INLINE_WORK_BYTES_MAX
from stepflow.pull import ORCHESTRATOR_SERVICE, TASKS_SERVICE
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.pull.values import fill

pytestmark = pytest.mark.timeout(400)  # the first test of a version installs its server


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
