"""The published MCP servers that run on this machine, against every guarantee of the bridge.

A cell is either tested or listed in `FACTS` with the feature that the server lacks. `make matrix` runs all cells,
`make test` a slice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from support import free_port, is_alive, node_packages, server_venv, wait_until, wait_until_async
from support.http_script import Exchange, http_server
from support.mcp import Call, is_open, outcome_of, run, servers_of, started

from component_host.mcp_bridge.link import McpServerConfig
from stepflow.errors import Code, Failure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
    from pathlib import Path

    from component_host.mcp_bridge.backend import McpBackend

BIG = 2 * 1024 * 1024
NPM = ["@modelcontextprotocol/server-everything@2026.8.31", "@modelcontextprotocol/server-filesystem@2026.8.31"]


@dataclass(frozen=True)
class Place:
    """Where a server works: a folder for it, and a web server that it may ask."""

    folder: Path
    web_port: int
    remote_port: int

    @property
    def web(self) -> str:
        return f"http://127.0.0.1:{self.web_port}"


@dataclass(frozen=True)
class Server:
    """How to start a server, and what to ask of it."""

    config: Callable[[Place], McpServerConfig]
    process: str
    """What its command line has in it."""
    tools: set[str]
    call: Callable[[Place], tuple[str, Any]]
    answer: str
    """What the answer has in it."""
    error: Callable[[Place], tuple[str, Any]]
    error_text: str
    prompts: set[str]
    big: Callable[[Place], tuple[str, Any]] | None = None
    big_chars: int = BIG
    slow: Callable[[Place], tuple[str, Any]] | None = None
    """A call that takes long or never ends; None: every tool ends at once."""
    reports_progress: bool = False


def npm(package: str) -> tuple[str, str]:
    node, folder = node_packages(NPM, "mcp")
    return str(node), str(folder / "node_modules" / "@modelcontextprotocol" / package / "dist" / "index.js")


def python_server(name: str) -> str:
    return str(server_venv([name], name) / name)


def everything(**options: Any) -> Callable[[Place], McpServerConfig]:
    def config(place: Place) -> McpServerConfig:
        node, program = npm("server-everything")
        if options.get("remote"):
            return McpServerConfig(url=f"http://127.0.0.1:{place.remote_port}/mcp")
        if options.get("http"):
            return McpServerConfig(
                node, [program, "streamableHttp"], {"PORT": "{port}"}, url="http://127.0.0.1:{port}/mcp"
            )
        return McpServerConfig(node, [program, "stdio"])

    return config


def everything_server(**options: Any) -> Server:
    return Server(
        config=everything(**options),
        process="server-everything",
        tools={"echo", "get-sum", "get-structured-content", "get-tiny-image", "trigger-long-running-operation"},
        call=lambda place: ("get-structured-content", {"location": "New York"}),
        answer='"temperature"',
        error=lambda place: ("get-sum", {"a": 1}),
        error_text="-32602",
        prompts={"prompts/simple-prompt", "prompts/args-prompt", "resources/read"},
        big=lambda place: ("echo", {"message": "x" * BIG}),
        slow=lambda place: ("trigger-long-running-operation", {"duration": 600, "steps": 6_000}),
        reports_progress=True,
    )


SERVERS = {
    "time": Server(
        config=lambda place: McpServerConfig(python_server("mcp-server-time")),
        process="mcp-server-time",
        tools={"get_current_time", "convert_time"},
        call=lambda place: ("get_current_time", {"timezone": "Etc/UTC"}),
        answer="Etc/UTC",
        error=lambda place: ("get_current_time", {"timezone": "Nowhere/Land"}),
        error_text="Nowhere/Land",
        prompts=set(),
    ),
    "git": Server(
        config=lambda place: McpServerConfig(python_server("mcp-server-git"), ["--repository", str(place.folder)]),
        process="mcp-server-git",
        tools={"git_status", "git_log", "git_diff_unstaged", "git_commit"},
        call=lambda place: ("git_status", {"repo_path": str(place.folder)}),
        answer="big.txt",
        error=lambda place: ("git_show", {"repo_path": str(place.folder), "revision": "none"}),
        error_text="none",
        prompts=set(),
        big=lambda place: ("git_diff_unstaged", {"repo_path": str(place.folder)}),
    ),
    "fetch": Server(
        config=lambda place: McpServerConfig(
            python_server("mcp-server-fetch"), ["--allow-private-ips", "--ignore-robots-txt"]
        ),
        process="mcp-server-fetch",
        tools={"fetch"},
        call=lambda place: ("fetch", {"url": f"{place.web}/page"}),
        answer="Welcome",
        error=lambda place: ("fetch", {"url": f"{place.web}/missing"}),
        error_text="404",
        prompts={"prompts/fetch"},
        big=lambda place: ("fetch", {"url": f"{place.web}/big", "raw": True, "max_length": 999_999}),
        big_chars=999_999,
        slow=lambda place: ("fetch", {"url": f"{place.web}/slow"}),
    ),
    "filesystem": Server(
        config=lambda place: McpServerConfig(*_with_folder(npm("server-filesystem"), place)),
        process="server-filesystem",
        tools={"read_text_file", "write_file", "list_directory", "search_files"},
        call=lambda place: ("list_directory", {"path": str(place.folder)}),
        answer="big.txt",
        error=lambda place: ("read_text_file", {"path": "/etc/passwd"}),
        error_text="Access denied",
        prompts=set(),
        big=lambda place: ("read_text_file", {"path": str(place.folder / "big.txt")}),
    ),
    "everything, stdio": everything_server(),
    "everything, http": everything_server(http=True),
    "everything, remote": everything_server(remote=True),
}

FACTS = {
    ("time", "progress"): "it reports no progress",
    ("git", "progress"): "it reports no progress",
    ("fetch", "progress"): "it reports no progress",
    ("filesystem", "progress"): "it reports no progress",
    ("time", "big"): "no tool gives more than a line",
}
"""Cells that cannot be run, and why. `fetch` gives at most 999,999 characters: its cell is run with that."""


def _with_folder(command: tuple[str, str], place: Place) -> tuple[str, list[str]]:
    node, program = command
    return node, [program, str(place.folder)]


class Web:
    """The web that `fetch` fetches from."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.gone: list[str] = []

    async def __call__(self, exchange: Exchange) -> None:
        self.asked.append(exchange.path)
        match exchange.path:
            case "/page":
                await exchange.send(200, b"<html><body><p>Welcome</p></body></html>", "text/html")
            case "/big":
                await exchange.send(200, b"x" * BIG, "text/plain")
            case "/slow":
                try:
                    await exchange.wait_for_hang_up()
                finally:
                    self.gone.append(exchange.path)
            case _:
                await exchange.send(404)


