"""The connections that use the environment's proxy, those that do not, and the proxy in error messages."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from support.builtin_host import answer, builtin, failed
from support.environment_proxy import SECRET, environ_with, recording_proxy
from support.mcp import context

from component_host.mcp_bridge.backend import McpBackend
from component_host.mcp_bridge.link import McpServerConfig
from component_host.stepflow_bridge.http.endpoint import HttpEndpoint, LostError, NotProtocolError
from stepflow.client import Client
from stepflow.component.pull.remote import PullRemote, explain
from stepflow.errors import Code, DeadlineExceeded, Invalid, StepflowError, Unavailable
from stepflow.proxies import grpc_proxy_for, named_proxy, no_proxy_with_loopback, proxy_for, through
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.rpc.channel import open_channel, open_link
from stepflow.store.blobs import BlobStore
from stepflow.store.etcd.client import _connect

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator

    from support.environment_proxy import RecordingProxy

ROOT = Path(__file__).resolve().parents[2]

ELSEWHERE = "elsewhere.invalid"
"""A host name that only a proxy could resolve; the local resolver reports it as unknown."""

HERE = "127.0.0.1:9"
"""An address without a listener."""


@pytest.fixture(params=[502, 407])
def proxy(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[RecordingProxy]:
    """Name a recording proxy in this process's environment."""
    with recording_proxy(request.param) as proxy:
        for name, value in proxy.environ.items():
            monkeypatch.setenv(name, value)
        yield proxy


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


def names_it(text: str, proxy: RecordingProxy) -> bool:
    return proxy.shown in text and "_proxy`" in text and SECRET not in text and "someone" not in text


# --- the rule ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["localhost", "LOCALHOST.", "minio.localhost", "127.0.0.1", "127.3.2.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"],  # noqa: S104  # no listener
)
def test_this_machine_is_reached_without_a_proxy(host: str) -> None:
    environ = environ_with("http://proxy:3128")
    assert proxy_for(f"http://{host}:80/x", environ) is None
    assert proxy_for(f"https://{host}/x", environ) is None
    assert grpc_proxy_for(f"{host}:7840", environ) is None
    assert grpc_proxy_for(f"dns:///{host}:7840", environ) is None


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"http_proxy": "http://a:1"}, None),
        ({"https_proxy": "http://a:1"}, "https_proxy"),
        ({"HTTPS_PROXY": "http://a:1"}, "HTTPS_PROXY"),
        ({"https_proxy": "http://a:1", "HTTPS_PROXY": "http://b:1"}, "https_proxy"),
        ({"https_proxy": "", "HTTPS_PROXY": "http://b:1"}, None),
        ({"https_proxy": "", "all_proxy": "http://b:1"}, None),
        ({"all_proxy": "http://a:1"}, "all_proxy"),
        ({"ALL_PROXY": "a:1"}, "ALL_PROXY"),
        ({"grpc_proxy": "http://a:1"}, None),
    ],
)
def test_another_machine_is_reached_through_the_proxy_that_its_scheme_names(
    environ: dict[str, str], expected: str | None
) -> None:
    proxy = proxy_for("https://api.example.org/v1", environ)
    assert (proxy.variable if proxy else None) == expected


@pytest.mark.parametrize(
    ("no_proxy", "url", "excepted"),
    [
        ("*", "http://a.example.org", True),
        ("example.org", "http://a.example.org", True),
        (".example.org", "http://a.example.org", True),
        ("*.example.org", "http://a.example.org", True),
        ("x, EXAMPLE.ORG", "http://example.org", True),
        ("example.org", "http://badexample.org", False),
        ("example.org:8080", "http://example.org:8080", True),
        ("example.org:8080", "http://example.org", False),
        ("example.org:80", "http://example.org", True),
        ("10.0.0.0/8", "http://10.1.2.3:7", True),
        ("10.1.2.3", "http://10.1.2.3:7", True),
        ("10.1.2.3:7", "http://10.1.2.3:7", True),
        ("10.1.2.4,fd00::/8", "http://[fd00::1]:7", True),
        ("10.0.0.0/8", "http://11.1.2.3", False),
        ("", "http://11.1.2.3", False),
    ],
)
def test_no_proxy_excepts_hosts_domains_networks_and_ports(no_proxy: str, url: str, excepted: bool) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        assert (proxy_for(url, {"http_proxy": "http://proxy:3128", name: no_proxy}) is None) is excepted
        target = url.removeprefix("http://")
        target = target if target.rpartition(":")[2].isdigit() else f"{target}:80"
        assert (grpc_proxy_for(target, {"http_proxy": "http://proxy:3128", name: no_proxy}) is None) is excepted


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"grpc_proxy": "http://a:1", "https_proxy": "http://b:1"}, "grpc_proxy"),
        ({"https_proxy": "http://b:1", "http_proxy": "http://c:1"}, "https_proxy"),
        ({"http_proxy": "http://c:1"}, "http_proxy"),
        ({"HTTPS_PROXY": "http://b:1", "all_proxy": "http://b:1"}, None),
        ({"grpc_proxy": "", "http_proxy": "http://c:1"}, None),
        ({"http_proxy": "socks5://c:1"}, None),
        ({"http_proxy": "http://c:1", "no_grpc_proxy": "example.org"}, None),
    ],
)
def test_a_grpc_client_reads_the_variables_of_grpc(environ: dict[str, str], expected: str | None) -> None:
    for target in ("mesh.example.org:7840", "dns:///mesh.example.org:7840", "dns://10.0.0.1/mesh.example.org:7840"):
        proxy = grpc_proxy_for(target, environ)
        assert (proxy.variable if proxy else None) == expected
    assert grpc_proxy_for("unix:/run/mesh", environ) is None


