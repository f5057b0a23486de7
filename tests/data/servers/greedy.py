"""A server that allocates memory and opens files on request, and reports its limits."""

import os
import resource
from contextlib import ExitStack
from pathlib import Path

from stepflow.component import component, serve


@component
def limits() -> dict[str, int]:
    return {
        "memory": resource.getrlimit(resource.RLIMIT_AS)[1],
        "files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "pid": os.getpid(),
    }


@component
def take_memory(count: int) -> int:
    return len(bytearray(count))


@component
def take_files(count: int) -> int:
    with ExitStack() as files:
        for _ in range(count):
            files.enter_context(Path(os.devnull).open())
    return count


if __name__ == "__main__":
    serve()
