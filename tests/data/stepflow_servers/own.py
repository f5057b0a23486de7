"""A component server for the tests, written with this project's SDK."""

import asyncio
import os
from pathlib import Path
from typing import Any

# ruff: noqa: ASYNC240  # blocking a moment is harmless here
from stepflow.component import Context, component, serve


@component
async def stalls(entered: str, ctx: Context) -> None:
    """Wait to be cancelled, and leave a note when that happens."""
    Path(entered).touch()
    try:
        await asyncio.sleep(60)
    finally:
        Path(entered + ".cancelled").write_text(str(os.getpid()))


@component("files/{*rest}")
async def files(value: Any, rest: str, ctx: Context) -> Any:
    """Report what the call brought along."""
    ctx.progress(1, 2, "half")
    return {"rest": rest, "value": value, "key": ctx.idempotency_key, "attempt": ctx.attempt}


@component
async def keep(value: Any, ctx: Context) -> str:
    """Store a value."""
    return await ctx.put_blob(value)


@component
async def kept(blob_id: str, ctx: Context) -> int:
    """Return the length of a stored text."""
    return len(await ctx.get_blob(blob_id))


@component
def picky(number: int) -> int:
    """Want a number."""
    return number


serve()
