"""A server that records every execution and ends no more executions than the test allows.

Files in the folder `GATED_FOLDER`: `ledger` gets a line `key attempt` at the start of each execution; the n-th
execution ends once the number in `allowed` is at least n (without the file: at once); `cancelled` gets the key of each
execution that was cancelled while it waited.
"""

import fcntl
import os
import time
from pathlib import Path
from typing import Any

from stepflow.component import ComponentError, Context, ResourceUnavailable, component, serve

FOLDER = Path(os.environ["GATED_FOLDER"])


def pass_gate(ctx: Context) -> None:
    with (FOLDER / "ledger").open("a+") as ledger:
        fcntl.flock(ledger, fcntl.LOCK_EX)
        ledger.write(f"{ctx.idempotency_key} {ctx.attempt}\n")
        ledger.flush()
        ledger.seek(0)
        place = len(ledger.readlines())
    while not ctx.cancelled and place > allowed():
        time.sleep(0.002)
    if ctx.cancelled:
        with (FOLDER / "cancelled").open("a") as cancelled:
            cancelled.write(f"{ctx.idempotency_key}\n")


def allowed() -> float:
    try:
        return float((FOLDER / "allowed").read_text() or 0)
    except FileNotFoundError:
        return float("inf")


@component
def work(ctx: Context, input: Any) -> Any:  # the name that takes the whole input
    pass_gate(ctx)
    return {"of": input}


@component
def flaky(ctx: Context, value: Any) -> Any:
    """Succeed at the third attempt."""
    pass_gate(ctx)
    if ctx.attempt < 3:
        raise ResourceUnavailable("not yet")
    return {"of": value}


@component
def refuse(ctx: Context) -> Any:
    pass_gate(ctx)
    raise ComponentError("always")


if __name__ == "__main__":
    serve()
