"""The HTTP bridge: two generations of real servers, and servers that misbehave.

The host's side of a call is a double (`support.host_side`); processes, ports and servers are real. The whole matrix of
generations is `make matrix`.
"""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from support import free_port, is_alive, run_cli, text_of, wait_until_async
from support.host_side import FLOW_ID, Call, MemoryBlobs, context, execute, report, started
from support.stepflow_servers import SCRIPTS, command_of, kind_called, server

from component_host.stepflow_bridge.http.backend import HttpServerConfig, StepflowHttpBackend
from stepflow.codec import decode
from stepflow.errors import Code, Invalid, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from stepflow.mesh.v1 import host_pb2

pytestmark = pytest.mark.timeout(400)  # the first test of a version installs its server

each_version = pytest.mark.parametrize("kind", ["http-0.7.0", "http-0.11.2"])


def rude(*args: str, **config: Any) -> StepflowHttpBackend:
    """Give a backend, not started, for a way in which `rude_http.py` behaves."""
    config = {"command": "python3", "args": [str(SCRIPTS / "rude_http.py"), *args], **config}
    return StepflowHttpBackend(context("rude"), HttpServerConfig(**config))


def in_flight(backend: Any) -> int:
    """Return how many executes the backend's servers have, abandoned ones included."""
    count: int = sum(one.in_flight for one in backend.servers)
    return count


# --- two generations, in short -----------------------------------------------------------------------------------


@each_version
def test_a_server_executes_fails_stores_and_runs_flows(kind: str) -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        async with server(kind) as backend:
            assert await execute(backend, "/add", {"a": 2, "b": 3}) == {"sum": 5}
            value = {"text": 'é\u2028\n"\\', "big": 2**60, "float": 1.0, "tiny": 5e-324, "none": None, "list": [[], {}]}
            output = await execute(backend, "/echo", value)
            assert (output, type(output["float"])) == (value, float)
            failure = await execute(backend, "/fail", {"text": "oh"})
            assert (failure.code, failure.message) == (Code.COMPONENT_FAILED, "oh")
            output = await execute(backend, "/blob_roundtrip", {"value": [1, "é"]}, blobs=blobs)
            assert blobs.content[output["blob_id"]] == ('[1,"é"]'.encode(), "data")
            runs = {"runs": lambda request: report("r1", {"outcome": "success", "result": {"y": 42}})}
            assert await execute(backend, "/evaluate", {"flow": {"steps": []}, "input": 1}, **runs) == {"y": 42}
            large = "x" * (3 << 20)
            assert await execute(backend, "/echo", large) == large
            assert (await execute(backend, "/blob_roundtrip", {"value": large}, blobs=blobs))["value"] == large
            assert in_flight(backend) == 0

    uvloop.run(test())


@each_version
def test_a_crash_fails_the_calls_in_flight_as_unreachable_and_the_server_comes_back(kind: str, tmp_path: Path) -> None:
    async def test() -> None:
        async with server(kind) as backend:
            waiting = Call("/wait", {"entered": str(tmp_path / "in"), "release": str(tmp_path / "never")})
            backend.execute(waiting)
            await wait_until_async((tmp_path / "in").exists, "one runs")
            failures = [await execute(backend, "/crash", {"last_words": "out of coffee"}), await waiting.outcome()]
            for failure in failures:
                assert failure.code is Code.UNREACHABLE
                assert failure.message == "server 'kit' exited with code 3 while the call was in flight"
                assert "out of coffee" in json.loads(failure.data)["stderr"]
            assert (await execute(backend, "/blob_roundtrip", {"value": 1}))["value"] == 1

    uvloop.run(test())


