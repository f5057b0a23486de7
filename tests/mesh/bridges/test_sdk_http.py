"""A server of the SDK over HTTP: behind this project's host, and with hosts that have only upstream's methods."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import uvloop
from support import ROOT, wait_until_async
from support.component_client import script
from support.host_side import RUN_ID, Call, MemoryBlobs, execute, report
from support.stepflow_servers import SCRIPTS, server

from component_host.stepflow_bridge.http.blob_api import BlobApi
from stepflow.errors import Code

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

HEADERS = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream"}
ENVIRON = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT)}


class Client:
    """An upstream host's side of HTTP: no progress, and only the methods of 0.9 and later."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        self.url = url
        self.session = session
        self.asked: list[dict[str, Any]] = []

    async def post(self, headers: dict[str, str] | None = None, **message: Any) -> tuple[int, str, Any]:
        """Return status, content type, and the body as a tree."""
        body = json.dumps({"jsonrpc": "2.0", **message})
        async with self.session.post(self.url, data=body, headers={**HEADERS, **(headers or {})}) as response:
            return response.status, response.content_type, await response.json()

    async def call(self, component: str, value: Any, answers: dict[str, Any], call_id: Any = 1) -> dict[str, Any]:
        """Execute; reply to each method from `answers`. Return the last message."""
        params = {"component": component, "input": value, "attempt": 1, "observability": {"run_id": RUN_ID}}
        body = json.dumps({"jsonrpc": "2.0", "id": call_id, "method": "components/execute", "params": params})
        async with self.session.post(self.url, data=body, headers=HEADERS) as response:
            if response.content_type == "application/json":
                last: dict[str, Any] = await response.json()
                return last
            assert response.headers["Stepflow-Instance-Id"]
            async for line in response.content:
                if line.startswith(b"data: "):
                    last = json.loads(line[6:])
                    if "method" in last:
                        self.asked.append(last)
                        reply = await self.post(id=last["id"], **answers[last["method"]])
                        assert reply == (202, "application/json", "")
            return last


