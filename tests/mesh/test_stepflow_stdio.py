"""The stdio bridge against real StepFlow servers, one of each generation, and against rude ones.

The host's side of a call is a double (`support.host_side`); processes, pipes and servers are real.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from support import ROOT, is_alive, wait_until, wait_until_async
from support.host_side import FLOW_ID, RUN_ID, Call, MemoryBlobs, context, report

from component_host.stepflow_stdio import StdioServerConfig, StepflowStdioBackend
from stepflow.errors import Code, Failure, Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    Kit = Callable[..., AbstractAsyncContextManager[StepflowStdioBackend]]
    Rude = Callable[..., StepflowStdioBackend]

VERSIONS = ("0.2.4", "0.4.0", "0.7.0")
each_version = pytest.mark.parametrize("version", VERSIONS)


def run(test: Coroutine[Any, Any, None]) -> None:
    uvloop.run(test)


@asynccontextmanager
async def started(backend: StepflowStdioBackend) -> AsyncIterator[StepflowStdioBackend]:
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


async def execute(backend: StepflowStdioBackend, component: str, input: Any = None, **call: Any) -> Any:  # noqa: A002
    one = Call(component, input, **call)
    backend.execute(one)
    return await one.outcome()


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

    run(test())


@each_version
def test_values_pass_through_exactly(kit: Kit, version: str) -> None:
    value = {"text": 'é\u2028\n"\\', "big": 2**60, "float": 1.0, "tiny": 5e-324, "none": None, "list": [[], {}]}

    async def test() -> None:
        async with kit(version) as backend:
            output = await execute(backend, "/echo", value)
            assert output == value
            assert isinstance(output["float"], float)

    run(test())


@each_version
def test_a_udf_runs_code_from_a_blob(kit: Kit, version: str) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        code = {"code": "input['n'] * 2", "input_schema": {"type": "object"}}
        blob_id = await blobs.put(json.dumps(code).encode())
        async with kit(version, command=_stock_server(version), args=[]) as backend:
            assert await execute(backend, "/udf", {"blob_id": blob_id, "input": {"n": 21}}, blobs=blobs) == 42

    run(test())


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

    run(test())


@each_version
def test_a_component_stores_and_reads_blobs(kit: Kit, version: str) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        async with kit(version) as backend:
            output = await execute(backend, "/blob_roundtrip", {"value": [1, "é"]}, blobs=blobs)
            assert output["value"] == [1, "é"]
            assert blobs.content[output["blob_id"]] == ('[1,"é"]'.encode(), "data")

    run(test())


@each_version
def test_a_missing_blob_fails_the_component_and_does_not_hang_it(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            failure = await execute(backend, "/blob_get", {"blob_id": "00" * 32})
            assert failure.code is Code.COMPONENT_FAILED
            assert "there is no blob" in failure.message

    run(test())


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

    run(test())


@each_version
def test_a_failed_flow_reaches_the_component_as_an_exception(kit: Kit, version: str) -> None:
    result = {"outcome": "failed", "error": {"code": "COMPONENT_FAILED", "message": "no luck"}}

    async def test() -> None:
        async with kit(version) as backend:
            call = {"flow": {"steps": []}, "input": 1}
            failure = await execute(backend, "/evaluate", call, runs=lambda request: report("r1", result))
            assert failure.code is Code.COMPONENT_FAILED
            assert "no luck" in failure.message

    run(test())


@each_version
def test_results_far_larger_than_a_pipe_arrive_whole(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version, concurrency=8) as backend:
            calls = [Call("/big", {"size": size}) for size in (1 << 20, 70_000, 3 << 20, 1, 65_536)]
            for call in calls:
                backend.execute(call)
            sizes = [len((await call.outcome())["text"]) for call in calls]
            assert sizes == [1 << 20, 70_000, 3 << 20, 1, 65_536]

    run(test())


@pytest.mark.parametrize(("version", "limit"), [("0.2.4", 65_536), ("0.4.0", 524_288), ("0.7.0", 524_288)])
def test_an_input_longer_than_the_server_reads_is_refused_and_the_server_lives(
    kit: Kit, version: str, limit: int
) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            pid = _pids(backend)[0]
            overhead = limit + 1 - _shortest_refused(await execute(backend, "/echo", "x" * limit))
            fits = limit - overhead
            assert len(await execute(backend, "/echo", "x" * fits)) == fits
            failure = await execute(backend, "/echo", "x" * (fits + 1))
            assert failure.code is Code.INVALID_INPUT
            assert f"{limit:,}" in failure.message
            assert "put_blob" in failure.message
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}
            assert _pids(backend) == [pid]

    def _shortest_refused(failure: Failure) -> int:
        """Tell from the refusal of a text of `limit` characters which is the shortest that is refused."""
        line = int(failure.message.split()[3].replace(",", ""))
        return limit - (line - limit) + 1

    run(test())


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

    run(test())


@each_version
def test_a_crash_fails_the_call_as_unreachable_and_the_server_comes_back(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            before = _pids(backend)
            failure = await execute(backend, "/crash", {"last_words": "out of coffee"})
            assert failure.code is Code.UNREACHABLE
            assert "exited with code 3" in failure.message
            details = json.loads(failure.data)
            assert details["exit_code"] == 3
            assert "out of coffee" in details["stderr"]
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}
            assert _pids(backend) != before

    run(test())


@each_version
def test_payloads_that_old_servers_echo_to_stderr_are_not_kept(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            await execute(backend, "/echo", {"password": "hunter2-hunter2"})
            failure = await execute(backend, "/crash", {"last_words": "bye"})
            assert b"hunter2" not in failure.data

    run(test())


@each_version
def test_a_hundred_calls_at_once_all_get_their_own_answer(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            calls = [Call("/add", {"a": number, "b": number}) for number in range(100)]
            for call in calls:
                backend.execute(call)
            assert [await call.outcome() for call in calls] == [{"sum": 2 * number} for number in range(100)]

    run(test())


@each_version
def test_what_user_code_prints_does_not_disturb(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            assert await execute(backend, "/noisy", {}) == {"printed": True}
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}

    run(test())


@each_version
def test_an_unknown_component_is_named_once(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            failure = await execute(backend, "/nope", {})
            assert failure == Failure(Code.COMPONENT_NOT_FOUND, "Component '/nope' not found")

    run(test())


@each_version
def test_an_exception_gives_its_text_without_the_servers_wrapping(kit: Kit, version: str) -> None:
    async def test() -> None:
        async with kit(version) as backend:
            failure = await execute(backend, "/fail", {"text": "the moon is full"})
            assert failure == Failure(Code.COMPONENT_FAILED, "the moon is full")

    run(test())


def test_a_skipped_step_is_passed_on_as_data(kit: Kit) -> None:
    async def test() -> None:
        async with kit("0.7.0") as backend:
            assert await execute(backend, "/skip", {}) == {"outcome": "skipped", "reason": "not today"}

    run(test())


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

    run(test())


@pytest.mark.parametrize("version", ["0.4.0", "0.7.0"])
def test_a_component_reads_the_metadata_of_its_flow_and_step(kit: Kit, version: str) -> None:
    flow = {"name": "f", "metadata": {"team": "a"}, "steps": [{"id": "s1", "metadata": {"cost": 3}}, {"id": "s2"}]}

    async def test() -> None:
        async with kit(version) as backend:
            output = await execute(backend, "/metadata", {"step_id": "s1"}, flows={FLOW_ID: flow})
            assert output["flow_metadata"]["team"] == "a"
            assert output["step_metadata"] == {"cost": 3}

    run(test())


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

    run(test())


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

    run(test())


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

    run(test())


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

    run(test())


# --- cancel ------------------------------------------------------------------------------------------------------


def test_cancelling_the_only_execute_of_an_old_server_ends_its_process(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.2.4") as backend:
            stuck = Call("/wait", {"entered": str(tmp_path / "in"), "release": str(tmp_path / "never")})
            waiting = Call("/add", {"a": 1, "b": 1})
            backend.execute(stuck)
            backend.execute(waiting)
            pid = int(await wait_until_async(lambda: _text(tmp_path / "in"), "it runs"))
            backend.cancel(stuck)
            assert (await stuck.outcome()).code is Code.CANCELLED
            assert await waiting.outcome() == {"sum": 2}
            assert not is_alive(pid)

    run(test())


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

    run(test())


def test_a_server_whose_event_loop_is_blocked_is_replaced_after_a_cancel(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.7.0", request_timeout_s=0.3) as backend:
            call = Call("/block", {"entered": str(tmp_path / "in")})
            backend.execute(call)
            pid = int(await wait_until_async(lambda: _text(tmp_path / "in"), "it runs"))
            backend.cancel(call)
            await wait_until_async(lambda: not is_alive(pid), "the blocked process is ended")
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}

    run(test())


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

    run(test())


def test_a_server_that_can_cancel_is_told(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            pid = _pids(backend)[0]
            call = Call("/it", "say nothing")
            backend.execute(call)
            backend.cancel(call)
            assert (await call.outcome()).code is Code.CANCELLED
            assert await execute(backend, "/it", 3) == "xxx"
            assert _pids(backend) == [pid]

    run(test())


# --- servers with more to say ------------------------------------------------------------------------------------


def test_a_server_that_announces_itself_gets_key_timeout_and_path(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            params = await execute(
                backend,
                "/core/{name}/{*rest}",
                "params",
                timeout_ms=1500,
                attempt=2,
                item=7,
                path_params={"name": "a", "rest": "b/c"},
                traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
            )
            assert params["component"] == "/core/a/b/c"
            assert params["idempotency_key"] == f"{RUN_ID}/0/s1"
            assert (params["timeout_ms"], params["attempt"], params["item"]) == (1500, 2, 7)
            assert params["path_params"] == {"name": "a", "rest": "b/c"}
            assert params["observability"]["trace_id"] == "0af7651916cd43dd8448eb211c80319c"

    run(test())


def test_progress_reaches_the_call(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            call = Call("/it", "progress")
            backend.execute(call)
            assert await call.outcome() is None
            assert call.progressed == [(1.0, 2.0, "part 1"), (2.0, 2.0, "part 2")]

    run(test())


def test_the_announced_line_limit_holds(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            failure = await execute(backend, "/it", "x" * 100_000)
            assert failure.code is Code.INVALID_INPUT
            assert "100,000" in failure.message

    run(test())


def test_a_result_above_the_payload_limit_fails_its_call_only(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            failure = await execute(backend, "/it", 18 * 1024 * 1024)
            assert failure.code is Code.COMPONENT_FAILED
            assert "larger than" in failure.message
            assert await execute(backend, "/it", 2) == "xx"

    run(test())


# --- misbehaviour ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ({"code": -32003, "message": "Component execution failed: x"}, Failure(Code.COMPONENT_FAILED, "x")),
        ({"code": -32100, "message": "Component execution failed: x"}, Failure(Code.COMPONENT_FAILED, "x")),
        ({"code": -32600, "message": "what?"}, Failure(Code.WORKER_ERROR, "what?")),
        ({"code": -32602, "message": "bad"}, Failure(Code.INVALID_INPUT, "bad")),
        (
            {"code": -32003, "message": "later", "data": {"error_code": "RESOURCE_UNAVAILABLE"}},
            Failure(Code.RESOURCE_UNAVAILABLE, "later", b'{"error_code": "RESOURCE_UNAVAILABLE"}'),
        ),
        (
            {"code": -32003, "message": "odd", "data": {"error_code": "NO_SUCH_CODE"}},
            Failure(Code.COMPONENT_FAILED, "odd", b'{"error_code": "NO_SUCH_CODE"}'),
        ),
        ({"code": -32003, "message": "list", "data": [1]}, Failure(Code.COMPONENT_FAILED, "list", b"[1]")),
    ],
)
def test_declared_errors_become_failures(rude: Rude, error: Any, expected: Failure) -> None:
    async def test() -> None:
        async with started(rude("declares")) as backend:
            assert await execute(backend, "/it", error) == expected

    run(test())


@pytest.mark.parametrize("kind", ["no output", "neither", "result is a number", "error is a text"])
def test_a_malformed_reply_fails_the_call_instead_of_hanging_it(rude: Rude, kind: str) -> None:
    async def test() -> None:
        async with started(rude("malformed")) as backend:
            failure = await execute(backend, "/it", kind)
            assert failure.code is Code.WORKER_ERROR

    run(test())


def test_garbage_before_the_handshake_is_skipped(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("garbage_first")) as backend:
            assert await execute(backend, "/it", [1]) == [1]

    run(test())


@pytest.mark.parametrize(
    ("behaviour", "reason", "says"),
    [
        ("exits", "SERVER_EXITED", ["exited with code 7", "no licence for today"]),
        ("silent", "SERVER_NOT_RESPONDING", ["did not answer", "still warming up"]),
        ("garbage", "SERVER_NOT_RESPONDING", ["Welcome to my server!", "not the StepFlow protocol"]),
        ("refuses", "SERVER_REFUSED", ["-32600", "wrong protocol version"]),
    ],
)
def test_a_server_that_does_not_start_is_explained_and_ended(
    rude: Rude, behaviour: str, reason: str, says: list[str]
) -> None:
    async def test() -> None:
        backend = rude(behaviour, start_timeout_s=1.0)
        with pytest.raises(Unavailable) as caught:
            await backend.start()
        assert caught.value.reason == reason
        for text in ["rude", *says]:
            assert text in caught.value.message
        assert not _alive(backend)
        await backend.close()

    run(test())


def test_a_secret_from_the_configuration_does_not_appear_in_an_error(rude: Rude) -> None:
    async def test() -> None:
        with pytest.raises(Unavailable) as caught:
            await rude("echoes_secret", env={"SERVICE_API_KEY": "zx-81-spectrum"}).start()
        assert "using key [REDACTED]" in caught.value.message

    run(test())


@pytest.mark.parametrize("command", ["no-such-command-here", "./no/such/file", "./README-that-is-no-program"])
def test_a_missing_command_is_named_with_the_places_searched(command: str, tmp_path: Path) -> None:
    (tmp_path / "README-that-is-no-program").write_text("text")

    async def test() -> None:
        backend = StepflowStdioBackend(context("lost", str(tmp_path)), StdioServerConfig(command=command))
        with pytest.raises(Invalid) as caught:
            await backend.start()
        assert caught.value.reason == "COMMAND_NOT_FOUND"
        place = str(tmp_path) if "/" in command else os.environ["PATH"]
        for text in ("'lost'", repr(command), place):
            assert text in caught.value.message

    run(test())


def test_calls_fail_as_unreachable_when_the_server_cannot_be_started_again(rude: Rude, tmp_path: Path) -> None:
    async def test() -> None:
        async with started(rude("crashes_on_second_start", str(tmp_path / "marker"))) as backend:
            crashed = await execute(backend, "/it")
            waited = await execute(backend, "/it")
            at_once = await execute(backend, "/it")
            assert [failure.code for failure in (crashed, waited, at_once)] == [Code.UNREACHABLE] * 3
            assert "cannot start twice" in waited.message
            (tmp_path / "marker").unlink()  # repaired
            await wait_until_async((tmp_path / "marker").exists, "it is started again")

    run(test())


def test_closing_fails_the_calls_in_flight_and_in_the_queue(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        async with kit("0.2.4") as backend:
            calls = [Call("/wait", {"entered": str(tmp_path / f"{n}"), "release": "/nowhere"}) for n in range(2)]
            for call in calls:
                backend.execute(call)
            await wait_until_async((tmp_path / "0").exists, "the first runs")
            await backend.close()
            await backend.close()
            late = Call("/add", {})
            backend.execute(late)
            assert {(await call.outcome()).code for call in [*calls, late]} == {Code.UNREACHABLE}

    run(test())


# --- call-backs, line by line ------------------------------------------------------------------------------------


def test_every_callback_is_answered_well_formed(rude: Rude) -> None:
    async def test() -> None:
        asked = [
            ["blobs/put", {"data": {"a": 1}}],
            ["blobs/put", {}],
            ["blobs/get", {"blob_id": "nonsense"}],
            ["blobs/get", {"blob_id": "00" * 32}],
            ["flows/evaluate", {"input": 1}],
            ["flows/get_metadata", {"flow_id": "unknown"}],
            ["flows/get_batch", {"batch_id": "unknown"}],
            ["secrets/list", {}],
        ]
        async with started(rude("asks")) as backend:
            replies = await execute(backend, "/it", asked)
            assert [reply["id"] for reply in replies] == [f"a{number}" for number in range(len(asked))]
            assert len(replies[0]["result"]["blob_id"]) == 64
            codes = [reply["error"]["code"] for reply in replies[1:]]
            assert codes == [-32602, -32012, -32011, -32012, -32011, -32011, -32601]

    run(test())


def test_the_words_of_later_generations_are_understood(rude: Rude) -> None:
    async def test() -> None:
        asked = [
            ["runs/submit", {"flowId": FLOW_ID, "inputs": [1], "wait": True, "subflowKey": "k", "overrides": {"s": 1}}],
            ["runs/get", {"runId": "r1", "includeResults": True}],
        ]
        async with started(rude("asks")) as backend:
            call = Call("/it", asked, runs=lambda request: report("r1", {"outcome": "success", "result": 5}))
            backend.execute(call)
            submitted, got = [reply["result"] for reply in await call.outcome()]
            (request,) = call.started
            assert (request.key, request.wait, request.overrides_json) == ("k", True, b'{"s":1}')
            assert submitted["status"] == "completed"
            assert submitted["results"] == got["results"]
            assert got["results"][0]["result"] == {"outcome": "success", "result": 5}
            assert got["items"] == {"total": 1, "completed": 1, "running": 0, "failed": 0, "cancelled": 0}

    run(test())


def test_a_callback_after_the_end_of_its_execute_is_answered_with_an_error(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("asks_late")) as backend:
            heard: list[Any] = []
            while not heard:  # the test's timeout bounds this
                heard = await execute(backend, "/it")
            assert heard[0]["id"] == "late"
            assert heard[0]["error"]["code"] == -32000

    run(test())


# --- environment and processes -----------------------------------------------------------------------------------


def test_a_server_sees_only_the_variables_meant_for_it(kit: Kit) -> None:
    async def test() -> None:
        async with kit("0.7.0", env={"NAMED": "yes"}) as backend:
            seen = await execute(backend, "/environment", {})
        seen.pop("LC_CTYPE", None)  # CPython adds it
        allowed = {name for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        assert set(seen) == allowed | {"NAMED"}

    run(test())


def test_a_server_sees_everything_when_it_inherits(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING_ELSE", "here")

    async def test() -> None:
        async with kit("0.7.0", inherit_env=True, env={"SOMETHING_ELSE": "there"}) as backend:
            seen = await execute(backend, "/environment", {})
        assert seen["SOMETHING_ELSE"] == "there"
        assert set(os.environ) <= set(seen)

    run(test())


def test_closing_ends_the_whole_process_group(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        note = tmp_path / "pid"
        async with kit("0.7.0", "--grandchild", str(note)) as backend:
            grandchild = int(note.read_text())
            pids = [*_pids(backend), grandchild]
            assert all(map(is_alive, pids))
        assert not any(map(is_alive, pids))

    run(test())


def test_a_server_that_ignores_sigterm_is_killed_after_the_grace(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("deaf_to_signals", stop_grace_s=0.2)) as backend:
            pid = _pids(backend)[0]
        assert not is_alive(pid)

    run(test())


HOST = """
import asyncio, os, sys
from component_host.backend import BackendContext
from component_host.stepflow_stdio import StdioServerConfig, StepflowStdioBackend

