"""The same component as `echo_server.py`, written for the stepflow-py package (run with its own interpreter)."""

import msgspec
from stepflow_py import StepflowStdioServer

server = StepflowStdioServer()


class StepInput(msgspec.Struct):
    value: int


class StepOutput(msgspec.Struct):
    value: int


@server.component
def step(input: StepInput) -> StepOutput:  # the package's convention
    return StepOutput(value=input.value + 1)


if __name__ == "__main__":
    server.run()
