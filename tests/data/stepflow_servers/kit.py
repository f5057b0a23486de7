"""A component server for the tests, written against stepflow-py; runs on every version from 0.2.1 to 0.7.0.

Speaks HTTP with `--http PORT`, otherwise stdio.
"""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

import msgspec
from kit_shared import share
from stepflow_py import StepflowContext, StepflowStdioServer

server = StepflowStdioServer()
share(server)


@server.component
def noisy(input: dict) -> dict:
    print("a line that is no message")
    print('{"neither": "is this"}')
    print(42)
    print("and this one has no end", end="", flush=True)
    return {"printed": True}


@server.component
def environment(input: dict) -> dict:
    return dict(os.environ)


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
