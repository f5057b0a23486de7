"""`greet` with stepflow-py: up to 0.7 over stdio, from 0.12 on as a worker that pulls."""

import asyncio
import os

from lookups import look_up

try:
    from stepflow_py import StepflowStdioServer as Server
except ImportError:
    from stepflow_py.worker import StepflowServer as Server

server = Server()


@server.component
def greet(input: dict) -> str:
    return look_up(input["name"])


if hasattr(server, "run"):
    server.run()
else:
    from stepflow_py.worker.grpc_worker import run_grpc_worker

    asyncio.run(run_grpc_worker(server, os.environ["STEPFLOW_TASKS_URL"], os.environ["STEPFLOW_QUEUE_NAME"], 4))
