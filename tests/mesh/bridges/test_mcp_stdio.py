"""The MCP backend against real servers: two from PyPI and one of every SDK generation.

Eras: `2026` is the modern protocol (SDK 2, negotiated), `2025` the handshake spoken by the same server, `sdk1` a server
on the last SDK of version 1, in its own venv.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from support import ROOT, is_alive, run_cli, server_venv, wait_until, wait_until_async
from support.mcp import (
    BOUND_S,
    SERVERS,
    Call,
    context,
    lines_server,
    outcome_of,
    run,
    script,
    servers_of,
    started,
    time_server,
    tools_server,
)

from component_host.mcp_bridge import results as results_module
from component_host.mcp_bridge.link import McpServerConfig
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from pathlib import Path

every_era = pytest.mark.parametrize("era", ["2026", "2025", "sdk1"])
both_protocols = pytest.mark.parametrize("era", ["2026", "sdk1"])


# Servers from PyPI


def test_the_time_server_lists_its_tools_with_their_schemas() -> None:
    async def main() -> None:
        async with started(time_server()) as backend:
            listing = backend.listing()
        by_id = {component.component: component for component in listing.components}
        assert set(by_id) == {"get_current_time", "convert_time"}
        assert listing.complete
        convert = by_id["convert_time"]
        assert convert.path == "/convert_time"
        assert convert.description
        assert set(convert.input_schema["required"]) == {"source_timezone", "time", "target_timezone"}
        assert "time_difference" in convert.output_schema["properties"]

    run(main())


def test_the_time_server_converts_a_time_into_a_structured_result() -> None:
    async def main() -> None:
        arguments = {"source_timezone": "Asia/Tokyo", "time": "16:30", "target_timezone": "Asia/Kolkata"}
        async with started(time_server()) as backend:
            output = await outcome_of(backend, "convert_time", arguments)
        assert output["time_difference"] == "-3.5h"
        assert output["target"]["datetime"].endswith("T13:00:00+05:30")

    run(main())


def test_the_time_servers_refusals_become_failures_by_their_kind() -> None:
    async def main() -> None:
        async with started(time_server()) as backend:
            unknown_zone = await outcome_of(backend, "get_current_time", {"timezone": "Nowhere/Land"})
            no_argument = await outcome_of(backend, "get_current_time", {})
            wrong_type = await outcome_of(backend, "get_current_time", {"timezone": 7})
            unknown_tool = await outcome_of(backend, "tell_fortune", {})
        assert unknown_zone.code == Code.COMPONENT_FAILED
        assert "Nowhere/Land" in unknown_zone.message
        assert no_argument.code == Code.INVALID_INPUT
        assert wrong_type.code == Code.INVALID_INPUT
        assert unknown_tool.code == Code.COMPONENT_NOT_FOUND

    run(main())


def test_a_killed_time_server_is_launched_again() -> None:
    async def main() -> None:
        async with started(time_server()) as backend:
            (pid,) = servers_of(os.getpid(), "mcp-server-time")
            os.kill(pid, signal.SIGKILL)
            call = {"timezone": "Etc/UTC"}
            # A call that the dying server still gets is lost with it, and repeated, as the engine would.
            while isinstance(output := await outcome_of(backend, "get_current_time", call), Failure):
                assert output.code == Code.UNREACHABLE
            assert output["timezone"] == "Etc/UTC"
            assert not is_alive(pid)

    run(main())


def test_the_git_server_commits_a_file_and_gives_its_text(tmp_path: Path) -> None:
    git = server_venv(["mcp-server-git"], "mcp-server-git") / "mcp-server-git"
    repository = tmp_path / "repository"
    subprocess.run(["/usr/bin/env", "git", "init", "--quiet", str(repository)], check=True)
    (repository / "poem.txt").write_text("Roses are red.\n")
    identity = {"GIT_AUTHOR_NAME": "A", "GIT_AUTHOR_EMAIL": "a@example.org"}
    identity |= {"GIT_COMMITTER_NAME": "A", "GIT_COMMITTER_EMAIL": "a@example.org"}

    async def main() -> None:
        where = {"repo_path": str(repository)}
        async with started(McpServerConfig(str(git), ["--repository", str(repository)], identity)) as backend:
            await outcome_of(backend, "git_add", {**where, "files": ["poem.txt"]})
            committed = await outcome_of(backend, "git_commit", {**where, "message": "A poem"})
            log = await outcome_of(backend, "git_log", where)
            nothing = await outcome_of(backend, "git_show", {**where, "revision": "no-such-revision"})
        assert "committed" in json.dumps(committed)
        assert "A poem" in json.dumps(log)
        assert isinstance(nothing, Failure)
        assert nothing.code == Code.COMPONENT_FAILED

    run(main())


def test_the_example_with_the_time_server_passes_its_cases() -> None:
    done = run_cli(["test", "examples/mcp_time"], env={"MCP_SERVER_TIME": time_server().command})
    assert done.returncode == 0, done.stderr
    assert "2/2 passed" in done.stdout + done.stderr


# Results, in every era


@every_era
def test_the_era_is_negotiated(era: str) -> None:
    async def main() -> None:
        async with started(tools_server(era)) as backend:
            version = await outcome_of(backend, "era", {})
        assert version == {"2026": "2026-07-28", "2025": "2025-11-25", "sdk1": "2025-11-25"}[era]

    run(main())


@every_era
def test_structured_content_is_the_output_else_one_text_else_the_list_of_blocks(era: str) -> None:
    async def main() -> None:
        async with started(tools_server(era)) as backend:
            sum_ = await outcome_of(backend, "add", {"a": 2, "b": 3})
            tree = await outcome_of(backend, "describe", {"depth": 1})
            one = await outcome_of(backend, "say", {"text": '{"looks": "like JSON"}'})
            two = await outcome_of(backend, "say_twice", {"text": "hm"})
        assert sum_ == {"result": 5}
        assert tree == {"big": 2**60 + 1, "float": 1.0, "text": "ä\n\u2028", "none": None, "depth": 1}
        assert isinstance(tree["float"], float)
        assert one == '{"looks": "like JSON"}'
        assert two == [{"type": "text", "text": "hm"}, {"type": "text", "text": "hm"}]

    run(main())


def test_the_content_form_always_gives_the_list_of_blocks() -> None:
    async def main() -> None:
        async with started(tools_server(result="content")) as backend:
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == [{"type": "text", "text": "5"}]
            add = next(each for each in backend.listing().components if each.component == "add")
            assert add.output_schema["type"] == "array"

    run(main())


@every_era
@pytest.mark.parametrize("seen_by", ["the bridge", "the writer"])
def test_an_input_that_is_nested_too_deeply_fails_alone(
    era: str, seen_by: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The SDK's encoder fails at 255 levels; when that ended the writer, every later call hung."""
    if seen_by == "the writer":
        monkeypatch.setattr(results_module, "INPUT_DEPTH_MAX", 1_000)
    deep: Any = 1
    for _ in range(254):
        deep = [deep]

    async def main() -> None:
        async with started(tools_server(era)) as backend:
            failed = await outcome_of(backend, "add", {"a": deep, "b": 3})
            assert failed.code == Code.INVALID_INPUT
            assert await outcome_of(backend, "add", {"a": 2, "b": 3}) == {"result": 5}

    run(main())


