"""The components of `kit.py`, written against stepflow-py 0.9 to 0.11, which speak HTTP alone."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

# ruff: noqa: ASYNC240  # stepflow-py's own examples name the parameter `input`; blocking a moment is harmless here
import msgspec
from stepflow_py.worker import StepflowContext, StepflowServer

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
async def big_after_asking(input: dict, context: StepflowContext) -> dict:
    await context.get_run(input["run_id"])
    return {"text": "x" * input["size"]}


@server.component
def fail(input: dict) -> dict:
    raise ValueError(input["text"])


@server.component
def crash(input: dict) -> dict:
    print(input.get("last_words", "going down"), file=sys.stderr, flush=True)
    os._exit(3)


@server.component
def block(input: dict) -> dict:
    """Stop the event loop itself."""
    Path(input["entered"]).write_text(str(os.getpid()))
    while True:
        pass


@server.component
async def wait(input: Gate) -> Any:
    await pass_gate(input)
    return input.value


@server.component
async def wait_with_context(input: Gate, context: StepflowContext) -> Any:
    await pass_gate(input)
    return input.value


@server.component
async def blob_roundtrip(input: dict, context: StepflowContext) -> dict:
    blob_id = await context.put_blob(input["value"])
    return {"blob_id": blob_id, "value": await context.get_blob(blob_id)}


@server.component
async def blob_get(input: dict, context: StepflowContext) -> Any:
    return await context.get_blob(input["blob_id"])


class GatedBlob(msgspec.Struct):
    entered: str
    release: str
    value: Any


@server.component
async def gated_blob(input: GatedBlob, context: StepflowContext) -> str:
    await pass_gate(Gate(input.entered, input.release))
    return await context.put_blob(input.value)


@server.component
async def evaluate(input: dict, context: StepflowContext) -> Any:
    flow_id = await context.put_blob(input["flow"])
    return await context.evaluate_flow_by_id(flow_id, input["input"])


@server.component
async def evaluate_known(input: dict, context: StepflowContext) -> Any:
    """Ask for a flow that is stored already, so that no call-back comes before."""
    if "entered" in input:
        Path(input["entered"]).write_text(str(os.getpid()))
    return await context.evaluate_flow_by_id(input["flow_id"], input["input"])


@server.component
async def batch(input: dict, context: StepflowContext) -> Any:
    run = await context.submit_run_by_id(input["flow_id"], input["inputs"], wait=False, max_concurrency=2)
    return msgspec.to_builtins(await context.get_run(run.runId, wait=True, include_results=True))


@server.component(name="core/{*component}")
async def core(input: dict, context: StepflowContext, component: str) -> dict:
    return {"rest": component, "input": input}


if __name__ == "__main__":
    asyncio.run(server.run(host="127.0.0.1", port=0))
