"""Servers of the SDK behind the stdio bridge of the component host: both ends of the protocol are real."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import uvloop
from support import ROOT, is_alive, wait_until_async
from support.host_side import FLOW_ID, RUN_ID, Call, MemoryBlobs, context, report

from component_host.stepflow_bridge.stdio.backend import StdioServerConfig, StepflowStdioBackend
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from stepflow.mesh.v1 import host_pb2

SERVERS = ROOT / "tests" / "data" / "servers"


@asynccontextmanager
async def serving(name: str) -> AsyncIterator[StepflowStdioBackend]:
    config = StdioServerConfig(command=sys.executable, args=[str(SERVERS / name)], env={"PYTHONPATH": str(ROOT)})
    backend = StepflowStdioBackend(context(), config)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


def begin(backend: StepflowStdioBackend, component: str, value: Any = None, **call: Any) -> Call:
    begun = Call(component, value, **call)
    backend.execute(begun)
    return begun


async def execute(backend: StepflowStdioBackend, component: str, value: Any = None, **call: Any) -> Any:
    return await begin(backend, component, value, **call).outcome()


def test_the_host_lists_and_calls_components_also_by_pattern() -> None:
    async def test() -> None:
        async with serving("kinds.py") as backend:
            listing = backend.listing()
            assert listing.complete
            assert {"/plain_kind", "/core/{*rest}"} <= {info.path for info in listing.components}
            assert await execute(backend, "/whole_kind", [1, 2]) == 3
            assert await execute(backend, "/core/{*rest}", 1, path_params={"rest": "a/b"}) == ["a/b", 1]

    uvloop.run(test())


def test_the_facts_of_a_call_reach_the_component() -> None:
    async def test() -> None:
        async with serving("behaviours.py") as backend:
            facts = await execute(backend, "/facts", {}, attempt=2, item=3, timeout_ms=5000)
            assert (facts["run_id"], facts["step_id"], facts["flow_id"]) == (RUN_ID, "s1", FLOW_ID)
            assert (facts["attempt"], facts["item"], facts["timeout_ms"]) == (2, 3, 5000)
            assert facts["idempotency_key"] == f"{RUN_ID}/0/s1"

    uvloop.run(test())


def test_failures_keep_their_codes() -> None:
    async def test() -> None:
        async with serving("behaviours.py") as backend:
            codes = {
                "input": Code.INVALID_INPUT,
                "resource": Code.RESOURCE_UNAVAILABLE,
                "component": Code.COMPONENT_FAILED,
                "own": Code.COMPONENT_FAILED,
            }
            for kind, code in codes.items():
                failure = await execute(backend, "/fail", {"kind": kind})
                assert isinstance(failure, Failure)
                assert failure.code is code
            failure = await execute(backend, "/size", {"text": 3})
            assert failure.code is Code.INVALID_INPUT
            assert "$.text" in failure.message
            failure = await execute(backend, "/nowhere")
            assert failure.code is Code.COMPONENT_NOT_FOUND

    uvloop.run(test())


def test_calls_that_ask_for_blobs_at_the_same_time_get_their_own() -> None:
    async def test() -> None:
        blobs = [MemoryBlobs() for _ in range(20)]
        async with serving("behaviours.py") as backend:
            paths = ("/blob_async", "/blob_sync")
            calls = [begin(backend, paths[n % 2], {"value": n}, blobs=own) for n, own in enumerate(blobs)]
            outputs = await asyncio.gather(*(call.outcome() for call in calls))
            assert [output[1] for output in outputs] == list(range(20))
            assert [list(own.content) for own in blobs] == [[output[0]] for output in outputs]

    uvloop.run(test())


def test_a_component_runs_flows() -> None:
    def runs(request: host_pb2.StartRun) -> host_pb2.RunReport:
        failed = {"outcome": "failed", "error": {"code": "INVALID_INPUT", "message": "no"}}
        return report("sub-run", *([{"outcome": "success", "result": 1}, failed][: 1 if request.wait else 2]))

    async def test() -> None:
        async with serving("behaviours.py") as backend:
            flow = {"flow": {"output": 1}, "value": None}
            assert await execute(backend, "/flow_sync", flow, runs=runs) == 1
            batch = {"flow": FLOW_ID, "inputs": [1, 2]}
            assert await execute(backend, "/flows", batch, runs=runs) == [1, "INVALID_INPUT: no"]

    uvloop.run(test())


def test_progress_and_cancellation_pass_through() -> None:
    async def test() -> None:
        async with serving("behaviours.py") as backend:
            waiting = [begin(backend, path) for path in ("/wait_forever", "/wait_until_cancelled")]
            for call in waiting:
                await wait_until_async(lambda call=call: call.progressed, description="the call reports progress")
                assert call.progressed == [(0.0, 0.0, "waiting")]
                backend.cancel(call)
                failure = await call.outcome()
                assert failure.code is Code.CANCELLED
            assert await execute(backend, "/size", {"text": "x"}) == 1

    uvloop.run(test())


def test_large_values_pass_in_both_directions() -> None:
    async def test() -> None:
        async with serving("behaviours.py") as backend:
            text = "x" * (8 * 1024 * 1024)
            assert await execute(backend, "/echo", text) == text

    uvloop.run(test())


def test_a_server_ends_with_its_host() -> None:
    async def test() -> None:
        async with serving("behaviours.py") as backend:
            begin(backend, "/wait_for_gate", {"name": "never opened"})
            (process_id,) = backend.process_ids()
            assert is_alive(process_id)
        assert not is_alive(process_id)

    uvloop.run(test())
