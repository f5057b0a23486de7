"""The MCP backend over streamable HTTP: real servers of every SDK generation.

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
from support.mcp import SERVERS, Call, at, context, outcome_of, run, servers_of, started, tools_over_http, tools_server
from support.scripted_mcp import ScriptedMcpServer

from component_host.backends import make_backend
from component_host.mcp_bridge.backend import McpBackend
from component_host.mcp_bridge.link import McpServerConfig
from stepflow.config import config_from_tree
from stepflow.errors import Code, Invalid, Unavailable

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


# Headers, addresses, what is not told


def config_of(plugin: dict[str, Any]) -> Any:
    tree = {"plugins": {"p": {"type": "mcp", **plugin}}, "routes": {"/p": [{"plugin": "p"}]}}
    return config_from_tree(tree, source="test", base_dir=SERVERS)


def test_a_bearer_token_comes_from_the_environment() -> None:
    async def main() -> None:
        server = ScriptedMcpServer()
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
        async with http_server(ScriptedMcpServer()) as port:
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
