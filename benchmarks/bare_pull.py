"""The baseline of pull workers: a bare gRPC server that keeps a fixed number of tasks in flight."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from typing import TYPE_CHECKING, Any

import uvloop

from stepflow.pull import ORCHESTRATOR_SERVICE, TASKS_SERVICE
from stepflow.pull.v1 import pull_pb2 as pb
from stepflow.rpc.server import RpcServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def bare_pull_calls_per_s(command: list[str], *, component: str, window: int, calls: int) -> float:
    """Return the calls per second of one worker with `window` tasks in flight."""
    return uvloop.run(_measure(command, component, window, calls))


async def _measure(command: list[str], component: str, window: int, calls: int) -> float:
    host = _Host(component)
    address = await host.start()
    env = {
        **os.environ,
        "STEPFLOW_TRANSPORT": "grpc",
        "STEPFLOW_TASKS_URL": address,
        "STEPFLOW_QUEUE_NAME": "bench",
        "STEPFLOW_MAX_CONCURRENT": str(2 * window),
    }
    null = subprocess.DEVNULL
    process = await asyncio.create_subprocess_exec(*command, env=env, stdout=null, stderr=null)
    try:
        await host.keep_full(window, min(200, calls))  # warm-up
        started = time.perf_counter()
        await host.keep_full(window, calls)
        return calls / (time.perf_counter() - started)
    finally:
        process.kill()
        await process.wait()
        await host.stop()


class _Host:
    def __init__(self, component: str) -> None:
        self._tasks: asyncio.Queue[bytes] = asyncio.Queue()
        self._server = RpcServer()
        self._task = pb.TaskAssignment(heartbeat_interval_secs=60)
        self._task.execute.component_id = component
        self._task.execute.attempt = 1
        self._task.execute.input.struct_value.fields["value"].number_value = 1
        self._sent = self._unsent = self._left = 0
        self._all: asyncio.Future[None]

    async def start(self) -> str:
        import grpc

        unary, stream = grpc.unary_unary_rpc_method_handler, grpc.unary_stream_rpc_method_handler
        self._server.add_methods(TASKS_SERVICE, {"PullTasks": stream(self._pull)})
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "TaskHeartbeat": unary(self._heartbeat),
            "CompleteTask": unary(self._complete),
        }
        self._server.add_methods(ORCHESTRATOR_SERVICE, methods)
        address = await self._server.start("127.0.0.1:0")
        self._task.context.orchestrator_service_url = address
        return address

    async def stop(self) -> None:
        await self._server.stop()

    async def keep_full(self, window: int, calls: int) -> None:
        self._all = asyncio.get_running_loop().create_future()
        self._left = calls
        self._unsent = calls
        for _ in range(min(window, calls)):
            self._send()
        await self._all

    def _send(self) -> None:
        self._sent += 1
        self._unsent -= 1
        self._task.task_id = str(self._sent)
        self._tasks.put_nowait(self._task.SerializeToString())

    async def _pull(self, _: bytes, __: Any) -> AsyncIterator[bytes]:
        while True:
            yield await self._tasks.get()

    async def _heartbeat(self, _: bytes, __: Any) -> bytes:
        return pb.TaskHeartbeatResponse(status=pb.TASK_STATUS_IN_PROGRESS).SerializeToString()

    async def _complete(self, data: bytes, __: Any) -> bytes:
        done = pb.CompleteTaskRequest.FromString(data)
        assert done.response.output.struct_value.fields["value"].number_value == 2, done
        self._left -= 1
        if self._unsent:
            self._send()
        elif not self._left:
            self._all.set_result(None)
        return b""
