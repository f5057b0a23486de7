"""The components of `kit_b.py` and a few more, on stepflow-py 0.12 and 0.13, whose workers pull over gRPC."""

import asyncio
import os
import time
from pathlib import Path
from typing import Any

from kit_b import server
from stepflow_py.worker import StepflowContext
from stepflow_py.worker.grpc_worker import run_grpc_worker

# stepflow-py's own examples name the parameter `input`; blocking a moment is harmless here


@server.component
def fail_typed(input: dict) -> dict:
    raise ConnectionError("no such service")


@server.component
def exit_with_success(input: dict) -> dict:
    """End as a worker does that gives up."""
    os._exit(0)


@server.component
def block_until(input: dict) -> dict:
    """Stop the event loop itself for a while, heartbeats included."""
    Path(input["entered"]).write_text(str(os.getpid()))
    while not Path(input["release"]).exists():
        time.sleep(0.005)
    return {"pid": os.getpid()}


@server.component
async def raw_blob(input: dict, context: StepflowContext) -> dict:
    blob_id = await context.put_blob(bytes(input["bytes"]), blob_type="binary")
    return {"blob_id": blob_id, "bytes": list(await context.get_blob(blob_id))}


@server.component
async def submit(input: dict, context: StepflowContext) -> Any:
    run = await context.submit_run(input["flow_id"], input["inputs"], wait=False)
    return await context.get_run(run["run_id"], wait=True, include_results=True)


if __name__ == "__main__":
    tasks_url, queue = os.environ["STEPFLOW_TASKS_URL"], os.environ["STEPFLOW_QUEUE_NAME"]
    asyncio.run(run_grpc_worker(server, tasks_url, queue, int(os.environ.get("STEPFLOW_MAX_CONCURRENT", "4"))))