@each_version
def test_a_batch_is_submitted_and_its_results_are_read(kind: str) -> None:
    results = [
        {"outcome": "success", "result": 1},
        {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "late"}},
    ]

    async def test() -> None:
        async with server(kind) as backend:
            call = Call("/batch", {"flow_id": FLOW_ID, "inputs": [1, 2]}, runs=lambda request: report("b1", *results))
            backend.execute(call)
            output = await call.outcome()
            (request,) = call.started
            assert (request.flow.blob, request.inputs.json, request.wait) == (FLOW_ID, b"[1,2]", False)
            entries = output["outputs"] if "outputs" in output else output["results"]
            assert [entry["status"] for entry in entries] == ["completed", "failed"]
            assert entries[1]["result"]["error"]["code"] == 1

    uvloop.run(test())


def test_call_backs_of_executes_side_by_side_reach_their_own_calls(tmp_path: Path) -> None:
    async def test() -> None:
        async with server("http-0.7.0") as backend:
            calls = [
                Call("/gated_blob", {"entered": str(tmp_path / f"{n}"), "release": str(tmp_path / "go"), "value": n})
                for n in range(5)
            ]
            for call in calls:
                backend.execute(call)
            await wait_until_async(lambda: len(list(tmp_path.iterdir())) == 5, "all five run at the same time")
            (tmp_path / "go").touch()
            for number, call in enumerate(calls):
                assert call.blobs.content[await call.outcome()][0] == str(number).encode()

    uvloop.run(test())


# --- what 0.9 to 0.11 have ---------------------------------------------------------------------------------------


def test_a_component_that_is_not_listed_is_reached_by_its_path() -> None:
    async def test() -> None:
        async with server("http-0.11.2") as backend:
            listing = backend.listing()
            assert not listing.complete
            assert not any("core" in info.path for info in listing.components)
            assert await execute(backend, "/core/a/b", {"n": 1}) == {"rest": "a/b", "input": {"n": 1}}

    uvloop.run(test())


def test_a_large_result_after_a_call_back_arrives_although_its_stream_has_no_end() -> None:
    async def test() -> None:
        async with server("http-0.11.2") as backend:
            failure = await execute(backend, "/big_after_asking", {"run_id": "gone", "size": 1})
            assert failure.code is Code.COMPONENT_FAILED
            assert "there is no run gone" in failure.message
            call = Call("/big_after_asking", {"run_id": "r", "size": 2 << 20})
            call.reports["r"] = report("r", {"outcome": "success", "result": 1})
            backend.execute(call)
            assert len((await call.outcome())["text"]) == 2 << 20

    uvloop.run(test())


def test_the_secret_of_the_blob_api_is_in_no_failure() -> None:
    async def test() -> None:
        async with server("http-0.11.2") as backend:
            api = backend._api  # type: ignore[attr-defined]  # those over HTTP have one
            missing = await execute(backend, "/blob_get", {"blob_id": "00" * 32})
            assert (missing.code, "404" in missing.message) == (Code.COMPONENT_FAILED, True)
            crash = await execute(backend, "/crash", {"last_words": f"cannot reach {api.url}"})
            assert b"[REDACTED]/api/v1/blobs" in crash.data
            for failure in (missing, crash):
                assert api.secret not in failure.message + failure.data.decode()
            assert "[REDACTED]/api/v1/blobs" in missing.message

    uvloop.run(test())


def test_sub_runs_have_the_same_keys_at_every_attempt() -> None:
    async def test() -> None:
        async with server("http-0.11.2") as backend:
            keys = []
            for attempt in (1, 2):
                call = Call(
                    "/evaluate_known",
                    {"flow_id": FLOW_ID, "input": 1},
                    runs=lambda request: report("r", {"outcome": "success", "result": 1}),
                    attempt=attempt,
                )
                backend.execute(call)
                await call.outcome()
                keys += [request.key for request in call.started]
            assert keys[0] == keys[1] != ""

    uvloop.run(test())


