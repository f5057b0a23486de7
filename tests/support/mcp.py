"""Helpers for tests of the MCP bridge: the host's side of a call, and servers of every era."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from component_host.backend import BackendContext
from component_host.mcp_bridge.backend import McpBackend
from component_host.mcp_bridge.link import McpServerConfig
from stepflow.mesh.v1 import host_pb2
from support import ROOT, server_venv, wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence

    from stepflow.errors import Failure
    from stepflow.log_lines import LogLine

SERVERS = ROOT / "tests" / "data" / "mcp_servers"
BOUND_S = 60


class Call:
    """The host's side of one call."""

    blobs: Any = None
    queued = False

    def __init__(self, component: str, arguments: Any, key: str = "run/0/step", attempt: int = 1) -> None:
        self.request = host_pb2.Call(component=component, key=key, attempt=attempt)
        self.input = json.dumps(arguments).encode()
        self.backend_state: Any = None
        self.reports: list[tuple[float, float, str]] = []
        self.logged: list[LogLine] = []
        self.outcome: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.settlements = 0

    @property
    def settled(self) -> bool:
        return self.outcome.done()

    def succeed(self, output: bytes) -> None:
        self._settle(json.loads(output))

    def fail(self, failure: Failure) -> None:
        self._settle(failure)

    def _settle(self, outcome: Any) -> None:
        self.settlements += 1
        if not self.outcome.done():
            self.outcome.set_result(outcome)

    def progress(self, done: float = 0.0, total: float = 0.0, message: str = "") -> None:
        self.reports.append((done, total, message))

    def log(self, lines: Sequence[LogLine], dropped: int = 0) -> None:
        self.logged.extend(lines)

    def note_queued(self) -> None:
        self.queued = True

    def note_begun(self) -> None:
        self.queued = False

    async def start_run(self, request: host_pb2.StartRun) -> host_pb2.RunReport:
        raise AssertionError("MCP servers start no runs")

    async def get_run(self, run_id: str, *, wait: bool) -> host_pb2.RunReport:
        raise AssertionError("MCP servers start no runs")

    async def get_flow(self, flow_id: str) -> bytes:
        raise AssertionError("MCP servers read no flows")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a test's coroutine with a timeout; a task left over fails the test."""

    async def bounded() -> None:
        async with asyncio.timeout(BOUND_S):
            await main
        # The loop closes half-read generators of libraries in short-lived tasks; a task that stays is the bridge's.
        own = asyncio.current_task()
        await wait_until_async(lambda: asyncio.all_tasks() == {own}, "no task is left")

    asyncio.run(bounded())


def context(folder: Path | str = ROOT, environ: dict[str, str] | None = None, changes: list[int] | None = None) -> Any:
    noted: list[int] = [] if changes is None else changes
    return BackendContext("plug", str(folder), os.environ if environ is None else environ, lambda: noted.append(1))


@contextlib.asynccontextmanager
async def started(config: McpServerConfig, context_: BackendContext | None = None) -> AsyncIterator[McpBackend]:
    backend = McpBackend(context_ or context(), config)
    await backend.start()
    try:
        yield backend
    finally:
        await backend.close()


async def outcome_of(backend: McpBackend, component: str, arguments: Any, **names: Any) -> Any:
    call = Call(component, arguments, **names)
    backend.execute(call)  # type: ignore[arg-type]  # `settled` is computed here
    return await call.outcome


def tools_server(era: str = "2026", **options: Any) -> McpServerConfig:
    """Return the configuration of `tests/data/mcp_servers/tools.py` in one of its eras."""
    python = server_venv(["mcp<2"], "mcp-1") / "python" if era == "sdk1" else sys.executable
    mode: Literal["auto", "legacy"] = "legacy" if era == "2025" else "auto"
    return McpServerConfig(str(python), [str(SERVERS / "tools.py")], mode=mode, **options)


def lines_server(behaviour: str, **options: Any) -> McpServerConfig:
    return McpServerConfig("python", [str(SERVERS / "lines_2024.py"), behaviour], **options)


def script(code: str, **options: Any) -> McpServerConfig:
    return McpServerConfig("python", ["-c", code], **options)


def time_server() -> McpServerConfig:
    return McpServerConfig(str(server_venv(["mcp-server-time"], "mcp-server-time") / "mcp-server-time"))


def servers_of(host_pid: int, command: str) -> list[int]:
    """Return the pids of the children of `host_pid` with `command` in their command line."""
    found: list[int] = []
    for task in Path(f"/proc/{host_pid}/task").iterdir():
        children: list[str] = []
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # the thread or process has just ended
            children = (task / "children").read_text().split()
        for child in children:
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if command.encode() in Path(f"/proc/{child}/cmdline").read_bytes():
                    found.append(int(child))
    return found


@contextlib.contextmanager
def tools_over_http(port: int, era: str = "2026", *, json_answers: bool = False) -> Iterator[subprocess.Popen[bytes]]:
    """Run `tools.py` on a port as a remote server, one that the host does not start."""
    command = [tools_server(era).command, str(SERVERS / "tools.py"), str(port), *(["json"] if json_answers else [])]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_until(lambda: is_open(port), f"port {port} is open", timeout_s=30)
            yield process
        finally:
            process.kill()


def is_open(port: int) -> bool:
    """Return True if a loopback port accepts connections."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def at(port: int, era: str = "2026", **options: Any) -> McpServerConfig:
    """Return the configuration for a server that already runs."""
    return McpServerConfig(url=f"http://127.0.0.1:{port}/mcp", mode="legacy" if era == "2025" else "auto", **options)
