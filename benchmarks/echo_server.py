"""The component server of the benchmarks: `step` takes `{value}` and returns it with one added, on the event loop."""

from stepflow.component import component, serve


@component(inline=True)
def step(value: int) -> dict[str, int]:
    """Add one."""
    return {"value": value + 1}


if __name__ == "__main__":
    serve()
