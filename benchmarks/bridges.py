"""The cost per call of each bridge of the component host, compared with a bare client of the same server.

    python -m benchmarks.bridges [--quick]

Nothing is mocked: the server is a process, and the host's backend drives it. A call is `step`, which adds one.
*In a row* is sequential calls; *64 at once* is 64 calls in flight. The host's CPU time per call is the cost of the
bridge itself; the rest of a call is spent in the server and the system. To add a row, add a `Bridge` to `bridges()`.
"""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import uvloop
from support import server_venv

from benchmarks.bare import bare_calls_per_s, bare_http_calls_per_s
from benchmarks.bare_pull import bare_pull_calls_per_s
from component_host.backends import make_backend
from component_host.stepflow_bridge.http.process import ListeningProcess
from component_host.supervision.spec import ProcessSpec
from stepflow.config import config_from_tree
from stepflow.mesh.v1 import host_pb2

if TYPE_CHECKING:
    from component_host.backend import Backend, BlobAccess
    from stepflow.errors import Failure

HERE = Path(__file__).resolve().parent
ENV = {"PYTHONPATH": str(HERE.parent)}
WINDOW = 64
CALLS_IN_A_ROW = 1_000
CALLS_AT_ONCE = 5_000
INPUT = b'{"value":1}'
_RUN = "01890a5d-ac96-774b-bcce-b302099a8057"

Bare = Callable[[list[str], int, int], float]
"""Command, window, calls → calls per second."""


@dataclass(frozen=True)
class Bridge:
    """One row: a plugin of the configuration, and the bare client of the same server."""

    name: str
    plugin: dict[str, Any]
    bare: Bare
    component: str = "/step"


class Call:
    """A stand-in for the host's call. Implements the part of `backend.HostCall` that the bridges use here."""

    __slots__ = ("backend_state", "blobs", "ended", "input", "request", "settled")

    def __init__(self, component: str, ended: Callable[[], None]) -> None:
        ids: dict[str, Any] = {
            "run_id": "01890a5d-ac96-774b-bcce-b302099a8057",
            "flow_id": "f" * 64,
            "step_id": "s",
            "key": "k",
        }
        self.request = host_pb2.Call(component=component, attempt=1, **ids)
        self.input = INPUT
        self.settled = False
        self.backend_state: Any = None
        self.blobs: BlobAccess
        self.ended = ended

    def succeed(self, output: bytes) -> None:
        assert output == b'{"value":2}', output
        self.settled = True
        self.ended()

    def fail(self, failure: Failure) -> None:
        raise AssertionError(failure)


async def keep_full(backend: Backend, component: str, window: int, calls: int) -> tuple[float, float]:
    """Return the calls per second, and the CPU time of this process per call in microseconds."""
    done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    sent = ended = 0

    def send() -> None:
        nonlocal sent
        sent += 1
        backend.execute(Call(component, end))  # type: ignore[arg-type]  # a partial HostCall

    def end() -> None:
        nonlocal ended
        ended += 1
        if sent < calls:
            send()
        elif ended == calls:
            done.set_result(None)

    busy, started = time.process_time(), time.perf_counter()
    for _ in range(window):
        send()
    await done
    return calls / (time.perf_counter() - started), (time.process_time() - busy) / calls * 1e6


async def measure(bridge: Bridge, cases: list[tuple[int, int]]) -> list[tuple[float, float]]:
    """Return the result of `keep_full` for each case (window, calls), after a warm-up round."""
    tree = {"plugins": {"bench": bridge.plugin}, "routes": {"/bench": [{"plugin": "bench"}]}}
    backend = make_backend("bench", config_from_tree(tree, source="benchmark", base_dir=HERE), os.environ)
    await backend.start()
    try:
        await keep_full(backend, bridge.component, WINDOW, 500)
        return [await keep_full(backend, bridge.component, window, calls) for window, calls in cases]
    finally:
        await backend.close()


def bare_stdio(command: list[str], window: int, calls: int) -> float:
    """Measure a server on stdio."""
    return bare_calls_per_s(command, component="/step", window=window, calls=calls)