@every_era
def test_a_tools_own_error_bad_arguments_and_unknown_tools_are_told_apart(era: str) -> None:
    async def main() -> None:
        async with started(tools_server(era)) as backend:
            own = await outcome_of(backend, "broken", {"reason": "out of paint"})
            bad = await outcome_of(backend, "add", {"a": "many", "b": 3})
            unknown = await outcome_of(backend, "subtract", {"a": 2, "b": 3})
            no_object = await outcome_of(backend, "add", [2, 3])
        assert own.code == Code.COMPONENT_FAILED
        assert "out of paint" in own.message
        assert bad.code == Code.INVALID_INPUT
        assert unknown.code == Code.COMPONENT_NOT_FOUND
        assert no_object.code == Code.INVALID_INPUT
        assert "object" in no_object.message

    run(main())


@both_protocols
def test_progress_is_reported_in_order(era: str) -> None:
    async def main() -> None:
        async with started(tools_server(era)) as backend:
            call = Call("count", {"to": 3})
            backend.execute(call)
            assert await call.outcome == {"result": 3}
            await wait_until_async(lambda: len(call.reports) == 3, "all reports are in")
        assert call.reports == [(1.0, 3.0, "at 1"), (2.0, 3.0, "at 2"), (3.0, 3.0, "at 3")]

    run(main())