@contextlib.asynccontextmanager
async def working(name: str, folder: Path) -> AsyncIterator[tuple[Server, Place, McpBackend, Web]]:
    server, web = SERVERS[name], Web()
    async with http_server(web) as web_port:
        place = Place(folder, web_port, free_port())
        with remote_server(place) if "remote" in name else contextlib.nullcontext():
            async with started(server.config(place)) as backend:
                yield server, place, backend, web


def fill(folder: Path) -> None:
    """Make the folder a git repository with one change of 2 MiB that is not committed."""
    git = ["/usr/bin/env", "git", "-C", str(folder), "-c", "user.name=A", "-c", "user.email=a@example.org"]
    (folder / "big.txt").write_text("small\n")
    for args in (["init", "--quiet"], ["add", "big.txt"], ["commit", "--quiet", "-m", "One"]):
        subprocess.run([*git, *args], check=True)
    (folder / "big.txt").write_text("x" * BIG)


@contextlib.contextmanager
def remote_server(place: Place) -> Iterator[None]:
    """Run the server as a remote one, which the host does not start."""
    node, program = npm("server-everything")
    env = {**os.environ, "PORT": str(place.remote_port)}
    quiet = subprocess.DEVNULL
    with subprocess.Popen([node, program, "streamableHttp"], env=env, stdout=quiet, stderr=quiet) as process:
        try:
            wait_until(lambda: is_open(place.remote_port), "the remote server listens", timeout_s=30)
            yield
        finally:
            process.kill()


async def check_list(server: Server, place: Place, backend: McpBackend, web: Web) -> None:
    components = {each.component: each for each in backend.listing().components}
    assert server.tools | server.prompts <= components.keys()
    for component, info in components.items():
        assert info.path == f"/{component}"
        assert info.input_schema["type"] == "object"
    assert any(each.startswith(("prompts/", "resources/")) for each in components) == bool(server.prompts)


