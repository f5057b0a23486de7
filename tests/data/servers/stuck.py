"""A server whose sync components do not return, or return late, whatever the host says.

Started with `--old` it sends no notices of its queue, as earlier SDKs.
"""

import os
import sys
import time
from pathlib import Path

from stepflow.component import component, serve


@component
def hang(seconds: float) -> str:
    time.sleep(seconds)
    return "slept"


@component
def wait_for_file(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.005)
    return "found"


@component
def quick() -> int:
    return os.getpid()


@component
async def pid() -> int:
    return os.getpid()


if __name__ == "__main__":
    if "--old" in sys.argv:
        from stepflow.component import queue_notices

        sys.argv.remove("--old")
        queue_notices.QueueNotices.note_queued = lambda self, call: None  # type: ignore[method-assign]  # as before
    serve(http=True if "--http" in sys.argv else None)
