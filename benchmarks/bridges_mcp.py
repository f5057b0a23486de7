"""The cost per call of the MCP bridge: one server, called by a bare client and through the backend.

    python -m benchmarks.bridges_mcp [--quick]

A row is a kind of server: milliseconds per sequential call (median), and calls per second with 16 in flight. Bare calls
and calls through the backend alternate, so both see the same noise. Both clients run in this process, and all figures
include the server's own work. To add a row, add a function to `KINDS` that yields the two callables.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop

from component_host.backend import BackendContext
from stepflow.errors import Failure, StepflowError
from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from component_host.backend import Backend

HERE = Path(__file__).resolve().parent
IN_FLIGHT = 16
ROUNDS = 5

Calling = Callable[[], Awaitable[Any]]
"""Makes one call and waits for its reply. Raises on an unexpected reply."""


class HostCall:
    """A stand-in for the host's call. Implements the part of `backend.HostCall` for backends without callbacks."""

    blobs: Any = None

    def __init__(self, component: str, input: bytes) -> None:
        self.request = host_pb2.Call(component=component, key="run/0/step", attempt=1)
        self.input = input
        self.backend_state: Any = None
        self.outcome: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def settled(self) -> bool:
        return self.outcome.done()

    def succeed(self, output: bytes) -> None:
        self.outcome.set_result(output)

    def fail(self, failure: Failure) -> None:
        self.outcome.set_exception(StepflowError(failure.code.name, failure.message))

    def progress(self, done: float = 0.0, total: float = 0.0, message: str = "") -> None:
        """Discard the progress."""


@contextlib.asynccontextmanager
async def through(backend: Backend) -> AsyncIterator[Calling]:
    """Yield a call through a started backend whose server has the component `step`."""
    await backend.start()
    try:

        async def call() -> None:
            host_call: Any = HostCall("step", b'{"value":1}')
            backend.execute(host_call)
            assert b"2" in await host_call.outcome

        yield call
    finally:
        await backend.close()


def context() -> BackendContext:
    return BackendContext("bench", str(HERE), os.environ)


# Kinds


def mcp(*, http: bool, mode: str) -> Any:
    """Return a kind: an MCP server, with the official SDK's client and transport as the bare client."""
    server = str(HERE / "mcp_echo_server.py")

    @contextlib.asynccontextmanager
    async def ways() -> AsyncIterator[tuple[Calling, Calling]]:
        from mcp import Client, StdioServerParameters
        from mcp.client.stdio import stdio_client

        from component_host.mcp_bridge.backend import McpBackend
        from component_host.mcp_bridge.http import free_port
        from component_host.mcp_bridge.link import McpServerConfig

        era: Any = "legacy" if mode == "legacy" else "auto"
        async with contextlib.AsyncExitStack() as stack:
            if http:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, server, str(port := free_port()), stderr=asyncio.subprocess.DEVNULL
                )
                stack.push_async_callback(process.wait)
                stack.callback(process.kill)
                await _listening(port)
                url = f"http://127.0.0.1:{port}/mcp"
                client = await stack.enter_async_context(Client(url, mode=era))
                config = McpServerConfig(url=url, mode=era)
            else:
                parameters = StdioServerParameters(command=sys.executable, args=[server])
                client = await stack.enter_async_context(Client(stdio_client(parameters), mode=era))
                config = McpServerConfig(sys.executable, [server], mode=era)

            async def bare() -> None:
                result = await client.call_tool("step", {"value": 1})
                assert result.structured_content == {"value": 2}

            yield bare, await stack.enter_async_context(through(McpBackend(context(), config)))

    return ways


KINDS: dict[str, Any] = {
    "MCP, stdio, handshake": mcp(http=False, mode="legacy"),
    "MCP, stdio, 2026-07-28": mcp(http=False, mode="auto"),
    "MCP, HTTP, handshake": mcp(http=True, mode="legacy"),
    "MCP, HTTP, 2026-07-28": mcp(http=True, mode="auto"),
}


# Measuring


async def _listening(port: int) -> None:
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.close()
            return
        await asyncio.sleep(0.02)


async def _milliseconds(ways: tuple[Calling, Calling], calls: int) -> list[float]:
    """Return the median duration of each callable, in milliseconds."""
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(calls):
        for index, call in enumerate(ways):
            started = time.perf_counter()
            await call()
            times[index].append(time.perf_counter() - started)
    return [statistics.median(each) * 1000 for each in times]


async def _per_second(call: Calling, calls: int) -> float:
    async def some() -> None:
        for _ in range(calls // IN_FLIGHT):
            await call()

    started = time.perf_counter()
    await asyncio.gather(*(some() for _ in range(IN_FLIGHT)))
    return calls // IN_FLIGHT * IN_FLIGHT / (time.perf_counter() - started)


async def measure(kind: str, *, quick: bool) -> None:
    calls, rounds = (64, 1) if quick else (400, ROUNDS)
    rates: tuple[list[float], list[float]] = ([], [])
    async with KINDS[kind]() as ways:
        for call in ways:
            await _per_second(call, 64)  # warm-up: connections and code
        bare_ms, bridge_ms = await _milliseconds(ways, calls * rounds // 4)
        for _ in range(rounds):
            for index, call in enumerate(ways):
                rates[index].append(await _per_second(call, calls))
    bare_rate, bridge_rate = map(statistics.median, rates)
    print(
        f"{kind:26}{bare_ms:>7.2f} ms{bridge_ms:>7.2f} ms{bridge_ms - bare_ms:>+7.2f} ms"
        f"{bare_rate:>8,.0f}/s{bridge_rate:>8,.0f}/s",
        flush=True,
    )


def main() -> None:
    """Print one row per kind of server."""
    quick = "--quick" in sys.argv
    print(f"{'kind of server':26}{'bare':>10}{'bridge':>10}{'more':>10}{'bare':>10}{'bridge':>10}")
    for kind in KINDS:
        uvloop.run(measure(kind, quick=quick))


if __name__ == "__main__":
    main()
