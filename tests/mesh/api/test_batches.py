"""Batches larger than a message: inputs in a stream, results in pages, one run whatever breaks, no memory kept."""

from __future__ import annotations

import asyncio
import gc
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support import wait_until
from support.api import api_mesh
from support.proxy import TcpProxy

from control_plane.api import batches
from control_plane.api.runs import RunsServicer
from stepflow.client import BlockingClient, Client
from stepflow.client import client as client_module
from stepflow.codec import encode
from stepflow.errors import AlreadyExists, FailedPrecondition, Invalid, NotFound
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import flows_pb2, runs_pb2, runs_pb2_grpc, values_pb2
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of
from stepflow.run.scope import Item

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from support.api import ApiMesh

FLOW = {
    "steps": [{"id": "said", "component": "/builtin/create_messages", "input": {"user_prompt": {"$input": "text"}}}],
    "output": {"number": {"$input": "number"}, "messages": {"$step": "said", "path": "messages"}},
}
ECHO = {"output": {"$input": ""}}
PICKY = {
    "schemas": {"type": "object", "properties": {"input": {"type": "object", "required": ["n"]}}},
    "output": {"$input": "n"},
}


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as given:
        yield given


@pytest.fixture
def address(api: tuple[ApiMesh, Callable[..., Any]]) -> str:
    return api[0].address


def inputs(count: int, size: int = 100_000) -> Iterator[dict[str, Any]]:
    """Yield inputs as an iterator does: once."""
    for number in range(count):
        yield {"number": number, "text": chr(97 + number % 26) * size}


def with_client(server: str, talk: Callable[[Client], Any]) -> Any:
    async def connected() -> Any:
        async with Client(server) as client:
            return await talk(client)

    return asyncio.run(connected())


def test_a_batch_larger_than_a_message_streams_in_and_its_results_stream_out(address: str) -> None:
    with BlockingClient(address) as client:
        run_id = client.submit_batch(FLOW, inputs(360))
        run = client.wait(run_id, timeout_s=60)
        assert (run.status, run.items_completed) == ("completed", 360)
        for number, item in enumerate(client.items(run_id)):
            assert item.result["number"] == number
            assert item.result["messages"][0]["content"] == chr(97 + number % 26) * 100_000
        assert number == 359


@pytest.mark.parametrize("broken_at", [1, 150, 249])
def test_a_connection_that_breaks_within_a_batch_leaves_one_whole_run(address: str, broken_at: int) -> None:
    """The inputs come from an asynchronous iterator, which can be read once."""

    async def talk() -> tuple[Any, list[int], int]:
        async with TcpProxy(int(address.rpartition(":")[2])) as proxy, Client(proxy.endpoint) as client:

            async def breaking() -> AsyncIterator[dict[str, Any]]:
                for value in inputs(250, 40_000):
                    if value["number"] == broken_at:
                        proxy.cut()
                    await asyncio.sleep(0)
                    yield value

            run_id = await client.submit_batch(ECHO, breaking())
            run = await client.wait(run_id)
            return run, [item.result["number"] async for item in client.items(run_id)], proxy.accepted

    run, numbers, connections = asyncio.run(talk())
    assert (run.status, run.items_total) == ("completed", 250)
    assert numbers == list(range(250))
    assert connections == (1 if broken_at == 1 else 2)  # at 1 nothing is connected yet: the inputs may fit one message


@pytest.mark.parametrize("pause", [False, True])
def test_a_control_plane_that_stops_within_a_batch_is_followed_by_the_next_one(
    api: tuple[ApiMesh, Callable[..., Any]], pause: bool
) -> None:
    """With a pause the stream is idle when the server ends it; without one, messages are on the way."""
    mesh, run = api
    server = run(mesh.serve())
    listen = server.address

    async def restart() -> None:
        await server.stop()
        await mesh.serve(listen)

    async def values() -> AsyncIterator[Any]:
        for value in inputs(250, 40_000):
            if value["number"] == 200:
                restarting = asyncio.create_task(asyncio.to_thread(run, restart()))
                if pause:
                    await restarting
            yield value
        await restarting

    async def talk(client: Client) -> Any:
        return await client.wait(await client.submit_batch(ECHO, values()))

    done = with_client(listen, talk)
    assert (done.status, done.items_total) == ("completed", 250)


def test_many_runs_of_large_inputs_take_as_many_calls_as_they_need(address: str) -> None:
    async def talk(client: Client) -> set[str]:
        found = await client.submit_runs(ECHO, inputs(40, 1_000_000))
        return {(await client.wait(str(run_id))).status for run_id in found}

    assert with_client(address, talk) == {"completed"}


