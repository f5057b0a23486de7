"""The start of MCP servers on stdio: servers that do not come up, and their environment."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from support import ROOT, is_alive, wait_until_async
from support.mcp import context, lines_server, outcome_of, run, script, started, tools_server

from component_host.mcp_bridge.backend import McpBackend
from component_host.mcp_bridge.link import McpServerConfig
from stepflow.errors import Invalid, Unavailable

if TYPE_CHECKING:
    from pathlib import Path


def refused(config: McpServerConfig, error: type[Exception]) -> Any:
    """Start a backend that must not start; return its error."""
    caught: list[Any] = []

    async def main() -> None:
        backend = McpBackend(context(), config)
        with pytest.raises(error) as info:
            await backend.start()
        caught.append(info.value)
        await backend.close()

    run(main())
    return caught[0]


def test_a_missing_command_is_named_with_where_it_was_looked_for() -> None:
    error = refused(McpServerConfig("no-such-mcp-server"), Invalid)
    assert error.reason == "COMMAND_NOT_FOUND"
    assert "no-such-mcp-server" in error.message
    assert "PATH" in error.message


def test_a_server_that_exits_at_once_is_refused_with_its_stderr() -> None:
    error = refused(script("import sys; sys.exit('no database')"), Unavailable)
    assert error.reason == "SERVER_EXITED"
    assert "exited with code 1" in error.message
    assert "no database" in error.message


def test_a_server_that_prints_garbage_is_refused_with_a_sample_of_it() -> None:
    error = refused(
        script("print('Hello!\\n{\"x\": 1}\\n[]'); import sys; sys.stdin.read()", start_timeout_s=1), Unavailable
    )
    assert error.reason == "SERVER_START_TIMEOUT"
    assert "3 lines" in error.message
    assert "Hello!" in error.message


def test_a_server_that_never_answers_is_refused_in_time_and_ended(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    error = refused(script(code, start_timeout_s=1), Unavailable)
    assert error.reason == "SERVER_START_TIMEOUT"
    assert "1 s" in error.message
    assert not is_alive(int(pid_file.read_text()))


def test_a_server_pinned_to_an_era_that_it_does_not_speak_is_refused() -> None:
    error = refused(lines_server("plain", mode="modern"), Unavailable)
    assert error.reason == "SERVER_REFUSED"


def test_closing_while_the_server_starts_ends_the_start_and_the_server(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    async def main() -> None:
        backend = McpBackend(context(), script(code))
        starting = asyncio.create_task(backend.start())
        await wait_until_async(lambda: pid_file.exists() and pid_file.read_text(), "the server runs")
        await backend.close()
        with pytest.raises(Unavailable) as info:
            await starting
        assert info.value.reason == "PLUGIN_CLOSED"
        assert not is_alive(int(pid_file.read_text()))

    run(main())


def test_a_cancelled_start_leaves_nothing_behind(tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    code = f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    async def main() -> None:
        starting = asyncio.create_task(McpBackend(context(), script(code)).start())
        await wait_until_async(lambda: pid_file.exists() and pid_file.read_text(), "the server runs")
        starting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await starting
        assert not is_alive(int(pid_file.read_text()))

    run(main())


# Environment


def test_a_server_sees_four_variables_and_what_its_configuration_names() -> None:
    environ = {"PATH": os.environ["PATH"], "HOME": "/home/me", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}
    hidden = {"EXTRA": "x", "USER": "me", "SHELL": "/bin/sh"}

    async def main() -> None:
        config = tools_server(env={"REGION": "north"})
        async with started(config, context(environ={**environ, **hidden})) as backend:
            seen = await outcome_of(backend, "environment", {})
        added_by_python = {"LC_CTYPE", "PYTHONHASHSEED", "__CF_USER_TEXT_ENCODING"}
        assert {name: value for name, value in seen.items() if name not in added_by_python} == {
            **environ,
            "REGION": "north",
        }

    run(main())


def test_a_server_that_inherits_sees_everything() -> None:
    environ = {**os.environ, "EXTRA": "x"}

    async def main() -> None:
        async with started(tools_server(inherit_env=True), context(environ=environ)) as backend:
            seen = await outcome_of(backend, "environment", {})
        assert seen["EXTRA"] == "x"

    run(main())


def test_the_sdk_is_imported_only_when_a_server_starts() -> None:
    check = "import sys, component_host.mcp_bridge.backend; sys.exit('mcp' in sys.modules or 'pydantic' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=False).returncode == 0
