"""The pull bridge against servers with this project's SDK, and workers that outlive their host."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from typing import TYPE_CHECKING

import pytest
import uvloop
from support import ROOT, free_port, server_venv, text_of, wait_until_async
from support.host_side import FLOW_ID, Call, MemoryBlobs, context, execute, report, started
from support.pull import BEHAVIOURS, SERVERS, open_endpoint, own, stranger

from component_host.stepflow_bridge.pull import messages
from component_host.stepflow_bridge.pull.backend import PullConfig, StepflowPullBackend
from component_host.stepflow_bridge.pull.endpoint import PullEndpoint
from stepflow.errors import Code
from stepflow.off_loop import INLINE_WORK_BYTES_MAX

if TYPE_CHECKING:
    from pathlib import Path

    from stepflow.pull.v1 import pull_pb2 as pb

pytestmark = pytest.mark.timeout(400)  # the first test of a version installs its server


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
