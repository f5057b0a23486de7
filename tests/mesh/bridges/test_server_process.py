"""Server processes: their environment, the lookup of their command, and the clean-up of every process."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import uvloop
from support import ROOT, is_alive, wait_until, wait_until_async
from support.host_side import execute, started

from component_host.supervision.process import ServerProcess
from component_host.supervision.spec import ProcessSpec, resolve_command
from stepflow.errors import Code, Unavailable

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from component_host.stepflow_bridge.stdio.backend import StepflowStdioBackend

    Kit = Callable[..., AbstractAsyncContextManager[StepflowStdioBackend]]
    Rude = Callable[..., StepflowStdioBackend]
    Own = Callable[..., StepflowStdioBackend]

pytestmark = pytest.mark.timeout(400)  # the first test of a version installs its server


def test_a_server_sees_only_the_variables_meant_for_it(kit: Kit) -> None:
    async def test() -> None:
        async with kit("0.7.0", env={"NAMED": "yes"}) as backend:
            seen = await execute(backend, "/environment", {})
        seen.pop("LC_CTYPE", None)  # CPython adds it
        allowed = {name for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        assert set(seen) == allowed | {"NAMED"}

    uvloop.run(test())


def test_a_server_sees_everything_when_it_inherits(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOMETHING_ELSE", "here")

    async def test() -> None:
        async with kit("0.7.0", inherit_env=True, env={"SOMETHING_ELSE": "there"}) as backend:
            seen = await execute(backend, "/environment", {})
        assert seen["SOMETHING_ELSE"] == "there"
        assert set(os.environ) <= set(seen)

    uvloop.run(test())


@pytest.mark.parametrize("name", ["python", "python3"])
def test_a_bare_python_is_the_interpreter_that_runs_the_host(name: str) -> None:
    assert resolve_command(_spec(name)) == str(Path(sys.executable).parent / name)


def test_a_relative_command_starts_from_the_working_directory(tmp_path: Path) -> None:
    _program(tmp_path / "bin" / "server")
    assert resolve_command(_spec("bin/server", tmp_path)) == str(tmp_path / "bin" / "server")
    assert resolve_command(_spec("./bin/server", tmp_path)) == str(tmp_path / "bin" / "server")


def test_a_bare_command_is_looked_for_on_the_servers_path(tmp_path: Path) -> None:
    _program(tmp_path / "ours" / "server")
    _program(tmp_path / "theirs" / "server")
    found = resolve_command(_spec("server", PATH=str(tmp_path / "ours")))
    assert found == str(tmp_path / "ours" / "server")
    found = resolve_command(_spec("server", env={"PATH": str(tmp_path / "theirs")}, PATH=str(tmp_path / "ours")))
    assert found == str(tmp_path / "theirs" / "server")


def test_closing_ends_the_whole_process_group(kit: Kit, tmp_path: Path) -> None:
    async def test() -> None:
        note = tmp_path / "pid"
        async with kit("0.7.0", "--grandchild", str(note)) as backend:
            grandchild = int(note.read_text())
            pids = [*backend.process_ids(), grandchild]
            assert all(map(is_alive, pids))
        assert not any(map(is_alive, pids))

    uvloop.run(test())


def test_a_server_that_ignores_sigterm_is_killed_after_the_grace(rude: Rude) -> None:
    async def test() -> None:
        async with started(rude("deaf_to_signals", stop_grace_s=0.2)) as backend:
            pid = backend.process_ids()[0]
        assert not is_alive(pid)

    uvloop.run(test())


HOST = """
import asyncio, os, sys
from component_host.backend import BackendContext
from component_host.supervision.process import ServerProcess
from component_host.supervision.spec import ProcessSpec, resolve_command
from component_host.stepflow_bridge.stdio.backend import StdioServerConfig, StepflowStdioBackend

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


def test_a_server_is_not_started_if_no_thread_is_left_to_wait_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def test() -> None:
        process = ServerProcess(_spec("python"), on_output=lambda _: None, on_exit=lambda: None)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            with pytest.raises(Unavailable) as caught:
                process.start()
        assert caught.value.reason == "SERVER_START_FAILED"
        assert process.pid == 0

    asyncio.run(test())


def test_a_defect_in_what_reads_an_output_does_not_hide_the_end_of_the_server() -> None:
    async def test() -> None:
        def on_output(_chunk: bytes) -> None:
            raise RuntimeError("a defect")

        ended = asyncio.Event()
        spec = replace(_spec("python"), args=("-c", "print('hello')"))
        process = ServerProcess(spec, on_output=on_output, on_exit=ended.set)
        process.start()
        async with asyncio.timeout(10):
            await ended.wait()
            await process.ended()
        assert process.returncode == 0
        await process.stop(1)

    asyncio.run(test())


def test_a_password_in_a_url_of_the_command_stands_in_no_error() -> None:
    spec = replace(_spec("server"), args=("--database", "postgres://me:hunter2@host/db"))

    async def test() -> None:
        said = ServerProcess(spec, on_output=lambda _: None, on_exit=lambda: None).command_line()
        assert "hunter2" not in said
        assert said.startswith("server --database postgres://")

    asyncio.run(test())


ECHO = """
import sys
for line in sys.stdin:
    print(line, end="", file=sys.stderr, flush=True)
    print(line, end="", flush=True)
"""


def test_lines_of_stderr_are_shown_with_the_run_that_was_served_and_with_no_other() -> None:
    async def test() -> None:
        replies: asyncio.Queue[bytes] = asyncio.Queue()
        spec = replace(_spec("python3"), args=("-c", ECHO))
        process = ServerProcess(spec, on_output=replies.put_nowait, on_exit=lambda: None)
        process.start()

        async def say(text: str) -> None:
            process.write(f"{text}\n".encode())
            await replies.get()

        await say("start")
        await wait_until_async(lambda: process.stderr_tail() == "start", "stderr is read")

        process.serve_run("a", idle=True)
        await say("word of a")
        await wait_until_async(lambda: process.stderr_of_run() == "start\nword of a", "stderr is read")
        assert process.stderr_tail() == "", "everybody sees the words of a run"

        process.write(b"last of a\n")
        await replies.get()
        process.serve_run("b", idle=True)  # the line is in the pipe, unread
        assert process.stderr_of_run() == ""

        await say("word of b")
        process.serve_run("c", idle=False)
        await wait_until_async(lambda: "withheld" in process.stderr_of_run(), "stderr is read")
        assert "word" not in process.stderr_of_run()

        process.serve_run("b", idle=True)
        await say("alone again")
        await wait_until_async(lambda: process.stderr_of_run() == "alone again", "stderr is read")
        assert process.stderr_tail() == ""
        await process.stop(0.0)

    asyncio.run(test())


def _spec(
    command: str, working_directory: Path | None = None, env: dict[str, str] | None = None, **environ: str
) -> ProcessSpec:
    return ProcessSpec(
        plugin="p",
        command=command,
        args=(),
        env=env or {},
        inherit_env=False,
        working_directory=str(working_directory or "/"),
        environ=environ,
    )


def _program(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