@both_protocols
def test_a_call_tells_the_server_its_idempotency_key_and_attempt(era: str) -> None:
    async def main() -> None:
        async with started(tools_server(era)) as backend:
            meta = json.loads(await outcome_of(backend, "meta_of_call", {}, key="run/0/pay", attempt=2))
        assert meta["stepflow.mesh/idempotencyKey"] == "run/0/pay"
        assert meta["stepflow.mesh/attempt"] == 2

    run(main())


@both_protocols
def test_calls_run_at_the_same_time(era: str, tmp_path: Path) -> None:
    async def main() -> None:
        names = [f"call{number}" for number in range(8)]
        async with started(tools_server(era)) as backend:
            arguments = [{"folder": str(tmp_path), "name": name, "others": names} for name in names]
            outputs = await asyncio.gather(*(outcome_of(backend, "meet", each) for each in arguments))
        assert outputs == [{"result": name} for name in names]

    run(main())


@every_era
def test_a_new_tool_is_listed_when_the_server_tells_of_it(era: str) -> None:
    async def main() -> None:
        changes: list[int] = []
        async with started(tools_server(era), context(changes=changes)) as backend:
            changes.clear()
            await outcome_of(backend, "learn", {"name": "swim"})
            await wait_until_async(lambda: changes, "the host is told of the change")
            learned = [each for each in backend.listing().components if each.component == "swim"]
            assert learned[0].path == "/swim"
            assert await outcome_of(backend, "swim", {}) == "swim"

    run(main())


def test_a_result_of_several_megabytes_arrives_whole() -> None:
    async def main() -> None:
        async with started(tools_server()) as backend:
            assert await outcome_of(backend, "big", {"size": 5_000_000}) == "x" * 5_000_000

    run(main())


# Cancellation, crashes, the end


@both_protocols
def test_a_cancelled_call_is_cancelled_in_the_server_too(era: str, tmp_path: Path) -> None:
    async def main() -> None:
        begun, cancelled = tmp_path / "begun", tmp_path / "cancelled"
        async with started(tools_server(era)) as backend:
            call = Call("hang", {"started": str(begun), "cancelled": str(cancelled)})
            backend.execute(call)
            await wait_until_async(begun.exists, "the tool runs")
            backend.cancel(call)
            assert (await call.outcome).code == Code.CANCELLED
            await wait_until_async(cancelled.exists, "the tool is cancelled")
            assert await outcome_of(backend, "add", {"a": 1, "b": 1}) == {"result": 2}
        assert call.settlements == 1

    run(main())


def test_a_call_cancelled_in_its_first_moment_is_settled_too() -> None:
    async def main() -> None:
        async with started(lines_server("plain", mode="legacy")) as backend:
            call = Call("add", {"a": 1, "b": 1})
            backend.execute(call)
            backend.cancel(call)
            assert (await call.outcome).code == Code.CANCELLED
            backend.cancel(call)

    run(main())


@both_protocols
def test_a_crash_fails_the_calls_in_flight_with_the_servers_last_words(era: str, tmp_path: Path) -> None:
    async def main() -> None:
        begun, never = tmp_path / "begun", tmp_path / "never"
        async with started(tools_server(era)) as backend:
            bystander = Call("hang", {"started": str(begun), "cancelled": str(never)})
            backend.execute(bystander)
            await wait_until_async(begun.exists, "the other call runs")
            crashed = await outcome_of(backend, "crash", {"last_words": "so long"})
            beside = await bystander.outcome
            again = await outcome_of(backend, "add", {"a": 1, "b": 1})
        for failure in (crashed, beside):
            assert failure.code == Code.UNREACHABLE
            assert "exited with code 7" in failure.message
            assert "so long" in json.loads(failure.data)["stderr"]
        assert again == {"result": 2}

    run(main())


