"""Garbage at every gRPC server of a mesh: refused with a status that says so, and no defect in the log."""

from __future__ import annotations

import asyncio
import io
import random
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection_pb2
from support.api import api_mesh

from component_host.host import ComponentHost
from component_host.service import HostService
from component_host.stepflow_bridge.pull.endpoint import PullEndpoint, ServedQueue
from component_host.stepflow_bridge.pull.queue import TaskQueue
from control_plane.admission import RunRequest
from executor.service import ExecutorService
from stepflow import telemetry
from stepflow.flow import flow_from_tree
from stepflow.mesh.v1 import (
    blobs_pb2,
    cluster_pb2,
    components_pb2,
    executor_pb2,
    flows_pb2,
    host_pb2,
    runs_pb2,
    values_pb2,
)
from stepflow.pull import BLOB_SERVICE, ORCHESTRATOR_SERVICE, TASKS_SERVICE
from stepflow.pull.v1 import pull_pb2
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of
from stepflow.rpc.server import RpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from google.protobuf.descriptor import Descriptor
    from google.protobuf.message import Message
    from support.api import ApiMesh

MODULES = (
    flows_pb2,
    runs_pb2,
    blobs_pb2,
    components_pb2,
    cluster_pb2,
    executor_pb2,
    host_pb2,
    health_pb2,
    reflection_pb2,
)

METHODS: dict[str, Descriptor] = {
    f"/{service.full_name}/{method.name}": method.input_type
    for module in MODULES
    for service in module.DESCRIPTOR.services_by_name.values()
    for method in service.methods
} | {
    f"/{TASKS_SERVICE}/PullTasks": pull_pb2.PullTasksRequest.DESCRIPTOR,
    f"/{TASKS_SERVICE}/GetOrchestratorForRun": pull_pb2.GetOrchestratorForRunRequest.DESCRIPTOR,
    f"/{ORCHESTRATOR_SERVICE}/TaskHeartbeat": pull_pb2.TaskHeartbeatRequest.DESCRIPTOR,
    f"/{ORCHESTRATOR_SERVICE}/CompleteTask": pull_pb2.CompleteTaskRequest.DESCRIPTOR,
    f"/{ORCHESTRATOR_SERVICE}/SubmitRun": pull_pb2.OrchestratorSubmitRunRequest.DESCRIPTOR,
    f"/{ORCHESTRATOR_SERVICE}/GetRun": pull_pb2.OrchestratorGetRunRequest.DESCRIPTOR,
    f"/{BLOB_SERVICE}/PutBlob": pull_pb2.PutBlobRequest.DESCRIPTOR,
    f"/{BLOB_SERVICE}/GetBlob": pull_pb2.GetBlobRequest.DESCRIPTOR,
}
"""The type of a request, by method."""

STREAMS = ("UploadBlob", "Attend", "Connect", "ServerReflectionInfo")
"""Methods that take many requests."""

GARBAGE = (b"\xff\xff\xff\xff", b"\x0a\x7f", b"\x0a\x02\xff\xfe", random.Random(1).randbytes(2_000))
"""Not of any message type: a broken tag, a cut field, a text that is no UTF-8, noise."""

RUN_ID = "01890a5d-ac96-774b-bcce-b302099a8057"

TEXTS = (
    "",
    "x",
    "/",
    "\0",
    "a/b",
    RUN_ID,
    "01890a5d-ac96-774b-bcce-b302099a8058",
    "ab" * 32,
    "x" * 300,
    "\N{GRINNING FACE}" * 300,
    "{",
    "1" * 5_000,
)
NUMBERS = (0, 1, 2, 3, 99, 2**31 - 1, 2**31, 2**32 - 1, 2**53, 2**63 - 1, 2**64 - 1, -1, -(2**31), -(2**63))
DOUBLES = (0.0, -1.5, 1e308, float("inf"), float("nan"))
BYTES = (b"", b"null", b"{", b"[" * 3_000, b'"\xff"', b'{"steps":[]}', b'{"a":1e999}')

ANSWER_S = 0.2
"""How long an answer may take: some calls wait on purpose."""

ROUNDS = 20

DEFECTS = frozenset({"UNKNOWN", "INTERNAL"})


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as (mesh, run):
        step = {"id": "s", "component": "/builtin/create_messages", "input": {"user_prompt": "hello"}}
        flow = flow_from_tree({"steps": [step], "output": {"$step": "s"}})

        async def have_a_run() -> None:
            await mesh.mesh.control.submit(RunRequest(flow=flow, inputs=[b"1"], run_id=RUN_ID))
            await mesh.mesh.control.wait(RUN_ID, timeout_s=30)

        run(have_a_run())
        yield mesh, run


@asynccontextmanager
async def channel_to(api: ApiMesh, method: str) -> AsyncIterator[grpc.aio.Channel]:
    """Serve an executor, a host and a pull endpoint beside the API; yield a channel to the server of the method."""
    server = RpcServer()
    ExecutorService(api.mesh.executor).add_to(server)
    HostService(ComponentHost("host-x", {}, api.blobs)).add_to(server)
    endpoint = PullEndpoint("127.0.0.1:0")
    await endpoint.open_queue("x", ServedQueue(TaskQueue("x"), None, 2, lends=False))
    address = await server.start("127.0.0.1:0")
    if "ExecutorService" not in method and "HostService" not in method:
        address = endpoint.address if "stepflow.v1" in method else api.address
    try:
        async with open_channel(address) as channel:
            yield channel
    finally:
        await endpoint.close_queue("x")
        await server.stop()


