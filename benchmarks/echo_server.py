"""The component server of the benchmarks: `step` returns `{value}` plus one, on the event loop.

Serves stdio, or HTTP with `--http`.
"""

import sys

from stepflow.component import component, serve


@component(inline=True)
def step(value: int) -> dict[str, int]:
    """Add one."""
    return {"value": value + 1}


if __name__ == "__main__":
    serve(http=True if "--http" in sys.argv else None)