@pytest.mark.parametrize("cancelled", [True, False])
def test_the_last_words_of_a_server_that_works_for_two_runs_are_shown_with_neither(
    tmp_path: Path, *, cancelled: bool
) -> None:
    async def main() -> None:
        begun = tmp_path / "begun"
        async with started(tools_server()) as backend:
            other = Call("hang", {"started": str(begun), "cancelled": str(tmp_path / "never")})
            other.request.root_run_id = "another run"
            backend.execute(other)
            await wait_until_async(begun.exists, "the other call runs")
            if cancelled:  # it may go on in the server
                backend.cancel(other)
                await other.outcome

            call = Call("crash", {"last_words": "so long"})
            call.request.root_run_id = "a run"
            backend.execute(call)
            failure = await call.outcome
            assert "so long" not in failure.message + failure.data.decode()
            assert "withheld" in json.loads(failure.data)["stderr"]
            assert "so long" not in backend.health.last_error

    run(main())


def test_a_repeated_call_succeeds_after_the_server_crashed_once(tmp_path: Path) -> None:
    async def main() -> None:
        once = {"last_words": "oops", "once": str(tmp_path / "crashed")}
        async with started(tools_server()) as backend:
            first = await outcome_of(backend, "crash", once, attempt=1)
            second = await outcome_of(backend, "crash", once, attempt=2)
        assert first.code == Code.UNREACHABLE
        assert second == {"result": "survived"}

    run(main())


def test_calls_fail_when_the_server_does_not_come_up_again(tmp_path: Path) -> None:
    server = tmp_path / "server.py"
    server.write_text((SERVERS / "tools.py").read_text())

    async def main() -> None:
        async with started(McpServerConfig("python", [str(server)])) as backend:
            server.write_text("import sys; sys.exit('the licence has run out')")
            await outcome_of(backend, "crash", {"last_words": ""})
            failure = await outcome_of(backend, "add", {"a": 1, "b": 1})
        assert failure.code == Code.UNREACHABLE
        assert "the licence has run out" in failure.message

    run(main())


def test_closing_fails_the_calls_in_flight_and_ends_the_servers_children_too(tmp_path: Path) -> None:
    async def main() -> None:
        begun, never = tmp_path / "begun", tmp_path / "never"
        async with started(tools_server()) as backend:
            server = (await outcome_of(backend, "process_id", {}))["result"]
            sleeper = (await outcome_of(backend, "spawn_sleeper", {}))["result"]
            assert is_alive(server)
            assert is_alive(sleeper)
            call = Call("hang", {"started": str(begun), "cancelled": str(never)})
            backend.execute(call)
            await wait_until_async(begun.exists, "the call runs")
        assert (await call.outcome).code == Code.UNREACHABLE
        assert not is_alive(server)
        await wait_until_async(lambda: not is_alive(sleeper), "the server's child is gone")
        late = Call("add", {"a": 1, "b": 1})
        backend.execute(late)
        assert (await late.outcome).code == Code.UNREACHABLE
        await backend.close()

    run(main())


def test_a_server_that_ignores_the_end_of_its_input_is_ended_by_force(tmp_path: Path) -> None:
    stubborn = (
        "import signal, sys, os, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        f"sys.argv = ['', 'plain']; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        f"exec(compile(open({str(SERVERS / 'lines_2024.py')!r}).read(), 'lines', 'exec'))\n"
        "time.sleep(600)\n"
    )

    async def main() -> None:
        async with started(script(stubborn)):
            pid = int((tmp_path / "pid").read_text())
        assert not is_alive(pid)

    run(main())


def test_no_server_outlives_a_killed_host() -> None:
    host = (
        "import asyncio, os\n"
        "from component_host.backend import BackendContext\n"
        "from component_host.mcp_bridge.backend import McpBackend\n"
        "from component_host.mcp_bridge.link import McpServerConfig\n"
        "async def main():\n"
        f"    backend = McpBackend(BackendContext('plug', '.', os.environ), {time_server()!r})\n"
        "    await backend.start()\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.Event().wait()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen([sys.executable, "-c", host], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            (pid,) = servers_of(process.pid, "mcp-server-time")
        finally:
            process.kill()
    wait_until(lambda: not is_alive(pid), "the server is gone")


def test_restarts_and_the_end_are_the_same_on_uvloop() -> None:
    async def main() -> None:
        async with started(tools_server()) as backend:
            assert (await outcome_of(backend, "crash", {"last_words": "so long"})).code == Code.UNREACHABLE
            pid = (await outcome_of(backend, "process_id", {}))["result"]
        assert not is_alive(pid)

    uvloop.run(asyncio.wait_for(main(), BOUND_S))
