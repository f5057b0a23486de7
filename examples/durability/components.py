"""A component with a record: every execution adds a line to the file named by LEDGER."""

import os
import time
from pathlib import Path

from stepflow.component import Context, component, serve


@component
def work(task: str, ctx: Context) -> str:
    """Take half a second, and record the execution."""
    with Path(os.environ["LEDGER"]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{task} (attempt {ctx.attempt})\n")
    time.sleep(0.5)
    return f"{task}: done"


if __name__ == "__main__":
    serve()
