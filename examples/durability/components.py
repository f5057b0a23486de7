"""A component that leaves a trace: every execution is a line in the file that LEDGER names."""

import os
import time
from pathlib import Path

from stepflow.component import Context, component, serve


@component
def work(task: str, ctx: Context) -> str:
    """Take half a second, and write down that it was really done."""
    with Path(os.environ["LEDGER"]).open("a", encoding="utf-8") as ledger:
        ledger.write(f"{task} (attempt {ctx.attempt})\n")
    time.sleep(0.5)
    return f"{task}: done"


if __name__ == "__main__":
    serve()
