"""The components common to the kits of all generations of stepflow-py, in the API that none of them has changed."""

import asyncio
import os
import sys
from pathlib import Path
from typing import Any

# ruff: noqa: ASYNC240  # stepflow-py's own examples name the parameter `input`; blocking a moment is harmless here
import msgspec

try:
    from stepflow_py.worker import StepflowContext
except ImportError:  # up to 0.7
    from stepflow_py import StepflowContext


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


def add(input: AddInput) -> AddOutput:
    """Add two integers."""
    return AddOutput(input.a + input.b)


def echo(input: Any) -> Any:
    return input


def big(input: dict) -> dict:
    return {"text": "x" * input["size"]}


def fail(input: dict) -> dict:
    raise ValueError(input["text"])


def crash(input: dict) -> dict:
    print(input.get("last_words", "going down"), file=sys.stderr, flush=True)
    os._exit(3)


def block(input: dict) -> dict:
    """Stop the event loop itself."""
    Path(input["entered"]).write_text(str(os.getpid()))
    while True:
        pass


async def wait(input: Gate) -> Any:
    await pass_gate(input)
    return input.value


async def wait_with_context(input: Gate, context: StepflowContext) -> Any:
    await pass_gate(input)
    return input.value


async def blob_roundtrip(input: dict, context: StepflowContext) -> dict:
    blob_id = await context.put_blob(input["value"])
    return {"blob_id": blob_id, "value": await context.get_blob(blob_id)}


async def blob_get(input: dict, context: StepflowContext) -> Any:
    return await context.get_blob(input["blob_id"])


async def gated_blob(input: Gate, context: StepflowContext) -> str:
    await pass_gate(input)
    return await context.put_blob(input.value)


def share(server: Any) -> None:
    """Register the components above."""
    for function in (
        add,
        echo,
        big,
        fail,
        crash,
        block,
        wait,
        wait_with_context,
        blob_roundtrip,
        blob_get,
        gated_blob,
    ):
        server.component(function)
