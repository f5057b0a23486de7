"""The component server of the benchmarks: `step` returns `{value}` plus one, `echo` its input, `answer` a long text.

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


@component(inline=True)
def answer(value: int, size: int) -> dict[str, str]:
    """Return a text of `size` characters, which differs from value to value."""
    words = f"{value:x} "
    return {"text": (words * (size // len(words) + 1))[:size]}


if __name__ == "__main__":
    serve(http=True if "--http" in sys.argv else None)