def test_credentials_of_a_proxy_stand_in_no_text() -> None:
    proxy = proxy_for("http://example.org", {"http_proxy": f"http://user@corp:{SECRET}@proxy:3128/path"})
    assert proxy is not None
    assert str(proxy) == "http://proxy:3128"
    assert SECRET not in repr(proxy) + through(proxy)
    assert through(None) == ""


def test_a_proxy_of_another_kind_is_refused_by_name() -> None:
    environ = {"all_proxy": f"socks5://u:{SECRET}@proxy:1080"}
    with pytest.raises(Invalid, match=r"example\.org .*socks5://proxy:1080 that `all_proxy` names") as caught:
        proxy_for("https://example.org", environ)
    assert caught.value.reason == "PROXY_UNSUPPORTED"
    assert SECRET not in caught.value.message
    assert str(named_proxy("https://example.org", environ)) == "socks5://proxy:1080"
    assert proxy_for("http://localhost:8000", environ) is None


def test_programs_that_read_the_environment_are_told_of_this_machine() -> None:
    assert no_proxy_with_loopback({}).split(",")[:2] == ["localhost", "127.0.0.1"]
    assert no_proxy_with_loopback({"NO_PROXY": "a, b"}).startswith("a,b,localhost,")


def test_clients_are_made_only_where_the_rule_is_asked() -> None:
    makes_one = re.compile(
        r"\b(?:insecure_channel|secure_channel|from_url|urlopen|AsyncClient|AsyncHTTPTransport|ClientSession|"
        r"getproxies|proxy_bypass)\("
    )
    direct = {"stepflow/store/etcd/lease.py", "stepflow/component/http/host_blobs.py"}
    """By the options of `etcd_client`; by aiohttp's default, to the host that has called."""
    found = {
        str(path.relative_to(ROOT)): "stepflow.proxies" in text
        for folder in ("stepflow", "control_plane", "executor", "component_host")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if makes_one.search(text := path.read_text("utf-8"))
    }
    assert len(found) >= 7
    assert {path for path, asks in found.items() if not asks} == direct


# --- the clients -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("opener", [open_channel, open_link, lambda target: _connect(target, None)])
def test_parts_of_a_mesh_use_no_proxy_wherever_they_are(proxy: RecordingProxy, opener: Any) -> None:
    async def test() -> None:
        for target in (HERE, f"{ELSEWHERE}:7840"):
            async with opener(target) as channel:
                with pytest.raises(grpc.aio.AioRpcError):
                    await channel.unary_unary("/x/Y")(b"", timeout=5)

    run(test())
    assert proxy.asked == []


def test_the_client_uses_a_proxy_to_other_machines_only_and_names_it(proxy: RecordingProxy) -> None:
    async def refused(server: str) -> str:
        async with Client(server, patience_s=0) as client:
            with pytest.raises((Unavailable, DeadlineExceeded)) as caught:
                await client.get("00000000")
        return caught.value.message

    async def test() -> None:
        assert "proxy" not in await refused(HERE)
        assert proxy.asked == []
        assert names_it(await refused(f"{ELSEWHERE}:7840"), proxy)
        assert set(proxy.asked) == {f"{ELSEWHERE}:7840"}

    run(test())


