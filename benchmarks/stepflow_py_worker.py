"""The server of `stepflow_py_server.py` as a pull worker of stepflow-py 0.12 and 0.13."""

import asyncio
import os

from stepflow_py.worker.grpc_worker import run_grpc_worker
from stepflow_py_server import server

if __name__ == "__main__":
    environ = os.environ
    concurrency = int(environ["STEPFLOW_MAX_CONCURRENT"])
    asyncio.run(run_grpc_worker(server, environ["STEPFLOW_TASKS_URL"], environ["STEPFLOW_QUEUE_NAME"], concurrency))
