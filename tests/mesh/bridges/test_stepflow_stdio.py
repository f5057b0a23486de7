"""The stdio bridge against real StepFlow servers, one of each generation.

The host's side of a call is a double (`support.host_side`); processes, pipes and servers are real.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import uvloop
from support import ROOT, is_alive, text_of, wait_until_async
from support.host_side import FLOW_ID, Call, MemoryBlobs, execute, report, started

from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from component_host.stepflow_bridge.stdio.backend import StepflowStdioBackend

    Kit = Callable[..., AbstractAsyncContextManager[StepflowStdioBackend]]
    Rude = Callable[..., StepflowStdioBackend]
    Own = Callable[..., StepflowStdioBackend]

pytestmark = pytest.mark.timeout(400)  # the first test of a version installs its server

VERSIONS = ("0.2.4", "0.4.0", "0.7.0")
each_version = pytest.mark.parametrize("version", VERSIONS)


# --- every generation --------------------------------------------------------------------------------------------


@each_version
def test_a_component_is_executed_and_listed_with_its_schemas(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            assert await execute(backend, "/add", {"a": 2, "b": 3}) == {"sum": 5}
            listing = backend.listing()
            (add,) = [info for info in listing.components if info.component == "/add"]
            assert listing.complete
            assert (add.path, add.description) == ("/add", "Add two integers.")
            assert add.input_schema["$defs"]["AddInput"]["required"] == ["a", "b"]

    uvloop.run(test())


@each_version
def test_values_pass_through_exactly(kit: Kit, version: str) -> None:
    value = {"text": 'é\u2028\n"\\', "big": 2**60, "float": 1.0, "tiny": 5e-324, "none": None, "list": [[], {}]}

    async def test() -> None:
        async with kit(version) as backend:
            output = await execute(backend, "/echo", value)
            assert output == value
            assert isinstance(output["float"], float)

    uvloop.run(test())


@each_version
def test_a_udf_runs_code_from_a_blob(kit: Kit, version: str) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        code = {"code": "input['n'] * 2", "input_schema": {"type": "object"}}
        blob_id = await blobs.put(json.dumps(code).encode())
        async with kit(version, command=_stock_server(version), args=[]) as backend:
            assert await execute(backend, "/udf", {"blob_id": blob_id, "input": {"n": 21}}, blobs=blobs) == 42

    uvloop.run(test())


@each_version
def test_a_udf_that_raises_fails_with_its_own_text(kit: Kit, version: str) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        code = {"code": "input['gone']", "input_schema": {"type": "object"}}
        blob_id = await blobs.put(json.dumps(code).encode())
        async with kit(version, command=_stock_server(version), args=[]) as backend:
            failure = await execute(backend, "/udf", {"blob_id": blob_id, "input": {}}, blobs=blobs)
            assert failure.code is Code.COMPONENT_FAILED
            assert failure.message.startswith("Function execution failed: ")
            assert "gone" in failure.message

    uvloop.run(test())


@each_version
def test_a_component_stores_and_reads_blobs(kit: Kit, version: str) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        async with kit(version) as backend:
            output = await execute(backend, "/blob_roundtrip", {"value": [1, "é"]}, blobs=blobs)
            assert output["value"] == [1, "é"]
            assert blobs.content[output["blob_id"]] == ('[1,"é"]'.encode(), "data")

    uvloop.run(test())


@each_version
def test_a_missing_blob_fails_the_component_and_does_not_hang_it(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            failure = await execute(backend, "/blob_get", {"blob_id": "00" * 32})
            assert failure.code is Code.COMPONENT_FAILED
            assert "there is no blob" in failure.message

    uvloop.run(test())


@each_version
def test_a_component_evaluates_a_flow(kit: Kit, version: str) -> None:
    flow = {"steps": [{"id": "s", "component": "/builtin/noop", "input": 1}], "output": {"$step": "s"}}

    async def test() -> None:
        async with kit(version) as backend:
            blobs = MemoryBlobs()
            call = Call(
                "/evaluate",
                {"flow": flow, "input": {"x": 1}},
                blobs=blobs,
                runs=lambda request: report("r1", {"outcome": "success", "result": {"y": 42}}),
            )
            backend.execute(call)
            assert await call.outcome() == {"y": 42}
            (request,) = call.started
            document = request.flow.json or blobs.content[request.flow.blob][0]
            assert json.loads(document) == flow
            assert request.inputs.json == b'[{"x":1}]'
            assert request.wait

    uvloop.run(test())


@each_version
def test_a_failed_flow_reaches_the_component_as_an_exception(kit: Kit, version: str) -> None:
    result = {"outcome": "failed", "error": {"code": "COMPONENT_FAILED", "message": "no luck"}}

    async def test() -> None:
        async with kit(version) as backend:
            call = {"flow": {"steps": []}, "input": 1}
            failure = await execute(backend, "/evaluate", call, runs=lambda request: report("r1", result))
            assert failure.code is Code.COMPONENT_FAILED
            assert "no luck" in failure.message

    uvloop.run(test())


@each_version
def test_results_far_larger_than_a_pipe_arrive_whole(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version, concurrency=8) as backend:
            calls = [Call("/big", {"size": size}) for size in (1 << 20, 70_000, 3 << 20, 1, 65_536)]
            for call in calls:
                backend.execute(call)
            sizes = [len((await call.outcome())["text"]) for call in calls]
            assert sizes == [1 << 20, 70_000, 3 << 20, 1, 65_536]

    uvloop.run(test())


@pytest.mark.parametrize(("version", "limit"), [("0.2.4", 65_536), ("0.4.0", 524_288), ("0.7.0", 524_288)])
def test_an_input_longer_than_the_server_reads_is_refused_and_the_server_lives(
    kit: Kit, version: str, limit: int
) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            pid = backend.process_ids()[0]
            overhead = limit + 1 - _shortest_refused(await execute(backend, "/echo", "x" * limit))
            fits = limit - overhead
            assert len(await execute(backend, "/echo", "x" * fits)) == fits
            failure = await execute(backend, "/echo", "x" * (fits + 1))
            assert failure.code is Code.INVALID_INPUT
            assert f"{limit:,}" in failure.message
            assert "put_blob" in failure.message
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}
            assert backend.process_ids() == [pid]

    def _shortest_refused(failure: Failure) -> int:
        """Tell from the refusal of a text of `limit` characters which is the shortest that is refused."""
        line = int(failure.message.split()[3].replace(",", ""))
        return limit - (line - limit) + 1

    uvloop.run(test())


@each_version
def test_a_blob_longer_than_the_server_reads_is_an_error_to_it(kit: Kit, version: str) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        blob_id = await blobs.put(b'"' + b"x" * 600_000 + b'"')
        async with kit(version) as backend:
            failure = await execute(backend, "/blob_get", {"blob_id": blob_id}, blobs=blobs)
            assert failure.code is Code.COMPONENT_FAILED
            assert "reads lines of at most" in failure.message
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}

    uvloop.run(test())


@each_version
def test_a_crash_fails_the_call_as_unreachable_and_the_server_comes_back(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            before = backend.process_ids()
            failure = await execute(backend, "/crash", {"last_words": "out of coffee"})
            assert failure.code is Code.UNREACHABLE
            assert "exited with code 3" in failure.message
            details = json.loads(failure.data)
            assert details["exit_code"] == 3
            assert "out of coffee" in details["stderr"]
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}
            assert backend.process_ids() != before

    uvloop.run(test())


@each_version
def test_payloads_that_old_servers_echo_to_stderr_are_not_kept(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            await execute(backend, "/echo", {"password": "hunter2-hunter2"})
            failure = await execute(backend, "/crash", {"last_words": "bye"})
            assert b"hunter2" not in failure.data

    uvloop.run(test())


@each_version
def test_a_hundred_calls_at_once_all_get_their_own_answer(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            calls = [Call("/add", {"a": number, "b": number}) for number in range(100)]
            for call in calls:
                backend.execute(call)
            assert [await call.outcome() for call in calls] == [{"sum": 2 * number} for number in range(100)]

    uvloop.run(test())


@each_version
def test_what_user_code_prints_does_not_disturb(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            assert await execute(backend, "/noisy", {}) == {"printed": True}
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}

    uvloop.run(test())


@each_version
def test_an_unknown_component_is_named_once(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            failure = await execute(backend, "/nope", {})
            assert failure == Failure(Code.COMPONENT_NOT_FOUND, "Component '/nope' not found")

    uvloop.run(test())


@each_version
def test_an_exception_gives_its_text_without_the_servers_wrapping(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            failure = await execute(backend, "/fail", {"text": "the moon is full"})
            assert (failure.code, failure.message) == (Code.COMPONENT_FAILED, "the moon is full")

    uvloop.run(test())


def test_a_skipped_step_is_passed_on_as_data(kit: Kit) -> None:
    async def test() -> None:
        async with kit("0.7.0") as backend:
            assert await execute(backend, "/skip", {}) == {"outcome": "skipped", "reason": "not today"}

    uvloop.run(test())


def test_a_component_submits_a_batch_and_reads_its_results(kit: Kit) -> None:
    results = [
        {"outcome": "success", "result": 1},
        {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "late"}},
    ]

    async def test() -> None:
        async with kit("0.7.0") as backend:
            call = Call("/batch", {"flow_id": FLOW_ID, "inputs": [1, 2]}, runs=lambda request: report("b1", *results))
            backend.execute(call)
            output = await call.outcome()
            (request,) = call.started
            assert (request.flow.blob, request.inputs.json, request.wait) == (FLOW_ID, b"[1,2]", False)
            assert output["details"]["total_runs"] == 2
            assert output["details"]["batch_id"] == "b1"
            assert output["details"]["created_at"] == "2023-11-14T22:13:20.000Z"
            assert (output["details"]["completed_runs"], output["details"]["failed_runs"]) == (1, 1)
            assert [entry["status"] for entry in output["outputs"]] == ["completed", "failed"]
            assert output["outputs"][1]["result"]["error"] == {"code": 1, "message": "late", "data": None}

    uvloop.run(test())


@pytest.mark.parametrize("version", ["0.4.0", "0.7.0"])
def test_a_component_reads_the_metadata_of_its_flow_and_step(kit: Kit, version: str) -> None:
    flow = {"name": "f", "metadata": {"team": "a"}, "steps": [{"id": "s1", "metadata": {"cost": 3}}, {"id": "s2"}]}

    async def test() -> None:
        async with kit(version) as backend:
            output = await execute(backend, "/metadata", {"step_id": "s1"}, flows={FLOW_ID: flow})
            assert output["flow_metadata"]["team"] == "a"
            assert output["step_metadata"] == {"cost": 3}

    uvloop.run(test())


# --- whose call-back is it ---------------------------------------------------------------------------------------


def test_callbacks_of_concurrent_executes_reach_their_own_calls(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.7.0") as backend:
            calls = [
                Call("/gated_blob", {"entered": str(tmp_path / f"{n}"), "release": str(tmp_path / "go"), "value": n})
                for n in range(5)
            ]
            for call in calls:
                backend.execute(call)
            await wait_until_async(lambda: len(list(tmp_path.iterdir())) == 5, "all five run at the same time")
            (tmp_path / "go").touch()
            ids = [await call.outcome() for call in calls]
            for number, call in enumerate(calls):
                assert list(call.blobs.content) == [ids[number]]
                assert call.blobs.content[ids[number]][0] == str(number).encode()

    uvloop.run(test())


def test_callbacks_are_told_apart_also_when_the_server_has_its_own_spans(kit: Kit, tmp_path: Path) -> None:
    """With an exporter configured, 0.7.0 sends the ids of spans of its own; only the trace id is still ours."""

    async def test() -> None:
        args = (tmp_path / "go", "--tracing")
        async with kit("0.7.0", *map(str, args[1:])) as backend:
            calls = [
                Call("/gated_blob", {"entered": str(tmp_path / f"{n}"), "release": str(args[0]), "value": n})
                for n in range(3)
            ]
            for call in calls:
                backend.execute(call)
            await wait_until_async(lambda: len(list(tmp_path.iterdir())) == 3, "all three run at the same time")
            args[0].touch()
            for number, call in enumerate(calls):
                assert call.blobs.content[await call.outcome()][0] == str(number).encode()

    uvloop.run(test())


@pytest.mark.parametrize("version", ["0.2.4", "0.4.0"])
def test_generations_that_cannot_tell_run_one_execute_at_a_time(kit: Kit, version: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            first = Call("/wait", {"entered": str(tmp_path / "1"), "release": str(tmp_path / "go"), "value": 1})
            second = Call("/wait", {"entered": str(tmp_path / "2"), "release": str(tmp_path / "go"), "value": 2})
            backend.execute(first)
            backend.execute(second)
            await wait_until_async((tmp_path / "1").exists, "the first runs")
            assert second.backend_state is None  # not sent
            assert not (tmp_path / "2").exists()
            (tmp_path / "go").touch()
            assert [await first.outcome(), await second.outcome()] == [1, 2]

    uvloop.run(test())


def test_a_pool_of_processes_runs_as_many_at_a_time(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.2.4", processes=2) as backend:
            calls = [
                Call("/wait", {"entered": str(tmp_path / f"{n}"), "release": str(tmp_path / "go"), "value": n})
                for n in range(3)
            ]
            for call in calls:
                backend.execute(call)
            await wait_until_async(lambda: (tmp_path / "0").exists() and (tmp_path / "1").exists(), "two run")
            assert (tmp_path / "0").read_text() != (tmp_path / "1").read_text()
            assert calls[2].backend_state is None
            (tmp_path / "go").touch()
            assert [await call.outcome() for call in calls] == [0, 1, 2]

    uvloop.run(test())


def test_a_pool_shares_the_calls_also_where_a_process_could_take_them_all(own: Own, tmp_path: Path) -> None:
    async def test() -> None:
        async with started(own(processes=2)) as backend:
            calls = [Call("/stalls", {"entered": str(tmp_path / f"{n}")}) for n in range(4)]
            for call in calls:
                backend.execute(call)
            await wait_until_async(lambda: len(list(tmp_path.iterdir())) == 4, "all run")
            for call in calls:
                backend.cancel(call)
            pids = await wait_until_async(
                lambda: (
                    [text for n in range(4) if (text := text_of(tmp_path / f"{n}.cancelled"))][3:]
                    and [text_of(tmp_path / f"{n}.cancelled") for n in range(4)]
                ),
                "all are stopped",
            )
            assert sorted(pids.count(str(pid)) for pid in backend.process_ids()) == [2, 2]

    uvloop.run(test())


def test_a_call_made_at_the_end_of_another_does_not_overtake_the_queue(rude: Rude) -> None:
    class Chained(Call):
        def succeed(self, output: bytes) -> None:
            backend_of[0].execute(last)
            super().succeed(output)

    backend_of: list[StepflowStdioBackend] = []
    order: list[str] = []

    class Noted(Call):
        def succeed(self, output: bytes) -> None:
            order.append(output.decode())
            super().succeed(output)

    async def test() -> None:
        nonlocal last
        async with started(rude("trivial_server")) as backend:
            backend_of.append(backend)
            last = Noted("/it", "last")
            for call in (Chained("/it", "first"), waiting := Noted("/it", "waiting")):
                backend.execute(call)
            await waiting.outcome()
            await last.outcome()
            assert order == ['"waiting"', '"last"']

    last: Call
    uvloop.run(test())


# --- cancel ------------------------------------------------------------------------------------------------------


def test_cancelling_the_only_execute_of_an_old_server_ends_its_process(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.2.4") as backend:
            stuck = Call("/wait", {"entered": str(tmp_path / "in"), "release": str(tmp_path / "never")})
            waiting = Call("/add", {"a": 1, "b": 1})
            backend.execute(stuck)
            backend.execute(waiting)
            pid = int(await wait_until_async(lambda: text_of(tmp_path / "in"), "it runs"))
            backend.cancel(stuck)
            assert (await stuck.outcome()).code is Code.CANCELLED
            assert await waiting.outcome() == {"sum": 2}
            assert not is_alive(pid)

    uvloop.run(test())


def test_cancelling_one_of_several_executes_leaves_the_others(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.7.0") as backend:
            one = Call("/wait", {"entered": str(tmp_path / "1"), "release": str(tmp_path / "go"), "value": 1})
            other = Call("/wait", {"entered": str(tmp_path / "2"), "release": str(tmp_path / "go"), "value": 2})
            backend.execute(one)
            backend.execute(other)
            await wait_until_async((tmp_path / "2").exists, "both run")
            backend.cancel(one)
            (tmp_path / "go").touch()
            assert (await one.outcome()).code is Code.CANCELLED
            assert await other.outcome() == 2

    uvloop.run(test())


def test_a_server_whose_event_loop_is_blocked_is_replaced_after_a_cancel(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.7.0", request_timeout_s=0.3) as backend:
            call = Call("/block", {"entered": str(tmp_path / "in")})
            backend.execute(call)
            pid = int(await wait_until_async(lambda: text_of(tmp_path / "in"), "it runs"))
            backend.cancel(call)
            await wait_until_async(lambda: not is_alive(pid), "the blocked process is ended")
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}

    uvloop.run(test())


def test_a_call_cancelled_in_the_queue_is_never_sent(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.2.4") as backend:
            first = Call("/wait", {"entered": str(tmp_path / "1"), "release": str(tmp_path / "go"), "value": 1})
            second = Call("/wait", {"entered": str(tmp_path / "2"), "release": str(tmp_path / "go"), "value": 2})
            for call in (first, second):
                backend.execute(call)
            await wait_until_async((tmp_path / "1").exists, "the first runs")
            backend.cancel(second)
            (tmp_path / "go").touch()
            await first.outcome()
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}
            assert not (tmp_path / "2").exists()

    uvloop.run(test())


def test_a_server_that_can_cancel_is_told(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            pid = backend.process_ids()[0]
            call = Call("/it", "say nothing")
            backend.execute(call)
            backend.cancel(call)
            assert (await call.outcome()).code is Code.CANCELLED
            assert await execute(backend, "/it", 3) == "xxx"
            assert backend.process_ids() == [pid]

    uvloop.run(test())


# --- helpers ----------------------------------------------------------------------------------------------------


def _stock_server(version: str) -> str:
    return str(ROOT / ".cache" / "servers" / f"stepflow-py-{version}" / "bin" / "stepflow_py")
