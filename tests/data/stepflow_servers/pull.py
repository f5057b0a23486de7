"""A component server for the tests, written against stepflow-py 0.12 and 0.13, whose workers pull over gRPC."""

import asyncio
import os
import sys
import time
from pathlib import Path
from typing import Any

# ruff: noqa: ASYNC240  # stepflow-py's own examples name the parameter `input`; blocking a moment is harmless here
import msgspec
from stepflow_py.worker import StepflowContext, StepflowServer
from stepflow_py.worker.grpc_worker import run_grpc_worker

server = StepflowServer()


class AddInput(msgspec.Struct):
    a: int
    b: int


class AddOutput(msgspec.Struct):
    sum: int


class Gate(msgspec.Struct):
    """The component says that it runs by writing `entered`, and ends when `release` exists."""

    entered: str
    release: str
    value: Any = None


async def pass_gate(gate: Gate) -> None:
    Path(gate.entered).write_text(str(os.getpid()))
    for _ in range(6_000):
        if Path(gate.release).exists():
            return
        await asyncio.sleep(0.005)
    raise TimeoutError(gate.release)


@server.component
def add(input: AddInput) -> AddOutput:
    """Add two integers."""
    return AddOutput(input.a + input.b)


@server.component
def echo(input: Any) -> Any:
    return input


@server.component
def big(input: dict) -> dict:
    return {"text": "x" * input["size"]}


@server.component
def deep(input: dict) -> Any:
    value: Any = 0
    for _ in range(input["levels"]):
        value = [value]
    return value


@server.component
def fail(input: dict) -> dict:
    raise ValueError(input["text"])


@server.component
def fail_typed(input: dict) -> dict:
    raise ConnectionError("no such service")


@server.component
def crash(input: dict) -> dict:
    print(input.get("last_words", "going down"), file=sys.stderr, flush=True)
    os._exit(input.get("code", 3))


@server.component
def block(input: dict) -> dict:
    """Stop the event loop itself for a while, heartbeats included."""
    Path(input["entered"]).write_text(str(os.getpid()))
    while not Path(input["release"]).exists():
        time.sleep(0.005)
    return {"pid": os.getpid()}


@server.component
async def wait(input: Gate) -> Any:
    await pass_gate(input)
    return input.value


@server.component
def environment(input: dict) -> dict:
    return dict(os.environ)


@server.component(name="core/{*component}")
def core(input: dict, component: str) -> dict:
    return {"component": component, "input": input}


@server.component
async def blob_roundtrip(input: dict, context: StepflowContext) -> dict:
    blob_id = await context.put_blob(input["value"])
    return {"blob_id": blob_id, "value": await context.get_blob(blob_id)}


@server.component
async def raw_blob(input: dict, context: StepflowContext) -> dict:
    blob_id = await context.put_blob(bytes(input["bytes"]), blob_type="binary")
    return {"blob_id": blob_id, "bytes": list(await context.get_blob(blob_id))}


@server.component
async def blob_get(input: dict, context: StepflowContext) -> Any:
    return await context.get_blob(input["blob_id"])


@server.component
async def evaluate(input: dict, context: StepflowContext) -> Any:
    return await context.evaluate_flow(input["flow"], input["input"])


@server.component
async def submit(input: dict, context: StepflowContext) -> Any:
    run = await context.submit_run(input["flow_id"], input["inputs"], wait=False)
    return await context.get_run(run["run_id"], wait=True, include_results=True)


if __name__ == "__main__":
    tasks_url, queue = os.environ["STEPFLOW_TASKS_URL"], os.environ["STEPFLOW_QUEUE_NAME"]
    asyncio.run(run_grpc_worker(server, tasks_url, queue, int(os.environ.get("STEPFLOW_MAX_CONCURRENT", "4"))))
