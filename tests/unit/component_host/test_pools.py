"""Pools: a plugin's name belongs to one server, except during an update within a pool."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from support.scripted_host import Scripted

from component_host.host import ComponentHost
from component_host.registration import Registration
from control_plane.obstacles import plugin_warnings
from executor.hosts.link import update_peer
from executor.hosts.peer import HostPeer
from stepflow.config import Config, StepflowPlugin
from stepflow.errors import FailedPrecondition
from stepflow.mesh.v1 import state_pb2
from stepflow.routing.table import Rule
from stepflow.store import keys
from stepflow.store.blobs import BlobStore
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

LISTING = state_pb2.PluginListing


class Hosts:
    """Hosts with one plugin `tools` each, over one store."""

    def __init__(self, store: SqliteStore) -> None:
        self.store = store

    @asynccontextmanager
    async def host(
        self, name: str, script: str, *, pool: str = "", route: str = "/tools", replace_routes: bool = False
    ) -> AsyncIterator[Registration]:
        host = ComponentHost(name, {"tools": Scripted("tools")}, BlobStore.open("memory://"))
        registration = Registration(
            self.store,
            host,
            Config(
                working_directory=Path.cwd(),
                plugins={"tools": StepflowPlugin(command="python", args=(script,))},
                routes={route: (Rule("tools", params={"script": script}),)} if route else {},
            ),
            address="127.0.0.1:1",
            capacity=1,
            pool=pool,
            replace_routes=replace_routes,
        )
        await host.start()
        await registration.start()
        try:
            yield registration
        finally:
            await registration.close()
            await host.close()

    async def session(self, name: str) -> state_pb2.HostSession:
        found = await self.store.get(keys.session_host(name))
        assert found is not None
        return state_pb2.HostSession.FromString(found.value)

    async def called(self, name: str) -> bool:
        """Return True if executors send calls of the plugin to a host."""
        peer = HostPeer(name, {})
        update_peer(peer, await self.session(name))
        return "tools" in peer.plugins


def with_hosts(test: Callable[[Hosts], Awaitable[None]]) -> None:
    async def main() -> None:
        store = await SqliteStore.open(":memory:")
        try:
            await test(Hosts(store))
        finally:
            await store.close()

    asyncio.run(main())


def test_a_second_pool_with_another_server_of_one_name_gets_no_calls_and_says_so() -> None:
    async def main(hosts: Hosts) -> None:
        async with hosts.host("a", "red.py", pool="red", route=""), hosts.host("b", "blue.py", pool="blue", route=""):
            assert await hosts.called("a")
            assert not await hosts.called("b")
            (plugin,) = (await hosts.session("b")).plugins
            assert (plugin.conflict, plugin.state) == (True, LISTING.STATE_FAILED)
            assert "pool red owns the plugin name 'tools' with another server (host a)" in plugin.last_error

    with_hosts(main)


def test_a_pool_keeps_its_name_while_its_hosts_are_restarted_one_after_the_other() -> None:
    async def main(hosts: Hosts) -> None:
        async with hosts.host("b", "red.py", pool="red", route=""):
            async with hosts.host("a", "red.py", pool="red", route=""):
                pass
            async with hosts.host("c", "blue.py", pool="blue", route=""):
                assert not await hosts.called("c")
        async with hosts.host("d", "blue.py", pool="blue", route=""), hosts.host("e", "red.py", pool="red", route=""):
            assert await hosts.called("d")
            assert not await hosts.called("e")

    with_hosts(main)


def test_pools_may_share_the_same_server() -> None:
    async def main(hosts: Hosts) -> None:
        async with hosts.host("a", "red.py", pool="red", route=""), hosts.host("b", "red.py", pool="blue", route=""):
            assert await hosts.called("a")
            assert await hosts.called("b")

    with_hosts(main)


def test_two_servers_of_one_name_within_a_pool_are_an_update_and_are_warned_of() -> None:
    async def main(hosts: Hosts) -> None:
        async with hosts.host("a", "red.py", route=""):
            assert plugin_warnings({"a": await hosts.session("a")}) == []
            async with hosts.host("b", "blue.py", route=""):
                assert await hosts.called("b")
                (warning,) = plugin_warnings({name: await hosts.session(name) for name in "ab"})
                assert warning.startswith("plugin 'tools' is a different server on each of a, b")

    with_hosts(main)


def test_routes_are_replaced_within_a_pool_only() -> None:
    async def main(hosts: Hosts) -> None:
        async with hosts.host("a", "red.py", pool="red"):
            with pytest.raises(FailedPrecondition) as caught:
                async with hosts.host("b", "blue.py", pool="blue", replace_routes=True):
                    pass
            assert caught.value.reason == "ROUTES_CLAIMED"
            async with hosts.host("c", "new.py", pool="red", replace_routes=True):
                assert await hosts.called("c")

    with_hosts(main)
