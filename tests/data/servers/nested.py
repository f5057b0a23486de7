"""A server whose components evaluate flows that call components of the same server.

In the folder `NESTED_FOLDER`, `ledger` gets a line `component key` at the start of each execution of `parent` and
`child`, which then wait for a file `parent` or `child`.
"""

import asyncio
import fcntl
import os
from pathlib import Path
from typing import Any

from stepflow.component import Context, component, serve

FOLDER = Path(os.environ["NESTED_FOLDER"])


async def pass_gate(ctx: Context, name: str) -> None:
    with (FOLDER / "ledger").open("a") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.write(f"{name} {ctx.idempotency_key}\n")
    while not (FOLDER / name).exists():  # noqa: ASYNC110  # another process makes it
        await asyncio.sleep(0.01)


def flow_of(component: str, value: Any) -> dict[str, Any]:
    step = {"id": "inner", "component": component, "input": value}
    return {"steps": [step], "output": {"$step": "inner"}}


@component
async def echo(input: Any) -> Any:  # the name that takes the whole input
    return input


@component
async def child(ctx: Context, value: Any) -> Any:
    await pass_gate(ctx, "child")
    return {"child of": value}


@component
async def parent(ctx: Context, component: str, value: Any) -> Any:
    await pass_gate(ctx, "parent")
    return await ctx.run_flow(flow_of(component, {"value": value}))


@component
def down(ctx: Context, component: str, levels: int) -> Any:
    """Call itself, through a flow, so many levels deep; each level waits in a thread."""
    if not levels:
        return 0
    flow = flow_of(component, {"component": component, "levels": levels - 1})
    return 1 + ctx.run_flow(flow).result()


@component
async def blob(ctx: Context, blob_id: str) -> Any:
    return await ctx.get_blob(blob_id)


if __name__ == "__main__":
    serve()
