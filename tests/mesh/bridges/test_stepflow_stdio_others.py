"""The stdio bridge against servers with capabilities beyond stepflow-py's, and against servers that misbehave."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from support import ROOT, is_alive, text_of, wait_until_async
from support.host_side import FLOW_ID, RUN_ID, Call, context, execute, report, started

from component_host.stepflow_bridge.stdio.backend import StdioServerConfig, StepflowStdioBackend
from stepflow.errors import Code, Failure, Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    Kit = Callable[..., AbstractAsyncContextManager[StepflowStdioBackend]]
    Rude = Callable[..., StepflowStdioBackend]
    Own = Callable[..., StepflowStdioBackend]


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

    uvloop.run(test())


def test_progress_reaches_the_call(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            call = Call("/it", "progress")
            backend.execute(call)
            assert await call.outcome() is None
            assert call.progressed == [(1.0, 2.0, "part 1"), (2.0, 2.0, "part 2")]

    uvloop.run(test())


def test_the_announced_line_limit_holds(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            failure = await execute(backend, "/it", "x" * 100_000)
            assert failure.code is Code.INVALID_INPUT
            assert "100,000" in failure.message

    uvloop.run(test())


def test_a_result_above_the_payload_limit_fails_its_call_only(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("modern")) as backend:
            failure = await execute(backend, "/it", 18 * 1024 * 1024)
            assert failure.code is Code.COMPONENT_FAILED
            assert "larger than" in failure.message
            assert await execute(backend, "/it", 2) == "xx"

    uvloop.run(test())


# --- servers with our SDK ----------------------------------------------------------------------------------------


def test_a_path_pattern_of_our_sdk_is_listed_and_executed(own: Own) -> None:
    async def test() -> None:
        async with started(own()) as backend:
            paths = {info.component: info.path for info in backend.listing().components}
            assert paths["/files/{*rest}"] == "/files/{*rest}"
            call = Call("/files/{*rest}", {"value": 1}, path_params={"rest": "a/b"}, attempt=3)
            backend.execute(call)
            assert await call.outcome() == {"rest": "a/b", "value": 1, "key": call.request.key, "attempt": 3}
            assert call.progressed == [(1.0, 2.0, "half")]

    uvloop.run(test())


def test_callbacks_of_our_sdk_reach_their_own_calls(own: Own) -> None:
    async def test() -> None:
        async with started(own()) as backend:
            calls = [Call("/keep", {"value": number}) for number in range(200)]
            for call in calls:
                backend.execute(call)
            for number, call in enumerate(calls):
                assert call.blobs.content[await call.outcome()][0] == str(number).encode()

    uvloop.run(test())


def test_our_sdk_stops_a_cancelled_call_and_its_process_goes_on(own: Own, tmp_path: Path) -> None:
    async def test() -> None:
        async with started(own()) as backend:
            call = Call("/stalls", {"entered": str(tmp_path / "in")})
            backend.execute(call)
            await wait_until_async((tmp_path / "in").exists, "it runs")
            backend.cancel(call)
            stopped_in = await wait_until_async(lambda: text_of(tmp_path / "in.cancelled"), "it was stopped")
            assert [int(stopped_in)] == backend.process_ids()
            assert await execute(backend, "/picky", {"number": 1}) == 1

    uvloop.run(test())


def test_our_sdk_takes_and_gives_values_up_to_the_payload_limit(own: Own) -> None:
    async def test() -> None:
        async with started(own()) as backend:
            text = "x" * (8 << 20)
            assert (await execute(backend, "/files/{*rest}", {"value": text}, path_params={"rest": "r"}))[
                "value"
            ] == text

    uvloop.run(test())


def test_an_input_that_our_sdk_refuses_is_invalid_input(own: Own) -> None:
    async def test() -> None:
        async with started(own()) as backend:
            failure = await execute(backend, "/picky", {"number": "three"})
            assert failure.code is Code.INVALID_INPUT
            assert "number" in failure.message

    uvloop.run(test())


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

    uvloop.run(test())


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        ("no output", Code.WORKER_ERROR),
        ("neither", Code.WORKER_ERROR),
        ("result is a number", Code.WORKER_ERROR),
        ("error is a text", Code.WORKER_ERROR),
        ("code is a text", Code.COMPONENT_FAILED),
        ("not a number", Code.WORKER_ERROR),
        ("too deep, id last", Code.WORKER_ERROR),
        ("cut off in a text", Code.WORKER_ERROR),
        ("cut off after a bracket", Code.WORKER_ERROR),
        ("too large, id last", Code.COMPONENT_FAILED),
    ],
)
def test_a_malformed_reply_fails_the_call_instead_of_hanging_it(rude: Rude, kind: str, code: Code) -> None:
    async def test() -> None:
        async with started(rude("malformed")) as backend:
            failure = await execute(backend, "/it", kind)
            assert failure.code is code
            assert await execute(backend, "/it", "after a text") == "fine"

    uvloop.run(test())


@pytest.mark.parametrize(
    "kind",
    [
        "no version",
        "another version",
        "id is a text",
        "id is a double",
        "with a method",
        "an empty error",
        "a batch",
        "over several lines",
        "after a text",
        "before a text",
        "two on a line",
    ],
)
def test_a_reply_in_another_form_is_read_as_far_as_it_is_told(rude: Rude, kind: str) -> None:
    async def test() -> None:
        async with started(rude("malformed")) as backend:
            assert await execute(backend, "/it", kind) == "fine"

    uvloop.run(test())


def test_a_reply_that_never_ends_fails_its_call(rude: Rude, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("component_host.stepflow_bridge.stdio.reader.UNFINISHED_S", 0.2)

    async def test() -> None:
        async with started(rude("breaks_off")) as backend:
            failure = await execute(backend, "/it", 1)
            assert failure.code is Code.WORKER_ERROR
            assert "not valid JSON" in failure.message

    uvloop.run(test())


def test_an_odd_component_costs_its_server_nothing_else(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("lists_oddly")) as backend:
            assert [(info.component, info.path) for info in backend.listing().components] == [
                ("/odd", "/odd"),
                ("/it", "/it"),
            ]
            assert await execute(backend, "/it", 1) == 1

    uvloop.run(test())


def test_garbage_before_the_handshake_is_skipped(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("garbage_first")) as backend:
            assert await execute(backend, "/it", [1]) == [1]

    uvloop.run(test())


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
        assert not any(map(is_alive, backend.process_ids()))
        await backend.close()

    uvloop.run(test())


def test_a_secret_from_the_configuration_does_not_appear_in_an_error(rude: Rude) -> None:
    async def test() -> None:
        with pytest.raises(Unavailable) as caught:
            await rude("echoes_secret", env={"SERVICE_API_KEY": "zx-81-spectrum"}).start()
        assert "using key [REDACTED]" in caught.value.message

    uvloop.run(test())


def test_a_secret_substituted_into_the_arguments_does_not_appear_in_an_error(rude: Rude) -> None:
    async def test() -> None:
        server = str(ROOT / "tests" / "data" / "stepflow_servers" / "rude.py")
        value = "zx-81-spectrum"
        config = StdioServerConfig(command="python3", args=[server, "exits", f"--token={value}"])
        backend = StepflowStdioBackend(context("p", SERVICE_TOKEN=value), config)
        with pytest.raises(Unavailable) as caught:
            await backend.start()
        assert "rude.py exits --token=[REDACTED]`" in caught.value.message

    uvloop.run(test())


def test_a_missing_working_directory_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        backend = StepflowStdioBackend(context("p", str(tmp_path / "gone")), StdioServerConfig(command="python3"))
        with pytest.raises(Unavailable) as caught:
            await backend.start()
        assert caught.value.reason == "SERVER_START_FAILED"
        assert str(tmp_path / "gone") in caught.value.message

    uvloop.run(test())


@pytest.mark.parametrize("command", ["no-such-command-here", "./no/such/file", "./README-that-is-no-program"])
def test_a_missing_command_is_named_with_the_places_searched(command: str, tmp_path: Path) -> None:
    (tmp_path / "README-that-is-no-program").write_text("text")

    async def test() -> None:
        backend = StepflowStdioBackend(context("lost", str(tmp_path)), StdioServerConfig(command=command))
        with pytest.raises(Invalid) as caught:
            await backend.start()
        assert caught.value.reason == "COMMAND_NOT_FOUND"
        location = str(tmp_path) if "/" in command else os.environ["PATH"]
        for text in ("'lost'", repr(command), location):
            assert text in caught.value.message

    uvloop.run(test())


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

    uvloop.run(test())


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

    uvloop.run(test())


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

    uvloop.run(test())


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

    uvloop.run(test())


def test_a_callback_after_the_end_of_its_execute_is_answered_with_an_error(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("asks_late")) as backend:
            heard: list[Any] = []
            while not heard:  # the test's timeout bounds this
                heard = await execute(backend, "/it")
            assert heard[0]["id"] == "late"
            assert heard[0]["error"]["code"] == -32000

    uvloop.run(test())


def test_a_server_that_stops_naming_its_executes_gets_one_at_a_time(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("anonymous")) as backend:
            pair = [Call("/it", number) for number in range(2)]
            for call in pair:
                backend.execute(call)
            codes = [(await call.outcome())["error"]["code"] for call in pair]
            assert -32000 in codes  # ambiguous while two were in flight
            again = [Call("/it", number) for number in range(3)]
            for call in again:
                backend.execute(call)
            for number, call in enumerate(again):
                blob_id = (await call.outcome())["result"]["blob_id"]
                assert call.blobs.content[blob_id][0] == str(number).encode()

    uvloop.run(test())