def test_large_members_come_as_blobs_and_are_put_back_in_their_place() -> None:
    class Counted(MemoryBlobs):
        gets = 0

        async def get(self, blob_id: str) -> tuple[bytes, str]:
            self.gets += 1
            return await super().get(blob_id)

    async def test() -> None:
        async with server("http-0.11.2", blobThreshold=1_000) as backend:
            value = {"small": 1, "text": "x" * 5_000, "list": list(range(1_000))}
            blobs = Counted()
            assert await execute(backend, "/echo", value, blobs=blobs) == value
            assert (len(blobs.content), blobs.gets) == (2, 2)

    uvloop.run(test())


# --- slots, and cancelling -----------------------------------------------------------------------------------------


def test_a_component_that_waits_for_a_flow_lends_its_place(tmp_path: Path) -> None:
    """Otherwise the flow could never call the server that waits for it."""

    class Parent(Call):
        async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
            result = await execute(self.backend, "/add", {"a": 20, "b": 22})
            return report("r", {"outcome": "success", "result": result})

    async def test() -> None:
        async with server("http-0.11.2", concurrency=1) as backend:
            parent = Parent("/evaluate_known", {"flow_id": FLOW_ID, "input": 1})
            parent.backend = backend
            backend.execute(parent)
            assert await parent.outcome() == {"sum": 42}
            first = Call("/wait", {"entered": str(tmp_path / "1"), "release": str(tmp_path / "go")})
            second = Call("/wait", {"entered": str(tmp_path / "2"), "release": str(tmp_path / "go")})
            backend.execute(first)
            backend.execute(second)
            assert second.backend_state is None, "the slot is taken again"
            (tmp_path / "go").touch()
            await second.outcome()

    uvloop.run(test())


def test_a_cancelled_call_that_waits_for_a_flow_leaves_nothing_behind(tmp_path: Path) -> None:
    class Stuck(Call):
        async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
            self.asked.set()
            await asyncio.Event().wait()
            raise AssertionError

    async def test() -> None:
        async with started(rude("asks_and_stays")) as backend:
            call = Stuck("/it", str(tmp_path / "answers"))
            call.asked = asyncio.Event()
            backend.execute(call)
            await asyncio.wait_for(call.asked.wait(), 10)
            backend.cancel(call)
            assert (await call.outcome()).code is Code.CANCELLED
            await wait_until_async(lambda: text_of(tmp_path / "answers"), "the component has its answer")
            (answer,) = json.loads(text_of(tmp_path / "answers"))
            assert "was cancelled" in answer["error"]["message"]
            await wait_until_async(lambda: in_flight(backend) == 0, "its slot is free")

    uvloop.run(test())


def test_cancelling_one_of_several_executes_leaves_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        async with server("http-0.11.2") as backend:
            one, other = (
                Call(path, {"entered": str(tmp_path / path[1:]), "release": str(tmp_path / "go"), "value": 2})
                for path in ("/wait_with_context", "/wait")
            )
            backend.execute(one)
            backend.execute(other)
            await wait_until_async(lambda: len(list(tmp_path.iterdir())) == 2, "both run")
            backend.cancel(one)
            assert (await one.outcome()).code is Code.CANCELLED
            assert in_flight(backend) == 2
            (tmp_path / "go").touch()
            assert await other.outcome() == 2
            await wait_until_async(lambda: in_flight(backend) == 0, "the abandoned one has ended too")

    uvloop.run(test())


def test_a_server_whose_event_loop_is_blocked_is_replaced_after_a_cancel(tmp_path: Path) -> None:
    async def test() -> None:
        async with server("http-0.11.2", requestTimeout="300ms") as backend:
            call = Call("/block", {"entered": str(tmp_path / "in")})
            backend.execute(call)
            pid = int(await wait_until_async(lambda: text_of(tmp_path / "in"), "it runs"))
            backend.cancel(call)
            await wait_until_async(lambda: not is_alive(pid), "the blocked process is ended")
            assert await execute(backend, "/add", {"a": 1, "b": 1}) == {"sum": 2}

    uvloop.run(test())


