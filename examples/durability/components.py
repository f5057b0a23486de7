"""A component that records its executions: one line each in the file named by LEDGER."""

import os
import time
from pathlib import Path

from stepflow.component import Context, component, serve


@component
def work(task: str, ctx: Context) -> str:
    """Record the execution, then take half a second."""
    with Path(os.environ["LEDGER"]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{task} (attempt {ctx.attempt})\n")
    time.sleep(0.5)
    return f"{task}: done"


if __name__ == "__main__":
    serve()
