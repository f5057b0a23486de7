"""A component server for the tests, written against stepflow-py; runs on every version from 0.2.1 to 0.7.0.

With `--http PORT` it speaks HTTP, without it stdio.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

# ruff: noqa: ASYNC240  # stepflow-py's own examples name the parameter `input`; blocking a moment is harmless here
import msgspec
from stepflow_py import StepflowContext, StepflowStdioServer

server = StepflowStdioServer()


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
def noisy(input: dict) -> dict:
    print("a line that is no message")
    print('{"neither": "is this"}')
    print(42)
    print("and this one has no end", end="", flush=True)
    return {"printed": True}


@server.component
async def wait(input: Gate) -> Any:
    await pass_gate(input)
    return input.value


@server.component
def environment(input: dict) -> dict:
    return dict(os.environ)


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
    if not hasattr(context, "evaluate_flow_by_id"):  # up to 0.2.4 the flow itself travels
        return await context.evaluate_flow(input["flow"], input["input"])
    flow_id = await context.put_blob(input["flow"])
    return await context.evaluate_flow_by_id(flow_id, input["input"])


@server.component
async def batch(input: dict, context: StepflowContext) -> Any:
    batch_id = await context.submit_batch_by_id(input["flow_id"], input["inputs"])
    details, outputs = await context.get_batch(batch_id, wait=True, include_results=True)
    return {
        "details": msgspec.to_builtins(details),
        "outputs": [msgspec.to_builtins(output) for output in outputs],
    }


@server.component
async def metadata(input: dict, context: StepflowContext) -> dict:
    return await context.get_metadata(input["step_id"])


@server.component
def skip(input: dict) -> dict:
    from stepflow_py import SkipStep

    raise SkipStep("not today")


if __name__ == "__main__":
    if "--tracing" in sys.argv:
        from opentelemetry import trace
        from opentelemetry.sdk.trace import TracerProvider

        trace.set_tracer_provider(TracerProvider())  # spans of its own, as with an exporter
    if "--grandchild" in sys.argv:
        import subprocess

        sleeper = subprocess.Popen(["/bin/sleep", "300"])
        Path(sys.argv[-1]).write_text(str(sleeper.pid))
    if "--http" in sys.argv:
        from stepflow_py.http_server import StepflowHttpServer

        port = int(sys.argv[sys.argv.index("--http") + 1])
        asyncio.run(StepflowHttpServer(server._server, host="127.0.0.1", port=port).run())
    else:
        server.run()