# --- ports, and starts that fail -----------------------------------------------------------------------------------


def test_another_port_is_tried_when_somebody_takes_the_one_that_was_chosen(tmp_path: Path) -> None:
    marker = tmp_path / "port"

    async def test() -> None:
        backend = rude("port_taken_once", "{port}", str(marker))
        start = asyncio.ensure_future(backend.start())
        port = int(await wait_until_async(lambda: text_of(marker), "the server has its port"))
        with socket.socket() as thief:
            thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            thief.bind(("127.0.0.1", port))
            thief.listen()
            marker.with_suffix(".taken").touch()
            await start
            try:
                assert await execute(backend, "/it", "hello") == "hello"
            finally:
                await backend.close()

    uvloop.run(test())


def test_a_port_that_is_held_for_a_server_is_given_to_nobody_else() -> None:
    from component_host.stepflow_bridge.http.process import ListeningProcess
    from component_host.supervision.spec import ProcessSpec

    spec = ProcessSpec(
        plugin="p", command="x", args=["{port}"], env={}, inherit_env=False, working_directory="/", environ={}
    )
    held = ListeningProcess(spec, lambda: None)
    with ExitStack() as stack:
        taken = set()
        for _ in range(500):
            other = stack.enter_context(socket.socket())
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", 0))
            taken.add(other.getsockname()[1])
        assert held.port not in taken
        theirs = stack.enter_context(socket.socket())
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        theirs.bind(("127.0.0.1", held.port))  # as the server itself will
        theirs.listen()
    held.release_port()


@pytest.mark.parametrize(
    ("args", "config", "reason", "text"),
    [
        (["exits"], {}, "SERVER_EXITED", "exited with code 7 before it was ready"),
        (["exits"], {}, "SERVER_EXITED", "no licence for today"),
        (["says_nothing"], {"start_timeout_s": 0.5}, "SERVER_NOT_RESPONDING", "needs `{port}` in its `args`"),
        (["says_nothing", "{port}"], {"start_timeout_s": 0.5}, "SERVER_NOT_RESPONDING", "did not answer at port"),
        (["html"], {}, "SERVER_REFUSED", "<html>"),
    ],
)
def test_a_start_that_fails_says_why_and_leaves_no_process(
    args: list[str], config: dict[str, Any], reason: str, text: str
) -> None:
    async def test() -> None:
        backend = rude(*args, **config)
        with pytest.raises(Unavailable) as caught:
            await backend.start()
        assert caught.value.reason == reason
        assert text in caught.value.message
        assert not is_alive(backend.process_ids()[0])

    uvloop.run(test())


@pytest.mark.parametrize("url", ["localhost:8080", "ftp://x", "http://", "unix:///x"])
def test_a_url_that_is_none_is_refused(url: str) -> None:
    async def test() -> None:
        with pytest.raises(Invalid) as caught:
            await rude(command="", url=url).start()
        assert caught.value.reason == "URL_INVALID"

    uvloop.run(test())