@asynccontextmanager
async def serving(
    file: Path = SCRIPTS / "kit_sdk.py", *args: str
) -> AsyncIterator[tuple[Client, asyncio.subprocess.Process]]:
    """Start a server as a process with an unused stdin."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(file), *(args or ("--http",)), env=ENVIRON,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        port = json.loads(await asyncio.wait_for(process.stdout.readline(), 20))["port"]
        async with aiohttp.ClientSession() as session:
            yield Client(f"http://127.0.0.1:{port}/", session), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


# --- behind the host -----------------------------------------------------------------------------------------------


def test_progress_and_cancelling_pass_through(tmp_path: Path) -> None:
    async def test() -> None:
        async with server("sdk-http") as backend:
            call = Call("/wait", {"entered": str(tmp_path / "in"), "release": str(tmp_path / "never")})
            backend.execute(call)
            await wait_until_async(lambda: call.progressed, "it reports")
            assert call.progressed == [(1, 2, "half")]
            backend.cancel(call)
            assert (await call.outcome()).code is Code.CANCELLED
            await wait_until_async((tmp_path / "in.cancelled").exists, "the component was told")

    uvloop.run(test())


def test_a_component_runs_a_batch_of_flows() -> None:
    results = [
        {"outcome": "success", "result": 1},
        {"outcome": "failed", "error": {"code": "TIMEOUT", "message": "late"}},
    ]

    async def test() -> None:
        async with server("sdk-http") as backend:
            call = {"flow": {"steps": []}, "inputs": [1, 2]}
            assert await execute(backend, "/batch", call, runs=lambda _: report("b", *results)) == [1, "TIMEOUT"]

    uvloop.run(test())


def test_a_listing_of_ours_is_complete() -> None:
    async def test() -> None:
        async with server("sdk-http") as backend:
            assert backend.listing().complete

    uvloop.run(test())


# --- upstream hosts -----------------------------------------------------------------------------------------------


def test_flows_are_run_with_the_later_words_and_keys_that_repeat() -> None:
    done = {"runId": "r", "results": [{"itemIndex": 0, "result": {"outcome": "success", "result": 42}}]}
    answers = {"blobs/put": {"result": {"blob_id": "b" * 64}}, "runs/submit": {"result": done}}

    async def test() -> None:
        async with serving() as (client, _):
            keys = []
            for call_id in (1, "two"):
                last = await client.call("/evaluate", {"flow": {"steps": []}, "input": 5}, answers, call_id)
                assert last == {"jsonrpc": "2.0", "id": call_id, "result": {"output": 42}}
                submit = client.asked[-1]["params"]
                assert (submit["flowId"], submit["inputs"], submit["wait"]) == ("b" * 64, [5], True)
                assert submit["observability"] == {"run_id": RUN_ID}
                keys.append(submit["subflowKey"])
            assert keys[0] == keys[1]
            refused = {**answers, "runs/submit": {"error": {"code": -32011, "message": "no such flow"}}}
            last = await client.call("/evaluate", {"flow": {"steps": []}, "input": 5}, refused)
            assert "no such flow" in last["error"]["message"]

    uvloop.run(test())


def test_blobs_go_to_the_api_that_the_host_names() -> None:
    async def test() -> None:
        blobs = MemoryBlobs()
        api = BlobApi(lambda: blobs)
        await api.start("127.0.0.1")
        async with serving() as (client, _):
            params = {"runtimeProtocolVersion": 1, "capabilities": {"blobApiUrl": api.url}}
            _, _, reply = await client.post(id=1, method="initialize", params=params)
            assert reply["result"]["serverProtocolVersion"] == 1
            last = await client.call("/blob_roundtrip", {"value": ["é"]}, {})
            assert last["result"]["output"]["value"] == ["é"]
            assert (len(blobs.content), client.asked) == (1, [])
            last = await client.call("/blob_get", {"blob_id": "../../etc"}, {})
            assert "cannot be reached" in last["error"]["message"]
        await api.close()

    uvloop.run(test())


def test_requests_that_are_none_are_refused_as_upstream_does() -> None:
    async def test() -> None:
        async with serving() as (client, _):
            assert (await client.post({"Content-Type": "text/plain"}, id=1, method="components/list"))[0] == 415
            assert (await client.post({"Accept": "application/json"}, id=1, method="components/list"))[0] == 406
            assert (await client.post(method="initialized", params={}))[0] == 202
            status, _, reply = await client.post(id="nobody's", result={})
            assert (status, "no pending request" in reply["error"]["message"]) == (400, True)
            async with client.session.post(client.url, data=b"{", headers=HEADERS) as response:
                assert (response.status, "not JSON" in await response.text()) == (400, True)
            assert (await client.post(id=1, method="what/is", params={}))[2]["error"]["code"] == -32601
            async with client.session.get(client.url + "health") as response:
                assert (await response.json())["status"] == "healthy"

    uvloop.run(test())


def test_two_hosts_may_use_the_same_id_at_once(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving() as (client, _):
            calls = [
                asyncio.ensure_future(
                    client.call(
                        "/wait", {"entered": str(tmp_path / name), "release": str(tmp_path / "go"), "value": name}, {}
                    )
                )
                for name in ("a", "b")
            ]
            await wait_until_async(lambda: len(list(tmp_path.iterdir())) == 2, "both run")
            (tmp_path / "go").touch()
            assert [(await call)["result"]["output"] for call in calls] == ["a", "b"]

    uvloop.run(test())


def test_who_goes_away_has_cancelled_the_call(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving() as (client, _):
            value = {"entered": str(tmp_path / "in"), "release": str(tmp_path / "never")}
            call = asyncio.ensure_future(client.call("/wait", value, {}))
            await wait_until_async((tmp_path / "in").exists, "it runs")
            call.cancel()
            await wait_until_async((tmp_path / "in.cancelled").exists, "the component was told")

    uvloop.run(test())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_it_also_with_calls_in_flight(tmp_path: Path, number: signal.Signals) -> None:
    async def test() -> None:
        async with serving() as (client, process):
            value = {"entered": str(tmp_path / "in"), "release": str(tmp_path / "never")}
            call = asyncio.ensure_future(client.call("/wait", value, {}))
            await wait_until_async((tmp_path / "in").exists, "it runs")
            process.send_signal(number)
            assert await asyncio.wait_for(process.wait(), 10) == 128 + number
            assert (tmp_path / "in.cancelled").exists()
            call.cancel()
            await asyncio.gather(call, return_exceptions=True)

    uvloop.run(test())


@pytest.mark.parametrize("http", ["'nowhere'", "'host:70000'", "-1"])
def test_an_address_that_is_none_is_refused(tmp_path: Path, http: str) -> None:
    text = f"from stepflow.component import component, serve\n@component\ndef f(): pass\nserve(http={http})\n"
    done = subprocess.run(
        [sys.executable, str(script(tmp_path, text))],
        env=ENVIRON, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "HOST:PORT" in done.stderr


def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    async def test() -> None:
        async with serving() as (client, _):
            port = client.url.split(":")[2].strip("/")
            text = f"from stepflow.component import component, serve\n@component\ndef f(): pass\nserve(http={port})\n"
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(script(tmp_path, text)), env=ENVIRON, stderr=subprocess.PIPE
            )
            _, stderr = await asyncio.wait_for(process.communicate(), 20)
            assert (process.returncode, f"127.0.0.1:{port}" in stderr.decode()) == (1, True)

    uvloop.run(test())
