"""Results of any size over the API: whole up to 16 MiB, else their length; in chunks at any size."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support import wait_until
from support.api import api_mesh
from support.result_parts import Composed, Part, add_ended_run

from control_plane.deletion import delete_run
from stepflow.client import BlockingClient, Client
from stepflow.codec import PAYLOAD_BYTES_MAX, encode
from stepflow.errors import Code, DataLoss, FailedPrecondition, Failure, Invalid, NotFound
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import runs_pb2, runs_pb2_grpc, values_pb2
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from pathlib import Path

    from support.api import ApiMesh

MEBIBYTE = b"x" * (1024 * 1024 - 3)
ITEM = b'"' + MEBIBYTE + b'",'
LARGE = Composed([Part("json", b"["), *[Part("blob", ITEM)] * 20, Part("json", b"1]")])
"""A list of 20 texts of a mebibyte."""

SMALL = Composed(
    [Part("json", b"["), Part("journal", b'{"a":1}'), Part("json", b","), Part("blob", b'"b"'), Part("json", b"]")]
)
MISSING = Composed([Part("json", b"[1]")], listed_in_blob=True)
FAILED = Failure(Code.COMPONENT_FAILED, "it broke")


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as (mesh, run):
        run(mesh.serve())
        yield mesh, run


@pytest.fixture(scope="module")
def run_id(api: tuple[ApiMesh, Callable[..., Any]]) -> str:
    """Return the id of an ended run with a large, a small, a failed and a plain item."""
    mesh, run = api
    found: str = run(add_ended_run(mesh.store, mesh.blobs, [LARGE, SMALL, FAILED, b"7"]))
    return found


def with_client(api: ApiMesh, talk: Callable[[Client], Coroutine[Any, Any, Any]]) -> Any:
    async def connected() -> Any:
        async with Client(",".join(server.address for server in api.servers), patience_s=5) as client:
            return await talk(client)

    return asyncio.run(asyncio.wait_for(connected(), 60))


async def joined(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


def test_a_list_has_small_results_whole_and_the_length_of_large_ones(
    api: tuple[ApiMesh, Callable[..., Any]], run_id: str
) -> None:
    async def talk(client: Client) -> None:
        large, small, failed, plain = [item async for item in client.items(run_id)]
        assert (large.status, large.raw, large.result_bytes) == ("completed", b"", len(LARGE.text))
        assert (small.result, small.result_bytes) == ([{"a": 1}, "b"], 0)
        assert (failed.failure, failed.result, plain.result) == (FAILED, None, 7)
        with pytest.raises(FailedPrecondition, match="get_result") as caught:
            _ = large.result
        assert (caught.value.reason, caught.value.details["result_bytes"]) == ("RESULT_TOO_LARGE", len(LARGE.text))

    with_client(api[0], talk)


@pytest.mark.parametrize("form", values_pb2.ValueForm.values())
def test_a_list_has_the_length_of_a_large_result_in_every_form_of_values(
    api: tuple[ApiMesh, Callable[..., Any]], run_id: str, form: values_pb2.ValueForm
) -> None:
    async def ask() -> None:
        async with open_channel(api[0].address, None) as channel:
            stub: Any = runs_pb2_grpc.RunsServiceStub(channel)
            listed = await stub.ListItems(runs_pb2.ListItemsRequest(run_id=run_id, value_form=form))
            waited = await stub.WaitRun(runs_pb2.WaitRunRequest(run_id=run_id, include_items=True, value_form=form))
        assert [item.outcome.result_bytes for item in listed.items] == [len(LARGE.text), 0, 0, 0]
        assert [item.outcome.WhichOneof("kind") for item in listed.items] == [None, "result", "failure", "result"]
        assert waited.items == listed.items

    asyncio.run(ask())


def test_a_result_of_exactly_the_limit_is_whole(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    mesh, run = api
    text = b'"' + b"x" * (PAYLOAD_BYTES_MAX - 2) + b'"'
    halves = [Part("blob", text[: len(text) // 2]), Part("blob", text[len(text) // 2 :])]
    beyond = [*halves, Part("json", b" ")]
    run_id = run(add_ended_run(mesh.store, mesh.blobs, [Composed(halves), Composed(beyond)]))

    async def talk(client: Client) -> None:
        whole, large = [item async for item in client.items(run_id)]
        assert whole.raw == text
        assert (large.raw, large.result_bytes) == (b"", PAYLOAD_BYTES_MAX + 1)

    with_client(mesh, talk)


@pytest.mark.parametrize(("item", "text"), [(0, LARGE.text), (1, SMALL.text), (3, b"7")])
def test_results_of_any_size_are_read_in_chunks(
    api: tuple[ApiMesh, Callable[..., Any]], run_id: str, item: int, text: bytes
) -> None:
    async def talk(client: Client) -> None:
        assert await joined(client.get_result(run_id, item)) == text

    with_client(api[0], talk)


def test_the_first_chunk_has_the_length_and_an_offset_skips_bytes(
    api: tuple[ApiMesh, Callable[..., Any]], run_id: str
) -> None:
    async def ask() -> None:
        async with open_channel(api[0].address, None) as channel:
            stub: Any = runs_pb2_grpc.RunsServiceStub(channel)
            for offset in (0, 5, 1024 * 1024, len(LARGE.text)):
                request = runs_pb2.GetResultRequest(run_id=run_id, item=0, offset=offset)
                first, *others = [message async for message in stub.GetResult(request)]
                assert (first.result_bytes, {message.result_bytes for message in others} - {0}) == (
                    len(LARGE.text),
                    set(),
                )
                assert first.chunk + b"".join(message.chunk for message in others) == LARGE.text[offset:]
                assert max(len(message.chunk) for message in (first, *others)) <= 1024 * 1024

            request = runs_pb2.GetResultRequest(run_id=run_id, item=1, offset=len(SMALL.text) + 1)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                _ = [message async for message in stub.GetResult(request)]
            error = error_of(caught.value)
            assert (type(error), error.reason) == (Invalid, "OFFSET_INVALID")

    asyncio.run(ask())


def test_runs_and_items_without_a_result_are_told_apart(api: tuple[ApiMesh, Callable[..., Any]], run_id: str) -> None:
    async def talk(client: Client) -> None:
        with pytest.raises(NotFound) as absent:
            await joined(client.get_result(new_run_id()))
        assert absent.value.reason == "RUN_NOT_FOUND"

        with pytest.raises(NotFound) as absent:
            await joined(client.get_result(run_id, 4))
        assert absent.value.reason == "ITEM_NOT_FOUND"

        with pytest.raises(FailedPrecondition) as failed:
            await joined(client.get_result(run_id, 2))
        assert failed.value.reason == "ITEM_FAILED"
        assert failed.value.details == {"failure_code": "COMPONENT_FAILED", "failure_message": "it broke"}

        waiting = await client.submit(
            {
                "steps": [{"id": "wait", "component": "/builtin/wait_for_signal", "input": {"name": "go"}}],
                "output": {"$step": "wait", "path": "payload"},
            }
        )
        with pytest.raises(FailedPrecondition) as running:
            await joined(client.get_result(waiting))
        assert running.value.reason == "ITEM_NOT_ENDED"
        await client.signal(waiting, "go", [1])
        await client.wait(waiting)
        assert await joined(client.get_result(waiting)) == b"[1]"

    with_client(api[0], talk)


def test_a_result_whose_parts_are_gone_is_data_loss_and_one_of_a_deleted_run_is_not_found(
    api: tuple[ApiMesh, Callable[..., Any]],
) -> None:
    mesh, run = api
    run_id = run(add_ended_run(mesh.store, mesh.blobs, [MISSING]))
    run(mesh.blobs.delete_scope(run_id))

    async def talk(client: Client) -> None:
        with pytest.raises(DataLoss) as lost:
            await joined(client.get_result(run_id))
        assert lost.value.reason == "RESULT_MISSING"
        with pytest.raises(DataLoss) as lost:
            _ = [item async for item in client.items(run_id)]
        assert lost.value.reason == "RESULT_MISSING"

    with_client(mesh, talk)


def test_a_run_that_is_deleted_while_its_result_is_read_is_not_found(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    mesh, run = api

    async def scenario() -> None:
        two = Composed([Part("blob", b"1" * 2**21), Part("blob", b"2" * 2**21)])
        run_id = await add_ended_run(mesh.store, mesh.blobs, [two])
        found = await mesh.mesh.control.listing.result(run_id, 0)
        assert await anext(found.chunks) == b"1" * 2**20
        await delete_run(mesh.store, mesh.blobs, run_id)
        with pytest.raises(NotFound):
            await joined(found.chunks)

    run(scenario())


def test_a_stream_goes_on_at_another_server_where_the_first_one_stopped(
    api: tuple[ApiMesh, Callable[..., Any]], run_id: str
) -> None:
    mesh, run = api
    first = run(mesh.serve())

    async def talk() -> None:
        async with Client(first.address, patience_s=20) as client:
            chunks = client.get_result(run_id)
            text = await anext(chunks)
            await asyncio.to_thread(run, first.stop())
            mesh.servers.remove(first)
            again = await asyncio.to_thread(run, mesh.serve(first.address))
            assert again.address == first.address
            text += await joined(chunks)
            assert text == LARGE.text

    asyncio.run(asyncio.wait_for(talk(), 60))


TWICE = {"output": [{"$input": "$"}, {"$input": "$"}]}
HALF = "x" * (9 * 1024 * 1024)
WHOLE = encode([HALF, HALF])


def test_events_and_steps_have_the_length_of_a_large_result(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    async def talk(client: Client) -> None:
        flow = {
            "steps": [
                {
                    "id": "s",
                    "component": "/builtin/map",
                    "input": {"workflow": {"$literal": TWICE}, "items": [{"$input": "$"}]},
                }
            ],
            "output": {"$step": "s", "path": "results[0].result"},
        }
        run_id = await client.submit(flow, HALF)
        ended = [event async for event in client.watch(run_id, include_results=True) if event.result_bytes]
        shown = {(event.kind, event.step_id): event.result_bytes for event in ended}
        assert shown["item_completed", ""] == len(WHOLE)
        assert shown["step_completed", "s"] > len(WHOLE)

        (step,) = [step async for step in client.steps(run_id, include_results=True)]
        assert (step.raw, step.result_bytes) == (b"", shown["step_completed", "s"])
        for large in (step, *ended):
            with pytest.raises(FailedPrecondition, match=f"{large.result_bytes:,} bytes"):
                _ = large.result
        assert await joined(client.get_result(run_id)) == WHOLE

    with_client(api[0], talk)


def test_the_result_of_an_item_is_read_while_others_of_its_run_go_on(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    async def talk(client: Client) -> None:
        wait = {"id": "w", "component": "/builtin/wait_for_signal", "input": {"name": "go"}}
        output = {"$if": {"$input": "wait"}, "then": {"$step": "w"}, "else": [{"$input": "text"}, {"$input": "text"}]}
        flow = {"steps": [wait], "output": output}
        run_id = await client.submit_batch(flow, [{"wait": False, "text": HALF}, {"wait": True, "text": ""}])
        async for event in client.watch(run_id):
            if event.kind == "item_completed":
                break
        assert await joined(client.get_result(run_id, 0)) == WHOLE
        with pytest.raises(FailedPrecondition) as running:
            await joined(client.get_result(run_id, 1))
        assert running.value.reason == "ITEM_NOT_ENDED"
        await client.cancel(run_id)

    with_client(api[0], talk)


def test_a_result_is_saved_to_a_file_that_appears_once_it_is_whole(
    api: tuple[ApiMesh, Callable[..., Any]], run_id: str, tmp_path: Path
) -> None:
    path = tmp_path / "result.json"
    path.write_bytes(b"before")
    with BlockingClient(api[0].address) as client:
        assert client.save_result(run_id, path) == len(LARGE.text)
        assert path.read_bytes() == LARGE.text
        assert b"".join(client.get_result(run_id, 1)) == SMALL.text

        with pytest.raises(FailedPrecondition):
            client.save_result(run_id, path, 2)
    assert path.read_bytes() == LARGE.text
    assert [each.name for each in tmp_path.iterdir()] == ["result.json"]


def test_a_reader_that_stops_gives_its_memory_back(api: tuple[ApiMesh, Callable[..., Any]], run_id: str) -> None:
    budget = api[0].servers[0].value_budget

    async def talk(client: Client) -> None:
        for _ in range(3):
            chunks = client.get_result(run_id)
            await anext(chunks)
            await chunks.aclose()

    with_client(api[0], talk)
    wait_until(lambda: not budget.bytes_used and not budget.waiting, "all memory is given back")
