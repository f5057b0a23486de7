"""The components of `kit.py`, written against stepflow-py 0.9 to 0.11, which speak only HTTP."""

import asyncio
from typing import Any

import msgspec
from kit_shared import share
from stepflow_py.worker import StepflowContext, StepflowServer

server = StepflowServer()
share(server)


@server.component
async def big_after_asking(input: dict, context: StepflowContext) -> dict:
    await context.get_run(input["run_id"])
    return {"text": "x" * input["size"]}


@server.component
async def evaluate(input: dict, context: StepflowContext) -> Any:
    flow_id = await context.put_blob(input["flow"])
    return await context.evaluate_flow_by_id(flow_id, input["input"])


@server.component
async def evaluate_known(input: dict, context: StepflowContext) -> Any:
    """Ask for a flow that is stored already, so that no call-back comes before."""
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