# --- answers of every kind -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("answer", "code", "text"),
    [
        ({"status": 400, "body": '{"error":{"code":-32600,"message":"Unknown method"}}'}, "WORKER_ERROR", "Unknown"),
        (
            {"status": 500, "body": '{"jsonrpc":"2.0","id":1,"error":{"code":-32603,"message":"x"}}'},
            "WORKER_ERROR",
            "x",
        ),
        ({"status": 200, "body": "{}"}, "WORKER_ERROR", "status 200"),
        ({"status": 200, "body": "<html>", "type": "text/html"}, "WORKER_ERROR", "<html>"),
        ({"status": 406, "body": '{"error":"no"}'}, "WORKER_ERROR", "status 406"),
        ({"status": 307, "body": ""}, "WORKER_ERROR", "status 307"),
        ({"status": 502, "body": "<html>bad gateway"}, "UNREACHABLE", "bad gateway"),
        ({"status": 200, "body": '{"jsonrpc":"2.0","id":"x","error":"out of paint"}'}, "WORKER_ERROR", "out of paint"),
        (
            {"status": 200, "body": '[{"jsonrpc":"2.0","id":1,"error":{"code":"-32003","message":["no"]}}]'},
            "COMPONENT_FAILED",
            "no",
        ),
        ({"status": 200, "body": '{"jsonrpc":"2.0","id":1,"result":{"output":NaN}}'}, "WORKER_ERROR", "not valid JSON"),
    ],
)
def test_an_answer_that_is_no_result_fails_the_call(answer: dict[str, Any], code: str, text: str) -> None:
    async def test() -> None:
        async with started(rude("statuses")) as backend:
            failure = await execute(backend, "/it", answer)
            assert failure.code is Code[code]
            assert text in failure.message

    uvloop.run(test())


def test_the_pause_that_a_server_asks_for_reaches_the_retry() -> None:
    async def test() -> None:
        async with started(rude("statuses")) as backend:
            busy = {"status": 503, "body": "busy", "headers": {"Retry-After": "7"}}
            failure = await execute(backend, "/it", busy)
            assert decode(failure.data)["retry_after_ms"] == 7_000

    uvloop.run(test())


def test_a_stream_that_ends_before_its_result_is_a_lost_call() -> None:
    async def test() -> None:
        async with started(rude("cut_off")) as backend:
            failure = await execute(backend, "/it", 1)
            assert failure.code is Code.UNREACHABLE
            assert "before the result" in failure.message

    uvloop.run(test())


def test_events_in_pieces_are_put_together() -> None:
    async def test() -> None:
        async with started(rude("chopped")) as backend:
            assert await execute(backend, "/it", {"a": ["é", 1]}) == {"a": ["é", 1]}

    uvloop.run(test())


def test_a_flood_of_progress_is_thinned_before_it_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("component_host.progress_gate.PERIOD_S", 60.0)

    async def test() -> None:
        async with started(rude("floods")) as backend:
            call = Call("/it", 10_000)
            backend.execute(call)
            assert await call.outcome() == "done"
            assert call.progressed[-1] == (10_000.0, 10_000.0, "")
            assert len(call.progressed) < 200

    uvloop.run(test())


@pytest.mark.parametrize("mode", ["endless", "large"])
def test_an_answer_without_measure_fails_the_call_and_nothing_else(mode: str) -> None:
    async def test() -> None:
        async with started(rude(mode)) as backend:
            failure = await execute(backend, "/it", 18_000_000)
            assert failure.code is Code.COMPONENT_FAILED
            assert "larger than the limit" in failure.message
            if mode == "large":
                assert await execute(backend, "/it", 3) == "xxx"

    uvloop.run(test())


def test_answers_to_call_backs_go_to_the_instance_that_asked_and_each_is_answered() -> None:
    asked = [["blobs/put", {"data": [1]}], ["blobs/get", {"blob_id": "?"}], ["what/is", {}], ["runs/get", {"runId": 1}]]

    async def test() -> None:
        async with started(rude("asks")) as backend:
            answers = await execute(backend, "/it", asked)
            assert [answer["id"] for answer in answers] == ["a0", "a1", "a2", "a3"]
            assert {answer["instance"] for answer in answers} == {"instance-7"}
            assert "blob_id" in answers[0]["result"]
            assert [answer["error"]["code"] for answer in answers[1:]] == [-32012, -32601, -32602]

    uvloop.run(test())


# --- servers that run elsewhere ------------------------------------------------------------------------------------