def test_one_request_is_one_run_whichever_call_carries_it(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = list(inputs(100, 60_000))

    async def talk(client: Client) -> None:
        for bytes_in_one_message in (0, 20_000_000):
            run_id = new_run_id()
            monkeypatch.setattr(client_module, "UNARY_INPUTS_BYTES", bytes_in_one_message)
            assert await client.submit_batch(ECHO, values, run_id=run_id) == run_id

            monkeypatch.setattr(client_module, "UNARY_INPUTS_BYTES", 20_000_000 - bytes_in_one_message)
            assert await client.submit_batch(ECHO, iter(values), run_id=run_id) == run_id
            with pytest.raises(AlreadyExists):
                await client.submit_batch(ECHO, [*values[:-1], 1], run_id=run_id)

    with_client(address, talk)


def test_a_bad_input_late_in_a_batch_ends_it_and_leaves_no_run(address: str) -> None:
    async def talk(client: Client) -> None:
        run_id = new_run_id()
        values = [{"n": "x" * 50_000}] * 100 + [{"m": 1}]
        with pytest.raises(Invalid, match="input 100 does not fit") as refused:
            await client.submit_batch(PICKY, values, run_id=run_id)
        assert refused.value.reason == "INPUT_INVALID"

        with pytest.raises(Invalid, match="input 100 is not JSON"):
            await client.submit_batch(ECHO, [*values[:-1], object()], run_id=run_id)
        with pytest.raises(NotFound):
            await client.get(run_id)

    with_client(address, talk)


def test_the_blocking_client_reads_an_iterator_in_the_thread_of_its_caller(address: str) -> None:
    """As a cursor of SQLite requires."""
    database = sqlite3.connect(":memory:")
    rows = "WITH RECURSIVE n(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM n WHERE i < 99) SELECT i FROM n"
    with closing(database), BlockingClient(address) as client:
        run_id = client.submit_batch(ECHO, iter(database.execute(rows)))
        client.wait(run_id)
        assert [item.result for item in client.items(run_id)] == [[number] for number in range(100)]

        with pytest.raises(ZeroDivisionError):
            client.submit_batch(ECHO, (1 // (50 - number) for number in range(100)))


def test_an_error_of_the_iterator_is_the_callers_and_leaves_no_run(address: str) -> None:
    async def talk(client: Client) -> None:
        def failing() -> Iterator[Any]:
            yield from inputs(100)
            raise ZeroDivisionError

        run_id = new_run_id()
        with pytest.raises(ZeroDivisionError):
            await client.submit_batch(ECHO, failing(), run_id=run_id)
        with pytest.raises(NotFound):
            await client.get(run_id)

    with_client(address, talk)


# --- the messages of a stream -------------------------------------------------------------------------------------

RUN_ID = new_run_id()
RUN = runs_pb2.SubmitBatchRequest(
    run=runs_pb2.SubmitRunRequest(
        run_id=RUN_ID, flow=flows_pb2.FlowReference(document=values_pb2.Value(json=encode(ECHO)))
    )
)
ONE = runs_pb2.SubmitBatchRequest(inputs=runs_pb2.BatchInputs(inputs=[values_pb2.Value(json=b"1")]))


def end(count: int) -> runs_pb2.SubmitBatchRequest:
    return runs_pb2.SubmitBatchRequest(end=runs_pb2.BatchEnd(items_total=count))


async def answer(address: str, messages: list[runs_pb2.SubmitBatchRequest], *, half_close: bool = True) -> Any:
    """Send messages to a fresh channel and return the run id, or status and reason of the failure."""
    async with open_channel(address) as channel:
        stub: Any = runs_pb2_grpc.RunsServiceStub(channel)
        call = stub.SubmitBatch()
        try:
            for message in messages:
                await call.write(message)
            if half_close:
                await call.done_writing()
            return (await call).run_id
        except grpc.aio.AioRpcError as failed:
            return failed.code().name, error_of(failed).reason


@pytest.mark.parametrize(
    "messages",
    [
        [],
        [ONE],
        [RUN],
        [RUN, ONE, ONE],
        [RUN, ONE, RUN],
        [RUN, ONE, ONE, end(1)],
        [RUN, ONE, end(2)],
        [runs_pb2.SubmitBatchRequest()],
        [RUN, runs_pb2.SubmitBatchRequest()],
    ],
)
def test_a_stream_that_is_not_whole_submits_nothing(address: str, messages: list[Any]) -> None:
    assert asyncio.run(answer(address, messages)) == ("INVALID_ARGUMENT", "STREAM_INVALID")
    with BlockingClient(address) as client, pytest.raises(NotFound):
        client.get(RUN_ID)


def test_a_client_that_stalls_is_sent_away(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "MESSAGE_WAIT_S", 0.05)
    found = asyncio.run(answer(address, [RUN, ONE], half_close=False))
    assert found == ("DEADLINE_EXCEEDED", "INPUTS_STALLED")


# --- servers of an earlier version --------------------------------------------------------------------------------


async def _unknown(servicer: Any, requests: Any, context: grpc.aio.ServicerContext) -> None:
    await context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")  # the words of gRPC


def test_a_server_of_an_earlier_version_gets_what_it_can_take(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunsServicer, "SubmitBatch", _unknown)

    async def talk(client: Client) -> Any:
        with pytest.raises(FailedPrecondition, match="update the control planes of the mesh"):
            await client.submit_batch(ECHO, inputs(330))
        return await client.wait(await client.submit_batch(ECHO, inputs(100)))

    # The handlers are bound when a server is made: a new one, over the same mesh.
    with api_mesh() as (old, _):
        run = with_client(old.address, talk)
    assert (run.status, run.items_total) == ("completed", 100)


# --- memory -------------------------------------------------------------------------------------------------------


def test_an_ended_run_leaves_nothing_to_the_garbage_collector(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    """Runs are full of reference cycles, and a service collects rarely: values of ended runs would pile up."""

    async def talk(client: Client) -> str:
        run_id = await client.submit_batch(FLOW, inputs(100, 1_000))
        assert [event.kind async for event in client.watch(run_id)][-1] == "run_ended"
        return run_id

    def items_of(run_id: str) -> int:
        return sum(isinstance(each, Item) and each.scope.run_id == run_id for each in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        run_id = with_client(api[0].address, talk)
        # The last write of a partition is decided shortly after its status is visible.
        wait_until(lambda: not items_of(run_id), "no state of the run")
    finally:
        gc.enable()
