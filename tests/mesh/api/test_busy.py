"""A busy mesh: clients and the command line wait and try again; over real gRPC, with a server that refuses at will."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from support import ROOT, run_cli, text_of, wait_until

from stepflow.client import Client
from stepflow.client import client as client_module
from stepflow.errors import Invalid, Overloaded, StepflowError
from stepflow.mesh.v1 import runs_pb2, runs_pb2_grpc
from stepflow.rpc.server import RpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

FLOW = {"steps": [{"id": "a", "component": "/builtin/sleep", "input": {"duration_ms": 1}}], "output": 1}

PAUSE_MS = 60


class Busy(runs_pb2_grpc.RunsServiceServicer):
    """Refuses each run some times, then accepts it. Keeps the ids and times of all tries."""

    def __init__(self, refusals: int = 2, reason: str = "STORE_FULL", **details: object) -> None:
        self.refusals = refusals
        self.error: StepflowError = Overloaded(reason, "too much for now", **details)
        self.tries: list[tuple[str, float]] = []
        self.accepted: set[bytes] = set()
        """Inputs whose runs are never refused."""

    def take(self, run_id: str) -> str:
        self.tries.append((run_id, time.monotonic()))
        if [tried for tried, _ in self.tries].count(run_id) <= self.refusals:
            raise self.error
        return run_id

    async def SubmitRun(self, request: Any, _: Any) -> Any:  # noqa: N802  # the RPC's name
        return runs_pb2.SubmitRunResponse(run_id=self.take(request.run_id))

    async def SubmitRuns(self, request: Any, _: Any) -> Any:  # noqa: N802  # the RPC's name
        reply = runs_pb2.SubmitRunsResponse()
        for run in request.runs:
            try:
                if run.inputs[0].json in self.accepted:
                    self.tries.append((run.run_id, time.monotonic()))
                    reply.outcomes.add(run_id=run.run_id)
                else:
                    reply.outcomes.add(run_id=self.take(run.run_id))
            except StepflowError as error:
                pause_ms = int(str(error.details.get("retry_after_ms", 0)))
                reply.outcomes.add(
                    rejection=runs_pb2.Rejection(
                        status=error.status, reason=error.reason, message=error.message, retry_after_ms=pause_ms
                    )
                )
        return reply

    async def SubmitBatch(self, requests: Any, _: Any) -> Any:  # noqa: N802  # the RPC's name
        run_id = (await anext(requests)).run.run_id
        self.take(run_id)
        count = 0
        async for message in requests:
            count += len(message.inputs.inputs)
        assert count == 40
        return runs_pb2.SubmitBatchResponse(run_id=run_id)


@asynccontextmanager
async def serving(busy: Busy) -> AsyncIterator[str]:
    server = RpcServer()
    service = runs_pb2.DESCRIPTOR.services_by_name["RunsService"]
    server.add(service, runs_pb2_grpc.add_RunsServiceServicer_to_server, busy)
    address = await server.start("127.0.0.1:0")
    try:
        yield address
    finally:
        await server.stop()


@contextmanager
def served(busy: Busy) -> Iterator[str]:
    """Serve on a thread, for commands in other processes."""
    started, stop, loop = threading.Event(), asyncio.Event(), asyncio.new_event_loop()
    found: list[str] = []

    async def serve() -> None:
        async with serving(busy) as address:
            found.append(address)
            started.set()
            await stop.wait()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),), name="busy server")
    thread.start()
    try:
        assert started.wait(20)
        yield found[0]
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()
        loop.close()


def test_a_submission_waits_as_long_as_it_is_asked_to_and_tells_once() -> None:
    async def talk() -> None:
        busy, told = Busy(3, retry_after_ms=PAUSE_MS), []
        async with (
            serving(busy) as address,
            Client(address, on_busy=lambda error, patience_s: told.append((error.reason, patience_s))) as client,
        ):
            run_id = await client.submit(FLOW)
        assert {tried for tried, _ in busy.tries} == {run_id}, "one run, whatever was tried"
        times = [at_s for _, at_s in busy.tries]
        assert len(times) == 4
        assert min(later - earlier for earlier, later in pairwise(times)) >= PAUSE_MS / 1000
        assert told == [("STORE_FULL", client_module.BUSY_PATIENCE_S)]

    asyncio.run(talk())


@pytest.mark.parametrize("reason", ["STORE_FULL", "TOO_MANY_PENDING", "PLACEMENT_UNSTABLE"])
def test_refusals_of_an_older_mesh_that_names_no_time_are_waited_for_too(
    reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stepflow.client.busy.PAUSE_S_MIN", 0.01)

    async def talk() -> None:
        busy = Busy(2, reason)
        async with serving(busy) as address, Client(address) as client:
            assert await client.submit(FLOW) == busy.tries[-1][0]
        assert len(busy.tries) == 3

    asyncio.run(talk())


def test_a_streamed_batch_is_sent_again_from_its_first_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "UNARY_INPUTS_BYTES", 10)

    async def talk() -> None:
        busy = Busy(2, retry_after_ms=PAUSE_MS)
        async with serving(busy) as address, Client(address) as client:
            run_id = await client.submit_batch(FLOW, (number for number in range(40)))
        assert [tried for tried, _ in busy.tries] == [run_id] * 3

    asyncio.run(talk())


def test_of_several_runs_only_the_refused_ones_are_sent_again() -> None:
    async def talk() -> None:
        busy = Busy(1, retry_after_ms=PAUSE_MS)
        busy.accepted = {b"0", b"2", b"4", b"6"}
        async with serving(busy) as address, Client(address) as client:
            outcomes = await client.submit_runs(FLOW, range(7))
        first = [tried for tried, _ in busy.tries[:7]]
        assert outcomes == first, "in the order of the inputs"
        assert [tried for tried, _ in busy.tries[7:]] == first[1::2]

    asyncio.run(talk())


def test_patience_ends_with_the_refusal() -> None:
    async def talk() -> None:
        busy = Busy(10_000, retry_after_ms=PAUSE_MS)
        async with serving(busy) as address:
            async with Client(address, busy_patience_s=0.3) as client:
                with pytest.raises(Overloaded) as refused:
                    await client.submit(FLOW)
                assert refused.value.reason == "STORE_FULL"
                assert len(busy.tries) >= 3
                (outcome,) = await client.submit_runs(FLOW, [1])
                assert isinstance(outcome, Overloaded)
            tried = len(busy.tries)
            async with Client(address, busy_patience_s=0) as client:
                with pytest.raises(Overloaded):
                    await client.submit(FLOW)
            assert len(busy.tries) == tried + 1

    asyncio.run(talk())


def test_what_does_not_end_by_waiting_is_raised_at_once() -> None:
    async def talk() -> None:
        for error in (Overloaded("OUT_OF_MEMORY", "ask for less"), Invalid("FLOW_INVALID", "no", retry_after_ms=5)):
            busy = Busy(1)
            busy.error = error
            async with serving(busy) as address, Client(address) as client:
                with pytest.raises(type(error)):
                    await client.submit(FLOW)
            assert len(busy.tries) == 1

    asyncio.run(talk())


def test_the_standard_detail_tells_clients_of_other_makers_when_to_try_again() -> None:
    async def talk() -> None:
        async with serving(Busy(1, retry_after_ms=1_234)) as address, grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as failed:
                await runs_pb2_grpc.RunsServiceStub(channel).SubmitRun(runs_pb2.SubmitRunRequest(run_id="r"))
        assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        metadata = dict(failed.value.trailing_metadata() or ())
        status = status_pb2.Status.FromString(metadata["grpc-status-details-bin"])
        pause, info = error_details_pb2.RetryInfo(), error_details_pb2.ErrorInfo()
        assert status.details[0].Unpack(info)
        assert status.details[1].Unpack(pause)
        assert (info.reason, info.metadata["retry_after_ms"]) == ("STORE_FULL", "1234")
        assert pause.retry_delay.ToMilliseconds() == 1_234

    asyncio.run(talk())


@pytest.fixture
def flow(tmp_path: Path) -> Path:
    path = tmp_path / "flow.yaml"
    path.write_text("steps: [{id: a, component: /builtin/sleep, input: {duration_ms: 1}}]\noutput: {$step: a}\n")
    return path


def test_the_command_line_waits_says_so_once_and_prints_the_id(flow: Path) -> None:
    busy = Busy(3, retry_after_ms=PAUSE_MS)
    with served(busy) as address:
        submitted = run_cli(["submit", "--flow", str(flow), "--input-json", "1", "--no-wait", "--server", address])
    assert submitted.returncode == 0
    assert submitted.stdout.split() == [busy.tries[0][0]]
    assert submitted.stderr.count("the mesh is busy: STORE_FULL; trying again for up to 5 min") == 1


def test_the_patience_of_the_command_line_is_an_option(flow: Path) -> None:
    busy = Busy(10_000, retry_after_ms=PAUSE_MS)
    args = ["submit", "--flow", str(flow), "--input-json", "1", "--no-wait"]
    with served(busy) as address:
        refused = run_cli([*args, "--patience", "0.5", "--server", address])
        tried = len(busy.tries)
        at_once = run_cli([*args, "--patience", "0", "--server", address])
    assert (refused.returncode, at_once.returncode) == (1, 1)
    assert "STORE_FULL" in refused.stderr
    assert tried >= 3
    assert len(busy.tries) == tried + 1
    assert "trying again" not in at_once.stderr


def test_ctrl_c_ends_the_wait_for_a_busy_mesh_at_once(flow: Path, tmp_path: Path) -> None:
    said = tmp_path / "said"
    with served(Busy(10_000, retry_after_ms=60_000)) as address, said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "stepflow.cli", "submit", "--flow", str(flow), "--input-json", "1"],
            env={**os.environ, "STEPFLOW_SERVER": address, "PYTHONPATH": str(ROOT)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            wait_until(lambda: "the mesh is busy" in text_of(said), "the command waits", 20)
            process.send_signal(signal.SIGINT)
            assert process.wait(10) == 130
        finally:
            process.kill()
            process.wait()
    assert "the mesh was busy" in text_of(said)
    assert "Ctrl-C again" not in text_of(said)
