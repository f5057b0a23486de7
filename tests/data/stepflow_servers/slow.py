"""A server with slow components, written with this project's SDK."""

import asyncio
import time

from stepflow.component import component, serve


@component
def blocking(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@component
async def waiting(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "waited"


serve()
