"""The component of `echo_server.py`, written with stepflow-py. Run it with the interpreter of a venv with stepflow-py.

Up to 0.7 it serves stdio, or HTTP with `--http PORT`; from 0.9 on, HTTP only.
"""

import asyncio
import sys

import msgspec

try:
    from stepflow_py import StepflowStdioServer as Server
except ImportError:
    from stepflow_py.worker import StepflowServer as Server

server = Server()


class StepInput(msgspec.Struct):
    value: int


class StepOutput(msgspec.Struct):
    value: int


@server.component
def step(input: StepInput) -> StepOutput:  # a convention of stepflow-py
    return StepOutput(value=input.value + 1)


if __name__ == "__main__":
    if "--http" in sys.argv:
        from stepflow_py.http_server import StepflowHttpServer

        asyncio.run(StepflowHttpServer(server._server, host="127.0.0.1", port=int(sys.argv[-1])).run())
    else:
        running = server.run()
        if running is not None:  # later versions return a coroutine
            asyncio.run(running)