def bare_http(command: list[str], window: int, calls: int) -> float:
    """Measure a server over HTTP."""

    async def run() -> float:
        spec = ProcessSpec(
            plugin="bare", command=command[0], args=command[1:], env=ENV, inherit_env=False,
            working_directory=str(HERE), environ=os.environ,
        )  # fmt: skip
        server = ListeningProcess(spec, lambda: None)
        server.start()
        try:
            port = await server.announced()
            while True:
                try:
                    await bare_http_calls_per_s(port, component="/step", window=1, calls=100)
                    break
                except ConnectionRefusedError:
                    await asyncio.sleep(0.05)
            return await bare_http_calls_per_s(port, component="/step", window=window, calls=calls)
        finally:
            await server.stop(1.0)

    return uvloop.run(run())


def bare_pull(command: list[str], window: int, calls: int) -> float:
    """Measure a pull worker."""
    return bare_pull_calls_per_s(command, component="step", window=window, calls=calls)


def bridges() -> list[Bridge]:
    """Return the rows, those of the SDK first."""

    def stepflow(transport: str, python: str, script: str, *args: str) -> dict[str, Any]:
        arguments = [str(HERE / script), *args]
        return {"type": "stepflow", "transport": transport, "command": python, "args": arguments, "env": ENV}

    def pulling(python: str, script: str) -> dict[str, Any]:
        worker = {"command": python, "args": [str(HERE / script)], "env": ENV}
        return {"type": "grpc", "queueName": "bench", "concurrency": WINDOW, **worker}

    def venv(requirement: str, name: str) -> str:
        return str(server_venv([requirement], name) / "python")

    old = venv("stepflow-py[http]==0.7.0", "stepflow-py-http-0.7.0")
    late = venv("stepflow-py[http]==0.11.2", "stepflow-py-http-0.11.2")
    pulls = venv("stepflow-py==0.13.0", "stepflow-py-0.13.0")
    theirs = "stepflow_py_server.py"
    return [
        Bridge("SDK over stdio", stepflow("stdio", sys.executable, "echo_server.py"), bare_stdio),
        Bridge("SDK over HTTP", stepflow("http", sys.executable, "echo_server.py", "--http"), bare_http),
        Bridge("SDK over gRPC pull", pulling(sys.executable, "echo_server.py"), bare_pull),
        Bridge("stepflow-py 0.7.0 over stdio", stepflow("stdio", old, theirs), bare_stdio),
        Bridge("stepflow-py 0.7.0 over HTTP", stepflow("http", old, theirs, "--http", "{port}"), bare_http),
        Bridge("stepflow-py 0.11.2 over HTTP", stepflow("http", late, theirs), bare_http),
        Bridge("stepflow-py 0.13.0 over gRPC pull", pulling(pulls, "stepflow_py_worker.py"), bare_pull),
    ]


def main() -> None:
    """Print the figures, and the machine they were measured on."""
    scale = 5 if "--quick" in sys.argv[1:] else 1
    os.environ.update(ENV)
    cases = [(1, CALLS_IN_A_ROW // scale), (WINDOW, CALLS_AT_ONCE // scale)]
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
    columns = ("ms in a row", "bare", f"calls/s, {WINDOW} at once", "bare", "host CPU µs/call")
    print(f"  {'bridge':34}" + "".join(f"{column:>22}" for column in columns))
    for bridge in bridges():
        command = [bridge.plugin["command"], *bridge.plugin["args"]]
        measured = uvloop.run(measure(bridge, cases))
        bare = [bridge.bare(command, window, calls) for window, calls in cases]
        figures = (
            f"{1000 / measured[0][0]:.2f}",
            f"{1000 / bare[0]:.2f}",
            f"{measured[1][0]:,.0f}",
            f"{bare[1]:,.0f}",
            f"{measured[1][1]:.0f}",
        )
        print(f"  {bridge.name:34}" + "".join(f"{figure:>22}" for figure in figures), flush=True)


if __name__ == "__main__":
    main()
