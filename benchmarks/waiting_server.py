"""The component server of `benchmarks.live_runs`: `wait` answers when there is a file where `GO_FILE` says."""

import asyncio
import os
from pathlib import Path

from stepflow.component import component, serve

GO = Path(os.environ["GO_FILE"])


@component
async def wait(value: int) -> int:
    """Look once a second: ten thousand of them must not keep the machine busy."""
    while not GO.exists():  # noqa: ASYNC110, ASYNC240  # another process makes it; a microsecond
        await asyncio.sleep(1)
    return value


if __name__ == "__main__":
    serve()
