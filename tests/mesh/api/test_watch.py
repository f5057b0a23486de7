"""WatchRun: the history from any position, then live events; a cut connection neither loses nor repeats one."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support import wait_until
from support.api import api_mesh

from stepflow.client import Client
from stepflow.ids import new_run_id
from stepflow.mesh.v1 import runs_pb2, runs_pb2_grpc, values_pb2
from stepflow.rpc.channel import open_channel
from stepflow.rpc.errors import error_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from support.api import ApiMesh

CONFIG = """
plugins:
  builtin: {type: builtin}
  gated:
    type: stepflow
    transport: stdio
    command: python
    args: [%(root)s/tests/data/servers/gated.py]
    env: {PYTHONPATH: %(root)s, GATED_FOLDER: %(folder)s}
  behaviours:
    type: stepflow
    transport: stdio
    command: python
    args: [%(root)s/tests/data/servers/behaviours.py]
    env: {PYTHONPATH: %(root)s}
routes:
  /builtin: [{plugin: builtin}]
  /behaviours: [{plugin: behaviours}]
  /gated: [{plugin: gated}]
"""

CHAIN = {
    "name": "chain",
    "steps": [
        {
            "id": f"s{n}",
            "component": "/gated/work",
            "input": {"n": n} | ({"after": {"$step": f"s{n - 1}"}} if n else {}),
        }
        for n in range(6)
    ],
    "output": {"$step": "s5", "path": "of.n"},
}
LONG = {
    "steps": [{"id": "nap", "component": "/builtin/sleep", "input": {"duration_ms": 60_000}}],
    "output": {"$step": "nap"},
}


class Gate:
    """Lets so many executions of the component go on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._begun = 0

    def close(self) -> None:
        self._begun = len(self._ledger())
        self.allow(0)

    def allow(self, count: int) -> None:
        draft = self._folder / "draft"
        draft.write_text(str(self._begun + count))
        draft.replace(self._folder / "allowed")

    def open(self) -> None:
        (self._folder / "allowed").unlink(missing_ok=True)

    def _ledger(self) -> list[str]:
        ledger = self._folder / "ledger"
        return ledger.read_text().splitlines() if ledger.exists() else []


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ApiMesh, Callable[..., Any], Gate]]:
    from support import ROOT

    folder = tmp_path_factory.mktemp("gated")
    config = folder / "stepflow-config.yml"
    config.write_text(CONFIG % {"root": ROOT, "folder": folder})
    with api_mesh(config) as (mesh, run):
        yield mesh, run, Gate(folder)


@pytest.fixture
def gate(api: tuple[ApiMesh, Callable[..., Any], Gate]) -> Iterator[Gate]:
    """The gate, closed; opened after the test, so that no execution is left waiting."""
    api[2].close()
    yield api[2]
    api[2].open()


async def messages(address: str, run_id: str, **members: Any) -> list[runs_pb2.WatchRunResponse]:
    async with open_channel(address) as channel:
        stub: Any = runs_pb2_grpc.RunsServiceStub(channel)
        return [message async for message in stub.WatchRun(runs_pb2.WatchRunRequest(run_id=run_id, **members))]


def kinds(found: list[runs_pb2.WatchRunResponse]) -> list[str]:
    return [event.WhichOneof("kind") for message in found for event in message.events]


async def finished(address: str, flow: Any = CHAIN, *inputs: Any) -> str:
    async with Client(address) as client:
        run_id = await client.submit_batch(flow, inputs or (None,))
        await client.wait(run_id)
        return run_id


def test_the_history_of_a_finished_run_is_replayed_and_ends_with_the_run(api: Any) -> None:
    async def talk() -> list[runs_pb2.WatchRunResponse]:
        address = api[0].address
        run_id = await finished(address)
        return await messages(address, run_id, include_results=True, value_form=values_pb2.VALUE_FORM_JSON)

    found = asyncio.run(talk())
    assert kinds(found) == ["run_adopted", *["step_ended"] * 6, "item_ended", "run_ended"]
    assert found[-1].events[-1].run_ended.run.items_completed == 1
    ended = [event.step_ended for message in found for event in message.events if event.HasField("step_ended")]
    assert [step.step.step_id for step in ended] == ["s0", "s1", "s2", "s3", "s4", "s5"]
    assert ended[0].outcome.result.json == b'{"of":{"n":0}}'


def test_every_position_of_a_history_is_a_place_to_go_on_from(api: Any) -> None:
    async def talk() -> None:
        address = api[0].address
        run_id = await finished(address, CHAIN, 1, 2)
        whole = await messages(address, run_id)
        for place, message in enumerate(whole[:-1]):
            rest = await messages(address, run_id, positions=[message.position])
            assert rest == whole[place + 1 :]

    asyncio.run(talk())


def test_a_batch_is_followed_over_all_its_partitions(api: Any) -> None:
    async def talk() -> list[runs_pb2.WatchRunResponse]:
        address = api[0].address
        return await messages(address, await finished(address, {"output": {"$input": ""}}, *range(130)))

    found = asyncio.run(talk())
    items = [event.item_ended.item for message in found for event in message.events if event.HasField("item_ended")]
    assert sorted(items) == list(range(130))
    assert {message.position.partition for message in found if message.HasField("position")} == {0, 1, 2}


