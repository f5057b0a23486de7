"""The component server of `benchmarks.live_runs`: `wait` returns when the file named by `GO_FILE` exists."""

import asyncio
import os
from pathlib import Path

from stepflow.component import component, serve

GO = Path(os.environ["GO_FILE"])


@component
async def wait(value: int) -> int:
    """Poll once a second, so that ten thousand calls do not load the machine."""
    while not GO.exists():  # noqa: ASYNC110, ASYNC240  # another process creates the file; the check takes a microsecond
        await asyncio.sleep(1)
    return value


if __name__ == "__main__":
    serve()