async def main():
    config = StdioServerConfig(command="python3", args=[sys.argv[1], "deaf_to_signals"])
    backend = StepflowStdioBackend(BackendContext("p", "/", os.environ), config)
    await backend.start()
    print(backend.process_ids()[0], flush=True)
    await asyncio.sleep(300)

asyncio.run(main())
"""


def test_no_orphan_is_left_when_the_host_is_sigkilled() -> None:
    server = ROOT / "tests" / "data" / "stepflow_servers" / "rude.py"
    with subprocess.Popen(
        [sys.executable, "-c", HOST, str(server)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    ) as host:
        assert host.stdout is not None
        pid = int(host.stdout.readline())
        assert is_alive(pid)
        host.send_signal(signal.SIGKILL)
        host.wait()
        wait_until(lambda: not is_alive(pid), "the server ends with its host", timeout_s=10)


def test_the_bridge_works_on_asyncios_own_loop(kit: Kit) -> None:
    async def test() -> None:
        async with kit("0.7.0") as backend:
            assert len((await execute(backend, "/big", {"size": 1 << 20}))["text"]) == 1 << 20
            assert (await execute(backend, "/crash", {})).code is Code.UNREACHABLE
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}

    asyncio.run(test())


# --- helpers -----------------------------------------------------------------------------------------------------


def _stock_server(version: str) -> str:
    return str(ROOT / ".cache" / "servers" / f"stepflow-py-{version}" / "bin" / "stepflow_py")


def _pids(backend: StepflowStdioBackend) -> list[int]:
    return backend.process_ids()


def _alive(backend: StepflowStdioBackend) -> list[int]:
    return [pid for pid in _pids(backend) if is_alive(pid)]


def _text(path: Path) -> str:
    return path.read_text() if path.exists() else ""
