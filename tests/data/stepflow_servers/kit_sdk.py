"""The components of `kit.py`, written with this project's SDK; over HTTP with `--http`, otherwise over stdio."""

import asyncio
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# ruff: noqa: ASYNC110, ASYNC240  # a file is what releases; blocking a moment is harmless here
from stepflow.component import ComponentError, Context, component, serve


@dataclass
class Sum:
    sum: int


@component
def add(a: int, b: int) -> Sum:
    """Add two integers."""
    return Sum(a + b)


@component
def echo(input: Any) -> Any:
    return input


@component
def big(size: int) -> dict[str, Any]:
    return {"text": "x" * size}


@component
def fail(text: str) -> None:
    raise ComponentError(text)


@component
def crash(last_words: str = "going down") -> None:
    print(last_words, file=sys.stderr, flush=True)
    os._exit(3)


@component
async def wait(entered: str, release: str, ctx: Context, value: Any = None) -> Any:
    """Say that it runs, report progress, and wait to be released; leave a note when that is cancelled."""
    Path(entered).write_text(str(os.getpid()))
    ctx.progress(1, 2, "half")
    try:
        while not Path(release).exists():
            await asyncio.sleep(0.005)
    except asyncio.CancelledError:
        Path(entered + ".cancelled").touch()
        raise
    return value


@component
async def blob_roundtrip(value: Any, ctx: Context) -> dict[str, Any]:
    blob_id = await ctx.put_blob(value)
    return {"blob_id": blob_id, "value": await ctx.get_blob(blob_id)}


@component
def blob_get(blob_id: str, ctx: Context) -> Any:
    return ctx.get_blob(blob_id).result()


@component
async def evaluate(flow: dict[str, Any], input: Any, ctx: Context) -> Any:
    return await ctx.run_flow(flow, input)


@component
async def batch(flow: dict[str, Any], inputs: list[Any], ctx: Context) -> list[Any]:
    return [result.value if result.ok else result.code for result in await ctx.run_flows(flow, inputs)]


if __name__ == "__main__":
    serve(http=True if "--http" in sys.argv else None)