@contextmanager
def elsewhere(port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run a real server that is none of the host's."""
    code = (
        f"import runpy, asyncio, sys; sys.path.insert(0, {str(SCRIPTS)!r}); import kit_b;"
        f"asyncio.run(kit_b.server.run(host='127.0.0.1', port={port}))"
    )
    with subprocess.Popen(
        [command_of(kind_called("http-0.11.2")), "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.stdout is not None
            assert json.loads(process.stdout.readline()) == {"port": port}
            yield process
        finally:
            process.kill()


def test_a_server_elsewhere_may_be_replaced_and_be_away(tmp_path: Path) -> None:
    """A new instance knows no address for blobs: it is greeted before the next call, or soon after."""
    port = free_port()

    async def test() -> None:
        backend = rude(command="", args=[], url=f"http://127.0.0.1:{port}/", headers={"X-Key": "secret"})
        with elsewhere(port) as first:
            await backend.start()
            assert (await execute(backend, "/blob_roundtrip", {"value": 1}))["value"] == 1
            waiting = Call("/wait", {"entered": str(tmp_path / "in"), "release": str(tmp_path / "never")})
            backend.execute(waiting)
            await wait_until_async((tmp_path / "in").exists, "it runs")
            first.kill()
            failure = await waiting.outcome()
            assert failure.code is Code.UNREACHABLE
            assert "secret" not in failure.message
        await wait_until_async(lambda: backend.servers[0].room < 0, "it is known to be away")
        waiting = Call("/blob_roundtrip", {"value": 2})
        backend.execute(waiting)
        with elsewhere(port):
            assert (await waiting.outcome())["value"] == 2, "it waited until the server was back, and was greeted"
            await backend.close()

    uvloop.run(test())


def test_a_server_that_is_not_there_is_named_without_its_secrets() -> None:
    async def test() -> None:
        url = f"http://user:sesame@127.0.0.1:{free_port()}/?token=sesame"
        with pytest.raises(Unavailable) as caught:
            await rude(command="", url=url, start_timeout_s=0.2).start()
        assert caught.value.reason == "SERVER_NOT_RESPONDING"
        assert "127.0.0.1" in caught.value.message
        assert "Connect call failed" in caught.value.message
        assert "sesame" not in caught.value.message

    uvloop.run(test())


# --- the whole way ---------------------------------------------------------------------------------------------------


def test_stepflow_run_calls_a_server_over_http_which_runs_a_flow_in_the_same_run(tmp_path: Path) -> None:
    flow = {
        "steps": [
            {
                "id": "outer",
                "component": "/kit/evaluate",
                "input": {
                    "flow": {
                        "steps": [
                            {
                                "id": "inner",
                                "component": "/kit/blob_roundtrip",
                                "input": {"value": {"$input": "n"}},
                            }
                        ],
                        "output": {"$step": "inner", "path": "value"},
                    },
                    "input": {"n": 42},
                },
            }
        ],
        "output": {"$step": "outer"},
    }
    config = {
        "plugins": {
            "kit": {
                "type": "stepflow",
                "transport": "http",
                "command": command_of(kind_called("http-0.11.2")),
                "args": [str(SCRIPTS / "kit_b.py"), str(tmp_path)],
                "concurrency": 1,
            }
        },
        "routes": {"/kit": [{"plugin": "kit"}]},
    }
    # What stands in `flow` is data for the component, not expressions of the outer flow.
    flow["steps"][0]["input"]["flow"] = {"$literal": flow["steps"][0]["input"]["flow"]}  # type: ignore[index]  # a tree
    (tmp_path / "flow.json").write_text(json.dumps(flow))
    (tmp_path / "stepflow-config.yml").write_text(json.dumps(config))
    done = run_cli(["run", "--flow", "flow.json", "--input-json", "{}"], cwd=tmp_path, timeout_s=60)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"outcome": "success", "result": 42}
    assert not list(_processes_that_name(tmp_path)), "the server has ended with the run"


def _processes_that_name(folder: Path) -> Iterator[str]:
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command_line = (process / "cmdline").read_bytes().decode("utf-8", "replace")
            if str(folder) in command_line:
                yield command_line