async def answer(channel: grpc.aio.Channel, method: str, *requests: bytes, within_s: float = ANSWER_S) -> str:
    """Send requests as they are, to any kind of method; return the name of the status, or OK if none came in time."""
    call: Any = channel.stream_stream(method)()
    try:
        async with asyncio.timeout(within_s):
            for request in requests:
                await call.write(request)
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
            return str((await call.code()).name)
    except (TimeoutError, asyncio.InvalidStateError):
        return "OK"
    except grpc.aio.AioRpcError as error:
        # gRPC's own words for a call that ended while the client was still writing.
        return "OK" if error.details() == "Internal error from Core" else str(error.code().name)
    finally:
        call.cancel()


def log_of(work: Callable[[], Any]) -> str:
    """Return what the servers write while `work` runs."""
    log = io.StringIO()
    telemetry.configure("info", log)
    try:
        work()
    finally:
        telemetry.configure()
    return log.getvalue()


@pytest.mark.parametrize("method", METHODS)
def test_what_is_no_message_is_refused_as_such(api: tuple[ApiMesh, Callable[..., Any]], method: str) -> None:
    mesh, run = api

    async def scenario() -> None:
        async with channel_to(mesh, method) as channel:
            for garbage in filter(partial(_is_garbage, METHODS[method]), GARBAGE):
                assert await answer(channel, method, garbage, within_s=5) in ("INVALID_ARGUMENT", "UNIMPLEMENTED")

    log = log_of(lambda: run(scenario()))
    assert "Traceback" not in log
    assert log.count("refused") <= 1, "one line for all of them"


def _is_garbage(kind: Descriptor, data: bytes) -> bool:
    try:
        GetMessageClass(kind).FromString(data)
    except DecodeError:
        return True
    return False


def message(kind: Descriptor, chance: random.Random, depth: int = 0) -> Message:
    """Return a message of this type with values that no sound client sends."""
    made = GetMessageClass(kind)()
    for field in kind.fields:
        if chance.random() < 0.3 or (depth > 4 and field.message_type):
            continue
        count = chance.choice((1, 1, 3)) if field.is_repeated else 1
        for _ in range(count):
            _set(made, field, chance, depth)
    return made


def _set(made: Message, field: FieldDescriptor, chance: random.Random, depth: int) -> None:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        members = getattr(made, field.name)
        key, value = chance.choice(TEXTS), kind.fields_by_name["value"]
        if value.message_type is not None:
            members[key].MergeFrom(message(value.message_type, chance, depth + 1))
        else:
            members[key] = _scalar(value, chance)
    elif kind is not None:
        part = message(kind, chance, depth + 1)
        if field.is_repeated:
            getattr(made, field.name).append(part)
        else:
            getattr(made, field.name).CopyFrom(part)
    elif field.is_repeated:
        getattr(made, field.name).append(_scalar(field, chance))
    else:
        setattr(made, field.name, _scalar(field, chance))


def _scalar(field: FieldDescriptor, chance: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            return chance.choice(BYTES) if field.type == FieldDescriptor.TYPE_BYTES else chance.choice(TEXTS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return chance.random() < 0.5
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return chance.choice(DOUBLES)
        case FieldDescriptor.CPPTYPE_ENUM:
            return chance.choice((0, 1, 2, 99))
        case FieldDescriptor.CPPTYPE_INT32:
            return chance.choice([number for number in NUMBERS if -(2**31) <= number < 2**31])
        case FieldDescriptor.CPPTYPE_UINT32:
            return chance.choice([number for number in NUMBERS if 0 <= number < 2**32])
        case FieldDescriptor.CPPTYPE_INT64:
            return chance.choice([number for number in NUMBERS if -(2**63) <= number < 2**63])
        case _:
            return chance.choice([number for number in NUMBERS if 0 <= number < 2**64])


@pytest.mark.parametrize("method", METHODS)
def test_nonsense_in_every_field_never_ends_in_a_defect(api: tuple[ApiMesh, Callable[..., Any]], method: str) -> None:
    mesh, run = api
    chance = random.Random(method)
    count = 3 if method.endswith(STREAMS) else 1

    async def scenario() -> None:
        async with channel_to(mesh, method) as channel:
            for _ in range(ROUNDS):
                requests = [message(METHODS[method], chance) for _ in range(count)]
                status = await answer(channel, method, *(request.SerializeToString() for request in requests))
                assert status not in DEFECTS, (requests, log.getvalue())

    log = io.StringIO()
    telemetry.configure("warning", log)
    try:
        run(scenario())
    finally:
        telemetry.configure()
    assert "Traceback" not in log.getvalue()


def test_a_health_service_without_a_list_says_so(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    mesh, run = api
    method = "/grpc.health.v1.Health/List"

    async def scenario() -> str:
        async with channel_to(mesh, method) as channel:
            return await answer(channel, method, b"", within_s=5)

    assert run(scenario()) == "UNIMPLEMENTED"


def test_an_enum_number_of_a_later_version_is_refused(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    mesh, run = api

    async def scenario() -> list[tuple[str, str]]:
        async with open_channel(mesh.address) as channel:
            found = []
            for name, request in (
                ("ListRuns", runs_pb2.ListRunsRequest(statuses=[1, 99])),  # type: ignore[list-item]  # the point
                ("ListItems", runs_pb2.ListItemsRequest(value_form=99)),  # type: ignore[arg-type]  # the point
            ):
                call: Any = channel.unary_unary(f"/stepflow.mesh.v1.RunsService/{name}")
                with pytest.raises(grpc.aio.AioRpcError) as failed:
                    await call(request.SerializeToString())
                found.append((failed.value.code().name, error_of(failed.value).reason))
            return found

    assert values_pb2.VALUE_FORM_JSON < 99
    assert run(scenario()) == [("INVALID_ARGUMENT", "ENUM_UNKNOWN")] * 2
