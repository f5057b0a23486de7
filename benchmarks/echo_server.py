"""The component server of the benchmarks: `step` takes `{value}` and returns it with one added, on the event loop.

With `--http` over HTTP, without it on stdio.
"""

import sys

from stepflow.component import component, serve


@component(inline=True)
def step(value: int) -> dict[str, int]:
    """Add one."""
    return {"value": value + 1}


if __name__ == "__main__":
    serve(http=True if "--http" in sys.argv else None)
