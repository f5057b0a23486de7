"""Components that print and log."""

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

from stepflow.component import Context, component, serve


@component
def printing(input: dict, ctx: Context) -> str:
    print("printed", input["name"])
    print("to stderr", file=sys.stderr)
    print("without an end", end="")
    ctx.log.warning("warned")
    logging.getLogger("library").error("an error\nof two lines")
    logging.getLogger("library").debug("not at this level")
    return "done"


@component(inline=True)
def inline(input: dict) -> str:
    print("inline", input["name"])
    return "done"


@component
async def several(input: dict) -> str:
    for number in range(3):
        print(input["name"], number)
        await asyncio.sleep(0.01)
    await asyncio.to_thread(print, input["name"], "in a thread")
    return "done"


@component
def flood(input: dict) -> str:
    for number in range(input["lines"]):
        print("line", number)
    return "done"


@component
def elsewhere(input: dict) -> str:
    thread = threading.Thread(target=print, args=("of another thread",))
    thread.start()
    thread.join()
    subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
    return "done"


@component
def fails(input: dict) -> str:
    print("before the failure")
    raise ValueError("boom")


@component
def odd(input: dict) -> str:
    print("half \ud800 of a pair")
    print("x" * 10_000)
    sys.stdout.writelines(["two ", "parts\n"])
    sys.stdout.flush()
    return sys.stdout.encoding


@component
def gated(input: dict) -> str:
    """Print, and go on once a file exists."""
    print("waits for the gate")
    while not Path(input["gate"]).exists():
        time.sleep(0.01)
    print("has passed the gate")
    return "done"


@component
def told(input: dict) -> str:
    """Print what must not be shown, and fail."""
    print("the environment says", os.environ.get("SERVER_PASSWORD"))
    print("the input says", input["pw"])
    raise ValueError("told")


if __name__ == "__main__":
    serve(http="--http" in sys.argv)
