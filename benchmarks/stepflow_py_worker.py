"""The same component as `echo_server.py`, for the stepflow-py whose workers pull (run with its own interpreter)."""

import asyncio
import os

import msgspec
from stepflow_py.worker import StepflowServer
from stepflow_py.worker.grpc_worker import run_grpc_worker

server = StepflowServer()


class StepInput(msgspec.Struct):
    value: int


class StepOutput(msgspec.Struct):
    value: int


@server.component
def step(input: StepInput) -> StepOutput:  # the package's convention
    return StepOutput(value=input.value + 1)


if __name__ == "__main__":
    environ = os.environ
    concurrency = int(environ["STEPFLOW_MAX_CONCURRENT"])
    asyncio.run(run_grpc_worker(server, environ["STEPFLOW_TASKS_URL"], environ["STEPFLOW_QUEUE_NAME"], concurrency))