async def check_call(server: Server, place: Place, backend: McpBackend, web: Web) -> None:
    component, arguments = server.call(place)
    assert server.answer in json.dumps(await outcome_of(backend, component, arguments))


async def check_error(server: Server, place: Place, backend: McpBackend, web: Web) -> None:
    component, arguments = server.error(place)
    failure = await outcome_of(backend, component, arguments)
    assert isinstance(failure, Failure)
    assert failure.code in (Code.COMPONENT_FAILED, Code.INVALID_INPUT)
    assert server.error_text in failure.message
    assert (await outcome_of(backend, component, [])).code == Code.INVALID_INPUT
    assert (await outcome_of(backend, "no-such-tool", {})).code == Code.COMPONENT_NOT_FOUND
    await check_call(server, place, backend, web)


async def check_progress(server: Server, place: Place, backend: McpBackend, web: Web) -> None:
    call = Call("trigger-long-running-operation", {"duration": 0.5, "steps": 5})
    backend.execute(call)
    assert "completed" in await call.outcome
    assert [report[:2] for report in call.reports] == [(float(step), 5.0) for step in range(1, 6)]


async def check_cancel(server: Server, place: Place, backend: McpBackend, web: Web) -> None:
    component, arguments = (server.slow or server.call)(place)
    call = Call(component, arguments)
    backend.execute(call)
    if server.reports_progress:
        await wait_until_async(lambda: call.reports, "the operation runs")
    elif server.slow is not None:
        await wait_until_async(lambda: "/slow" in web.asked, "the page is asked for")
    backend.cancel(call)
    assert (await call.outcome).code == Code.CANCELLED
    if server.slow is not None and not server.reports_progress:
        await wait_until_async(lambda: web.gone, "the server gives the page up")
    reports = len(call.reports)
    await check_call(server, place, backend, web)
    assert len(call.reports) == reports


async def check_restart(server: Server, place: Place, backend: McpBackend, web: Web) -> None:
    (pid,) = servers_of(os.getpid(), server.process)
    remote = is_open(place.remote_port)
    os.kill(pid, signal.SIGKILL)
    if remote:
        await wait_until_async(lambda: not is_open(place.remote_port), "nobody listens")
        calling = asyncio.gather(*(check_call(server, place, backend, web) for _ in range(5)))
        with remote_server(place):
            await calling
        return
    await wait_until_async(lambda: not is_alive(pid), "the server is gone")
    await wait_until_async(lambda: servers_of(os.getpid(), server.process) not in ([], [pid]), "another one runs")
    await check_call(server, place, backend, web)


async def check_big(server: Server, place: Place, backend: McpBackend, web: Web) -> None:
    assert server.big is not None
    component, arguments = server.big(place)
    output = await outcome_of(backend, component, arguments)
    assert not isinstance(output, Failure)
    assert "x" * server.big_chars in json.dumps(output)
    await check_call(server, place, backend, web)


CELLS: dict[str, Callable[[Server, Place, McpBackend, Web], Awaitable[None]]] = {
    "list": check_list,
    "call": check_call,
    "error": check_error,
    "progress": check_progress,
    "cancel": check_cancel,
    "restart": check_restart,
    "big": check_big,
}


@pytest.mark.timeout(400)  # the first one installs its server
@pytest.mark.parametrize(
    ("name", "cell"), [(name, cell) for name in SERVERS for cell in CELLS if (name, cell) not in FACTS]
)
def test_cell(name: str, cell: str, tmp_path: Path) -> None:
    fill(tmp_path)

    async def main() -> None:
        async with working(name, tmp_path) as (server, place, backend, web):
            await CELLS[cell](server, place, backend, web)

    SERVERS[name].config(Place(tmp_path, 0, 0))  # installs it
    run(main())


def test_a_fact_is_of_a_cell_that_exists_and_names_what_is_lacking() -> None:
    assert all(name in SERVERS and cell in CELLS for name, cell in FACTS)
    for name, server in SERVERS.items():
        assert ((name, "progress") in FACTS) == (not server.reports_progress)
        assert ((name, "big") in FACTS) == (server.big is None)
