"""The budget of a control plane for large values: order, bounds, and clients that are slow or gone."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support import ROOT, wait_until, wait_until_async
from support.api import api_mesh
from support.receiving import METHOD, receiving_server
from typer.testing import CliRunner

from control_plane.api.server import LARGE_REQUESTS
from stepflow.cli.app import app
from stepflow.client import Client
from stepflow.codec import blob_id, encode
from stepflow.mesh.v1 import (
    blobs_pb2,
    blobs_pb2_grpc,
    cluster_pb2,
    components_pb2,
    flows_pb2,
    runs_pb2,
    runs_pb2_grpc,
    values_pb2,
)
from stepflow.rpc import call_memory, receiving
from stepflow.rpc.channel import open_channel
from stepflow.value_budget import ValueBudget

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from google.protobuf.descriptor import Descriptor
    from support.api import ApiMesh

BIG = 1_000_000
CALLS = 12
REQUESTS, LARGE = 30, 30_000_000
ECHO = {"output": {"$input": "$"}}


@pytest.fixture
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as given:
        yield given


@pytest.fixture
def budget(api: tuple[ApiMesh, Callable[..., Any]]) -> Iterator[ValueBudget]:
    """Yield a budget for two values; at the end nothing of it may be in use."""
    budget = api[0].servers[0].value_budget
    budget.bytes_max = 2 * call_memory.COPIES * (BIG + 100)
    yield budget
    wait_until(lambda: not budget.bytes_used and not budget.waiting, "all memory is given back")


def with_client(api: ApiMesh, talk: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    async def connected() -> Any:
        async with Client(api.address) as client:
            return await talk(client)

    return asyncio.run(asyncio.wait_for(connected(), 60))


def measured(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str, about: str | None = None) -> list[int]:
    """Slow down a method until its calls overlap; return a list with the most at once, all or those for `about`."""
    work = getattr(owner, name)
    now, most = 0, [0]

    async def slow(*args: Any, **options: Any) -> Any:
        nonlocal now
        if about not in (None, args[0]):
            return await work(*args, **options)
        now += 1
        most[0] = max(most[0], now)
        await asyncio.sleep(0.05)
        now -= 1
        return await work(*args, **options)

    monkeypatch.setattr(owner, name, slow)
    return most


def test_large_results_are_read_for_as_many_calls_at_once_as_there_is_memory_for(
    api: tuple[ApiMesh, Callable[..., Any]], budget: ValueBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(client: Client) -> None:
        run_id = await client.submit(ECHO, "x" * BIG)
        await client.wait(run_id)
        most = measured(monkeypatch, api[0].blobs, "get", blob_id(encode("x" * BIG)))

        async def results() -> int:
            return sum([len(item.result) async for item in client.items(run_id)])

        async def watched() -> int:
            return max([len(event.result or "") async for event in client.watch(run_id, include_results=True)])

        assert await asyncio.gather(*(results() for _ in range(CALLS)), *(watched() for _ in range(CALLS))) == (
            2 * CALLS * [BIG]
        )
        assert most[0] <= 2

    with_client(api[0], talk)


def test_large_inputs_are_decoded_for_as_many_calls_at_once_as_there_is_memory_for(
    api: tuple[ApiMesh, Callable[..., Any]], budget: ValueBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = measured(monkeypatch, api[0].mesh.control, "submit")

    async def talk(client: Client) -> None:
        run_ids = await asyncio.gather(*(client.submit(ECHO, "x" * BIG) for _ in range(CALLS)))
        assert most[0] <= 2
        for run_id in run_ids:
            assert (await client.wait(run_id, timeout_s=30)).status == "completed"

    with_client(api[0], talk)


def test_blobs_and_batches_pass_through_in_turn_although_each_alone_exceeds_the_budget(
    api: tuple[ApiMesh, Callable[..., Any]], budget: ValueBudget
) -> None:
    budget.bytes_max = 1

    async def talk(client: Client) -> None:
        contents = [bytes([65 + n]) * (3 * BIG) for n in range(4)]
        blobs = await asyncio.gather(*map(client.put_blob, contents))
        assert [content for content, _ in await asyncio.gather(*map(client.get_blob, blobs))] == contents
        batches = (client.submit_batch(ECHO, [letter * BIG for letter in "abcdef"]) for _ in range(3))
        for run_id in await asyncio.gather(*batches):
            assert (await client.wait(run_id, timeout_s=30)).items_completed == 6

    with_client(api[0], talk)


def test_the_runs_of_one_call_do_not_wait_for_the_memory_of_each_other(
    api: tuple[ApiMesh, Callable[..., Any]], budget: ValueBudget
) -> None:
    budget.bytes_max = 1

    async def talk(client: Client) -> None:
        blobs = [await client.put_blob(encode(letter * BIG)) for letter in "abcd"]
        flow = flows_pb2.FlowReference(document=values_pb2.Value(json=encode(ECHO)))
        runs = [
            runs_pb2.SubmitRunRequest(flow=flow, inputs=[values_pb2.Value(blob_id=blob), values_pb2.Value(json=b"1")])
            for blob in blobs
        ]
        async with open_channel(api[0].address) as channel:
            stub: Any = runs_pb2_grpc.RunsServiceStub(channel)
            reply = await stub.SubmitRuns(runs_pb2.SubmitRunsRequest(runs=runs), timeout=20)
        assert all(outcome.run_id for outcome in reply.outcomes)
        for outcome in reply.outcomes:
            assert (await client.wait(outcome.run_id, timeout_s=30)).status == "completed"

    with_client(api[0], talk)


def test_what_waits_is_shown_and_small_calls_do_not_wait(
    api: tuple[ApiMesh, Callable[..., Any]], budget: ValueBudget
) -> None:
    mesh, on_loop = api

    async def talk(client: Client) -> None:
        blob = await client.put_blob(b"x" * BIG)
        await asyncio.to_thread(on_loop, budget.take(budget.bytes_max))  # as other calls would
        reading = asyncio.create_task(client.get_blob(blob))
        gone = asyncio.create_task(client.get_blob(blob))
        await wait_until_async(lambda: budget.waiting == 2, "both wait")
        gone.cancel()
        await wait_until_async(lambda: budget.waiting == 1, "a client that is gone waits no more")

        run_id = await client.submit(ECHO, 1)
        assert (await client.wait(run_id, timeout_s=30)).status == "completed"
        cluster = await client.cluster()
        assert (cluster.value_bytes_max, cluster.value_waiting) == (budget.bytes_max, 1)
        shown = await asyncio.to_thread(CliRunner().invoke, app, ["cluster", "status", "--server", mesh.address])
        assert f"{cluster.control_plane_id}: 1 call waiting for memory" in shown.output

        mesh.loop.call_soon_threadsafe(budget.release, budget.bytes_max)
        assert len((await reading)[0]) == BIG

    with_client(mesh, talk)


def test_a_client_that_stops_reading_does_not_hold_up_the_others(
    api: tuple[ApiMesh, Callable[..., Any]], budget: ValueBudget, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_memory, "HELD_S_MAX", 0.5)
    budget.bytes_max = 1

    async def talk(client: Client) -> None:
        blob = await client.put_blob(b"x" * 15_000_000)
        async with open_channel(api[0].address) as channel:
            stub: Any = blobs_pb2_grpc.BlobsServiceStub(channel)
            stalled = stub.DownloadBlob(blobs_pb2.DownloadBlobRequest(blob_id=blob))
            await stalled.read()
            await wait_until_async(lambda: budget.bytes_used > 0, "it holds memory")
            assert len((await client.get_blob(blob))[0]) == 15_000_000
            assert not stalled.done()

    with_client(api[0], talk)


# --- unary requests of clients that do not stream -----------------------------------------------------------------


def test_large_unary_requests_wait_at_their_clients_and_not_in_the_memory_of_the_server() -> None:
    async def talk() -> None:
        server = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "support.receiving"),
            env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert server.stdout is not None
            address = (await server.stdout.readline()).decode().strip()
            before = peak_bytes(server.pid)
            request = blobs_pb2.PutBlobRequest(content=bytes(LARGE)).SerializeToString()
            async with grpc.aio.insecure_channel(address, options=[("grpc.max_send_message_length", -1)]) as channel:
                put = channel.unary_unary(METHOD)
                replies = await asyncio.gather(*(put(request, timeout=120) for _ in range(REQUESTS)))
            assert replies == [b""] * REQUESTS
            assert peak_bytes(server.pid) - before < REQUESTS * LARGE / 2  # all of them, before: more than once
        finally:
            server.kill()
            await server.wait()

    asyncio.run(asyncio.wait_for(talk(), 150))


def test_a_client_that_stalls_in_a_request_lends_its_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receiving, "RECEIVED_S_MAX", 0.2)
    rooms: list[ValueBudget] = []
    monkeypatch.setattr(receiving, "ValueBudget", lambda size: rooms.append(ValueBudget(size)) or rooms[-1])

    async def talk() -> None:
        async with receiving_server(ValueBudget(1)) as address, grpc.aio.insecure_channel(address) as channel:
            (room,) = rooms
            stalled = [channel.stream_unary(METHOD)() for _ in range(receiving.RECEIVED_AT_ONCE_MIN)]
            await wait_until_async(lambda: room.bytes_used == room.bytes_max, "the server waits for the requests")
            assert await channel.unary_unary(METHOD)(b"", timeout=20) == b""

            late, empty = stalled
            await late.write(blobs_pb2.PutBlobRequest(content=bytes(BIG)).SerializeToString())
            await late.done_writing()
            assert await late == b""
            await empty.done_writing()
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await empty
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert not room.bytes_used

    asyncio.run(asyncio.wait_for(talk(), 60))


def test_every_unary_method_whose_request_carries_values_is_received_in_turn() -> None:
    carrying = {
        f"/{service.full_name}/{method.name}"
        for module in (flows_pb2, runs_pb2, blobs_pb2, components_pb2, cluster_pb2)
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if not method.client_streaming and has_bytes(method.input_type, set())
    }
    assert set(LARGE_REQUESTS) == carrying


def peak_bytes(pid: int) -> int:
    """Return the largest resident memory of a process so far."""
    status = Path(f"/proc/{pid}/status").read_text("ascii")
    return 1024 * int(status.split("VmHWM:")[1].split()[0])


def has_bytes(message: Descriptor, seen: set[str]) -> bool:
    if message.full_name in seen:
        return False
    seen.add(message.full_name)
    return any(
        field.type == field.TYPE_BYTES or (field.message_type is not None and has_bytes(field.message_type, seen))
        for field in message.fields
    )
