"""A restart of each kind of real server: the call in flight ends in the former process, the next one in a new one."""

from __future__ import annotations

import asyncio
import re
import sys
from typing import TYPE_CHECKING, Any

import pytest
import uvloop
from support import ROOT, free_port, is_alive, wait_until_async
from support.scripted_host import ExecutorEnd

from component_host.backends import make_backend, make_backends
from component_host.host import ComponentHost
from component_host.plugin_changes import PluginChanges
from component_host.supervision.start_retries import StartRetries
from stepflow.config import Config, config_from_tree
from stepflow.store.blobs import BlobStore

if TYPE_CHECKING:
    from pathlib import Path

    from component_host.backend import Backend
    from stepflow.mesh.v1 import host_pb2

WAIT_S = 60.0

SDK = """
import os, time
from pathlib import Path
from stepflow.component import component, serve

@component
def gated(input: dict) -> int:
    Path("begun").touch()
    while not Path("gate").exists():
        time.sleep(0.02)
    return os.getpid()

serve(%s)
"""
MCP = """
import asyncio, os, sys
from pathlib import Path
from mcp.server.mcpserver import MCPServer

server = MCPServer("s")

@server.tool()
async def gated() -> int:
    Path("begun").touch()
    while not Path("gate").exists():
        await asyncio.sleep(0.02)
    return os.getpid()

if len(sys.argv) > 1:
    server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
else:
    server.run("stdio")
"""

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "stdio": (SDK % "", {"type": "stepflow"}),
    "http": (SDK % "http=True", {"type": "stepflow", "transport": "http"}),
    "http on a port of its own": (SDK % "http=PORT", {"type": "stepflow", "transport": "http"}),
    "pull": (SDK % "", {"type": "grpc", "queueName": "q"}),
    "pull at an address": (SDK % "", {"type": "grpc", "queueName": "q", "listen": "127.0.0.1:PORT"}),
    "mcp": (MCP, {"type": "mcp"}),
    "mcp over http": (
        MCP,
        {"type": "mcp", "transport": "streamable-http", "url": "http://127.0.0.1:{port}/mcp", "args": ["{port}"]},
    ),
    "mcp on a port of its own": (
        MCP,
        {"type": "mcp", "transport": "streamable-http", "url": "http://127.0.0.1:PORT/mcp", "args": ["PORT"]},
    ),
}


def config_of(folder: Path, kind: str) -> Config:
    text, members = KINDS[kind]
    port = str(free_port())
    (folder / "server.py").write_text(text.replace("PORT", port))
    plugin = {name: _with_port(value, port) for name, value in members.items()}
    plugin |= {"command": sys.executable, "args": ["server.py", *plugin.get("args", [])]}
    plugin["env"] = {"PYTHONPATH": str(ROOT)}
    tree = {"plugins": {"kit": plugin}, "routes": {"/kit": [{"plugin": "kit"}]}}
    return config_from_tree(tree, source="test", base_dir=folder)


def _with_port(value: Any, port: str) -> Any:
    return [_with_port(each, port) for each in value] if isinstance(value, list) else value.replace("PORT", port)


@pytest.mark.parametrize("kind", KINDS)
def test_a_call_in_flight_ends_in_the_former_server_and_the_next_one_has_a_new_one(tmp_path: Path, kind: str) -> None:
    config = config_of(tmp_path, kind)

    async def main() -> None:
        endpoints: dict[Any, Any] = {}
        environ = {"PATH": "/usr/bin:/bin"}

        def make(name: str, present: Config) -> Backend:
            return make_backend(name, present, environ, endpoints=endpoints)

        host = ComponentHost(
            "h1", make_backends(config, environ, endpoints=endpoints), BlobStore.open(f"file://{tmp_path}/blobs")
        )
        retries = StartRetries(host.plugins, lambda name: make(name, config))
        changes = PluginChanges(host, config, make, _Unregistered(), retries)
        try:
            await host.start()
            assert host.plugins.failures == {}
            executor = ExecutorEnd(host)
            (component,) = [
                info.component for info in host.plugins.listings()["kit"].components if "gated" in info.component
            ]
            first = executor.call("first", component)
            await wait_until_async((tmp_path / "begun").exists, "the call is in flight", WAIT_S)

            restarting = asyncio.create_task(changes.restart("kit"))
            done, _ = await asyncio.wait([restarting], timeout=0.5)
            assert not done, "it waits for the call in flight"
            (tmp_path / "gate").touch()
            outcome = await restarting
            assert (outcome.outcome, outcome.detail) == ("restarted", "")

            before = pid_in(await executor.result(first))
            after = pid_in(await executor.result(executor.call("next", component)))
            assert after != before
            await wait_until_async(lambda: not is_alive(before), "the former process is gone", WAIT_S)
        finally:
            await changes.close()
            await retries.close()
            await host.close()
        assert not is_alive(after)

    uvloop.run(asyncio.wait_for(main(), WAIT_S))


def pid_in(result: host_pb2.CallResult) -> int:
    """Return the process that a result comes from; MCP servers wrap the number."""
    number = re.search(rb"\d+", result.result.json)
    assert number is not None, result
    return int(number.group())


class _Unregistered:
    """The registration of a host without a store."""

    def changed(self) -> None:
        """Write nothing."""

    async def prepare_config(self, config: Config) -> None:
        raise AssertionError("no configuration is read again")

    async def apply_routes(self, config: Config) -> None:
        raise AssertionError("no configuration is read again")
