"""A server that records its executions, as independent evidence against the journals of a mesh.

The file named by `LEDGER` gets the lines `begin|end key attempt nanoseconds pid`, each in a single write. The output
of every component depends on its input alone.
"""

import asyncio
import os
import time
from typing import Any

from stepflow.component import ComponentError, Context, ResourceUnavailable, component, serve

LEDGER = os.open(os.environ["LEDGER"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

INNER = {
    "name": "inner",
    "steps": [
        {"id": "one", "component": "/ledger/add", "input": {"$input": "$"}},
        {"id": "two", "component": "/ledger/add", "input": {"value": {"$step": "one"}, "ms": {"$input": "ms"}}},
    ],
    "output": {"$step": "two"},
}


def note(what: str, ctx: Context) -> None:
    os.write(LEDGER, f"{what} {ctx.idempotency_key} {ctx.attempt} {time.time_ns()} {os.getpid()}\n".encode())


@component
async def add(ctx: Context, value: int, ms: float = 0, after: Any = None) -> int:
    """Add one, after a while."""
    note("begin", ctx)
    await asyncio.sleep(ms / 1000)
    note("end", ctx)
    return value + 1


@component
async def flaky(ctx: Context, value: int, failures: int, ms: float = 0) -> int:
    """Add one, but not at the first attempts."""
    note("begin", ctx)
    await asyncio.sleep(ms / 1000)
    note("end", ctx)
    if ctx.attempt <= failures:
        raise ResourceUnavailable("not yet")
    return value + 1


@component
async def widen(ctx: Context, value: int, size: int, text: str = "") -> dict[str, Any]:
    """Add one, and return a text so long that it does not fit into the journal."""
    note("begin", ctx)
    note("end", ctx)
    return {"value": value + 1, "text": "x" * size}


@component
async def refuse(ctx: Context) -> None:
    note("begin", ctx)
    note("end", ctx)
    raise ComponentError("always")


@component
async def delegate(ctx: Context, value: int, ms: float = 0) -> int:
    """Have two steps of a flow done on the way."""
    note("begin", ctx)
    result = await ctx.run_flow(INNER, {"value": value, "ms": ms})
    note("end", ctx)
    return int(result)


if os.environ.get("LEDGER_NEWER"):
    component("add_newer")(add)


if __name__ == "__main__":
    serve()