def test_a_live_run_shows_starts_and_then_what_happens(api: Any, gate: Gate) -> None:
    async def talk() -> list[str]:
        seen = []
        async with Client(api[0].address) as client:
            run_id = await client.submit(CHAIN)
            async for event in client.watch(run_id):
                seen.append(f"{event.kind} {event.step_id}".strip())
                if event.kind == "run_adopted":
                    gate.allow(1)
                if event.kind == "step_completed":
                    gate.allow(int(event.step_id[1:]) + 2)
        return seen

    seen = asyncio.run(talk())
    assert [each for each in seen if "started" not in each] == [
        "run_adopted",
        *(f"step_completed s{n}" for n in range(6)),
        "item_completed",
        "run_ended",
    ]
    for n in range(1, 6):
        assert seen.index(f"step_started s{n}") < seen.index(f"step_completed s{n}")


def test_a_cut_connection_loses_no_event_and_repeats_none(api: Any, gate: Gate) -> None:
    """A second server takes over when the first one is stopped in the middle of the stream; three times."""
    mesh, run, _ = api

    async def talk(addresses: list[str], cut: list[Any]) -> tuple[list[str], str]:
        seen = []
        async with Client(",".join(addresses)) as client:
            run_id = await client.submit(CHAIN)
            async for event in client.watch(run_id):
                seen.append(f"{event.kind} {event.step_id}".strip())
                if event.kind == "run_adopted":
                    gate.allow(1)
                if event.kind == "step_completed":
                    if cut:
                        await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(cut.pop().stop(), mesh.loop))
                    gate.allow(int(event.step_id[1:]) + 2)
        return seen, run_id

    servers = [run(mesh.serve()) for _ in range(3)]
    seen, _ = asyncio.run(talk([*(server.address for server in servers), mesh.address], servers))
    assert [each for each in seen if "started" not in each] == [
        "run_adopted",
        *(f"step_completed s{n}" for n in range(6)),
        "item_completed",
        "run_ended",
    ]


def test_a_follower_of_a_cancelled_run_sees_the_request_and_the_end(api: Any) -> None:
    async def talk() -> list[str]:
        async with Client(api[0].address) as client:
            run_id = await client.submit(LONG)
            seen = []
            async for event in client.watch(run_id):
                seen.append(event.kind)
                if event.kind == "step_sleeping":
                    await client.cancel(run_id)
                if event.run is not None:
                    assert event.run.status == "cancelled"
            return seen

    assert asyncio.run(talk()) == [
        "run_adopted",
        "step_sleeping",
        "cancel_requested",
        "item_failed",
        "run_ended",
    ]


def test_an_unknown_run_cannot_be_followed(api: Any) -> None:
    async def talk() -> str:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await messages(api[0].address, new_run_id())
        return error_of(failed.value).reason

    assert asyncio.run(talk()) == "RUN_NOT_FOUND"


def test_whoever_leaves_stops_the_watch_of_the_store(api: Any) -> None:
    mesh, run, _ = api

    async def talk() -> str:
        async with Client(mesh.address) as client:
            run_id = await client.submit(LONG)
            watch = client.watch(run_id)
            await anext(watch)
            await watch.aclose()
            await client.cancel(run_id)
            await client.wait(run_id)
            return run_id

    run_id = asyncio.run(talk())

    async def followed() -> bool:
        names = {task.get_name() for task in asyncio.all_tasks()}
        return f"follow {run_id}" in names

    wait_until(lambda: not run(followed()), "the watch has ended")


def test_a_hundred_followers_of_one_run_get_the_same_events(api: Any, gate: Gate) -> None:
    async def talk() -> list[list[str]]:
        async with Client(api[0].address) as client:
            run_id = await client.submit(CHAIN)

            async def follow() -> list[str]:
                return [
                    f"{event.kind} {event.step_id}"
                    async for event in client.watch(run_id)
                    if event.kind not in ("step_started", "step_progress")
                ]

            followers = [asyncio.create_task(follow()) for _ in range(100)]
            gate.allow(6)
            return await asyncio.gather(*followers)

    found = asyncio.run(talk())
    assert all(each == found[0] for each in found)
    assert len(found[0]) == 9


def test_a_progress_report_reaches_its_followers_with_its_numbers(api: Any, gate: Gate) -> None:
    flow = {
        "steps": [
            {"id": "first", "component": "/gated/work", "input": {"n": 0}},
            {"id": "slow", "component": "/behaviours/slow_progress", "input": {"after": {"$step": "first"}}},
        ],
        "output": {"$step": "slow"},
    }

    async def talk() -> list[tuple[str, float, float]]:
        async with asyncio.timeout(60), Client(api[0].address) as client:
            run_id = await client.submit(flow)
            reports = []
            async for event in client.watch(run_id):
                if event.kind == "run_adopted":
                    gate.allow(1)
                if event.kind == "step_progress":
                    reports.append((event.message, event.done, event.total))
            return reports

    # Reports are told live only: a watch whose stream to the executor opens late misses them.
    assert any(("half", 1, 2) in asyncio.run(talk()) for _ in range(5))