def test_a_pull_worker_uses_a_proxy_to_other_machines_only_and_names_it(proxy: RecordingProxy) -> None:
    async def refused(address: str) -> str:
        remote = PullRemote("")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await remote.heartbeat(address, pb.TaskHeartbeatRequest())
        await remote.close()
        return explain(caught.value, address)

    async def test() -> None:
        assert "proxy" not in await refused(HERE)
        assert proxy.asked == []
        assert names_it(await refused(f"{ELSEWHERE}:7837"), proxy)
        assert set(proxy.asked) == {f"{ELSEWHERE}:7837"}

    run(test())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_openai_uses_a_proxy_to_other_machines_only_and_names_it(proxy: RecordingProxy, scheme: str) -> None:
    async def refused(base_url: str) -> str:
        async with builtin(environ={"OPENAI_API_KEY": "k", **proxy.environ}, base_url=base_url) as backend:
            failure = failed(await answer(backend, "/openai", {"messages": []}))
        assert failure.code == Code.RESOURCE_UNAVAILABLE
        return failure.message

    async def test() -> None:
        assert "proxy" not in await refused(f"{scheme}://{HERE}/v1")
        assert proxy.asked == []
        assert names_it(await refused(f"{scheme}://{ELSEWHERE}/v1"), proxy)
        assert len(proxy.asked) == 1

    run(test())


def test_openai_says_which_proxy_it_cannot_use() -> None:
    async def test() -> None:
        environ = {"OPENAI_API_KEY": "k", "ALL_PROXY": "socks5://proxy:1080"}
        async with builtin(environ=environ, base_url=f"https://{ELSEWHERE}/v1") as backend:
            failure = failed(await answer(backend, "/openai", {"messages": []}))
        assert failure.code == Code.RESOURCE_UNAVAILABLE
        assert "socks5://proxy:1080" in failure.message

    run(test())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_a_stepflow_server_is_reached_through_a_proxy_on_other_machines_only(
    proxy: RecordingProxy, scheme: str
) -> None:
    async def refused(url: str) -> str:
        endpoint = HttpEndpoint(url, environ=proxy.environ)
        texts = []
        for call in (endpoint.tell(b"{}"), anext(endpoint.exchange(b"{}"))):
            with pytest.raises((LostError, NotProtocolError)) as caught:
                await call
            texts.append(str(caught.value))
        await endpoint.close()
        assert len({names_it(text, proxy) for text in texts}) == 1
        return texts[0]

    async def test() -> None:
        assert "proxy" not in await refused(f"{scheme}://{HERE}/")
        assert proxy.asked == []
        assert names_it(await refused(f"{scheme}://{ELSEWHERE}/"), proxy)
        assert len(proxy.asked) == 2

    run(test())


def test_a_dead_proxy_is_named_and_nothing_was_sent() -> None:
    async def test() -> None:
        endpoint = HttpEndpoint(f"http://{ELSEWHERE}/", environ={"http_proxy": f"http://u:{SECRET}@{HERE}"})
        with pytest.raises(LostError, match=f"through the proxy http://{HERE} that `http_proxy` names") as caught:
            await endpoint.tell(b"{}")
        await endpoint.close()
        assert caught.value.refused
        assert SECRET not in str(caught.value)

    run(test())


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_an_mcp_server_is_reached_through_a_proxy_on_other_machines_only(proxy: RecordingProxy, scheme: str) -> None:
    async def refused(url: str) -> str:
        backend = McpBackend(context(environ=proxy.environ), McpServerConfig(url=url, start_timeout_s=10))
        with pytest.raises(StepflowError) as caught:
            await backend.start()
        await backend.close()
        return caught.value.message

    async def test() -> None:
        assert "proxy" not in await refused(f"{scheme}://{HERE}/mcp")
        assert proxy.asked == []
        assert names_it(await refused(f"{scheme}://{ELSEWHERE}/mcp"), proxy)
        assert proxy.asked

    run(test())


def test_a_bucket_is_reached_through_a_proxy_on_other_machines_only(
    proxy: RecordingProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "r", "AWS_ALLOW_HTTP": "true"}
    for name, value in bucket.items():
        monkeypatch.setenv(name, value)

    async def refused(endpoint: str) -> str:
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        with pytest.raises(StepflowError) as caught:
            await BlobStore.open("s3://bucket").put(b"x")
        return caught.value.message

    async def test() -> None:
        assert "proxy" not in await refused(f"http://{HERE}")
        assert "proxy" not in await refused("http://localhost:9")
        assert proxy.asked == []
        assert names_it(await refused(f"http://{ELSEWHERE}"), proxy)
        assert names_it(await refused(f"https://{ELSEWHERE}"), proxy)
        assert proxy.asked

    run(test())
