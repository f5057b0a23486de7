"""The client library, async and blocking, over real gRPC."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, free_port
from support.api import api_mesh

from stepflow.client import BlockingClient, Client, Named
from stepflow.errors import AlreadyExists, Code, FailedPrecondition, Invalid, NotFound, Unavailable
from stepflow.ids import new_run_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.api import ApiMesh

GREET = {
    "name": "greet",
    "steps": [{"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 1}}],
    "output": {"hello": {"$input": "name"}, "slept": {"$step": "a"}},
}
LONG = {
    "steps": [{"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 60_000}}],
    "output": {"$step": "a"},
}
FAILING = {
    "steps": [{"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": "no"}}],
    "output": {"$step": "a"},
}


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[ApiMesh, Callable[..., Any]]]:
    with api_mesh() as given:
        yield given


@pytest.fixture
def address(api: tuple[ApiMesh, Callable[..., Any]]) -> str:
    return api[0].address


def with_client(server: str, talk: Callable[[Client], Any], **options: Any) -> Any:
    async def connected() -> Any:
        async with Client(server, **options) as client:
            return await talk(client)

    return asyncio.run(connected())


def test_store_submit_watch_and_read_the_results(address: str) -> None:
    async def talk(client: Client) -> Any:
        stored = await client.store_flow(GREET, label="live")
        run_id = await client.submit("greet@live", {"name": "Ada"}, labels={"team": "blue"})
        kinds = [event.kind async for event in client.watch(run_id, include_results=True)]
        run = await client.wait(run_id)
        (item,) = [item async for item in client.items(run_id)]
        (step,) = [step async for step in client.steps(run_id, include_results=True)]
        return stored, run, kinds, item, step

    stored, run, kinds, item, step = with_client(address, talk)
    assert (stored.version, run.flow_id) == (1, stored.flow_id)
    assert (run.status, run.ended, run.labels) == ("completed", True, {"team": "blue"})
    assert kinds == ["run_adopted", "step_sleeping", "step_completed", "item_completed", "run_ended"]
    assert item.result == {"hello": "Ada", "slept": {"duration_ms": 1}}
    assert (step.step_id, step.result, type(step.result["duration_ms"])) == ("a", {"duration_ms": 1}, int)


def test_the_blocking_client_does_the_same_without_a_loop(address: str) -> None:
    with BlockingClient(address) as client:
        run_id = client.submit(GREET, {"name": "Bob"})
        kinds = [event.kind for event in client.watch(run_id)]
        assert kinds[-1] == "run_ended"
        assert client.wait(run_id, timeout_s=10).status == "completed"
        assert [item.result["hello"] for item in client.items(run_id)] == ["Bob"]
        assert next(iter(client.list_runs(page_size=1))).ended
        with pytest.raises(NotFound):
            client.get(new_run_id())
        events = client.watch(client.submit(LONG))
        next(events)
        events.close()  # an early end is no error
        client.cancel(next(client.list_runs(statuses=["running"])).run_id)
    client.close()


def test_one_blocking_client_serves_many_threads(address: str) -> None:
    def one(number: int) -> Any:
        run_id = client.submit(GREET, {"name": number})
        client.wait(run_id)
        return next(client.items(run_id)).result["hello"]

    with BlockingClient(address) as client, ThreadPoolExecutor(8) as threads:
        assert list(threads.map(one, range(40))) == list(range(40))


def test_a_failure_is_data(address: str) -> None:
    async def talk(client: Client) -> Any:
        run_id = await client.submit(FAILING)
        events = [event async for event in client.watch(run_id)]
        return [item async for item in client.items(run_id)], events

    (item,), events = with_client(address, talk)
    assert (item.status, item.result, item.failure.code) == ("failed", None, Code.INVALID_INPUT)
    failed = [event for event in events if event.kind in ("step_failed", "item_failed")]
    assert {event.failure.code for event in failed} == {Code.INVALID_INPUT}


def test_errors_are_the_families_with_their_reasons(address: str) -> None:
    async def talk(client: Client) -> None:
        run_id = await client.submit(LONG)
        with pytest.raises(AlreadyExists, match="exists, with a different request") as exists:
            await client.submit(GREET, {"name": 1}, run_id=run_id)
        assert exists.value.reason == "RUN_EXISTS"
        assert exists.value.details["run_id"] == run_id
        with pytest.raises(FailedPrecondition) as running:
            await client.delete(run_id)
        assert running.value.reason == "RUN_NOT_ENDED"
        with pytest.raises(NotFound) as nobody:
            await client.submit(Named("nobody", "never"))
        assert nobody.value.reason == "FLOW_NAME_NOT_FOUND"
        await client.cancel(run_id)
        await client.wait(run_id)
        await client.delete(run_id)
        with pytest.raises(NotFound):
            await client.delete(run_id)

    with_client(address, talk)


@pytest.mark.parametrize("value", [float("nan"), {1, 2}, "\ud800", object()])
def test_what_is_no_json_is_refused_before_it_is_sent(address: str, value: Any) -> None:
    with pytest.raises(Invalid) as refused:
        with_client(address, lambda client: client.submit(GREET, value))
    assert refused.value.reason == "VALUE_INVALID"


def test_a_flow_file_is_read_here_and_its_mistakes_are_told_by_line(address: str, tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("name: from a file\noutput: {$input: x}\n")
    bad.write_text("steps:\n  - id: a\n    component: 7\n")

    async def talk(client: Client) -> Any:
        run_id = await client.submit(good, {"x": [1.0, 2]})
        await client.wait(run_id)
        with pytest.raises(Invalid, match=r"bad\.yaml:3"):
            await client.store_flow(bad)
        with pytest.raises(NotFound, match=r"none\.yaml"):
            await client.store_flow(tmp_path / "none.yaml")
        return [item.raw async for item in client.items(run_id)]

    assert with_client(address, talk) == [b"[1.0,2]"]


def test_a_wait_ends_after_its_time_with_the_run_as_it_is(address: str) -> None:
    async def talk(client: Client) -> Any:
        run_id = await client.submit(LONG)
        run = await client.wait(run_id, timeout_s=0.05)
        await client.cancel(run_id)
        return run.ended

    assert with_client(address, talk) is False


def test_many_runs_and_batches(address: str) -> None:
    async def talk(client: Client) -> Any:
        ids = await client.submit_runs(GREET, [{"name": n} for n in range(250)])
        assert all(isinstance(each, str) for each in ids)
        batch = await client.submit_batch(GREET, [{"name": n} for n in range(250)], concurrency_max=50)
        await client.wait(batch)
        await asyncio.gather(*(client.wait(str(each)) for each in ids))
        refused = await client.submit_runs("nobody", [1])
        items = [item.result["hello"] async for item in client.items(batch)]
        return len(set(ids)), items, refused

    count, items, refused = with_client(address, talk)
    assert count == 250
    assert items == list(range(250))
    assert isinstance(refused[0], NotFound)


def test_blobs_come_back_as_they_went(address: str) -> None:
    content = b"\0" * 3_000_000

    async def talk(client: Client) -> Any:
        blob_id = await client.put_blob(content, blob_type="binary")
        small = await client.put_blob(b'{"a":1}')
        return await client.get_blob(blob_id), await client.get_blob(small)

    assert with_client(address, talk) == ((content, "binary"), (b'{"a":1}', "data"))


def test_flows_are_listed_validated_and_deleted(address: str) -> None:
    async def talk(client: Client) -> Any:
        for name in ("zoo/ant", "zoo/bee"):
            await client.store_flow({"name": name, "output": 1})
        names = [flow.name async for flow in client.list_flows("zoo/")]
        found = await client.validate_flow({"output": {"$step": "none"}})
        await client.delete_flow("zoo/ant")
        with pytest.raises(NotFound):
            await client.delete_flow("zoo/ant")
        return names, found, [flow.name async for flow in client.list_flows("zoo/")], await client.get_flow("zoo/bee")

    names, found, left, (_, document) = with_client(address, talk)
    assert (names, left) == (["zoo/ant", "zoo/bee"], ["zoo/bee"])
    assert "fatal" in [diagnostic.level for diagnostic in found]
    assert document == {"name": "zoo/bee", "output": 1}


# --- unreachable servers ------------------------------------------------------------------------------------------


def test_nobody_there_is_told_with_the_way_out() -> None:
    address = f"localhost:{free_port()}"
    with pytest.raises(Unavailable, match="STEPFLOW_SERVER") as failed:
        with_client(address, lambda client: client.cluster(), patience_s=0)
    assert failed.value.reason == "SERVER_UNAVAILABLE"
    assert address in failed.value.message


def test_a_server_that_comes_late_is_waited_for(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    mesh, run = api
    port = free_port()

    async def talk(client: Client) -> str:
        waiting = asyncio.create_task(client.submit(GREET, {"name": "late"}))
        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(mesh.serve(f"127.0.0.1:{port}"), mesh.loop))
        return await waiting

    run_id = with_client(f"127.0.0.1:{port}", talk)
    assert run(mesh.mesh.control.get_run(run_id)).flow_name == "greet"


def test_one_dead_address_among_several_is_passed_over(address: str) -> None:
    dead = f"127.0.0.1:{free_port()}"

    async def talk(client: Client) -> set[str]:
        return {(await client.cluster()).control_plane_id for _ in range(6)}

    assert len(with_client(f"{dead}, {address}", talk)) == 1


def test_calls_go_round_the_addresses(api: tuple[ApiMesh, Callable[..., Any]]) -> None:
    mesh, run = api
    second = run(mesh.serve())

    async def talk(client: Client) -> list[str]:
        return [client._connection.next_server().channel for _ in range(4)]  # type: ignore[misc]  # channels, by identity

    channels = with_client(f"{mesh.address},{second.address}", talk)
    assert channels[0] is channels[2]
    assert channels[0] is not channels[1]


def test_the_server_comes_from_the_environment(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STEPFLOW_SERVER", address)
    assert with_client(None, lambda client: client.cluster()).control_plane_id  # type: ignore[arg-type]  # the default


def test_no_server_at_all_is_refused() -> None:
    with pytest.raises(Invalid) as refused:
        Client(" , ")
    assert refused.value.reason == "SERVER_INVALID"


def test_the_example_of_the_documentation_is_short_and_works(address: str) -> None:
    text = (ROOT / "docs" / "reference" / "python-client.md").read_text()
    code, printed = text.split("```python\n")[1].split("```")[0], text.split("```\n")[2].split("```")[0]
    assert len(code.splitlines()) <= 16
    code = code.replace("localhost:7840", address)
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, cwd=ROOT, timeout=30, capture_output=True, text=True
    )
    assert [line.rstrip() for line in done.stdout.splitlines()] == [line.rstrip() for line in printed.splitlines()]


def test_importing_the_package_does_not_import_grpc() -> None:
    code = "import stepflow, sys; assert 'grpc' not in sys.modules; stepflow.Client; assert 'grpc' in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=30)
