"""The component server of the benchmarks: `step` returns `{value}` plus one, `echo` returns its input.

Serves stdio, or HTTP with `--http`.
"""

import sys

from stepflow.component import component, serve


@component(inline=True)
def step(value: int) -> dict[str, int]:
    """Add one."""
    return {"value": value + 1}


@component(inline=True)
def echo(value: str) -> dict[str, str]:
    """Return the value."""
    return {"value": value}


if __name__ == "__main__":
    serve(http=True if "--http" in sys.argv else None)
