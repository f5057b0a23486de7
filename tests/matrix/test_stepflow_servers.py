"""Every published kind of StepFlow server × every feature that a flow can use. `make matrix` runs it.

The servers are the real packages, each in its own venv; the host's side of a call is `support.host_side`.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest
import uvloop
from support import is_alive, wait_until_async
from support.host_side import Call, MemoryBlobs, execute, report
from support.stepflow_servers import KINDS, Kind, server

from stepflow.errors import Code

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from component_host.backend import Backend

    Cell = Callable[[Backend], Coroutine[None, None, None]]

pytestmark = pytest.mark.timeout(400)  # the first test of a kind installs its server

FLOW = {"steps": [{"id": "s", "component": "/builtin/noop", "input": 1}], "output": {"$step": "s"}}


async def listing(backend: Backend) -> None:
    names = {info.path for info in backend.listing().components}
    assert {"/add", "/echo", "/evaluate", "/blob_roundtrip", "/crash"} <= names


async def info(backend: Backend) -> None:
    (add,) = [info for info in backend.listing().components if info.path == "/add"]
    assert add.description == "Add two integers."
    text = json.dumps([add.input_schema, add.output_schema])
    assert all(f'"{member}": {{"type": "integer"}}' in text for member in ("a", "b", "sum"))


async def executing(backend: Backend) -> None:
    assert await execute(backend, "/add", {"a": 2, "b": 3}) == {"sum": 5}
    value = {"text": 'é\u2028\n"\\', "none": None, "list": [[], {}], "float": 1.5}
    assert await execute(backend, "/echo", value) == value


async def typed_error(backend: Backend) -> None:
    missing = await execute(backend, "/nope", {})
    assert (missing.code, "/nope" in missing.message) == (Code.COMPONENT_NOT_FOUND, True)
    failed = await execute(backend, "/fail", {"text": "the moon is full"})
    assert (failed.code, failed.message) == (Code.COMPONENT_FAILED, "the moon is full")
    mistyped = await execute(backend, "/add", {"a": "x", "b": 1})
    assert mistyped.code in (Code.COMPONENT_FAILED, Code.INVALID_INPUT)  # stepflow-py does not tell them apart


async def udf(backend: Backend) -> None:
    blobs = MemoryBlobs()
    code = {"code": "input['n'] * 2", "input_schema": {"type": "object"}}
    blob_id = await blobs.put(json.dumps(code).encode())
    assert await execute(backend, "/udf", {"blob_id": blob_id, "input": {"n": 21}}, blobs=blobs) == 42


async def blob_round_trip(backend: Backend) -> None:
    blobs = MemoryBlobs()
    output = await execute(backend, "/blob_roundtrip", {"value": [1, "é"]}, blobs=blobs)
    assert output["value"] == [1, "é"]
    assert blobs.content[output["blob_id"]] == ('[1,"é"]'.encode(), "data")
    missing = await execute(backend, "/blob_get", {"blob_id": "00" * 32}, blobs=blobs)
    assert missing.code is Code.COMPONENT_FAILED


async def sub_flow(backend: Backend) -> None:
    blobs = MemoryBlobs()
    call = Call(
        "/evaluate",
        {"flow": FLOW, "input": {"x": 1}},
        blobs=blobs,
        runs=lambda request: report("r1", {"outcome": "success", "result": {"y": 42}}),
    )
    backend.execute(call)
    assert await call.outcome() == {"y": 42}
    (request,) = call.started
    assert json.loads(request.flow.json or blobs.content[request.flow.blob][0]) == FLOW
    assert request.inputs.json == b'[{"x":1}]'
    failed = {"outcome": "failed", "error": {"code": "COMPONENT_FAILED", "message": "no luck"}}
    failure = await execute(backend, "/evaluate", {"flow": FLOW, "input": 1}, runs=lambda request: report("r", failed))
    assert (failure.code, "no luck" in failure.message) == (Code.COMPONENT_FAILED, True)


async def hundred_at_once(backend: Backend) -> None:
    blobs = MemoryBlobs()
    calls = [
        Call("/blob_roundtrip", {"value": number}, blobs=blobs)
        if number % 10 == 0
        else Call("/add", {"a": number, "b": number}, blobs=blobs)
        for number in range(100)
    ]
    for call in calls:
        backend.execute(call)
    outputs = await asyncio.gather(*(call.outcome() for call in calls))
    assert [output.get("value", output.get("sum", 0) // 2) for output in outputs] == list(range(100))


async def two_mebibytes(backend: Backend) -> None:
    assert len((await execute(backend, "/big", {"size": 2 << 20}))["text"]) == 2 << 20


async def crash_in_the_middle(backend: Backend) -> None:
    failure = await execute(backend, "/crash", {"last_words": "out of coffee"})
    assert failure.code is Code.UNREACHABLE
    details = json.loads(failure.data)
    assert (details["exit_code"], "out of coffee" in details["stderr"]) == (3, True)


async def restart(backend: Backend) -> None:
    (pid,) = backend.process_ids()  # type: ignore[attr-defined]  # of those that have processes
    assert (await execute(backend, "/crash", {})).code is Code.UNREACHABLE
    blobs = MemoryBlobs()
    assert (await execute(backend, "/blob_roundtrip", {"value": 1}, blobs=blobs))["value"] == 1
    await wait_until_async(lambda: not is_alive(pid), "the old process is gone")
    assert backend.process_ids() != [pid]  # type: ignore[attr-defined]  # the same


CELLS: tuple[Cell, ...] = (
    listing,
    info,
    executing,
    typed_error,
    udf,
    blob_round_trip,
    sub_flow,
    hundred_at_once,
    two_mebibytes,
    crash_in_the_middle,
    restart,
)


@pytest.mark.parametrize(
    ("kind", "cell"),
    [
        pytest.param(kind, cell, id=f"{kind}-{cell.__name__}")
        for kind in KINDS
        for cell in CELLS
        if cell.__name__ not in kind.facts
    ],
)
def test_a_server_does_what_a_flow_asks_of_it(kind: Kind, cell: Cell) -> None:
    async def test() -> None:
        async with server(kind) as backend:
            await cell(backend)

    uvloop.run(test())


def test_what_a_protocol_cannot_do_is_told_by_a_fact() -> None:
    known = {cell.__name__ for cell in CELLS}
    assert {cell for kind in KINDS for cell in kind.facts} <= known
    assert all(len(fact) > 20 for kind in KINDS for fact in kind.facts.values())
