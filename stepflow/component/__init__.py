"""The SDK for people who write components: a function, type hints, and `serve()`.

    from dataclasses import dataclass
    from stepflow.component import component, serve

    @dataclass
    class Person:
        name: str

    @component
    def greet(input: Person) -> str:
        \"\"\"Greet a person.\"\"\"
        return f"Hello, {input.name}!"

    if __name__ == "__main__":
        serve()

That file is a component server: `python server.py` speaks the StepFlow protocol on stdin and stdout, `--list` prints
its components, `--call greet` runs one on JSON from stdin. See `docs/how-to/write-components.md`.

What it promises:
- A decorated function stays an ordinary function.
- Every request is answered exactly once, whatever a component does; no component delays another one, unless its
  author said `inline=True`.
- Nothing but protocol lines leaves on the server's stdout; `print` goes to stderr.
- Importing it loads nothing heavy; pydantic is used only where the author's own types are pydantic's.

It knows no host: retries, timeouts, routes and durability are the engine's.
"""

from __future__ import annotations

from stepflow.component.context import (
    ComponentError,
    Context,
    FlowFailed,
    FlowResult,
    HostError,
    InvalidInput,
    Metadata,
    Reply,
    ResourceUnavailable,
)
from stepflow.component.registry import component
from stepflow.component.stdio import serve

__all__ = [
    "ComponentError",
    "Context",
    "FlowFailed",
    "FlowResult",
    "HostError",
    "InvalidInput",
    "Metadata",
    "Reply",
    "ResourceUnavailable",
    "component",
    "serve",
]
