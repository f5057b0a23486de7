"""Restarts of a plugin on one host after another. The hosts are scripted."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import grpc
import pytest

from control_plane.restarts import HostOutcome, Restarts
from stepflow.errors import NotFound
from stepflow.mesh.v1 import host_pb2, host_pb2_grpc, state_pb2
from stepflow.store import Put, Txn, keys
from stepflow.store.sqlite.store import SqliteStore

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine


class ScriptedHost(host_pb2_grpc.ComponentHostServiceServicer):
    """A host that answers with one outcome, or not at all."""

    def __init__(self, outcome: str) -> None:
        self.outcome = outcome
        self.asked: list[str] = []

    async def RestartHostPlugin(  # noqa: N802  # named after its RPC
        self, request: host_pb2.RestartHostPluginRequest, context: Any
    ) -> Any:
        self.asked.append(request.plugin)
        if self.outcome == "old":
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "")
        change = host_pb2.PluginChange(plugin=request.plugin, outcome=self.outcome, detail="because")
        return host_pb2.RestartHostPluginResponse(change=change)


async def with_hosts(
    outcomes: dict[str, str], work: Callable[[Restarts, dict[str, ScriptedHost]], Coroutine[Any, Any, None]]
) -> None:
    """Run hosts that have the plugin `kit`, by id with their outcomes; one with the outcome "gone" does not answer."""
    store = await SqliteStore.open(":memory:")
    servers = []
    hosts = {}
    for host_id, outcome in outcomes.items():
        server = grpc.aio.server()
        hosts[host_id] = ScriptedHost(outcome)
        host_pb2_grpc.add_ComponentHostServiceServicer_to_server(hosts[host_id], server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        servers.append(server)
        if outcome == "gone":
            await server.stop(0)
        session = state_pb2.HostSession(address=f"127.0.0.1:{port}")
        session.plugins.add(plugin="kit" if outcome != "other" else "other")
        await store.txn(Txn((), (Put(keys.session_host(host_id), session.SerializeToString()),)))
    try:
        await work(Restarts(store), hosts)
    finally:
        for server in servers:
            await server.stop(0)
        await store.close()


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ({"a": "restarted", "b": "other", "c": "restarted"}, [("a", "restarted"), ("c", "restarted")]),
        ({"a": "no_server", "b": "no_server"}, [("a", "no_server"), ("b", "no_server")]),
        ({"a": "restarted", "b": "kept", "c": "restarted"}, [("a", "restarted"), ("b", "kept"), ("c", "not_tried")]),
        ({"a": "failed", "b": "restarted", "c": "x"}, [("a", "failed"), ("b", "not_tried"), ("c", "not_tried")]),
        ({"a": "old", "b": "restarted"}, [("a", "unsupported"), ("b", "not_tried")]),
        ({"a": "gone", "b": "restarted"}, [("a", "unreachable"), ("b", "not_tried")]),
    ],
)
def test_hosts_follow_each_other_until_one_has_no_success(
    outcomes: dict[str, str], expected: list[tuple[str, str]]
) -> None:
    async def work(restarts: Restarts, hosts: dict[str, ScriptedHost]) -> None:
        done = await restarts.restart("kit")
        assert [(host.host_id, host.outcome) for host in done] == expected
        untried = {host for host, outcome in expected if outcome == "not_tried"}
        assert all(not hosts[host].asked for host in untried)
        assert all("had no success" in host.detail for host in done if host.host_id in untried)

    asyncio.run(with_hosts(outcomes, work))


def test_one_host_alone_may_be_named() -> None:
    async def work(restarts: Restarts, hosts: dict[str, ScriptedHost]) -> None:
        assert await restarts.restart("kit", "b") == [HostOutcome("b", "restarted", "because")]
        assert hosts["a"].asked == []
        for plugin, host, reason in (("kit", "z", "HOST_NOT_FOUND"), ("nope", "", "PLUGIN_UNKNOWN")):
            with pytest.raises(NotFound) as error:
                await restarts.restart(plugin, host)
            assert error.value.reason == reason
        assert "the live hosts have kit" in error.value.message

    asyncio.run(with_hosts({"a": "restarted", "b": "restarted"}, work))
