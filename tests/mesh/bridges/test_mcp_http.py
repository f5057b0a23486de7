"""The MCP backend over streamable HTTP: real servers of every SDK generation, and a scripted one for each fault.

Eras as in `test_mcp_stdio`. To the backend, servers started by the tests are remote ones.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
from support import free_port, is_alive, run_cli, wait_until_async
from support.http_script import Exchange, http_server
from support.mcp import (
    SERVERS,
    Call,
    at,
    context,
    outcome_of,
    run,
    servers_of,
    started,
    tools_over_http,
    tools_server,
)

from component_host.backends import make_backend
from component_host.mcp_bridge.backend import McpBackend
from component_host.mcp_bridge.link import McpServerConfig
from stepflow.config import config_from_tree
from stepflow.errors import Code, Failure, Invalid, Unavailable

if TYPE_CHECKING:
    from pathlib import Path

every_era = pytest.mark.parametrize("era", ["2026", "2025", "sdk1"])
both_protocols = pytest.mark.parametrize("era", ["2026", "sdk1"])

SECRET = "s3cr3t-t0ken-that-nobody-may-see"  # noqa: S105  # no secret


# Real servers


@every_era
def test_tools_prompts_and_resources_are_listed_and_called(era: str) -> None:
    async def main(port: int) -> None:
        async with started(at(port, era)) as backend:
            components = {each.component: each for each in backend.listing().components}
            assert await outcome_of(backend, "era", {}) == {"2026": "2026-07-28"}.get(era, "2025-11-25")
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == {"result": 5}
            assert components["prompts/greet"].path == "/prompts/greet"
            assert components["prompts/greet"].input_schema["required"] == ["name"]
            greeting = await outcome_of(backend, "prompts/greet", {"name": "Ada"})
            assert greeting["messages"] == [{"role": "user", "content": {"type": "text", "text": "Greet Ada."}}]
            assert components["resources/read"].input_schema["required"] == ["uri"]
            note = await outcome_of(backend, "resources/read", {"uri": "note://milk"})
            assert note["contents"][0]["text"] == "This is milk."

    with tools_over_http(port := free_port(), era):
        run(main(port))


@both_protocols
def test_refusals_are_told_apart_by_their_kind(era: str) -> None:
    async def main(port: int) -> None:
        async with started(at(port, era)) as backend:
            codes = {
                (component, json.dumps(arguments)): (await outcome_of(backend, component, arguments)).code
                for component, arguments in [
                    ("broken", {"reason": "out of paint"}),
                    ("add", {"a": "many", "b": 3}),
                    ("subtract", {}),
                    ("prompts/greet", {}),
                    ("prompts/greet", {"name": 7}),
                    ("resources/read", {}),
                    ("resources/read", {"uri": "other://thing"}),
                ]
            }
        assert [code.name for code in codes.values()] == [
            "COMPONENT_FAILED",
            "INVALID_INPUT",
            "COMPONENT_NOT_FOUND",
            "INVALID_INPUT",
            "INVALID_INPUT",
            "INVALID_INPUT",
            "COMPONENT_FAILED" if era == "sdk1" else "INVALID_INPUT",
        ]

    with tools_over_http(port := free_port(), era):
        run(main(port))


@both_protocols
def test_progress_cancellation_and_many_calls_at_once(era: str, tmp_path: Path) -> None:
    async def main(port: int) -> None:
        begun, cancelled = tmp_path / "begun", tmp_path / "cancelled"
        async with started(at(port, era)) as backend:
            call = Call("count", {"to": 3})
            backend.execute(call)
            assert await call.outcome == {"result": 3}
            await wait_until_async(lambda: len(call.reports) == 3, "all reports are in")
            assert call.reports == [(1.0, 3.0, "at 1"), (2.0, 3.0, "at 2"), (3.0, 3.0, "at 3")]

            call = Call("hang", {"started": str(begun), "cancelled": str(cancelled)})
            backend.execute(call)
            await wait_until_async(begun.exists, "the tool runs")
            backend.cancel(call)
            assert (await call.outcome).code == Code.CANCELLED
            await wait_until_async(cancelled.exists, "the tool is cancelled")

            names = [f"call{number}" for number in range(120)]  # more than an HTTP client's pool has by default
            arguments = [{"folder": str(tmp_path), "name": name, "others": names[-1:]} for name in names]
            outputs = await asyncio.gather(*(outcome_of(backend, "meet", each) for each in arguments))
            assert outputs == [{"result": name} for name in names]

    with tools_over_http(port := free_port(), era):
        run(main(port))


@both_protocols
def test_a_new_tool_is_listed_when_the_server_tells_of_it(era: str) -> None:
    async def main(port: int) -> None:
        async with started(at(port, era)) as backend:
            # The notification stream opens concurrently with the first calls; earlier notifications are not resent.
            for attempt in range(100):
                await outcome_of(backend, "learn", {"name": f"skill{attempt}"})
                if any(each.component.startswith("skill") for each in backend.listing().components):
                    break
            await wait_until_async(
                lambda: f"skill{attempt}" in [each.component for each in backend.listing().components],
                "the last tool is listed",
            )
            assert await outcome_of(backend, f"skill{attempt}", {}) == f"skill{attempt}"

    with tools_over_http(port := free_port(), era):
        run(main(port))


@pytest.mark.parametrize("json_answers", [False, True], ids=["streams", "json"])
def test_a_result_of_several_megabytes_arrives_whole(json_answers: bool) -> None:
    async def main(port: int) -> None:
        async with started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "big", {"size": 5_000_000}) == "x" * 5_000_000
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == {"result": 5}

    with tools_over_http(port := free_port(), json_answers=json_answers):
        run(main(port))


@both_protocols
def test_a_restarted_server_is_used_again_without_a_failed_call(era: str) -> None:
    async def main(port: int) -> None:
        with tools_over_http(port, era) as server:
            async with started(at(port, era, start_timeout_s=60)) as backend:
                first = await outcome_of(backend, "process_id", {})
                server.kill()
                server.wait()
                between = Call("process_id", {})
                backend.execute(between)  # no listener: the call is not executed, and waits
                with tools_over_http(port, era):
                    second = await between.outcome
                    third = await outcome_of(backend, "process_id", {})
        assert first["result"] != second["result"] == third["result"]

    run(main(free_port()))


def test_a_call_in_flight_is_lost_with_its_server_and_not_repeated(tmp_path: Path) -> None:
    async def main(port: int) -> None:
        with tools_over_http(port) as server:
            async with started(at(port, start_timeout_s=60)) as backend:
                call = Call("hang", {"started": str(tmp_path / "begun"), "cancelled": str(tmp_path / "never")})
                backend.execute(call)
                await wait_until_async((tmp_path / "begun").exists, "the tool runs")
                server.kill()
                failure = await call.outcome
                server.wait()  # until then its port still accepts connections
                (tmp_path / "begun").unlink()
                with tools_over_http(port):
                    assert await outcome_of(backend, "add", {"a": 1, "b": 1}) == {"result": 2}
        assert failure.code == Code.UNREACHABLE
        assert not (tmp_path / "begun").exists()

    run(main(free_port()))


def test_calls_fail_when_the_server_stays_away() -> None:
    async def main(port: int) -> None:
        with tools_over_http(port) as server:
            async with started(at(port, start_timeout_s=1)) as backend:
                server.kill()
                server.wait()
                failure = await outcome_of(backend, "add", {"a": 1, "b": 1})
        assert failure.code == Code.UNREACHABLE
        assert "cannot be reached" in failure.message

    run(main(free_port()))


# A whole flow


def test_a_flow_calls_tools_prompts_and_resources_and_progress_keeps_a_step_alive(tmp_path: Path) -> None:
    server = {
        "type": "mcp",
        "transport": "streamable-http",
        "command": "python",
        "args": [str(SERVERS / "tools.py"), "{port}"],
        "url": "http://127.0.0.1:{port}/mcp",
    }
    routes = {"/tools": [{"plugin": "tools"}]}
    config = {"plugins": {"tools": server}, "routes": routes, "retry": {"transportMaxRetries": 0}}
    walk = {"steps": 30, "pause_s": 0.1}  # 3 s in all
    patience = {"component": "/tools/walk", "idleTimeout": "2s"}
    steps = [
        {"id": "loud", "input": {**walk, "loudly": True}, **patience},
        {
            "id": "silent",
            "input": {**walk, "loudly": False},
            "onError": {"action": "useDefault", "defaultValue": "given up"},
            **patience,
        },
        {"id": "prompt", "component": "/tools/prompts/greet", "input": {"name": "Ada"}},
        {"id": "note", "component": "/tools/resources/read", "input": {"uri": "note://milk"}},
    ]
    output = {name: {"$step": name} for name in ("loud", "silent", "prompt", "note")}
    (tmp_path / "stepflow-config.yml").write_text(json.dumps(config))
    (tmp_path / "flow.yaml").write_text(json.dumps({"steps": steps, "output": output}))
    done = run_cli(["run", "--flow", "flow.yaml", "--input-json", "{}"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert result["loud"] == {"result": 30}
    assert result["silent"] == "given up"
    assert result["prompt"]["messages"][0]["content"]["text"] == "Greet Ada."
    assert result["note"]["contents"][0]["text"] == "This is milk."


def test_a_server_over_stdio_and_one_over_http_start_side_by_side(tmp_path: Path) -> None:
    """The bridge imports the SDK in two threads then, from two ends."""
    common = {"type": "mcp", "command": "python"}
    pipes = {**common, "args": [str(SERVERS / "tools.py")]}
    http = {
        **common,
        "transport": "streamable-http",
        "args": [str(SERVERS / "tools.py"), "{port}"],
        "url": "http://127.0.0.1:{port}/mcp",
    }
    names = ("pipes", "http")
    config = {
        "plugins": dict(zip(names, (pipes, http), strict=True)),
        "routes": {f"/{name}": [{"plugin": name}] for name in names},
    }
    steps = [{"id": name, "component": f"/{name}/prompts/greet", "input": {"name": name}} for name in names]
    flow = {"steps": steps, "output": {name: {"$step": name} for name in names}}
    (tmp_path / "stepflow-config.yml").write_text(json.dumps(config))
    (tmp_path / "flow.yaml").write_text(json.dumps(flow))
    done = run_cli(["run", "--flow", "flow.yaml", "--input-json", "{}"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)["result"]
    assert {name: result[name]["messages"][0]["content"]["text"] for name in names} == {
        name: f"Greet {name}." for name in names
    }


# Servers that are started here


def own_server(**options: Any) -> McpServerConfig:
    return McpServerConfig(
        "python", [str(SERVERS / "tools.py"), "{port}"], url="http://127.0.0.1:{port}/mcp", **options
    )


def test_a_server_started_here_gets_a_port_of_its_own_and_ends_with_the_backend() -> None:
    async def main() -> None:
        async with started(own_server(env={"PLACE": "at {port}"})) as one, started(own_server()) as other:
            pids = [(await outcome_of(each, "process_id", {}))["result"] for each in (one, other)]
            seen = await outcome_of(one, "environment", {})
            assert seen["PLACE"].removeprefix("at ").isdigit()
            assert all(is_alive(pid) for pid in pids)
        assert len(set(pids)) == 2
        assert not any(is_alive(pid) for pid in pids)

    run(main())


def test_a_crash_of_a_server_started_here_is_told_with_its_last_words_and_mended(tmp_path: Path) -> None:
    async def main() -> None:
        async with started(own_server()) as backend:
            crashed = await outcome_of(backend, "crash", {"last_words": "so long"})
            again = await outcome_of(backend, "add", {"a": 1, "b": 1})
            (pid,) = servers_of(os.getpid(), "tools.py")
            os.kill(pid, signal.SIGKILL)
            # The loss is detected without a call.
            await wait_until_async(lambda: servers_of(os.getpid(), "tools.py") not in ([], [pid]), "another one runs")
            idle_loss = await outcome_of(backend, "add", {"a": 1, "b": 1})
        assert crashed.code == Code.UNREACHABLE
        assert "exited with code 7 during the call" in crashed.message
        assert "so long" in json.loads(crashed.data)["stderr"]
        assert again == {"result": 2} == idle_loss

    run(main())


def test_a_server_that_exits_instead_of_listening_is_refused_with_its_stderr() -> None:
    error = refused(
        McpServerConfig("python", ["-c", "import sys; sys.exit('no licence')"], url="http://127.0.0.1:{port}/mcp"),
        Unavailable,
    )
    assert error.reason == "SERVER_EXITED"
    assert "no licence" in error.message


def test_a_server_that_never_listens_is_refused_in_time() -> None:
    waits = ["-c", "import time; time.sleep(600)"]
    config = McpServerConfig("python", waits, url="http://127.0.0.1:{port}/mcp", start_timeout_s=1)
    error = refused(config, Unavailable)
    assert error.reason == "SERVER_START_TIMEOUT"
    assert servers_of(os.getpid(), "time.sleep(600)") == []


# Faults


class Scripted:
    """A server of the handshake era with sessions; `call` answers the calls of tools."""

    def __init__(self) -> None:
        self.sessions: set[str] = set()
        self.begun = 0
        self.executed: list[str] = []
        self.authorizations: set[str] = set()

    async def __call__(self, exchange: Exchange) -> None:
        self.authorizations.add(exchange.headers.get("authorization", ""))
        message = exchange.message or {}
        method = message.get("method")
        if exchange.method == "GET":
            await exchange.send(405)
        elif exchange.method == "DELETE":
            await exchange.send(204)
        elif method == "initialize":
            self.begun += 1
            self.sessions.add(session := f"session-{self.begun}")
            info = {"name": "scripted", "version": "1"}
            result = {"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": info}
            await exchange.result(result, Mcp_Session_Id=session)
        elif exchange.headers.get("mcp-session-id") not in self.sessions:
            await self.refuse(exchange)
        elif "id" not in message:
            await exchange.send(202)
        elif method == "tools/list":
            await exchange.result({"tools": [{"name": "do", "inputSchema": {"type": "object"}}]})
        else:
            self.executed.append(exchange.headers["mcp-session-id"])
            await self.call(exchange)

    async def refuse(self, exchange: Exchange) -> None:
        """Answer a request of an unknown session."""
        await exchange.error(404, -32000, "Bad Request: No valid session ID provided")

    async def call(self, exchange: Exchange) -> None:
        await self.answer(exchange, "done")

    async def answer(self, exchange: Exchange, text: str) -> None:
        await exchange.result({"content": [{"type": "text", "text": text}]})


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (404, -32000, "Bad Request: No valid session ID provided"),
        (400, -32000, "Bad Request: No valid session ID provided"),
        (410, -32000, "gone"),
        (200, -32001, "Session not found"),
        (200, -32600, "Unknown session id 'session-1' for 'tools/call'; client should reinitialize"),
        (200, -32002, "session_expired"),
        (500, -32603, "Invalid session"),
    ],
)
@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
def test_a_call_of_a_forgotten_session_is_made_once_in_a_new_one(
    status: int, code: int, message: str, stream: bool
) -> None:
    class Forgetting(Scripted):
        async def refuse(self, exchange: Exchange) -> None:
            if stream and status == 200:
                await exchange.begin_stream()
                error = {"code": code, "message": message}
                await exchange.event({"jsonrpc": "2.0", "id": exchange.message.get("id"), "error": error})
                exchange.writer.close()
            else:
                await exchange.error(status, code, message)

    async def main() -> None:
        server = Forgetting()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "do", {}) == "done"
            server.sessions.clear()
            assert await asyncio.gather(*(outcome_of(backend, "do", {}) for _ in range(5))) == ["done"] * 5
        assert server.executed == ["session-1", *["session-2"] * 5]

    run(main())


def test_a_tools_own_error_about_a_session_is_its_answer() -> None:
    class Browser(Scripted):
        async def call(self, exchange: Exchange) -> None:
            await exchange.error(200, -32001, "browser session not found")

    async def main() -> None:
        server = Browser()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
        assert failure.message == "browser session not found"
        assert failure.code == Code.TIMEOUT  # -32001, as ever
        assert (server.begun, len(server.executed)) == (1, 1)

    run(main())


def test_a_call_that_ended_with_its_session_is_left_to_the_engine() -> None:
    class Ending(Scripted):
        async def call(self, exchange: Exchange) -> None:
            if exchange.message["params"]["arguments"].get("last"):
                self.sessions.clear()
                await exchange.error(200, -32001, "Session terminated")
            else:
                await super().call(exchange)

    async def main() -> None:
        server = Ending()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {"last": True})
            assert await outcome_of(backend, "do", {}) == "done"
        assert failure.code == Code.UNREACHABLE
        assert "session" in failure.message
        assert server.executed == ["session-1", "session-2"], "it may have been executed, so it is not repeated here"

    run(main())


def test_a_redirect_within_the_origin_is_followed_and_hides_no_lost_session() -> None:
    class Moved(Scripted):
        async def __call__(self, exchange: Exchange) -> None:
            if exchange.path == "/mcp" and exchange.method == "POST":
                await exchange.send(307, Location="/mcp/")
            else:
                await super().__call__(exchange)

    async def main() -> None:
        server = Moved()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "do", {}) == "done"
            server.sessions.clear()
            assert await outcome_of(backend, "do", {}) == "done"
        assert server.executed == ["session-1", "session-2"]

    run(main())


def test_a_call_in_flight_is_answered_although_its_connection_was_replaced() -> None:
    class Slow(Scripted):
        release = asyncio.Event()

        async def call(self, exchange: Exchange) -> None:
            if exchange.message["params"]["arguments"].get("slow"):
                await self.release.wait()
            await self.answer(exchange, exchange.headers["mcp-session-id"])

    async def main() -> None:
        server = Slow()
        server.release = asyncio.Event()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            slow = Call("do", {"slow": True})
            backend.execute(slow)
            await wait_until_async(lambda: server.executed, "the slow call runs")
            server.sessions.clear()
            assert await outcome_of(backend, "do", {}) == "session-2"
            server.release.set()
            assert await slow.outcome == "session-1"

    run(main())


def test_a_server_that_forgets_every_session_fails_the_call_in_the_end() -> None:
    class Forgetful(Scripted):
        async def call(self, exchange: Exchange) -> None:
            await exchange.error(404, -32000, "no such session")

    async def main() -> None:
        server = Forgetful()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
        assert failure.code == Code.UNREACHABLE
        assert "again and again" in failure.message
        assert len(server.executed) == 3

    run(main())


async def _hang_up(exchange: Exchange) -> None:
    exchange.hang_up()


async def _break_off(exchange: Exchange) -> None:
    await exchange.begin_stream()
    exchange.hang_up()


async def _end_early(exchange: Exchange) -> None:
    await exchange.begin_stream()
    exchange.writer.close()


async def _half_json(exchange: Exchange) -> None:
    exchange.writer.write(b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{"json')
    await exchange.writer.drain()
    exchange.hang_up()


async def _unavailable(exchange: Exchange) -> None:
    await exchange.send(503, b"<html>busy</html>", "text/html")


async def _server_error(exchange: Exchange) -> None:
    await exchange.send(500)


async def _expired(exchange: Exchange) -> None:
    await exchange.send(401)


async def _own_error(exchange: Exchange) -> None:
    await exchange.begin_stream()
    await exchange.event(
        {"jsonrpc": "2.0", "id": exchange.message["id"], "error": {"code": -32000, "message": "its own"}}
    )
    exchange.writer.close()


async def _no_json(exchange: Exchange) -> None:
    await exchange.send(200, b'{"secret payload')


async def _no_json_in_a_stream(exchange: Exchange) -> None:
    await exchange.begin_stream()
    exchange.writer.write(b"data: {secret payload\n\n")
    exchange.writer.close()


async def _not_a_number(exchange: Exchange) -> None:
    content = b'{"content": [], "structuredContent": {"n": NaN}}'
    await exchange.send(200, b'{"jsonrpc": "2.0", "id": %d, "result": %s}' % (exchange.message["id"], content))


async def _too_large(exchange: Exchange) -> None:
    await exchange.begin_stream()
    with_room = 66 * 1024 * 1024
    exchange.writer.write(b"data: " + b"x" * with_room + b"\n\n")
    exchange.writer.close()


def _body(text: str, *, stream: bool = False) -> Any:
    """Return a handler that answers with a text in which `{id}` is the id of the request."""

    async def answer(exchange: Exchange) -> None:
        body = text.replace("{id}", str(exchange.message["id"])).encode()
        if stream:
            await exchange.begin_stream()
            exchange.writer.write(b"data: " + body + b"\n\n")
            await exchange.wait_for_hang_up()
        else:
            await exchange.send(200, body)

    return answer


_FINE = '{"jsonrpc": "2.0", "id": {id}, "result": {"content": [{"type": "text", "text": "fine"}]}}'
_UNREADABLE = {
    "neither": '{"jsonrpc": "2.0", "id": {id}}',
    "another message": '{"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": 1}}',
    "an error without an id": '{"jsonrpc": "2.0", "id": null, "error": {"code": -32050, "message": "no"}}',
    "error is a text": '{"jsonrpc": "2.0", "id": {id}, "error": "oh"}',
    "code is a text": '{"jsonrpc": "2.0", "id": {id}, "error": {"code": "-32050", "message": null}}',
    "null": "null",
    "an empty list": "[]",
}
_IN_ANOTHER_FORM = {
    "another id": _FINE.replace("{id}", "987654"),
    "no id": _FINE.replace('"id": {id}, ', ""),
    "id is a text": _FINE.replace("{id}", '"{id}"'),
    "with a method": _FINE.replace('"id"', '"method": "tools/call", "id"'),
    "no version": _FINE.replace('"jsonrpc": "2.0", ', ""),
    "an empty error": _FINE[:-1] + ', "error": null}',
    "a batch": '[{"jsonrpc": "2.0", "method": "notifications/x"}, ' + _FINE + "]",
    "over several lines": _FINE.replace('"result": {', '"result":\n{\n'),
}


async def _page(exchange: Exchange) -> None:
    await exchange.send(200, b"<html>Welcome!</html>", "text/html")


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (_hang_up, Code.UNREACHABLE),
        (_break_off, Code.UNREACHABLE),
        (_end_early, Code.UNREACHABLE),
        (_half_json, Code.UNREACHABLE),
        (_unavailable, Code.UNREACHABLE),
        (_server_error, Code.COMPONENT_FAILED),
        (_expired, Code.COMPONENT_FAILED),
        (_own_error, Code.COMPONENT_FAILED),
        (_no_json, Code.COMPONENT_FAILED),
        (_no_json_in_a_stream, Code.COMPONENT_FAILED),
        (_not_a_number, Code.COMPONENT_FAILED),
        (_too_large, Code.COMPONENT_FAILED),
        (_page, Code.COMPONENT_FAILED),
    ],
)
def test_a_fault_ends_its_call_and_nothing_else(fault: Any, code: Code) -> None:
    class Faulty(Scripted):
        async def call(self, exchange: Exchange) -> None:
            if exchange.message["params"]["arguments"].get("good"):
                await self.answer(exchange, "done")
            else:
                await fault(exchange)

    async def main() -> None:
        server = Faulty()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
            assert await outcome_of(backend, "do", {"good": True}) == "done"
        assert isinstance(failure, Failure)
        assert failure.code == code
        assert "secret payload" not in failure.message + failure.data.decode()
        assert server.begun == 1, "the session goes on"
        assert len(server.executed) == 2, "what may have been executed is not repeated here"

    run(main())


@pytest.mark.parametrize("status", [429, 503, 500])
def test_the_pause_that_a_server_asks_for_reaches_the_retry(status: int) -> None:
    class Busy(Scripted):
        async def call(self, exchange: Exchange) -> None:
            await exchange.send(status, b"busy", "text/plain", Retry_After="7")

    async def main() -> None:
        async with http_server(Busy()) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
        assert isinstance(failure, Failure)
        assert json.loads(failure.data)["retry_after_ms"] == 7_000

    run(main())


@pytest.mark.parametrize("form", _UNREADABLE)
def test_a_body_without_a_readable_answer_fails_its_call_instead_of_hanging_it(form: str) -> None:
    class Malformed(Scripted):
        call = staticmethod(_body(_UNREADABLE[form]))

    async def main() -> None:
        async with http_server(Malformed()) as port, started(at(port, "2025")) as backend:
            failure = await outcome_of(backend, "do", {})
        assert isinstance(failure, Failure)
        assert failure.code == Code.COMPONENT_FAILED

    run(main())


@pytest.mark.parametrize("stream", [False, True], ids=["body", "stream"])
@pytest.mark.parametrize("form", _IN_ANOTHER_FORM)
def test_an_answer_in_another_form_is_read_as_far_as_it_is_told(form: str, stream: bool) -> None:
    class Malformed(Scripted):
        call = staticmethod(_body(_IN_ANOTHER_FORM[form].replace("\n", "\ndata: " if stream else "\n"), stream=stream))

    async def main() -> None:
        async with http_server(Malformed()) as port, started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "do", {}) == "fine"

    run(main())


def test_a_broken_stream_is_resumed_where_the_server_can() -> None:
    class Resumable(Scripted):
        async def __call__(self, exchange: Exchange) -> None:
            if exchange.method == "GET" and exchange.headers.get("last-event-id") == "7":
                await exchange.begin_stream()
                text = {"type": "text", "text": "resumed"}
                await exchange.event({"jsonrpc": "2.0", "id": 1, "result": {"content": [text]}}, id="8")
                exchange.writer.close()
            else:
                await super().__call__(exchange)

        async def call(self, exchange: Exchange) -> None:
            await exchange.begin_stream()
            progress = {"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": ""}}
            await exchange.event(progress, id="7", retry="10")
            exchange.hang_up()

    async def main() -> None:
        server = Resumable()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            assert await outcome_of(backend, "do", {}) == "resumed"
        assert len(server.executed) == 1

    run(main())


@pytest.mark.parametrize("line_end", ["\n", "\r\n"], ids=["newline", "CRLF"])
def test_a_flood_of_progress_is_thinned_before_it_is_decoded(line_end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("component_host.progress_gate.PERIOD_S", 1.0)

    class Flooding(Scripted):
        last_report_seen = asyncio.Event()

        async def call(self, exchange: Exchange) -> None:
            token = exchange.message["params"]["_meta"]["progressToken"]
            await exchange.begin_stream()
            for number in range(1, 10_001):
                params = {"progressToken": token, "progress": number, "total": 10_000}
                lines = [
                    "event: message",
                    f"id: {number}",
                    "data: " + json.dumps({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}),
                ]
                exchange.writer.write("".join(line + line_end for line in [*lines, ""]).encode())
                await exchange.writer.drain()
            await self.last_report_seen.wait()
            result = {"content": [{"type": "text", "text": "done"}]}
            await exchange.event({"jsonrpc": "2.0", "id": exchange.message["id"], "result": result})

    async def main() -> None:
        server = Flooding()
        server.last_report_seen = asyncio.Event()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            call = Call("do", {})
            backend.execute(call)
            await wait_until_async(lambda: call.reports[-1:] == [(10_000.0, 10_000.0, "")], "the last report is in")
            server.last_report_seen.set()
            assert await call.outcome == "done"
        assert len(call.reports) < 5_000

    run(main())


def test_a_server_that_does_not_take_a_cancellation_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("component_host.mcp_bridge.http_transport.NOTIFICATION_TIMEOUT_S", 0.2)

    class Deaf(Scripted):
        async def __call__(self, exchange: Exchange) -> None:
            if (exchange.message or {}).get("method") == "notifications/cancelled":
                await asyncio.Event().wait()
            await super().__call__(exchange)

        async def call(self, exchange: Exchange) -> None:
            if exchange.message["params"]["arguments"].get("slow"):
                await asyncio.Event().wait()
            await self.answer(exchange, "done")

    async def main() -> None:
        server = Deaf()
        async with http_server(server) as port, started(at(port, "2025")) as backend:
            slow = Call("do", {"slow": True})
            backend.execute(slow)
            await wait_until_async(lambda: server.executed, "the slow call runs")
            backend.cancel(slow)
            assert (await slow.outcome).code == Code.CANCELLED
            assert await outcome_of(backend, "do", {}) == "done"

    run(main())


# Headers, addresses, what is not told


def config_of(plugin: dict[str, Any]) -> Any:
    tree = {"plugins": {"p": {"type": "mcp", **plugin}}, "routes": {"/p": [{"plugin": "p"}]}}
    return config_from_tree(tree, source="test", base_dir=SERVERS)


def test_a_bearer_token_comes_from_the_environment() -> None:
    async def main() -> None:
        server = Scripted()
        async with http_server(server) as port:
            headers = {"Authorization": "Bearer ${TOKEN}"}
            config = config_of({"url": f"http://127.0.0.1:{port}/mcp", "headers": headers})
            backend: Any = make_backend("p", config, {"TOKEN": SECRET + "\n"})  # as a file's text ends
            await backend.start()
            assert await outcome_of(backend, "do", {}) == "done"
            await backend.close()
        assert server.authorizations == {f"Bearer {SECRET}"}
        assert SECRET not in repr(backend)

    run(main())


def test_a_refused_token_is_reported_without_it(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(exchange: Exchange) -> None:
        await exchange.send(401)

    async def main() -> None:
        async with http_server(refuse) as port:
            url = f"http://me:{SECRET}@127.0.0.1:{port}/mcp?key={SECRET}"
            backend = McpBackend(context(), McpServerConfig(url=url, headers={"X-Key": SECRET}))
            with caplog.at_level("DEBUG"), pytest.raises(Unavailable) as info:
                await backend.start()
        assert info.value.reason == "SERVER_REFUSED"
        assert "HTTP 401" in info.value.message
        assert f"http://127.0.0.1:{port}/mcp" in info.value.message
        assert SECRET not in info.value.message + repr(backend) + caplog.text

    run(main())


def refused(config: McpServerConfig, error: type[Exception]) -> Any:
    """Start a backend that must not start; return its error."""
    caught: list[Any] = []

    async def main() -> None:
        with pytest.raises(error) as info:
            await McpBackend(context(), config).start()
        caught.append(info.value)

    run(main())
    return caught[0]


def test_a_header_that_http_cannot_carry_is_named_without_its_value() -> None:
    error = refused(McpServerConfig(url="http://127.0.0.1:1", headers={"X-Key": f"{SECRET}\nHost: x"}), Invalid)
    assert error.reason == "HEADER_INVALID"
    assert "'X-Key'" in error.message
    assert SECRET not in error.message


@pytest.mark.parametrize("url", ["127.0.0.1/mcp", "ftp://host/mcp", "http://", "http://[bad"])
def test_an_address_that_is_none_is_refused(url: str) -> None:
    assert refused(McpServerConfig(url=url), Invalid).reason == "URL_INVALID"


def test_a_server_that_is_not_there_is_reported_as_unreachable() -> None:
    error = refused(at(free_port()), Unavailable)
    assert error.reason == "SERVER_UNREACHABLE"
    assert "cannot be reached" in error.message


def test_a_server_of_another_era_than_the_configured_one_is_refused() -> None:
    async def main() -> None:
        async with http_server(Scripted()) as port:
            backend = McpBackend(context(), McpServerConfig(url=f"http://127.0.0.1:{port}/mcp", mode="modern"))
            with pytest.raises(Unavailable) as info:
                await backend.start()
        assert info.value.reason == "SERVER_REFUSED"
        assert "2025-06-18" in info.value.message

    run(main())


def test_the_era_is_the_newest_where_the_configuration_asks_for_it() -> None:
    async def main() -> None:
        config = tools_server()
        async with started(McpServerConfig(config.command, config.args, mode="modern")) as backend:
            assert await outcome_of(backend, "era", {}) == "2026-07-28"
            assert "prompts/greet" in [each.component for each in backend.listing().components]

    run(main())
